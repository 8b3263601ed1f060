"""Dictionaries by sparse coding: codes of a minibatch are found exactly, directions follow them, and so on through the states.

A `Learner` takes states as they come, scaled already, and cuts them into minibatches, which do not depend on how they came; what it knows is
named tensors, and a learner that is given them goes on as if nothing had been. `PAPER` is the source work to the letter. Shuffling states and
counting tokens is the business of who reads them, the step of the directions that of `updates`, autoencoders that are trained by gradients
belong elsewhere.

Source: Yun et al. 2021, arXiv:2103.15949, section 2 and its code; Olshausen and Field 1997, doi:10.1016/S0042-6989(97)00169-7, on sparse coding.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from microtome.core import Refusal, Site, State
from microtome.factors.aims import Aimed, Fixed, paper_codes, penalty_for
from microtome.factors.coding import Lasso, coded, refitted, steepness
from microtome.factors.dictionary import Dictionary
from microtome.factors.frequency import Weighting, weights_of
from microtome.factors.scaling import Scaling
from microtome.factors.updates import Mairal, Minibatch, Newton, Update

__all__ = [
    "PAPER",
    "Judged",
    "Learner",
    "Learning",
    "Learnt",
    "Look",
    "Replacement",
    "States",
    "judged",
    "learn",
    "paper_sites",
]

States = tuple[Float[Tensor, "_ d_model"], Int[Tensor, " _"] | None]
"""Scaled states, and the token of each (needed for weights by frequency only); batches may differ in length."""

_LOOK: Final = 16
"""Minibatches that a line of the record is about."""
_SAMPLE: Final = 256
"""States whose codes decide about a penalty; a pass does not learn from them."""
_DENSE: Final = 0.75
"""The share of the most factors that a code can need above which it is not called sparse."""
_SEARCHES: Final = frozenset({0, *(4**power for power in range(1, 20))})
"""Minibatches before which a penalty is sought: directions change less and less."""
_NOISE: Final = 0.05
"""How long the random part of a direction is that begins as a state: states that are the same must not stay so."""


@dataclass(frozen=True)
class Replacement:
    """A direction that none of the last `after` states used becomes what is left over of a state, drawn by its squared length."""

    after: int = 10_000


@dataclass(frozen=True)
class Learning:
    """How a dictionary is learnt: how many directions, how states are coded, how directions follow.

    `start` is normal numbers, or the first states; `leftover` says what becomes of the last states, fewer than a
    minibatch. Shuffled states and large minibatches are faster, not other.
    Errors: `Refusal` for no direction, minibatch or pass, and for the paper's weights with Mairal's update.
    """

    units: int
    codes: Lasso | Aimed | Fixed
    update: Update = Mairal()
    weighting: Weighting = "none"
    minibatch: int = 1024
    passes: int = 1
    replacement: Replacement | None = Replacement()
    start: Literal["states", "normal"] = "states"
    leftover: Literal["used", "dropped"] = "used"
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.units, self.minibatch, self.passes) < 1:
            why = "units, minibatch and passes are not all above 0"
            raise Refusal(f"{self}", why=why, instead="give positive numbers")
        if self.weighting == "paper" and isinstance(self.update, Mairal):
            why = "the paper's weights are on the gradient and not on the curvature, which here are one"
            raise Refusal("weighting 'paper' with Mairal's update", why=why, instead="weigh consistently, or step by Newton")


PAPER: Final = Learning(
    units=2000,
    codes=Fixed(0.23, 500),
    update=Newton(rate=1e-3, memory=300.0, damping=5e-3, halving=float("inf"), correction="none"),
    weighting="paper",
    minibatch=100,
    passes=2,
    replacement=None,
    start="normal",
    leftover="dropped",
)
"""The source work to the letter, with the penalty and number of its shipped dictionaries; for states as they are (no scaling) of `paper_sites`.

