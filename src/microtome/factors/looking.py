"""How far a dictionary's factors look, and at which tokens: reach and saliency of shown contexts, as rows and sentences.

High factors are those that are strongest in the last third of the model and need more than 16 tokens of context; the source work chose them by hand.
How reach and saliency are measured is in modules of these names; here is of which factors, and at how many contexts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from microtome.core import Batch, Half, Refusal
from microtome.corpus import Corpus
from microtome.examples import Contexts
from microtome.examples.findings import Finding
from microtome.examples.said import Said
from microtome.factors.basis import Factors
from microtome.factors.importance import PAPER, Profile
from microtome.factors.reach import (
    FAR,
    WIDTHS,
    Reach,
    Recovery,
    Targets,
    codes_at,
    reach,
    recovered,
    shuffled,
    top_targets,
    truncated,
)
from microtome.factors.rows import OTHER_HALF, by_place, undefined_rows
from microtome.factors.saliency import Attribution, Faithful, Occlusion, asked, faithful, stand_in
from microtome.model import Model
from microtome.store import rows_of

__all__ = ["Looking", "looked", "tokens_looked_at"]

_TESTED: Final = 128
"""Deep factors whose reach is tested, those of largest importance."""
_CONTEXTS: Final = 3
"""Contexts of each and half."""
_COLOURED: Final = 8
"""Factors of which a context is coloured by saliency: the high ones of largest importance, then other deep ones."""
_SPAN: Final = 4
"""Tokens that are taken away together: with single ones, others stand in for them."""
_POINTS: Final = 9
_GAIN: Final = 1.25
"""By how much a whole code must be above that without context for it to be asked what is owed to which token."""
_DRAWS: Final = 3
_WITHIN: Final = WIDTHS.index(FAR)
_OTHER_ORDER: Final = "the same 16 tokens in another order"


@dataclass(frozen=True, eq=False)
class _Coloured:
    """Weights of the tokens before (and behind) a context's token, and what they are worth."""

    unit: int
    site: str
    window: int
    position: int
    tokens: list[int]
    attribution: Attribution
    worth: Faithful


def _of_context(found: _Coloured, area: float) -> float:
    """An area under shares of the whole code, as a share of what the context adds to what is there without it."""
    nothing = found.attribution.nothing / found.attribution.whole
    return (area - nothing) / (1 - nothing)


