"""The tuned lens: what a layer knows of the model's answer, read through an affine map that was trained to say it.

    h' = h + h A + b        loss: KL(the model's own distribution || that of h' read through the last norm and the head)

A starts at 0, so that training starts at the logit lens. Early layers write in other coordinates than the head reads; the map undoes that
and knows nothing else. Taking the states is `readout.sample`'s business, losses of states as they are `readout.losses`'; how a build keeps
what it has learned is said in `tuned`.

Axes of this module: `rank` is the inner one of two factors of A, `other` counts the rows that a row is compared with.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microtome.core import Refusal, Site
from microtome.model import Model, final_norm, unembed
from microtome.numerics import bootstrap_interval, hash_parts
from microtome.readout import LayerLoss, Tokens, layer_loss
from microtome.store.schemas import TABLES
from microtome.vocabulary.findings import SHUFFLED, Row

__all__ = [
    "REGRESSED",
    "Divergence",
    "Lensed",
    "Training",
    "Translator",
    "compare_lenses",
    "divergence",
    "head_of",
    "lens_findings",
    "lens_rows",
    "train_translator",
    "train_translators",
]

Logits = Callable[[Float[Tensor, "row d_model"]], Float[Tensor, "row vocab"]]
"""Of states as they leave a layer: the model's last norm, then its head."""
_OTHER: Final = "another token's distribution"
_ROWS: Final = 128
_CHECKED: Final = 0.2
"""Share of the training documents that do not train and say when to stop."""
_RIDGES: Final = {"identity": (math.inf,), "regression": (math.inf, 1.0, 0.1, 0.01)}
"""Where training may begin: see `Training.start`. Standardised inputs, so that 1 is as much as a coordinate's own variance."""


@dataclass(frozen=True)
class Training:
    """How translators are trained: Adam with a rate that falls to zero, in `steps` batches of `batch` tokens.

    `rank` bounds that of A; None is full, 0 trains the shift b alone, which knows frequencies and nothing of the token. `rate` is in
    units of the natural size of entries: 1 / sqrt(d_model) for A on states that are standardised by coordinate, 1 for b. What is kept is the best of `checks`
    moments by the loss on documents that did not train, the start included: where training does not help, the logit lens stays.
    `start` is where it begins: at the logit lens, or at the ridge regression of the last layer's states on the site's (the best of some
    ridges, if it is better than the logit lens), which costs no logits and is worth many steps.
    """

    steps: int = 100
    batch: int = 64
    rank: int | None = None
    rate: float = 0.05
    checks: int = 10
    start: Literal["identity", "regression"] = "identity"
    seed: int = 0


REGRESSED: Final = Training(start="regression", rate=0.005)
"""For few tokens and little time: of SmolLM2's layer 15, 18.1 nats from the model, 476 tokens make 2.4; from the logit lens 3.8 at best."""


