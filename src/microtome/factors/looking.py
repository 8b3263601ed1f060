"""How far a dictionary's factors look, and at which tokens: reach and saliency of shown contexts, as rows and sentences.

High factors are those that are strongest in the last third of the model and need more than 16 tokens of context; the source work chose them by hand.
How reach and saliency are measured is in modules of these names; here is of which factors, and at how many contexts.
"""

from collections.abc import Iterator, Sequence
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
from microtome.factors.reach import FAR, WIDTHS, Reach, reach, recovered, shuffled, top_targets
from microtome.factors.rows import by_place
from microtome.factors.saliency import Attribution, Faithful, Occlusion, asked, faithful, stand_in
from microtome.model import Model
from microtome.store import rows_of

__all__ = ["Looking", "looked"]

_TESTED: Final = 128
"""Deep factors whose reach is tested, those of largest importance."""
_CONTEXTS: Final = 3
"""Contexts of each, of the confirm half."""
_COLOURED: Final = 8
"""Factors of which a context is coloured by saliency: the high ones of largest importance, then other deep ones."""
_SPAN: Final = 4
"""Tokens that are taken away together: with single ones, others stand in for them."""
_POINTS: Final = 9
_DRAWS: Final = 3
_WITHIN: Final = WIDTHS.index(FAR)
_OTHER_ORDER: Final = "the same tokens in another order, whole windows"


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


