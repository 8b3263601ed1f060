"""Geva et al. 2021, arXiv:2012.14913: feed-forward units as key-value memories, with our numbers beside the paper's.

usage: python -m recipes.geva2021 [MODEL] [TEXT] [--quick] [--layers 0,5,10] [--seed N]

What do the triggers of a key have in common, which of their tokens does it need, does its value say what follows them, and how do values
add up? MODEL and TEXT are packaged ones (smollm2 and bbc if none is given), or files. A model that attends to both sides is asked about its
triggers only. What people judge in the paper is measured here by what words do; what else differs is printed below.
"""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from jaxtyping import Int
from torch import Tensor

from microtome.examples import Contexts
from microtome.model import Model
from microtome.neurons.aggregation import Aggregated, Aggregation, Share, why_no_aggregation
from microtome.neurons.cohesion import Cohesion, cohesion, places_of
from microtome.neurons.memories import Agreement, ValueTokens, most_confident, value_agreement, value_tokens
from microtome.neurons.removal import Patterns, Removal, Removed, endings, patterns, removal, triggers
from microtome.readout import Reader, output_reader
from recipes.claims import Claim, layers_table, mean_of, page, share_of
from recipes.windows import Windows, asked, folded, some_layers, surveyed, windows_of

__all__ = ["DIFFERENCES", "FULL", "QUICK", "Found", "Size", "claims", "describe", "measure"]

DIFFERENCES: Final = (
    "triggers are windows of a text in two halves of its documents, the paper's are sentences of the training text of the model",
    "patterns are endings of 1 to 3 tokens that a unit's triggers share (chosen in one half, counted in the other), and likeness of the texts "
    "before them; the paper's are what people name, and every key has one",
    "triggers are read at both ends of a gated unit; the paper's units are ReLU, which have one",
    "values are read through the gain of the last norm; the paper reads them as they are stored",
    "agreement is with the token behind the leading trigger of the held-out half; the 46 % of the paper are of values that agree with any",
)


@dataclass(frozen=True)
class Size:
    """How much is read: windows of so many tokens, contexts of a unit, layers (None: all), units whose triggers are cut, windows of sums."""

    windows: int
    window: int
    k: int
    layers: int | None
    cut: int
    sums: int


QUICK: Final = Size(windows=96, window=128, k=10, layers=5, cut=12, sums=32)
FULL: Final = Size(windows=1000, window=128, k=25, layers=None, cut=30, sums=300)


@dataclass(frozen=True, eq=False)
class Found:
    """What was measured, layer by layer; what the model cannot be asked is empty."""

    layers: tuple[int, ...]
    depth: int
    endings: tuple[Patterns, ...]
    cohesion: tuple[Cohesion, ...]
    agreement: tuple[Agreement, ...]
    removal: tuple[Removal, ...]
    sums: Aggregated | None
    gated: bool
    tokens: int
    documents: int

    def lower(self, place: int) -> bool:
        """Whether a layer is in the lower half."""
        return 2 * self.layers[place] < self.depth


def measure(model: Model, windows: Windows, size: Size, *, layers: Sequence[int] | None = None, seed: int = 0) -> Found:
    """All that the model can be asked, over the same windows."""
    chosen = some_layers(model, size.layers) if layers is None else list(layers)
    contexts = {layer: record.contexts for layer, record in surveyed(model, windows, chosen, size.k).items()}
    places = places_of(windows.batches, model.weights.get("W_E"))
    values, reader = _values(model, chosen)
    causal = model.shape.causal and model.head is not None
    agreed = [value_agreement(model, contexts[at], values[at], reader, seed=seed) for at in chosen] if causal else []
    cut = [_cut(model, windows, contexts[at], at, size.cut, seed) for at in chosen] if model.shape.causal else []
    sums = None
    if why_no_aggregation(model) is None:
        tokens = torch.stack([values[layer].token for layer in range(model.shape.layers)])
        sums = _sums(model, windows, tokens, reader, size.sums, seed)
    shared = [patterns(endings(windows.batches, contexts[layer], model.shape.vocab)) for layer in chosen]
    alike = [cohesion(contexts[layer], places, seed=seed) for layer in chosen]
    return Found(
        layers=tuple(chosen),
        depth=model.shape.layers,
        endings=tuple(shared),
        cohesion=tuple(alike),
        agreement=tuple(agreed),
        removal=tuple(cut),
        sums=sums,
        gated=model.shape.gated,
        tokens=windows.tokens,
        documents=windows.documents,
    )


def _values(model: Model, layers: Sequence[int]) -> tuple[dict[int, ValueTokens], Reader]:
    """Of all layers where sums are read, for which all are needed."""
    reader = output_reader(model.weights)
    wanted = range(model.shape.layers) if why_no_aggregation(model) is None else layers if model.shape.causal else ()
    return {layer: value_tokens(model, layer, reader) for layer in wanted}, reader


