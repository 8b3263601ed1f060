"""Training of sparse autoencoders: many from one pass over the states, each by its own recipe, and a run that can be stopped and taken up again.

Batches are scaled states; where they come from, and in which order, belongs to the caller, and so does what to do with what is learnt. The same
batches, settings and seed give the same parameters bit for bit, on the same machine with as many threads, and so does a run that was saved,
restored and given the batches that were left. Where the autoencoders are of a `Mesh` of several ranks, each rank is given its own rows of a batch,
and takes the step that one process would take with all of them, but for rounding. Additional axes: `place` as in `dictionary`; `mark` counts the
points of a curve.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Refusal
from microtome.factors.autoencoder import REPLICATED, Autoencoder, Loss
from microtome.factors.mesh import ALONE, joined, length_of, rows_at, sum_gradients

__all__ = ["Point", "Trained", "Trainer", "Training", "train"]

_LONG: Final = 30_000
"""Steps of a run for which recipes' learning rates are meant."""
_FASTER: Final = 8.0
"""By how much short runs may learn faster."""
_RESAMPLED: Final = (1 / 8, 1 / 4, 3 / 8, 1 / 2)
"""When units are resampled, as shares of a run: 25,000, 50,000, 75,000 and 100,000 steps of 200,000."""


@dataclass(frozen=True)
class Training:
    """How to train; None: as the variant's recipe and the run's length say.

    Without `rate`, recipes' rates hold for 30,000 steps, and shorter runs of n steps learn sqrt(30,000 / n) times faster, 8 times at most. The rate
    grows over `warm_up` of the run, 1,000 steps at most, and falls to 0 over its last `decay`. A unit is dead that did not fire for `dead_after` rows:
    a twentieth of the run's, 10 million at most. `average`: the decay of a running mean of parameters, which then is the result.
    Source: Gao et al. 2024, arXiv:2406.04093, appendix A, on rates, dead units, clipping and averages; Bricken et al. 2023,
    transformer-circuits.pub/2023/monosemantic-features, appendix on training, on resampling and on gradients parallel to directions.
    Errors: `Refusal` for fewer steps or rows than one.
    """

    steps: int
    batch: int = 2048
    rate: float | None = None
    betas: tuple[float, float] | None = None
    warm_up: float = 0.05
    decay: float = 0.2
    sparsity_warm_up: float | None = None
    clip: float = 1.0
    auxiliary: float = 1 / 32
    dead_after: int | None = None
    average: float | None = None
    marks: int = 100

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or self.marks < 1:
            raise Refusal(f"training of {self.steps} steps", why="there is nothing to learn from", instead="give more states")

    def rate_of(self, recipe_rate: float) -> float:
        """The learning rate between warm-up and decay."""
        return recipe_rate * min(_FASTER, max(1.0, math.sqrt(_LONG / self.steps))) if self.rate is None else self.rate

    def share_of_rate(self, step: int) -> float:
        """What of the learning rate is due at a step, counted from 0."""
        warm = min(1000, round(self.warm_up * self.steps))
        falling = max(1.0, self.decay * self.steps)
        return min(1.0, (step + 1) / (warm + 1), (self.steps - step) / falling)

    @property
    def dead_rows(self) -> int:
        """Rows without firing after which a unit is dead."""
        return min(10_000_000, max(self.batch, self.steps * self.batch // 20)) if self.dead_after is None else self.dead_after

    @property
    def memory(self) -> float:
        """Decay of the running mean of smallest codes: over a twentieth of the run, 1,000 steps at most."""
        return 1 - 1 / min(1000.0, max(1.0, self.steps / 20))


@dataclass(frozen=True)
class Point:
    """A point of a training curve: of the batch of that step, before the step was taken. `dead` is the share of dead units."""

    step: int
    loss: float
    explained: float
    codes: float
    dead: float
    auxiliary: float


@dataclass(frozen=True, eq=False)
class Trained:
    """What was learnt, and how it went."""

    autoencoder: Autoencoder
    curve: tuple[Point, ...]


class _Course:
    """The training of one autoencoder."""

    def __init__(self, autoencoder: Autoencoder, settings: Training, seed: int) -> None:
        self.autoencoder, self.settings, self.seed = autoencoder, settings, seed
        self.mesh = autoencoder.mesh
        recipe = autoencoder.recipe
        self.rate = settings.rate_of(recipe.rate)
        self.warm = recipe.warm if settings.sparsity_warm_up is None else settings.sparsity_warm_up
        self.learnt = {name: each for name, each in autoencoder.named_parameters() if each.requires_grad}
        self.adam = torch.optim.Adam(
            self.learnt.values(), lr=self.rate, betas=settings.betas or recipe.betas, eps=recipe.eps, fused=True
        )
        device = autoencoder.bias.device
        self.silent = torch.zeros(len(autoencoder.bias), dtype=torch.int64, device=device)
        self.mean = {} if settings.average is None else {name: each.detach().clone() for name, each in self.learnt.items()}
        self.curve: list[Point] = []

    def step(self, x: Float[Tensor, "row place d_model"], step: int) -> None:
        """One step of Adam."""
        if step == 0:
            self.autoencoder.begin(x)
            self.mean = {name: self.learnt[name].detach().clone() for name in self.mean}
        settings, dead = self.settings, self.silent >= self.settings.dead_rows
        warmth = min(1.0, step / (self.warm * settings.steps)) if self.warm else 1.0
        loss = self.autoencoder.loss(x, warmth=warmth, dead=dead, auxiliary=settings.auxiliary)
        if step % max(1, settings.steps // settings.marks) == 0 or step == settings.steps - 1:
            share = float(self.mesh.mean(dead.float(), "units"))
            self.curve.append(
                Point(step, float(loss.total.detach()), loss.explained, float(loss.count), share, float(loss.auxiliary))
            )
        self.adam.zero_grad()
        loss.total.backward()
        sum_gradients(self.mesh, self.learnt.values())
        self._follow(step)
        self.silent = torch.where(loss.fired, 0, self.silent + loss.rows)
        self.autoencoder.remember(loss.smallest, settings.memory)
        if self.autoencoder.recipe.revived == "resampling" and step in {round(at * settings.steps) for at in _RESAMPLED}:
            self._resample(x, loss, step)
        if settings.average is not None:
            decay = min(settings.average, (step + 1) / (step + 10))
            for name, mean in self.mean.items():
                mean.lerp_(self.learnt[name].detach(), 1 - decay)

    @torch.no_grad()
    def _follow(self, step: int) -> None:
        """Clip, take the step, and keep directions of fixed length."""
        directions = self.autoencoder.directions
        fixed = self.autoencoder.recipe.directions == "fixed"
        if fixed and directions.grad is not None:
            flat, grad = directions.flatten(1), directions.grad.flatten(1)
            grad.addcmul_(torch.linalg.vecdot(grad, flat)[:, None], flat, value=-1)
        grads = {name: each.grad for name, each in self.learnt.items() if each.grad is not None}
        torch.nn.utils.clip_grads_with_norm_(self.learnt.values(), self.settings.clip, length_of(self.mesh, grads, REPLICATED))
        self.adam.param_groups[0]["lr"] = self.rate * self.settings.share_of_rate(step)
        self.adam.step()
        if fixed:
            _to_length_one(directions)

    @torch.no_grad()
    def _resample(self, x: Tensor, loss: Loss, step: int) -> None:
        """Dead units get directions of inputs that are badly made, drawn by their squared errors; their encoders begin small, and Adam anew."""
        autoencoder, mesh = self.autoencoder, self.mesh
        dead = (self.silent >= self.settings.dead_rows).nonzero()[:, 0]
        there = mesh.count(len(dead), "units")
        weight = joined(mesh, loss.rest.square().sum(1).double().square(), "rows")
        if not there or not bool(weight.sum() > 0) or there == autoencoder.units:
            return
        generator = torch.Generator().manual_seed(hash((self.seed, step)))
        row = torch.multinomial(weight.cpu(), there, replacement=True, generator=generator).to(x.device)
        first = mesh.before(len(dead), "units")
        taken = rows_at(mesh, x, row[first : first + len(dead)])
        wanted = taken[:, -1:] if autoencoder.arrangement == "transcoder" else taken
        seen = taken[:, :1] if autoencoder.arrangement == "transcoder" else taken
        alive = torch.ones(len(self.silent), dtype=torch.bool, device=x.device).index_fill_(0, dead, value=False)
        length = 0.2 * mesh.mean(autoencoder.encoder[alive].flatten(1).norm(dim=1), "units")
        autoencoder.directions[dead] = _of_length_one(wanted - autoencoder.offset)
        shift = autoencoder.offset if autoencoder.arrangement == "shared" else 0
        autoencoder.encoder[dead] = length * _of_length_one(seen - shift)
        autoencoder.bias[dead] = 0
        for parameter in (autoencoder.directions, autoencoder.encoder, autoencoder.bias):
            for moment in ("exp_avg", "exp_avg_sq"):
                self.adam.state[parameter][moment][dead] = 0
        self.silent[dead] = 0

    @torch.no_grad()
    def finished(self) -> Trained:
        """With the running means as parameters, if they were kept."""
        for name, mean in self.mean.items():
            self.learnt[name].copy_(mean)
        if self.mean and self.autoencoder.recipe.directions == "fixed":
            _to_length_one(self.autoencoder.directions)
        return Trained(self.autoencoder, tuple(self.curve))

    def _moments(self, parameter: Tensor) -> dict[str, Tensor]:
        """What Adam remembers, or will begin with."""
        if held := self.adam.state.get(parameter):
            return held
        return {"step": torch.zeros(()), "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on."""
        found = {f"autoencoder.{name}": value for name, value in self.autoencoder.state_dict().items()}
        for name, parameter in self.learnt.items():
            found |= {f"adam.{what}.{name}": value for what, value in self._moments(parameter).items()}
        found |= {f"mean.{name}": value for name, value in self.mean.items()}
        found["silent"] = self.silent
        found["curve"] = torch.tensor([list(asdict(point).values()) for point in self.curve], dtype=torch.float64).view(-1, 6)
        return {name: value.detach().clone().contiguous() for name, value in found.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        device = self.silent.device
        within = {name.removeprefix("autoencoder."): value for name, value in state.items() if name.startswith("autoencoder.")}
        self.autoencoder.load_state_dict(within)
        for name, parameter in self.learnt.items():
            moments = {what: state.get(f"adam.{what}.{name}") for what in ("step", "exp_avg", "exp_avg_sq")}
            self.adam.state[parameter] = {what: each.to(device).clone() for what, each in moments.items() if each is not None}
        self.mean = {name: state[f"mean.{name}"].to(device).clone() for name in self.mean}
        self.silent = state["silent"].to(device).clone()
        self.curve = [Point(int(row[0]), *row[1:]) for row in state["curve"].tolist()]


def _of_length_one(x: Float[Tensor, "unit place d_model"]) -> Float[Tensor, "unit place d_model"]:
    return x / x.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None]


@torch.no_grad()
def _to_length_one(directions: Tensor) -> None:
    directions.div_(directions.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None])


class Trainer:
    """The training of many autoencoders at once, a batch at a time; `train` is the whole of it.

    `state` and `restore` stop and go on: names to tensors, as safetensors keeps them.
    """

    def __init__(self, autoencoders: Sequence[Autoencoder], settings: Training, seed: int = 0) -> None:
        self.settings, self.done = settings, 0
        self.mesh = autoencoders[0].mesh if autoencoders else ALONE
        self._courses = [_Course(each, settings, seed + number) for number, each in enumerate(autoencoders)]

    def step(self, x: Float[Tensor, "row place d_model"]) -> None:
        """One step of every autoencoder by the same batch.

        Errors: `Refusal` for states that are not finite, and after the last step.
        """
        if self.done >= self.settings.steps:
            raise Refusal("another step", why=f"the run has {self.settings.steps}", instead="make settings of more steps")
        if not bool(self.mesh.reduced(torch.isfinite(x).all().byte(), "all", "min")):
            raise Refusal("states to learn from", why="some are not finite", instead="leave such rows out")
        for course in self._courses:
            course.step(x, self.done)
        self.done += 1

    @property
    def latest(self) -> tuple[Point, ...]:
        """The last point of every curve."""
        return tuple(course.curve[-1] for course in self._courses if course.curve)

    def finished(self) -> list[Trained]:
        """What was learnt. No step is taken after."""
        return [course.finished() for course in self._courses]

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on, beside settings, seed and batches."""
        found = {
            f"{number}.{name}": each for number, course in enumerate(self._courses) for name, each in course.state().items()
        }
        return found | {"done": torch.tensor(self.done)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state of a run with the same autoencoders, settings and seed.

        Errors: `Refusal` for a state of other autoencoders.
        """
        for number, course in enumerate(self._courses):
            begin = f"{number}."
            part = {name.removeprefix(begin): value for name, value in state.items() if name.startswith(begin)}
            held = {name.removeprefix("autoencoder.") for name in part if name.startswith("autoencoder.")}
            if held != set(course.autoencoder.state_dict()):
                raise Refusal("state of a training run", why="it is of other autoencoders", instead="begin anew")
            course.restore(part)
        self.done = int(state["done"])


def train(
    autoencoders: Sequence[Autoencoder],
    batches: Iterable[Float[Tensor, "row place d_model"]],
    settings: Training,
    seed: int = 0,
    progress: Callable[[int, tuple[Point, ...]], None] | None = None,
) -> list[Trained]:
    """Train autoencoders on the same batches, in one pass: each as if it were alone. They are changed in place.

    `progress` hears after each step how many were taken, and the last point of every curve. Batches beyond `settings.steps` are not asked for.
    Errors: `Refusal` for fewer batches than steps, and for states that are not finite or of another shape.
    Cost: a step of each costs one product 2 row width unit FLOP for variants that choose a number of codes, and sparse ones.
    """
    trainer = Trainer(autoencoders, settings, seed)
    source: Iterator[Tensor] = islice(iter(batches), settings.steps)
    for x in source:
        trainer.step(x)
        if progress is not None:
            progress(trainer.done, trainer.latest)
    if trainer.done < settings.steps:
        why = f"there were {trainer.done} batches for {settings.steps} steps"
        raise Refusal("training", why=why, instead="give more states, or settings of fewer steps")
    return trainer.finished()
