"""Voita et al. 2023, arXiv:2309.04827: dead, token, n-gram and positional neurons, with our numbers beside the paper's.

usage: python -m recipes.voita2023 [MODEL] [TEXT] [--quick] [--layers 0,5,10] [--seed N]

Which units are never active, which fire at one token or one run of tokens, whether what they write suppresses that token, and which are
active where in a window. MODEL and TEXT are packaged ones (smollm2 and bbc if none is given), or files. What differs from the paper, whose
models are OPT with ReLU, is printed below.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Fold
from microtome.examples import TokenCounts, UnitSurvey, UnitSurveyRecord
from microtome.examples.counts import Counts
from microtome.examples.detectors import Detectors, q_values, token_detectors
from microtome.model import Model
from microtome.neurons import Neurons
from microtome.neurons.findings import DEAD
from microtome.neurons.ngrams import NgramDetectors, ngram_detectors
from microtome.neurons.positional import (
    CRITERIA,
    VOITA,
    Activity,
    Positional,
    PositionalActivity,
    mutual_information,
    positional,
)
from microtome.neurons.promotion import Values, shifts
from microtome.neurons.sparsity import SparseActivity, Sparsity, gaussian_share
from microtome.readout import texts_of
from microtome.readout.spellings import spellings
from recipes.claims import Claim, Estimate, layers_table, mean_of, page, share_of
from recipes.windows import Windows, asked, folded, some_layers, values_of_layers, windows_of

__all__ = ["DIFFERENCES", "FULL", "QUICK", "Found", "Layer", "Size", "claims", "describe", "measure"]

DIFFERENCES: Final = (
    "a detector is a unit at least half of whose most extreme contexts of the held-out half are at one token that the other half chose (q <= 0.01); "
    "the paper's are units of whose activations 95 % are at five tokens or fewer",
    "spellings of a word are one token here",
    "a run of tokens is tested against its own end, so that a detector of a token is none of a bigram",
    "a unit of a gated block is never active where its gate is never open, and dead where what it writes is less than a thousandth of the median "
    "unit's; both ends of it are looked at",
    "never is over the tokens that were read: 3 / tokens is the share of tokens that 95 % of such units stay below",
    "positional units pass a test against windows whose places are turned round (q <= 0.01), and not a threshold of 0.05 nats alone",
)
_LARGEST_Q: Final = 0.01
_SMALLEST_SHARE: Final = 0.5


@dataclass(frozen=True)
class Size:
    """How much is read: windows of so many tokens, contexts of a unit, layers (None: all)."""

    windows: int
    window: int
    k: int
    layers: int | None


QUICK: Final = Size(windows=192, window=64, k=10, layers=8)
FULL: Final = Size(windows=1600, window=96, k=10, layers=None)


@dataclass(frozen=True, eq=False)
class Layer:
    """What was found of a layer.

    `suppressed` is how far the token of each detector is from the mean of all tokens, in what the unit writes when it fires, in standard
    deviations over the vocabulary; `exchanged` the same of tokens of other detectors.
    """

    layer: int
    survey: UnitSurveyRecord
    norm: Float[Tensor, " unit"]
    sparsity: Sparsity
    tokens: Detectors
    runs: tuple[NgramDetectors, ...]
    activity: Activity
    positional: Positional
    suppressed: Float[Tensor, " detector"]
    exchanged: Float[Tensor, " detector"]

    @property
    def closed(self) -> Tensor:
        """Units that were never active: whose gate, or pre-activation, was never above 0."""
        return self.activity.active[0].sum(0) == 0

    @property
    def dead(self) -> Tensor:
        """Units whose largest write is less than a thousandth of the median unit's."""
        moments = self.survey.moments
        largest = torch.maximum(moments.maximum.abs(), moments.minimum.abs()) * self.norm.to(moments.maximum)
        return largest < DEAD * largest.median()

    def detects(self, q: np.ndarray) -> Tensor:
        """Which ends of which units are token detectors."""
        return (self.tokens.share >= _SMALLEST_SHARE) & torch.from_numpy(q <= _LARGEST_Q)


@dataclass(frozen=True, eq=False)
class Found:
    """What was measured; `q` are those of the token detectors, `runs_q` those of runs of 2 and of 3 tokens, over all layers."""

    layers: tuple[Layer, ...]
    depth: int
    q: tuple[np.ndarray, ...]
    runs_q: tuple[tuple[np.ndarray, ...], ...]
    gated: bool
    tokens: int
    documents: int

    def lower(self, layer: int) -> bool:
        """Whether a layer is in the lower half."""
        return 2 * layer < self.depth