def _cut(model: Model, windows: Windows, contexts: Contexts, layer: int, units: int, seed: int) -> Removal:
    """Triggers without one of their tokens: the leading one of either end, of random units."""
    found = triggers(windows.batches, contexts, layer, most=1)
    rows = torch.randperm(len(found.unit), generator=torch.Generator().manual_seed(seed + layer))[:units]
    some = replace(found, batch=found.batch.take(rows).trimmed(), unit=found.unit[rows], value=found.value[rows])
    return removal(model, some, seed)


def _sums(
    model: Model, windows: Windows, values: Int[Tensor, "layer unit end"], reader: Reader, count: int, seed: int
) -> Aggregated:
    return folded(model, windows.first(count), {"sums": Aggregation(model, values, reader, seed)})["sums"]


def claims(found: Found) -> list[Claim]:
    """What the paper says, as far as it was measured."""
    made = [*_of_triggers(found)]
    made += _of_removal(found) if found.removal else []
    made += _of_agreement(found) if found.agreement else []
    return [*made, *(_of_sums(found.sums, gated=found.gated) if found.sums is not None else [])]


def _shared(found: Patterns) -> Tensor:
    """Whether triggers of an end and unit end alike, beyond what the text does; of those that were tested."""
    tested = found.q.isfinite().any(0)
    return (found.q <= 0.01).any(0)[tested]