@dataclass(frozen=True, eq=False)
class Looking:
    """Reach of the factors that were tested, what is left of their codes when the context is in another order, and coloured contexts."""

    units: Int[Tensor, " unit"]
    reach: Reach
    disordered: Float64[Tensor, " unit"]
    coloured: Sequence[_Coloured]

    def high(self, units: int) -> Bool[Tensor, " all"]:
        """Of all factors those that were tested and need more than 16 tokens."""
        found = torch.zeros(units, dtype=torch.bool)
        found[self.units[self.reach.high]] = True
        return found

    def said(self, bases: Sequence[Factors], peak: Int[Tensor, " unit"], run: str) -> Said:
        """Rows of `unit_stats` and of `saliencies`, and what they come to."""
        name = f"factors@{bases[0].dictionary.name}"
        rows, count = [], bases[0].units
        if len(self.units):
            width = torch.minimum(self.reach.width, self.reach.room)
            for stat, values, columns, kind in (
                ("reach", width, {}, ""),
                (f"share_within_{FAR}", self.reach.share[:, _WITHIN], {"control": self._spread(self.disordered, count)}, _OTHER_ORDER),
            ):  # fmt: skip
                rows += by_place(bases, peak, stat, self._spread(values, count), run, columns, kind)
        rows = [each.filter(each["value"].is_valid()) for each in rows]
        return Said(rows, [], [*self._reach_finding(name), *self._saliency_finding(name)], self._tables(bases[0], run))

    def _spread(self, values: Float64[Tensor, " unit"], count: int) -> np.ndarray:
        return torch.full((count,), torch.nan, dtype=torch.float64).index_copy(0, self.units, values).numpy()

    def _reach_finding(self, name: str) -> list[Finding]:
        known = ~self.reach.width.isnan()
        if not bool(known.any()):
            return []
        share = float(self.reach.high[known].double().mean())
        within, mixed = float(self.reach.share[known, _WITHIN].mean()), float(self.disordered[known].nanmean())
        sentence = (
            f"of {int(known.sum())} deep factors of {name.partition('@')[2]} {share:.0%} are high: they need more than {FAR} tokens of context; in the mean "
            f"{within:.0%} of a code is there with {FAR} tokens, and {mixed:.0%} with all of them in another order"
        )
        return [Finding("reach of factors", name, sentence, within, mixed, _OTHER_ORDER)]

    def _saliency_finding(self, name: str) -> list[Finding]:
        if not self.coloured:
            return []
        own, chance = (
            sum(values) / len(self.coloured)
            for values in (
                [each.worth.insertion for each in self.coloured],
                [each.worth.by_chance[1] for each in self.coloured],
            )
        )
        sentence = (
            f"putting back into an empty context the tokens that {len(self.coloured)} deep factors of {name.partition('@')[2]} owe most to brings back "
            f"{own:.0%} of their codes, over all shares put back ({chance:.0%} in an order drawn at random): so far colours can be believed"
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


def looked(
    model: Model,
    corpus: Corpus,
    bases: Sequence[Factors],
    first: Profile,
    second: Profile,
    contexts: Contexts,
    seed: int,
) -> Looking:
    """Ask the deep factors of a dictionary: those that are strongest in the last third of the model in both halves of the documents (at the last place, where none is so deep), and all that are active where there is one place.

    Source: Yun et al. 2021, arXiv:2103.15949, section 3, on high-level factors; the test is ours.
    Cost: of 128 factors 3 contexts are read in 8 widths, and once more in another order: about 64 tokens and two windows for each; then 8 contexts take a pass for each of their tokens, and 72 more.
    """
    deep = _deep(first, second)
    strength = first.importance.amax(0)
    units = deep[strength[deep].argsort(descending=True, stable=True)[:_TESTED]].sort().values
    parts = []
    for place, basis in enumerate(bases):
        mine = units[first.peak[units] == place]
        if len(mine):
            parts.append((mine, *_read(model, corpus, basis, contexts, mine, seed)))
    if not parts:
        none = torch.zeros(0, dtype=torch.float64)
        empty = Reach(units[:0], WIDTHS, torch.zeros(0, len(WIDTHS) + 1, dtype=torch.float64), none, none, units[:0])
        return Looking(units[:0], empty, none, [])
    order = torch.cat([each[0] for each in parts])
    found = Reach(
        order,
        WIDTHS,
        *(torch.cat([getattr(each[1], field) for each in parts]) for field in ("share", "width", "room", "contexts")),
    )
    shown = _chosen(found, strength)
    return Looking(
        order, found, torch.cat([each[2] for each in parts]), list(_coloured(model, corpus, bases, first, contexts, shown))
    )


def _deep(first: Profile, second: Profile) -> Int[Tensor, " unit"]:
    if len(first.depth) < 2:
        return (first.peak >= 0).nonzero()[:, 0]
    places = [place for place, depth in enumerate(first.depth.tolist()) if PAPER.of(depth) == "mid"] or [len(first.depth) - 1]
    there = torch.tensor(places)
    return (torch.isin(first.peak, there) & torch.isin(second.peak, there)).nonzero()[:, 0]


def _read(
    model: Model, corpus: Corpus, basis: Factors, contexts: Contexts, units: Int[Tensor, " unit"], seed: int
) -> tuple[Reach, Float64[Tensor, " unit"]]:
    """Reach, and the share of the code that is left in another order of the context."""
    group = contexts.ends.index("top") + Half.CONFIRM
    windows = contexts.window[group, units, :_CONTEXTS]
    batch = _windows(corpus, windows[windows >= 0], model)
    if batch is None:
        nothing = torch.full((len(units),), torch.nan, dtype=torch.float64)
        shares = nothing[:, None].expand(-1, len(WIDTHS) + 1)
        return Reach(units, WIDTHS, shares, nothing, nothing, torch.zeros_like(units)), nothing
    chosen = units.tolist()
    targets = top_targets(contexts, batch, chosen, most=_CONTEXTS, group=group)
    found = recovered(model, basis, batch, targets)
    mixed, there = shuffled(batch, targets, causal=model.shape.causal, seed=seed)
    again = recovered(model, basis, mixed, there, widths=(FAR,))
    disordered = reach(again, chosen, whole=found.codes[:, -1]).share[:, -1]
    return reach(found, chosen), disordered


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
) -> Iterator[_Coloured]:
    """The best held-out context of each."""
    group = contexts.ends.index("top") + Half.CONFIRM
    instead = stand_in(model)
    for unit in units:
        window, position = int(contexts.window[group, unit, 0]), int(contexts.position[group, unit, 0])
        batch = None if window < 0 else _windows(corpus, torch.tensor([window]), model)
        if batch is None:
            continue
        basis = bases[int(first.peak[unit])]
        try:
            saliency = asked(model, basis, batch, (0, position), unit, instead=instead)
            found = Occlusion(_SPAN).attributed(saliency)
            worth = faithful(saliency.codes, found.weight, draws=_DRAWS, points=_POINTS)
        except Refusal:
            continue  # a token without context, or whose code is 0 when it is read alone
        yield _Coloured(unit, str(basis.site), window, position, saliency.players.tolist(), found, worth)