def measure(model: Model, windows: Windows, size: Size, *, layers: Sequence[int] | None = None, seed: int = 0) -> Found:
    """Two passes: extremes and sizes, then places."""
    chosen = some_layers(model, size.layers) if layers is None else list(layers)
    values = values_of_layers(model, chosen)
    folds: dict[str, Fold] = {"counts": TokenCounts(model.shape.vocab)}
    for each in values:
        folds[f"survey.{each.layer}"] = UnitSurvey(Neurons(each.layer, model.shape.d_mlp), size.k)
        folds[f"sparsity.{each.layer}"] = SparseActivity(each.layer, each.length.cpu())
    first = folded(model, windows, folds)
    counts: Counts = first["counts"]
    longest = max(batch.ids.shape[1] for batch in windows.batches)
    places: dict[str, Fold] = {}
    for each in values:
        moments = first[f"survey.{each.layer}"].moments
        rms = (moments.mean.square() + moments.standard_deviation.square()).sqrt()
        places[str(each.layer)] = PositionalActivity(each.layer, rms.float(), longest, seed=seed)
    second = folded(model, windows, places)
    spelling = spellings(texts_of(model.tokenizer, model.shape.vocab), counts.here)
    tested = [token_detectors(first[f"survey.{layer}"].contexts, counts.here, spelling, seed) for layer in chosen]
    q = q_values([each.p for each in tested])
    contexts = [first[f"survey.{layer}"].contexts for layer in chosen]
    by_order = [ngram_detectors(contexts, lambda: windows.batches, spelling, order) for order in (2, 3)]
    runs = [tuple(each) for each in zip(*by_order, strict=True)]
    made = []
    for number, each in enumerate(values):
        picked = (tested[number].share >= _SMALLEST_SHARE) & torch.from_numpy(q[number] <= _LARGEST_Q)
        own, beside = _suppressed(each, tested[number], picked, seed)
        activity = second[str(each.layer)]
        survey, sparsity = (first[f"{name}.{each.layer}"] for name in ("survey", "sparsity"))
        lengths = each.length.double().cpu()
        made.append(
            Layer(
                each.layer, survey, lengths, sparsity, tested[number], runs[number], activity, positional(activity), own, beside
            )
        )
    runs_q = tuple(tuple(q_values([each[order].p for each in runs])) for order in range(2))
    return Found(tuple(made), model.shape.layers, tuple(q), runs_q, model.shape.gated, windows.tokens, windows.documents)