@dataclass(frozen=True, eq=False)
class Translator:
    """h' = h + h into @ onto + shift, at a site. A of full rank has `onto` None and is `into`."""

    site: Site
    into: Float[Tensor, "d_model rank"]
    onto: Float[Tensor, "rank d_model"] | None
    shift: Float[Tensor, " d_model"]

    def __call__(self, states: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """States of the site as the head reads them, in float32."""
        h = states.float()
        into, shift = self.into.to(h), self.shift.to(h)
        change = h @ into if self.onto is None else h @ into @ self.onto.to(h)
        return h + change + shift


def head_of(model: Model) -> Logits:
    """How a model reads the states that leave its last layer."""

    def logits(states: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
        return unembed(model, final_norm(model, states.to(model.device, model.dtype)[None]))[0]

    return logits


def train_translators(
    samples: Sequence[Tokens], discover: Bool[Tensor, " row"], logits: Logits, training: Training | None = None
) -> Iterator[Translator]:
    """A translator for each sample but the last, which holds the same tokens at the last layer, trained on the tokens of `discover`.

    Cost: 6 d_model vocab FLOP per token, step and layer; memory for a batch of logits and, per layer in turn, four times A.
    Source: Belrose et al. 2023, arXiv:2303.08112, section 3.
    """
    *early, last = samples
    for sample in early:
        yield train_translator(sample, last, discover, logits, training)


def train_translator(
    sample: Tokens, last: Tokens, discover: Bool[Tensor, " row"], logits: Logits, training: Training | None = None
) -> Translator:
    """The translator of one site. Deterministic in its inputs and the seed. Errors: `Refusal` where fewer than two tokens train."""
    how = training or Training()
    assert torch.equal(sample.hash, last.hash), "samples of the same tokens"
    trains, checks = _parted(sample, discover, how.seed)
    if not len(trains) or not len(checks):
        why = f"{int(discover.sum())} tokens cannot be parted into some that train and some that say when to stop"
        raise Refusal(f"a tuned lens of {sample.site}", why=why, instead="sample more tokens, or name a longer text")
    states, targets = sample.values.float(), last.values.float()

    def checked(translator: Translator) -> float:
        return _mean_divergence(states[checks], targets[checks], logits, translator)

    starts = [_Fitted(states[trains], targets[trains], how, ridge) for ridge in _RIDGES[how.start]]
    fitted = min(starts, key=lambda each: checked(each.translator(sample.site))) if len(starts) > 1 else starts[0]
    generator = torch.Generator().manual_seed(int(hash_parts(how.seed, sample.site.layer or 0)) % (1 << 62))
    optimiser = torch.optim.Adam([{"params": [each], "size": size} for each, size in fitted.parameters], lr=1.0)
    every, best, kept = max(1, math.ceil(how.steps / how.checks)), math.inf, fitted.translator(sample.site)
    order = torch.empty(0, dtype=torch.int64)
    for step in range(how.steps + 1):
        if step % every == 0 or step == how.steps:
            now = fitted.translator(sample.site)
            loss = checked(now)
            if loss < best:
                best, kept = loss, now
        if step == how.steps:
            return kept
        if len(order) < min(how.batch, len(trains)):
            order = torch.cat([order, trains[torch.randperm(len(trains), generator=generator)]])
        rows, order = order[: how.batch], order[how.batch :]
        for group in optimiser.param_groups:
            group["lr"] = how.rate * group["size"] * (1 - step / how.steps)
        optimiser.zero_grad()
        with torch.enable_grad():
            loss = _divergences(logits(fitted.read(states[rows])), _log_shares(logits, targets[rows])).mean()
        loss.backward()
        optimiser.step()
    raise AssertionError("the last step returns")


class _Fitted:
    """A translator in the coordinates in which it is trained: inputs standardised, outputs in units of the last layer's spread."""

    def __init__(
        self, states: Float[Tensor, "row d_model"], targets: Float[Tensor, "row d_model"], how: Training, ridge: float
    ) -> None:
        width = states.shape[1]
        self.mean, self.spread = states.mean(0), states.std(0, correction=0).clamp(min=1e-6)
        self.unit = targets.std(0, correction=0).clamp(min=1e-6)
        whole, shift = self._regressed(states, (targets - states) / self.unit, ridge)
        self.shift = shift.requires_grad_()
        rank = width if how.rank is None else min(how.rank, width)
        self.onto = None
        if rank == width:
            self.into = whole.requires_grad_()
        elif rank == 0:
            self.into = torch.zeros(width, width)
        elif ridge == math.inf:
            self.into = torch.randn(width, rank, generator=torch.Generator().manual_seed(how.seed)) / width**0.5
            self.into, self.onto = self.into.requires_grad_(), torch.zeros(rank, width, requires_grad=True)
        else:
            left, values, right = torch.linalg.svd(whole)
            self.into = (left[:, :rank] * values[:rank].sqrt()).requires_grad_()
            self.onto = (right[:rank] * values[:rank, None].sqrt()).requires_grad_()
        every = ((self.into, width**-0.5), (self.onto, max(rank, 1) ** -0.5), (self.shift, 1.0))
        self.parameters = [(each, size) for each, size in every if each is not None and each.requires_grad]

    def _regressed(
        self, states: Float[Tensor, "row d_model"], change: Float[Tensor, "row d_model"], ridge: float
    ) -> tuple[Float[Tensor, "d_model d_model"], Float[Tensor, " d_model"]]:
        """The map and shift that give `change` with least squares, `ridge` on the map's; an infinite one is the logit lens."""
        width = states.shape[1]
        if ridge == math.inf:
            return torch.zeros(width, width), torch.zeros(width)
        x, mean = ((states - self.mean) / self.spread).double(), change.double().mean(0)
        second = x.T @ x + ridge * len(x) * torch.eye(width, dtype=torch.float64)
        return torch.linalg.solve(second, x.T @ (change.double() - mean)).float(), mean.float()

    def read(self, states: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
        """States as the head is to read them."""
        change = (states - self.mean) / self.spread @ self.into
        return states + ((change if self.onto is None else change @ self.onto) + self.shift) * self.unit

    def translator(self, site: Site) -> Translator:
        """As a map of plain coordinates."""
        into = (self.into / self.spread[:, None]).detach()
        onto = None if self.onto is None else (self.onto * self.unit).detach().clone()
        if onto is None:
            into = into * self.unit
        moved = self.mean @ into if onto is None else self.mean @ into @ onto
        return Translator(site, into, onto, (self.shift * self.unit).detach() - moved)


@dataclass(frozen=True)
class Divergence:
    """KL(model || lens) in nats per token; `other` is that from the distributions that the model has for other tokens."""

    mean: float
    low: float | None
    high: float | None
    other: float


@dataclass(frozen=True)
class Lensed:
    """A site read as it is and through its translator, on tokens that did not train it.

    `gain` is how much nearer the translator is to the model's answer, with its interval over documents.
    """

    site: Site
    loss: LayerLoss
    tuned_loss: LayerLoss
    kl: Divergence
    tuned_kl: Divergence
    gain: Divergence


def compare_lenses(
    samples: Sequence[Tokens], confirm: Bool[Tensor, " row"], logits: Logits, translators: Sequence[Translator]
) -> list[Lensed]:
    """Both lenses at each translator's site, on the tokens of `confirm`; the last of `samples` is that of the last layer.

    Errors: `Refusal` where no token is of that half. Cost: 8 d_model vocab FLOP per token and layer.
    """
    if not bool(confirm.any()):
        raise Refusal("the tuned lens", why="no token is in the confirm half", instead="name a text of at least two documents")
    by_site, last = {sample.site: _part(sample, confirm) for sample in samples}, _part(samples[-1], confirm)
    found = []
    for each in translators:
        plain = by_site[each.site]
        tuned = replace(plain, values=each(plain.values))
        (kl, one), (tuned_kl, two) = (divergence(sample, last, logits) for sample in (plain, tuned))
        low, high = _interval(one - two, plain.document)
        gain = Divergence(float((one - two).mean()), low, high, kl.other - tuned_kl.other)
        found.append(Lensed(each.site, layer_loss(plain, logits), layer_loss(tuned, logits), kl, tuned_kl, gain))
    return found


def divergence(sample: Tokens, last: Tokens, logits: Logits) -> tuple[Divergence, Float[Tensor, " row"]]:
    """KL of the model's distributions from those of a site's states, and by token.

    The control is the mean over other tokens: rows are taken in the order of their hashes, `other` those of the same block of 128.
    """
    order = sample.hash.argsort(stable=True)
    own, others = torch.zeros(len(order), dtype=torch.float64), []
    for rows in order.split(_ROWS):
        with torch.inference_mode():
            says, knows = _log_shares(logits, sample.values[rows]), _log_shares(logits, last.values[rows])
            shares = knows.exp()
            crossed = ((shares * knows).sum(1)[:, None] - shares @ says.T).double().cpu()
        own[rows] = crossed.diagonal()
        if len(rows) > 1:
            others.append((crossed.sum() - crossed.trace()) / (len(rows) - 1))
    low, high = _interval(own, sample.document)
    paired = sum(len(rows) for rows in order.split(_ROWS) if len(rows) > 1)
    other = float(sum(others, torch.zeros(())) / paired) if paired else math.nan
    return Divergence(float(own.mean()), low, high, other), own


def lens_rows(found: Sequence[Lensed], objective: str, run: str) -> pa.Table:
    """Rows of `layer_loss`, all of the confirm half: `OBJECTIVE_confirm` and `OBJECTIVE_tuned`, `kl_model` and `kl_model_tuned`.

    `kl_gain` is how much the translator takes off, which for distributions of other tokens is the control.
    """
    rows: list[dict[str, object]] = []
    for each in found:
        place = {"run": run, "site": str(each.site), "layer": each.site.layer, "tokens": each.loss.tokens}
        for name, loss in ((f"{objective}_confirm", each.loss), (f"{objective}_tuned", each.tuned_loss)):
            beside = {"control": loss.control, "control_kind": SHUFFLED, "lo": loss.low, "hi": loss.high}
            rows.append({**place, "objective": name, "loss": loss.loss, **beside})
        for name, kl in (("kl_model", each.kl), ("kl_model_tuned", each.tuned_kl), ("kl_gain", each.gain)):
            beside = {"control": kl.other, "control_kind": _OTHER, "lo": kl.low, "hi": kl.high}
            rows.append({**place, "objective": name, "loss": kl.mean, **beside})
    spec = TABLES["layer_loss"]
    rows.sort(key=lambda row: tuple(str(row[name]) for name in spec.key))
    return pa.Table.from_pylist(rows, spec.schema)


def lens_findings(found: Sequence[Lensed]) -> list[Row]:
    """The layer that a translator helps most, if it does in all documents drawn anew, and in how many layers it does."""
    helped = [each for each in found if each.gain.low is not None and each.gain.low > 0]
    if not helped:
        return []
    most = max(helped, key=lambda each: each.gain.mean)
    sentence = (
        f"read through a trained affine map, {most.site} is {most.tuned_kl.mean:.2f} nats from the model's own answer instead of "
        f"{most.kl.mean:.2f} (the map takes off {most.gain.mean:.2f}, 95 % of documents drawn anew {most.gain.low:.2f} to "
        f"{most.gain.high:.2f}; from answers to other tokens {most.gain.other:.2f}); it helps in {len(helped)} of {len(found)} layers"
    )
    return [
        {"kind": "tuned lens", "subject": str(most.site), "sentence": sentence, "value": most.tuned_kl.mean,
         "control": most.kl.mean, "control_kind": "the state as it is", "q": None}
    ]  # fmt: skip


def _parted(sample: Tokens, discover: Bool[Tensor, " row"], seed: int) -> tuple[Int[Tensor, " train"], Int[Tensor, " check"]]:
    """Rows that train and rows that say when to stop: of other documents, or where there is but one, other tokens."""
    mine = discover.nonzero()[:, 0]
    documents, owner = sample.document[mine].unique(return_inverse=True)
    unit = hash_parts(seed, documents)[owner] if len(documents) > 1 else hash_parts(seed, sample.hash[mine])
    ranked = unit.unique()
    held = torch.isin(unit, ranked[: max(1, round(_CHECKED * len(ranked)))])
    return mine[~held], mine[held]


def _log_shares(logits: Logits, states: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
    with torch.no_grad():
        return logits(states).float().log_softmax(1)


def _divergences(scores: Float[Tensor, "row vocab"], knows: Float[Tensor, "row vocab"]) -> Float[Tensor, " row"]:
    """KL of each row."""
    return (knows.exp() * (knows - scores.float().log_softmax(1))).sum(1)


def _mean_divergence(
    states: Float[Tensor, "row d_model"], targets: Float[Tensor, "row d_model"], logits: Logits, translator: Translator
) -> float:
    total = 0.0
    with torch.no_grad():
        for rows, wanted in zip(states.split(_ROWS), targets.split(_ROWS), strict=True):
            total += float(_divergences(logits(translator(rows)), _log_shares(logits, wanted)).double().sum())
    return total / len(states)


def _interval(values: Float[Tensor, " row"], document: Int[Tensor, " row"]) -> tuple[float | None, float | None]:
    """Of the mean at 95 %, whole documents drawn anew."""
    names, owner = document.unique(return_inverse=True)
    if len(names) < 2:
        return None, None
    sums = torch.zeros(len(names), dtype=torch.float64).index_add_(0, owner, values.double())
    low, high = bootstrap_interval(sums, owner.bincount().double())
    return float(low), float(high)


def _part(sample: Tokens, rows: Bool[Tensor, " row"]) -> Tokens:
    """Some rows of a sample."""
    return Tokens(sample.site, **{name: tensor[rows] for name, tensor in vars(sample).items() if name != "site"})