def _parts(found: Found, values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The values of the lower half of the layers, and of the upper."""
    mine: tuple[list[Tensor], list[Tensor]] = ([], [])
    for place, each in enumerate(values):
        mine[0 if found.lower(place) else 1].append(each.flatten())
    lower, upper = (torch.cat(each) if each else torch.zeros(0) for each in mine)
    return lower, upper


def _of_triggers(found: Found) -> list[Claim]:
    lower, upper = (share_of(each) for each in _parts(found, [_shared(each) for each in found.endings]))
    other = statistics.fmean(float(each.other.nanmean()) for each in found.endings)
    same = statistics.fmean(float(each.confirm.nanmean()) for each in found.endings)
    beyond = [each.value - each.alike for each in found.cohesion]
    low, high = (mean_of(each) for each in _parts(found, beyond))
    sure = share_of(torch.cat([each.p[each.p.isfinite()] <= 0.01 for each in found.cohesion]))
    return [
        Claim(
            "triggers of a key share a pattern",
            "every key, 3.6 patterns each, by people",
            f"{share_of(torch.cat([_shared(each) for each in found.endings])).percent} of ends of units share an ending (q <= 0.01)",
            f"{same:.2%} of triggers have their unit's ending, of other units' {other:.2%}",
            same > other,
        ),
        Claim(
            "patterns of the lower layers are shallow",
            "layers 1 to 9 of 16 shallow",
            f"shared endings: {lower.percent} below, {upper.percent} above the middle",
            "of the ends counted, 1 in 100 at most would be so by chance",
            lower.above(upper),
        ),
        Claim(
            "patterns of the upper layers are semantic",
            "layers 10 to 16 of 16 semantic",
            f"likeness of the texts before triggers, beyond places of the same token: {low} below, {high} above the middle",
            f"0; ends with p <= 0.01: {sure.percent}, by chance 1 %",
            high.above(low),
        ),
    ]


def _part(found: Removal, name: str) -> Removed:
    return next(each for each in found.summary() if each.part == name)


def _of_removal(found: Found) -> list[Claim]:
    lasts, firsts, others = (torch.cat([each.change[part] for each in found.removal]) for part in range(3))
    last, first, other = (mean_of(each.abs()) for each in (lasts, firsts, others))
    control = statistics.fmean(_part(each, "last").control for each in found.removal)
    low, high = (mean_of(each.abs()) for each in _parts(found, [each.change[0] for each in found.removal]))
    return [
        Claim(
            "the last token of a trigger matters most",
            "more than the first, or a random one",
            f"|change| without it {last}; first {first}, random {other}",
            f"other units at the same triggers: {control:+.2f}",
            last.above(first) and last.above(other),
        ),
        Claim(
            "the last token matters less in upper layers",
            "so in layers 10 to 16",
            f"|change| {low} below, {high} above the middle",
            "-",
            low.above(high),
        ),
    ]


def _of_agreement(found: Found) -> list[Claim]:
    tried = [each.following >= 0 for each in found.agreement]
    agrees = [(each.token == each.following)[mine] for each, mine in zip(found.agreement, tried, strict=True)]
    low, high = (share_of(each) for each in _parts(found, agrees))
    best = max(found.agreement, key=lambda each: each.share)
    expected = [torch.full((each.tried,), each.chance) for each in found.agreement]
    chance = [float(each.mean()) for each in _parts(found, expected)]
    layers, confident = most_confident(found.agreement)
    upper = int(sum(int(count) for place, count in enumerate(layers) if not found.lower(place)))
    every = share_of(torch.cat(agrees))
    return [
        Claim(
            "values of upper layers say what follows their triggers",
            "0 in layers 1 to 10, up to 3.5 % in 11 to 16",
            f"{low.percent} below, {high.percent} above the middle; most in layer {best.layer}: {best.share:.2%} (p = {best.p:.2g})",
            f"values exchanged: {chance[0]:.3%} below, {chance[1]:.3%} above; paper's chance 0.0004 %",
            high.above(chance[1]) and high.value > low.value,
        ),
        Claim(
            "confident values agree more often",
            "of the first 100, 97 in layers 11 to 16; 46 agree",
            f"of the first 100, {upper} above the middle; {confident:.0%} agree",
            f"all values: {every.percent}",
            confident > every.high,
        ),
    ]


def _said(share: Share) -> str:
    return f"{share.value:.1%} ({share.low:.1%} to {share.high:.1%})"


def _of_sums(sums: Aggregated, *, gated: bool) -> list[Claim]:
    depth = range(sums.top.shape[1])
    active = sums.active[:, :, :2].sum(2).mean(0)
    alone, composed, decided = ([ask(layer) for layer in depth] for ask in (sums.zero_agreement, sums.composed, sums.decided))
    least = min(alone, key=lambda each: each.value)
    half = statistics.median(each.value for each in alone)
    half_control = statistics.median(each.control for each in alone)
    middle, last = decided[len(depth) // 2], decided[-1]
    named = [each for each in composed if each.windows >= 10]
    usual = statistics.median(each.value for each in named) if named else float("nan")
    usual_control = statistics.median(each.control for each in named) if named else float("nan")
    return [
        Claim(
            "units are active at a token",
            "10 to 50 % by layer",
            f"{float(active.min()):.0%} to {float(active.max()):.0%} by layer, " + ("gates above 0" if gated else "above 0"),
            "half, were signs random",
            bool(((active >= 0.1) & (active <= 0.5)).all()),
        ),
        Claim(
            "a layer says what none of its active units says",
            "in 68 % of cases at least",
            f"{half:.1%} in the median layer, {_said(least)} at least",
            f"values of other units: {half_control:.1%} in the median layer, {least.control:.1%}",
            least.value >= 0.68,
        ),
        Claim(
            "the answer is there before the last layers",
            "for about a third from the bottom, more from layer 10 on",
            f"{_said(decided[0])} before the first block's sum, {_said(middle)} in the middle, {_said(last)} before the last",
            f"final tokens of other windows: {last.control:.1%}",
            last.low > middle.high and middle.low > middle.control,
        ),
        Claim(
            "where a layer changes the answer, the new one is mostly not the layer's own",
            "a composition, in most cases",
            f"{usual:.1%} (median layer)",
            f"of other windows: {usual_control:.1%}",
            usual > 0.5,
        ),
    ]


def by_layer(found: Found) -> str:
    """The numbers of every layer."""
    heads = ["endings q<=.01", "likeness", "same token"]
    heads += ["agree", "values exchanged", "median rank"] if found.agreement else []
    heads += ["without last", "without first"] if found.removal else []
    rows = []
    for place, layer in enumerate(found.layers):
        alike = found.cohesion[place]
        cells = [f"{share_of(_shared(found.endings[place])).value:.1%}"]
        cells += [f"{float(each.nanmean()):.4f}" for each in (alike.value, alike.alike)]
        if found.agreement:
            each = found.agreement[place]
            cells += [f"{each.share:.2%} p={each.p:.2g}", f"{each.chance:.2%} to {each.high:.2%}", f"{each.median_rank:,.0f}"]
        if found.removal:
            parts = [_part(found.removal[place], name) for name in ("last", "first")]
            cells += [f"{part.change:+.2f} ({part.low:+.2f}, {part.high:+.2f})" for part in parts]
        rows.append((layer, cells))
    return layers_table(heads, rows)


def describe(found: Found, name: str) -> str:
    """The claims with the paper's numbers, every layer, and what differs."""
    title = f"{name}: {found.tokens:,} tokens of {found.documents} documents"
    missing = [] if found.agreement else ["of a model that attends to both sides: triggers only"]
    return page(title, claims(found), [by_layer(found)], [*DIFFERENCES, *missing])


def main() -> int:
    """Measure and print."""
    told = asked(__doc__)
    size = QUICK if told.quick else FULL
    windows = windows_of(told.model, told.text, size.windows, size.window, told.seed)
    found = measure(told.model, windows, size, layers=told.layers, seed=told.seed)
    sys.stdout.write(describe(found, told.model.name) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