@dataclass(frozen=True, eq=False)
class Looking:
    """Reach of the factors that were tested, and contexts that are coloured by saliency.

    `reach` is that of the confirm half, `other` of the discover half, `disordered` what is left of codes when the context is in another order;
    `why` says why there are no coloured contexts.
    """

    units: Int[Tensor, " unit"]
    reach: Reach
    other: Reach
    disordered: Float64[Tensor, " unit"]
    coloured: Sequence[_Coloured]
    why: str
    deep: bool

    @property
    def _far(self) -> Bool[Tensor, " unit"]:
        """Tested factors that need more than 16 tokens by either half."""
        return self.reach.high & self.other.high

    def high(self, units: int) -> Bool[Tensor, " all"]:
        """Of all factors those that were tested and need more than 16 tokens by either half."""
        found = torch.zeros(units, dtype=torch.bool)
        found[self.units[self._far]] = True
        return found

    def said(self, bases: Sequence[Factors], peak: Int[Tensor, " unit"], run: str) -> Said:
        """Rows of `unit_stats` and of `saliencies`, and what they come to."""
        name = f"factors@{bases[0].dictionary.name}"
        rows, count = [], bases[0].units
        if len(self.units):
            width, again = (torch.minimum(each.width, each.room) for each in (self.reach, self.other))
            for stat, values, control, kind in (
                ("reach", width, again, OTHER_HALF),
                (f"share_within_{FAR}", self.reach.share[:, _WITHIN], self.disordered, _OTHER_ORDER),
            ):
                columns = {"control": self._spread(control, count)}
                rows += by_place(bases, peak, stat, self._spread(values, count), run, columns, kind)
        rows = [each.filter(each["value"].is_valid()) for each in rows]
        own = bases[0].dictionary.name
        reasons = {} if self.coloured else {"saliencies": self.why or "no context of a deep factor is held out"}
        tables = {**self._tables(bases[0], run), "dictionary_stats": undefined_rows(run, own, reasons)}
        return Said(rows, findings=[*self._reach_finding(name), *self._saliency_finding(name)], tables=tables)

    def _spread(self, values: Float64[Tensor, " unit"], count: int) -> np.ndarray:
        return torch.full((count,), torch.nan, dtype=torch.float64).index_copy(0, self.units, values).numpy()

    def _reach_finding(self, name: str) -> list[Finding]:
        known = ~self.reach.width.isnan()
        if not bool(known.any()):
            return []
        share = float(self._far[known].double().mean())
        within, mixed = float(self.reach.share[known, _WITHIN].mean()), float(self.disordered[known].nanmean())
        which, said = ("deep factors", "are high: they") if self.deep else ("factors", "look far: they")
        sentence = (
            f"of {int(known.sum())} {which} of {name.partition('@')[2]} {share:.0%} {said} need more than {FAR} tokens of context by either half; in the "
            f"mean {within:.0%} of a code is there with {FAR} tokens, and {mixed:.0%} with these in another order"
        )
        return [Finding("reach of factors", name, sentence, within, mixed, _OTHER_ORDER)]

    def _saliency_finding(self, name: str) -> list[Finding]:
        if not self.coloured:
            return []
        told = [each for each in self.coloured if each.attribution.whole > _GAIN * each.attribution.nothing]
        if not told:
            return []
        own, chance = (
            sum(_of_context(each, area) for each, area in zip(told, areas, strict=True)) / len(told)
            for areas in ([each.worth.insertion for each in told], [each.worth.by_chance[1] for each in told])
        )
        which = "deep factors" if self.deep else "factors"
        sentence = (
            f"of what the context adds to the codes of {len(told)} {which} of {name.partition('@')[2]}, {own:.0%} is there over all shares of it put back, the "
            f"tokens that they owe most to first ({chance:.0%} in an order drawn at random): so far colours can be believed"
        )
        return [Finding("saliency of factors", name, sentence, own, chance, "tokens put back in an order drawn at random")]

    def _tables(self, basis: Factors, run: str) -> dict[str, pa.Table]:
        if not self.coloured:
            return {}
        rows = (
            {
                "run": run,
                "unit": str(basis.address(each.unit)),
                "site": each.site,
                "window": each.window,
                "position": each.position,
                "half": Half.CONFIRM.name.lower(),
                "method": f"occlusion of {_SPAN} tokens",
                "tokens": each.tokens,
                "weights": each.attribution.weight.tolist(),
                "whole": each.attribution.whole,
                "nothing": each.attribution.nothing,
                "deletion": each.worth.deletion,
                "insertion": each.worth.insertion,
                "deletion_control": each.worth.by_chance[0],
                "insertion_control": each.worth.by_chance[1],
            }
            for each in self.coloured
        )
        return {"saliencies": rows_of("saliencies", rows)}


def tokens_looked_at(window: int) -> int:
    """Tokens that are read for it, at most, of a text with windows of this length."""
    cut = sum(min(2 * width + 1, window) for width in (*WIDTHS, FAR))
    passes = window + 2 * _POINTS * (1 + _DRAWS)
    return 2 * _TESTED * _CONTEXTS * (cut + window) + _COLOURED * passes * window


def looked(
    model: Model,
    corpus: Corpus,
    bases: Sequence[Factors],
    first: Profile,
    second: Profile,
    contexts: Contexts,
    seed: int,
) -> Looking:
    """Ask the deep factors of a dictionary, in either half of the documents: which are high is decided by both, contexts are coloured of the confirm half.

    Deep are those that are strongest in the last third of the model in both halves (at the last place, where none is so deep), and all that are
    active where there is one place.

    Source: Yun et al. 2021, arXiv:2103.15949, section 3, on high-level factors; the test is ours.
    Cost: of 128 factors 3 contexts of either half are read in 8 widths, and once more in another order: about 200 tokens and three windows for each
    pair; then 8 contexts take a pass for each of their tokens, and 72 more.
    """
    deep = _deep(first, second)
    strength = first.importance.amax(0)
    units = deep[strength[deep].argsort(descending=True, stable=True)[:_TESTED]].sort().values
    parts = []
    for place, basis in enumerate(bases):
        mine = units[first.peak[units] == place]
        if len(mine):
            other, _, _ = _read(model, corpus, basis, contexts, mine, Half.DISCOVER)
            own, found, batch = _read(model, corpus, basis, contexts, mine, Half.CONFIRM)
            parts.append((mine, own, other, _disordered(model, basis, found, batch, mine, seed)))
    if not parts:
        none = torch.zeros(0, dtype=torch.float64)
        empty = Reach(units[:0], WIDTHS, torch.zeros(0, len(WIDTHS) + 1, dtype=torch.float64), none, none, units[:0])
        return Looking(units[:0], empty, empty, none, [], "no factor is strongest late in the model", _are_deep(first))
    order, other = torch.cat([each[0] for each in parts]), _joined([each[2] for each in parts])
    coloured = _coloured(model, corpus, bases, first, contexts, _chosen(other, strength))
    disordered = torch.cat([each[3] for each in parts])
    return Looking(order, _joined([each[1] for each in parts]), other, disordered, *coloured, _are_deep(first))