def _suppressed(values: Values, tests: Detectors, picked: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """What detectors write about their own token when they fire, and about each other's."""
    end, unit = picked.nonzero(as_tuple=True)
    if not len(unit):
        return torch.zeros(0), torch.zeros(0)
    sign = torch.tensor([-1.0 if name == "bottom" else 1.0 for name in tests.ends])[end]
    token = tests.token[end, unit]
    order = torch.randperm(len(unit), generator=torch.Generator().manual_seed(seed))
    spread = values.reader.spread(values.rows[unit]).float().cpu()
    device = values.rows.device
    own, beside = (
        shifts(values, unit[:, None].to(device), sign[:, None].to(device), each.to(device))[:, 0].float().cpu() / spread
        for each in (token, token[order])
    )
    return own, beside


def claims(found: Found) -> list[Claim]:
    """What the paper says, as far as it was measured."""
    return [*_of_dead(found), *_of_detectors(found), *_of_runs(found), *_of_places(found)]


def _halves(found: Found, values: Sequence[Tensor]) -> tuple[Estimate, Estimate]:
    """Shares in the lower half of the layers, and in the upper."""
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for layer, each in zip(found.layers, values, strict=True):
        parts[0 if found.lower(layer.layer) else 1].append(each.flatten())
    low, high = (share_of(torch.cat(each) if each else torch.zeros(0, dtype=torch.bool)) for each in parts)
    return low, high


def _of_dead(found: Found) -> list[Claim]:
    closed = [share_of(each.closed) for each in found.layers]
    most = max(range(len(closed)), key=lambda place: closed[place].value)
    dead = share_of(torch.cat([each.dead for each in found.layers]))
    low, high = _halves(found, [each.closed for each in found.layers])
    tokens = int(found.layers[0].activity.seen.sum())
    needed = [each.sparsity.share for each in found.layers]
    normal = [gaussian_share(each.sparsity) for each in found.layers]
    gate = "gate never open" if found.gated else "never above 0"
    return [
        Claim(
            "many units are dead",
            "more than 70 % in some layers of OPT 66b",
            f"{gate}: {closed[most].percent} in layer {found.layers[most].layer}, the most; writing next to nothing: {dead.percent}",
            f"never is over {tokens:,} tokens: on less than {3 / tokens:.1e} of tokens",
            closed[most].above(0.05),
        ),
        Claim(
            "they are in the lower layers",
            "the first half of the layers is sparse",
            f"{gate}: {low.percent} below, {high.percent} above the middle",
            "-",
            low.above(high),
        ),
        Claim(
            "few units are active at a token",
            "few, in lower layers above all",
            f"95 % of what is written is by {min(needed):.0%} to {max(needed):.0%} of units, by layer",
            f"were units normal, of their sizes: {min(normal):.0%} to {max(normal):.0%}",
            all(own < beside for own, beside in zip(needed, normal, strict=True)),
        ),
    ]


def _of_detectors(found: Found) -> list[Claim]:
    which = [each.detects(q).any(0) for each, q in zip(found.layers, found.q, strict=True)]
    low, high = _halves(found, which)
    every = share_of(torch.cat(which))
    own, beside = (mean_of(torch.cat([getattr(each, name) for each in found.layers])) for name in ("suppressed", "exchanged"))
    below = share_of(torch.cat([each.suppressed < 0 for each in found.layers]))
    chance = sum(each.tokens.chance for each in found.layers) / len(found.layers)
    return [
        Claim(
            "units detect single tokens",
            "many, in the first half of the layers",
            f"{every.percent} of units; {low.percent} below, {high.percent} above the middle",
            f"1 % of the tests; drawn tokens reach {chance:.0%} of contexts in the mean",
            every.above(0.01) and low.above(high),
        ),
        Claim(
            "detectors suppress the token that they fire at",
            "it is among the lowest of what they write",
            f"{own} standard deviations from the mean token; below it in {below.percent}",
            f"tokens of other detectors: {beside}",
            beside.above(own),
        ),
    ]


def _of_runs(found: Found) -> list[Claim]:
    made = []
    for order, name in enumerate(("bigrams", "trigrams")):
        which = []
        for each, q in zip(found.layers, found.runs_q[order], strict=True):
            which.append(((each.runs[order].share >= _SMALLEST_SHARE) & torch.from_numpy(q <= _LARGEST_Q)).any(0))
        every, (low, high) = share_of(torch.cat(which)), _halves(found, which)
        made.append(
            Claim(
                f"units detect {name}",
                "some, beside those of tokens",
                f"{int(torch.cat(which).sum())} units, {every.percent}; {low.percent} below, {high.percent} above the middle",
                "the run's own end explains none of these; 1 % of the tests",
                int(torch.cat(which).sum()) > 0,
            )
        )
    return made


def _of_places(found: Found) -> list[Claim]:
    shares = {name: [_positional(each, number) for each in found.layers] for number, name in enumerate(CRITERIA)}
    every = {name: share_of(torch.cat(which)) for name, which in shares.items()}
    kinds = Counter(
        each.positional.kind[0][unit]
        for each in found.layers
        for unit in each.positional.found()[0].tolist()
        if each.positional.kind[0][unit]
    )
    turned = share_of(torch.cat([_turned(each) for each in found.layers]))
    counted = [int(which.sum()) for which in shares["open"]]
    most = found.layers[max(range(len(counted)), key=counted.__getitem__)].layer
    return [
        Claim(
            "units are active by place alone",
            "information above 0.05 nats: some in every model, in lower layers",
            f"{sum(counted)} units, {every['open'].percent}, most in layer {most} ({max(counted)}); by size of |h| {every['large'].percent}",
            f"windows turned round: {turned.percent} above {VOITA} nats",
            every["open"].above(turned),
        ),
        Claim(
            "their profiles are ranges of places, go both ways, or oscillate",
            "all three kinds",
            ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "none",
            "-",
            None,
        ),
    ]


def _positional(layer: Layer, criterion: int) -> Tensor:
    """Which units are positional."""
    which = torch.zeros(len(layer.norm), dtype=torch.bool)
    which[layer.positional.found()[criterion]] = True
    return which


def _turned(layer: Layer) -> Tensor:
    """Which units have as much information of their places when windows are turned round, for the first draw."""
    seen = layer.activity.seen
    bias = (int((seen > 0).sum()) - 1) / (2 * int(seen.sum()))
    return mutual_information(layer.activity.shifted[0, 0], seen) - bias > VOITA


def by_layer(found: Found) -> str:
    """The numbers of every layer."""
    heads = [
        "never active",
        "writes nothing",
        "units for 95 %",
        "token detectors",
        "own token",
        "bigrams",
        "trigrams",
        "positional",
    ]
    rows = []
    for place, each in enumerate(found.layers):
        runs = []
        for order in range(2):
            passed = torch.from_numpy(found.runs_q[order][place] <= _LARGEST_Q) & (each.runs[order].share >= _SMALLEST_SHARE)
            runs.append(f"{int(passed.any(0).sum())}")
        own = mean_of(each.suppressed)
        cells = [f"{share_of(each.closed).value:.1%}", f"{share_of(each.dead).value:.1%}", f"{each.sparsity.share:.1%}"]
        cells += [
            f"{share_of(each.detects(found.q[place]).any(0)).value:.1%}",
            f"{own.value:+.2f} (other {mean_of(each.exchanged).value:+.2f})",
        ]
        rows.append((each.layer, [*cells, *runs, f"{int(_positional(each, 0).sum())}"]))
    return layers_table(heads, rows)


def describe(found: Found, name: str) -> str:
    """The claims with the paper's numbers, every layer, and what differs."""
    title = f"{name}: {found.tokens:,} tokens of {found.documents} documents"
    return page(title, claims(found), [by_layer(found)], DIFFERENCES)


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