Kept with it: weights are on the rest in the gradient only, and not normalised; curvature is a running mean from 0 without a correction; the
largest eigenvalue is computed anew for each minibatch; 500 steps from 0, converged or not; a direction that is never used stays what it was; both
passes read states in the order given, unshuffled, and the last, fewer than 100, are dropped. Normal numbers come from the seed, which the source
work does not set. Its steps are so short that it takes a million minibatches.
"""


def paper_sites(layers: int) -> tuple[Site, ...]:
    """The hidden states that the source work pools: what enters every second block, from the embeddings on; what leaves the last is not used."""
    return tuple(Site("resid_pre", layer) for layer in range(0, layers, 2))


@dataclass(frozen=True)
class Look:
    """Some minibatches together.

    States so far, the penalty, factors in a code on average, the share of the variance that codes explain, |x|^2 over |rest|^2 (what the source
    work prints), and how many directions were replaced so far.
    """

    rows: int
    penalty: float
    l0: float
    explained: float
    signal_to_noise: float
    replaced: int


@dataclass(frozen=True, eq=False)
class Learnt:
    """Directions of length 1, the penalty for them, and how learning went: `unused` counts directions that none of the last states used."""

    directions: Float[Tensor, "unit d_model"]
    penalty: float
    rows: int
    unused: int
    record: tuple[Look, ...]
    settings: Learning

    def dictionary(self, name: str, reads: tuple[Site, ...], scaling: Scaling, model: str = "") -> Dictionary:
        """A dictionary shared by these sites, whose codes are the lasso's; `scaling` is what the states were scaled by."""
        last = self.record[-1]
        told: dict[str, str | int | float] = {
            "by": f"sparse coding, {self.settings}",
            "rows": self.rows,
            "seed": self.settings.seed,
            "l0": last.l0,
            "explained": last.explained,
            "unused": self.unused,
        }
        nothing, own = torch.zeros_like(self.directions[:1]), self.directions[None]
        return Dictionary(name, "shared", reads, reads, Lasso(self.penalty), scaling, own, nothing, model=model, learnt=told)


def learn(batches: Iterable[States], settings: Learning, counts: Int64[Tensor, " vocab"] | None = None) -> Learnt:
    """Directions of which the states of all batches are sparse sums. Several passes need batches that can be read again: a list, say.

    Errors: `Refusal` for several passes over an iterator, and those of `Learner`.
    Cost: a minibatch's codes (see `coded`), and `settings.update`.
    """
    if settings.passes > 1 and isinstance(batches, Iterator):
        why = "what gives them can be read once"
        raise Refusal(f"{settings.passes} passes over the states", why=why, instead="give a list, or ask for one pass")
    learner = Learner(settings, counts)
    for _ in range(settings.passes):
        for states, ids in batches:
            learner.feed(states, ids)
    return learner.finish()