def _joined(parts: Sequence[Reach]) -> Reach:
    fields = ("units", "share", "width", "room", "contexts")
    own = {name: torch.cat([getattr(each, name) for each in parts]) for name in fields}
    return Reach(widths=WIDTHS, **own)


def _are_deep(first: Profile) -> bool:
    """Whether what is asked is in the last third of the model."""
    return any(PAPER.of(depth) == "mid" for depth in first.depth.tolist())


def _deep(first: Profile, second: Profile) -> Int[Tensor, " unit"]:
    if len(first.depth) < 2:
        return (first.peak >= 0).nonzero()[:, 0]
    places = [place for place, depth in enumerate(first.depth.tolist()) if PAPER.of(depth) == "mid"] or [len(first.depth) - 1]
    there = torch.tensor(places)
    return (torch.isin(first.peak, there) & torch.isin(second.peak, there)).nonzero()[:, 0]


def _read(
    model: Model, corpus: Corpus, basis: Factors, contexts: Contexts, units: Int[Tensor, " unit"], half: Half
) -> tuple[Reach, Recovery | None, Batch | None]:
    """Reach at the best contexts of a half, and what it is made of; none where there is no context."""
    group = contexts.group("top", half)
    windows = contexts.window[group, units, :_CONTEXTS]
    batch = _windows(corpus, windows[windows >= 0], model)
    if batch is None:
        nothing = torch.full((len(units),), torch.nan, dtype=torch.float64)
        shares = nothing[:, None].expand(-1, len(WIDTHS) + 1)
        return Reach(units, WIDTHS, shares, nothing, nothing, torch.zeros_like(units)), None, None
    targets = top_targets(contexts, batch, units.tolist(), most=_CONTEXTS, group=group)
    found = recovered(model, basis, batch, targets)
    return reach(found, units.tolist()), found, batch


def _disordered(
    model: Model, basis: Factors, found: Recovery | None, batch: Batch | None, units: Int[Tensor, " unit"], seed: int
) -> Float64[Tensor, " unit"]:
    """The share of the codes of whole windows that is left where their context is in another order."""
    if found is None or batch is None:
        return torch.full((len(units),), torch.nan, dtype=torch.float64)
    causal, own = model.shape.causal, found.targets
    near, place = truncated(batch, own.row, own.position, FAR, causal=causal)
    mixed, targets = shuffled(near, Targets(torch.arange(len(own.unit)), place.cpu(), own.unit), causal=causal, seed=seed)
    codes = codes_at(model, basis, mixed, targets.position.to(mixed.ids.device))[torch.arange(len(targets.unit)), targets.unit]
    owner = (targets.unit[:, None] == units).double()
    return (owner.T @ codes.double()) / (owner.T @ found.codes[:, -1].double())


def _windows(corpus: Corpus, windows: Int[Tensor, " window"], model: Model) -> Batch | None:
    """All of them together."""
    named = windows.unique().tolist()
    return next(corpus.batches(named, len(named) * corpus.window, model.device)) if named else None


def _chosen(found: Reach, strength: Float64[Tensor, " all"]) -> list[int]:
    """High ones first, then by strength."""
    order = (found.high.double() * (1 + float(strength.max())) + strength[found.units]).argsort(descending=True, stable=True)
    return found.units[order][:_COLOURED].tolist()


def _coloured(
    model: Model, corpus: Corpus, bases: Sequence[Factors], first: Profile, contexts: Contexts, units: Sequence[int]
) -> tuple[list[_Coloured], str]:
    """The best held-out context of each, and why one could not be coloured."""
    group = contexts.group("top", Half.CONFIRM)
    found, why = [], ""
    for unit in units:
        window, position = int(contexts.window[group, unit, 0]), int(contexts.position[group, unit, 0])
        batch = None if window < 0 else _windows(corpus, torch.tensor([window]), model)
        if batch is None:
            continue
        basis = bases[int(first.peak[unit])]
        try:  # a token without context, or whose code is 0 when it is read alone, and a model whose embeddings cannot be edited
            saliency = asked(model, basis, batch, (0, position), unit, instead=stand_in(model))
            owed = Occlusion(_SPAN).attributed(saliency)
            worth = faithful(saliency.codes, owed.weight, draws=_DRAWS, points=_POINTS)
        except Refusal as refusal:
            why = f"{refusal.what}: {refusal.why}"
            continue
        found.append(_Coloured(unit, str(basis.site), window, position, saliency.players.tolist(), owed, worth))
    return found, why