class Learner:
    """Learning as far as it has come. `feed` it states, `finish` it; `state` can be saved, and a learner of the same settings go on from it.

    Errors: `Refusal` for weights by frequency without counts.
    """

    def __init__(self, settings: Learning, counts: Int64[Tensor, " vocab"] | None = None) -> None:
        self.settings = settings
        self._weights = weights_of(settings.weighting, counts)
        self._update = settings.update
        self._apart = settings.units if settings.start == "states" else 0
        self._held = _SAMPLE if isinstance(settings.codes, Aimed) else 0
        self._generator = torch.Generator().manual_seed(settings.seed)
        self._at: State = {"rows": torch.zeros((), dtype=torch.int64), "record": torch.zeros(0, 6, dtype=torch.float64)}
        self._kept: State = {}

    @property
    def rows(self) -> int:
        """States that were fed so far: where to go on after `restore`."""
        return int(self._at["rows"])

    def feed(self, states: Float[Tensor, "row d_model"], ids: Int[Tensor, " row"] | None = None) -> None:
        """Take states, and learn from as many whole minibatches as there are.

        Errors: `Refusal` for states that are not finite, all the same, or of another width than before; for weights without ids; and for a
        penalty at which no state has a code, or no code is sparse.
        """
        wide = states.detach().to(torch.promote_types(states.dtype, torch.float32))
        pending = self._at.get("pending")
        if pending is not None and wide.shape[1] != pending.shape[1]:
            why = f"they have {wide.shape[1]} numbers each, and those before {pending.shape[1]}"
            raise Refusal("states to learn from", why=why, instead="learn from sites of one width")
        if not bool(torch.isfinite(wide).all()):
            raise Refusal("states to learn from", why="some are not finite", instead="leave such rows out")
        weight = self._weights_at(ids, wide)
        self._at["rows"] += len(wide)
        self._at["pending"] = wide if pending is None else torch.cat((pending, wide))
        self._at["pending_weight"] = weight if pending is None else torch.cat((self._at["pending_weight"], weight))
        if "directions" not in self._at:
            if len(self._at["pending"]) < self.settings.minibatch + self._apart + self._held:
                return
            self._begin()
        self._take_whole()

    def finish(self) -> Learnt:
        """What was learnt of all states.

        Errors: `Refusal` for fewer states than directions.
        """
        if self.rows < self.settings.units:
            why = f"there are {self.rows} states"
            raise Refusal(f"{self.settings.units} directions", why=why, instead="give more text, or learn fewer directions")
        if "directions" not in self._at:
            self._begin()
        left = self._take_whole()
        if left and (self.settings.leftover == "used" or not int(self._at["steps"])):
            self._take(left)
        if int(self._at["looked"]):
            self._look()
        if isinstance(self.settings.codes, Aimed):
            self._at["penalty"].fill_(penalty_for(self._at["directions"], self._at["sample"], self.settings.codes))
        record = tuple(
            Look(int(rows), penalty, l0, explained, ratio, int(replaced))
            for rows, penalty, l0, explained, ratio, replaced in self._at["record"].tolist()
        )
        unused = int((self._at["idle"] > 0).sum())
        return Learnt(self._at["directions"].clone(), float(self._at["penalty"]), self.rows, unused, record, self.settings)

    def state(self) -> State:
        """All that later states need to know: named tensors, to be saved as they are."""
        here = {name: tensor.clone() for name, tensor in self._at.items()}
        kept = {f"update.{name}": tensor.clone() for name, tensor in self._kept.items()}
        return here | kept | {"generator": self._generator.get_state()}

    def restore(self, state: State) -> None:
        """Go on from there, bit for bit as the learner would have that the state is of, given the states after the first `rows`."""
        own = {name: tensor.clone() for name, tensor in state.items()}
        self._generator.set_state(own.pop("generator").cpu())
        self._kept = {name.removeprefix("update."): own.pop(name) for name in list(own) if name.startswith("update.")}
        self._at = own

    def _weights_at(self, ids: Tensor | None, states: Tensor) -> Float[Tensor, " row"]:
        if self._weights is None:
            return torch.ones_like(states[:, 0])
        if ids is None:
            why = "the tokens of the states are not given"
            raise Refusal(f"weighting {self.settings.weighting!r}", why=why, instead="give their ids, or weighting 'none'")
        return self._weights.to(states)[ids.to(states.device).long()]

    def _begin(self) -> None:
        """The first directions."""
        units, first = self.settings.units, self._at["pending"]
        own, later = torch.arange(len(first)).tensor_split([self._apart])
        # codes of states that directions begin as, or were fitted to, are sparser than others': penalties are sought where nothing is learnt
        held, later = later.tensor_split([min(self._held, len(later) // 2)])
        self._at["sample"] = first[(held if len(held) else own[: self._held]).to(first.device)]
        order = torch.cat((later[: self.settings.minibatch], own, later[self.settings.minibatch :])).to(first.device)
        for name in ("pending", "pending_weight"):
            self._at[name] = self._at[name][order]
        if bool((first[: max(self.settings.minibatch, units)] == first[0]).all()):
            raise Refusal("states to learn from", why="the first ones are all the same", instead="give states that differ")
        drawn = torch.randn(units, first.shape[1], generator=self._generator, dtype=torch.float64).to(first)
        if self.settings.start == "states":
            own = torch.nn.functional.normalize(first[:units], dim=1)
            drawn = own + torch.nn.functional.normalize(drawn, dim=1) * torch.where(own.any(1, keepdim=True), _NOISE, 1.0)
        directions = torch.nn.functional.normalize(drawn, dim=1)
        self._kept = self._update.begin(directions)
        penalty = 0.0 if isinstance(self.settings.codes, Aimed) else self.settings.codes.penalty
        self._at |= {
            "directions": directions,
            "idle": torch.zeros(units, dtype=torch.int64, device=first.device),
            "penalty": torch.tensor(penalty, dtype=torch.float64),
            **{name: torch.zeros((), dtype=torch.int64) for name in ("steps", "looked", "replaced")},
            "sums": first.new_zeros(4 + first.shape[1], dtype=torch.float64),
        }

    def _take_whole(self) -> int:
        """Learn from as many whole minibatches as there are; how many states are left."""
        while len(self._at["pending"]) >= self.settings.minibatch:
            self._take(self.settings.minibatch)
        return len(self._at["pending"])

    def _take(self, rows: int) -> None:
        """Learn from the next rows."""
        x, weight = self._at["pending"][:rows], self._at["pending_weight"][:rows]
        self._at["pending"], self._at["pending_weight"] = self._at["pending"][rows:], self._at["pending_weight"][rows:]
        codes, first = self._coded(x), int(self._at["steps"]) == 0
        if first and not bool(codes.any()):
            why = f"no state has a code: none lies along a direction by more than {float((x @ self._at['directions'].T).max()):.3g}"
            instead = "give a smaller one, or aim at a number of factors"
            raise Refusal(f"a penalty of {float(self._at['penalty']):.3g}", why=why, instead=instead)
        rest = x - codes @ self._at["directions"]
        self._at["steps"] += 1
        self._count(x, codes, rest)
        curvature_weight = torch.ones_like(weight) if self.settings.weighting == "paper" else weight
        seen = Minibatch(x, codes, rest, weight, curvature_weight)
        self._at["directions"] = self._update.advance(self._at["directions"], self._kept, seen)
        used = codes.any(0)
        self._at["idle"] = torch.where(used, 0, self._at["idle"] + rows)
        if self.settings.replacement is not None:
            self._replace(rest, self.settings.replacement)
        if int(self._at["looked"]) == _LOOK:
            self._look()

    def _coded(self, x: Tensor) -> Tensor:
        directions, codes = self._at["directions"], self.settings.codes
        if isinstance(codes, Fixed):
            return paper_codes(directions, x, codes)
        if isinstance(codes, Aimed):
            if int(self._at["steps"]) in _SEARCHES:
                self._at["penalty"].fill_(penalty_for(directions, self._at["sample"], codes))
            codes = Lasso(float(self._at["penalty"]), codes.tolerance, codes.steps)
        return coded(directions, x, codes).values

    def _replace(self, rest: Tensor, rule: Replacement) -> None:
        lost = (self._at["idle"] >= rule.after).nonzero()[:, 0]
        square = rest.square().sum(1).double().cpu()
        number = min(len(lost), int((square > 0).sum()))
        if not number:
            return
        lost = lost[:number]
        rows = torch.multinomial(square, number, generator=self._generator).to(rest.device)
        self._at["directions"][lost] = torch.nn.functional.normalize(rest[rows], dim=1)
        self._at["idle"][lost] = 0
        self._at["replaced"] += number
        self._update.forget(self._kept, lost)

    def _count(self, x: Tensor, codes: Tensor, rest: Tensor) -> None:
        of = [torch.tensor(float(len(x))), (codes > 0).sum(), x.double().square().sum(), rest.double().square().sum()]
        self._at["sums"] += torch.cat((torch.stack([each.to(self._at["sums"]) for each in of]), x.double().sum(0)))
        self._at["looked"] += 1

    def _look(self) -> None:
        """A line of the record, and nothing counted any more."""
        rows, l0, square, rest = self._at["sums"][:4].tolist()
        most = min(self._at["directions"].shape)
        if not len(self._at["record"]) and l0 / rows > _DENSE * most:
            why = f"a code has {l0 / rows:.1f} factors, of {most} that it can need at most"
            instead = "give a larger one, or aim at a number of factors"
            raise Refusal(f"a penalty of {float(self._at['penalty']):.3g}", why=why, instead=instead)
        variance = square - float(self._at["sums"][4:].square().sum()) / rows
        done = self.rows - len(self._at["pending"])
        line = [done, float(self._at["penalty"]), l0 / rows, _share(rest, variance), square / max(rest, 1e-300)]
        line = torch.tensor([[*line, float(self._at["replaced"])]], dtype=torch.float64)
        self._at["record"] = torch.cat((self._at["record"], line))
        self._at["sums"].zero_()
        self._at["looked"].zero_()


def _share(rest: float, variance: float) -> float:
    return 1 - rest / variance if variance > 0 else 0.0


@dataclass(frozen=True)
class Judged:
    """What codes of states that nothing was learnt from keep of them: 1 - sum |x - x^|^2 / sum |x - mean|^2 over all, as coded and refitted."""

    rows: int
    l0: float
    explained: float
    explained_refitted: float
    unused: int


def judged(directions: Float[Tensor, "unit d_model"], batches: Iterable[Float[Tensor, "_ d_model"]], settings: Lasso) -> Judged:
    """How well directions code states of a text that was kept apart.

    Errors: `Refusal` for no states, or states that are all the same.
    """
    sums, used, steep = (
        torch.zeros(5, dtype=torch.float64),
        torch.zeros(len(directions), dtype=torch.bool),
        steepness(directions),
    )
    total = torch.zeros(directions.shape[1], dtype=torch.float64)
    for x in batches:
        codes = coded(directions, x, settings, steep=steep).values
        rests = [(x - each @ directions).double().square().sum().cpu() for each in (codes, refitted(directions, x, codes))]
        sums += torch.stack([torch.tensor(float(len(x))), (codes > 0).sum().cpu(), x.double().square().sum().cpu(), *rests])
        total += x.double().sum(0).cpu()
        used |= codes.any(0).cpu()
    rows, l0, square, rest, refit = sums.tolist()
    variance = square - float(total.square().sum()) / max(rows, 1)
    if not variance > 1e-12 * square:
        raise Refusal("states to judge by", why="there are none, or all are the same", instead="give states that differ")
    return Judged(int(rows), l0 / rows, _share(rest, variance), _share(refit, variance), int((~used).sum()))
