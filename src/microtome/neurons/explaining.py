"""Explanations in an atlas: units that were picked are explained by the tokens at which they are active, beside random directions.

How an explanation is made, predicts and is judged is in `explain`; here is which units are explained, from what text, and the rows and
sentences of it. Tables of tokens alone are used, so that a stage costs one pass and no language model is asked.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import pyarrow as pa
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from microtome.capture.lens import Results, Stage
from microtome.core import UnitAddress
from microtome.examples.chosen import Chosen
from microtome.examples.findings import Finding
from microtome.explain import (
    ByRule,
    End,
    Examples,
    ExcerptRecord,
    ExcerptSurvey,
    Explanation,
    Judged,
    Names,
    Questions,
    RuleJudge,
    RunTable,
    Selection,
    detection,
    fuzzing,
)
from microtome.explain.examples import joined
from microtome.explain.scoring import OTHERS, scored
from microtome.explain.tables import STRONG, Table, best_order, fitted
from microtome.neurons.basis import Neurons
from microtome.neurons.causal import Picked
from microtome.neurons.explained import Turned
from microtome.numerics import benjamini_hochberg
from microtome.readout.words import named

__all__ = [
    "EXPLAINED",
    "METHODS",
    "ExplainedEnd",
    "LayerRecords",
    "explain_layers",
    "explained_folds",
    "explained_layers",
    "explanation_findings",
    "explanation_rows",
]

EXPLAINED: Final = Stage(7, "explained", sample=128)
METHODS: Final = ("tokens", "2-grams", "3-grams")
"""What explains: a table of tokens, or one of runs of up to 2, or of up to 3 of them."""
DIRECTIONS: Final = "random directions of the same layers"

_SELECTION: Final = Selection(active=32, random=32, shortest=4)
_LARGEST_Q: Final = 0.01
_AT_MOST: Final = 8
_FEWEST: Final = 8  # others, below which there is no telling what is usual among them
_DRAWS: Final = 19
_SEEN: Final = 2
"""Tokens at which a run has to be seen to be named, if some run that tells something is seen as often."""
_BITS: Final = 20
_TINY: Final = 1e-12
_WORDS: Final = ("unit", "end", "method", "text")
_NUMBERS: Final = ("pearson", "control", "directions", "q", "detection", "detection_control", "fuzzing", "fuzzing_control")


@dataclass(frozen=True, eq=False)
class LayerRecords:
    """Excerpts of the units of a layer that are explained, and of as many random directions of their block's activations."""

    layer: int
    units: ExcerptRecord
    directions: ExcerptRecord


@dataclass(frozen=True, eq=False)
class ExplainedEnd:
    """One end of a unit: what it is said to do, and how well that predicts held-out excerpts; NaN for what cannot be told.

    `method` is one of `METHODS`, `pearson` the correlation over all tokens of the `excerpts` held-out ones. `control` is the mean of what
    explanations of other units reach on the same excerpts, `p` how often one of them stands out among them as far, `q` over all ends.
    `detection` and `fuzzing` are accuracies of a judge who goes by the predictions, on excerpts of their own, beside those that he reaches by
    explanations of other units. `directions` is the mean correlation for random directions of the layer, `best_direction` the largest.
    """

    unit: UnitAddress
    end: End
    method: str
    text: str
    excerpts: int
    pearson: float
    control: float
    p: float
    q: float
    directions: float
    best_direction: float
    detection: float
    detection_control: float
    fuzzing: float
    fuzzing_control: float


@dataclass(frozen=True, eq=False)
class _Made:
    """A table with the excerpts that it was made of, and those that it is judged on."""

    unit: UnitAddress
    layer: int
    method: str
    table: RunTable
    examples: Examples

    @property
    def explanation(self) -> Explanation:
        """For a judge who does not read."""
        return Explanation("", self.table)


def explained_folds(
    bases: Sequence[Neurons], picked: Picked, *, windows: int, signed: bool, seed: int
) -> dict[str, ExcerptSurvey]:
    """The folds of the stage `EXPLAINED`: per layer with picked units one for these, and one for as many random directions.

    `bases` are those of all layers, in order; `signed` says whether negative activations mean something, as those of gated units do.
    At most a quarter of the `windows` of the text are among the most active ones of each half, so that there are others beside them.
    Memory: 98 kB a unit and as much a direction, and 41 kB a layer and kind for the ids of random excerpts: 48 units of 24 layers have 12 MB.
    Cost: one read of the activations of these units, and 2 d_mlp FLOP for each token and direction.
    """
    active = min(_SELECTION.active, max(4, windows // 4))
    selection, folds = replace(_SELECTION, active=active, seed=seed), {}
    for layer in picked.layer.unique().tolist():
        units = tuple(picked.index[picked.layer == layer].unique().tolist())
        turned = Turned(bases[layer], len(units), seed + layer)
        folds[_named("units", layer)] = ExcerptSurvey(Chosen(bases[layer], units, signed), selection)
        folds[_named("directions", layer)] = ExcerptSurvey(turned, selection)
    return folds


def explained_layers(results: Results, picked: Picked) -> list[LayerRecords]:
    """What the folds of the stage found, by layer."""
    return [
        LayerRecords(layer, *(results.of(EXPLAINED, _named(kind, layer)) for kind in ("units", "directions")))
        for layer in picked.layer.unique().tolist()
    ]


def explain_layers(layers: Sequence[LayerRecords], texts: Sequence[str], *, seed: int = 0) -> list[ExplainedEnd]:
    """Explain every end that is active, and score each explanation beside those of other units and of random directions.

    An explanation is a table: the mean activation at each run of tokens in excerpts of the discover half. How long runs are is decided
    by the correlation that tables made of some of these excerpts have on the others; then the table is made of them all. `texts` are those of
    tokens. Units that are active in too few excerpts of either half, as in a single window, are left out.

    p: let z say by how many standard deviations a correlation is above those that explanations of other units reach on the same excerpts.
    p is the share of all z of explanations of other units, each without itself among those others, that are as large. There is none for
    fewer than 8 others.

    Source: Bills et al. 2023, Language models can explain neurons in language models (no arXiv entry), for the correlation.
    Source: Paulo et al. 2024, arXiv:2410.13928, section 3, for detection and fuzzing.
    Cost: per end some sorts of its excerpts' tokens, and its predictions for all excerpts; correlations of ends^2 pairs.
    """
    made = [end for each in layers for end in _explanations(each.layer, each.units)]
    if not made:
        return []
    beside = {each.layer: _directions(each) for each in layers}
    number = {unit: place for place, unit in enumerate(dict.fromkeys(str(each.unit) for each in made))}
    own = torch.tensor([number[str(each.unit)] for each in made])
    other = own[:, None] != own
    found = _cross_correlations(made)
    control, p = _beside_others(found, other)
    generator, every = torch.Generator().manual_seed(seed), [row.nonzero()[:, 0] for row in other]
    drawn = [places[torch.randperm(len(places), generator=generator)[:_DRAWS]] for places in every]
    columns = {
        "pearson": found.diagonal(),
        "control": control,
        "p": p,
        "q": benjamini_hochberg(p),
        "directions": torch.tensor([beside[each.layer][0] for each in made]),
        "best_direction": torch.tensor([beside[each.layer][1] for each in made]),
    }
    for name, ask in (("detection", detection), ("fuzzing", fuzzing)):
        columns[name], columns[f"{name}_control"] = _judged(made, drawn, ask)
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [
        ExplainedEnd(
            unit=each.unit,
            end=each.examples.end,
            method=each.method,
            text=_text(each, lambda token: named(texts[token])),
            excerpts=len(each.examples.valid),
            **dict(zip(columns, row, strict=True)),
        )
        for each, row in zip(made, rows, strict=True)
    ]


def explanation_rows(found: Sequence[ExplainedEnd], run: str) -> pa.Table:
    """Rows of the table `explanations`."""
    words = {name: pa.array([str(getattr(each, name)) for each in found], pa.string()) for name in _WORDS}
    numbers = {name: pa.array([getattr(each, name) for each in found], pa.float64(), from_pandas=True) for name in _NUMBERS}
    excerpts = pa.array([each.excerpts for each in found], pa.int32())
    return pa.table({**words, **numbers, "excerpts": excerpts, "run": pa.array([run] * len(found), pa.string())})


def explanation_findings(found: Sequence[ExplainedEnd]) -> list[Finding]:
    """The at most 8 units that are explained best, and how well units are explained beside random directions.

    A unit is there with its better end, if q is at most 0.01, and its correlation above its control and those of all random directions of its layer.
    """
    best: dict[str, ExplainedEnd] = {}
    sure = [each for each in found if each.q <= _LARGEST_Q and each.pearson > each.control]
    above = [each for each in sure if each.pearson > each.best_direction]  # never, where none is known
    for each in sorted(above, key=lambda each: (-each.pearson, str(each.unit), each.end)):
        best.setdefault(str(each.unit), each)
    return [*(_said(each) for each in list(best.values())[:_AT_MOST]), *_summary(found)]


def _said(each: ExplainedEnd) -> Finding:
    sentence = (
        f"{each.unit} is explained by {each.method}: its {each.end} end is {each.text}; in held-out excerpts that predicts it with a "
        f"correlation of {each.pearson:.2f} (explanations of other units: {each.control:z.2f}; explained random directions of its layer: at most "
        f"{each.best_direction:z.2f})"
    )
    return Finding("explained unit", str(each.unit), sentence, each.pearson, each.control, OTHERS, each.q, each.p)


def _summary(found: Sequence[ExplainedEnd]) -> list[Finding]:
    """One sentence, where it can be said."""
    both = [each for each in found if not (math.isnan(each.pearson) or math.isnan(each.directions))]
    if not both:
        return []
    own, beside = (float(torch.tensor([getattr(each, name) for each in both]).mean()) for name in ("pearson", "directions"))
    above = sum(each.pearson > each.directions for each in both)
    ends = f"{len(both)} ends of {len({str(each.unit) for each in both})} units"
    sentence = (
        f"tables of tokens predict {ends} in held-out excerpts with a mean correlation of {own:z.2f}, and as many random directions of the "
        f"same layers with {beside:z.2f}; {above} of the {len(both)} are above the mean of their layer's directions"
    )
    return [Finding("explanations", "", sentence, own, beside, DIRECTIONS)]


def _cross_correlations(made: Sequence[_Made]) -> Float64[Tensor, "unit draw"]:
    """What the explanation of column j has for a correlation on the validation excerpts of row i; see `scored` for the constant ones.

    Every explanation predicts each excerpt once, though many ends have it.
    """
    keys = [(each.examples.valid.window << _BITS) | each.examples.valid.start for each in made]
    every, place = torch.cat(keys).unique(return_inverse=True)
    ids = torch.cat([each.examples.valid.ids for each in made])
    text = ids.new_empty(len(every), ids.shape[1])
    text[place] = ids
    predicted = torch.stack([each.table.predict(text) for each in made])
    return torch.stack(
        [
            _correlations(predicted[:, mine][:, each.examples.valid.counted], each.examples)
            for each, mine in zip(made, place.split([len(key) for key in keys]), strict=True)
        ]
    )


def _correlations(predicted: Float64[Tensor, "draw row"], examples: Examples) -> Float64[Tensor, " draw"]:
    real = examples.scaled(examples.valid)[examples.valid.counted]
    a, s = real - real.mean(), predicted - predicted.mean(1, keepdim=True)
    size, sizes = a.square().sum(), s.square().sum(1)
    found = (s @ a) / (size.clamp_min(_TINY) * sizes.clamp_min(_TINY)).sqrt()
    found = torch.where(sizes > _TINY, found, 0.0)
    return found if size > _TINY else torch.full_like(found, torch.nan)


def _beside_others(
    found: Float64[Tensor, "unit draw"], other: Bool[Tensor, "unit draw"]
) -> tuple[Float64[Tensor, " unit"], Float64[Tensor, " unit"]]:
    """The mean of others in each row, and p: see `explain_layers`."""
    zeros = torch.where(other, found, 0.0)
    count = other.sum(1, keepdim=True).double()
    total, square = zeros.sum(1, keepdim=True), zeros.square().sum(1, keepdim=True)
    control = torch.where(count > 0, total / count, torch.nan)[:, 0]
    z_own = _standing(found.diagonal()[:, None], total, square, count)[:, 0]
    z_other = _standing(found, total - zeros, square - zeros.square(), count - 1)[other]
    z_other = z_other[~z_other.isnan()].sort().values
    as_far = len(z_other) - torch.searchsorted(z_other, z_own.nan_to_num(nan=0.0))
    p = (1 + as_far).double() / (1 + len(z_other))
    return control, torch.where(z_own.isnan() | (count[:, 0] < _FEWEST), torch.nan, p)


def _standing(
    value: Float64[Tensor, "unit _"],
    total: Float64[Tensor, "unit _"],
    square: Float64[Tensor, "unit _"],
    count: Float64[Tensor, "unit 1"],
) -> Float64[Tensor, "unit _"]:
    """By how many standard deviations values are above those that have these sums."""
    mean = total / count
    return (value - mean) / (square / count - mean.square()).clamp_min(_TINY).sqrt()


def _explanations(layer: int, record: ExcerptRecord) -> list[_Made]:
    """Of all ends of a record that are active."""
    return [_made(record.address(unit), layer, record.examples(unit, end)) for unit, end in record.explicable_ends()]


def _made(unit: UnitAddress, layer: int, examples: Examples) -> _Made:
    """The table whose order is best on the calibration excerpts, the lowest of equal ones, made anew of training and calibration excerpts."""
    order = best_order(examples, range(1, 1 + len(METHODS)))
    every = joined([examples.train, examples.calibration])
    table = fitted(every.ids, examples.scaled(every), every.counted, order)
    return _Made(unit, layer, METHODS[order - 1], table, examples)


def _text(made: _Made, names: Names) -> str:
    """The runs that predict most, of those that were seen more than once: what was seen once says little of a new text."""
    table, kept = made.table, []
    part = joined([made.examples.train, made.examples.calibration])
    for order, each in enumerate(table.tables, 1):
        runs = part.ids.unfold(1, order, 1)[part.counted[:, order - 1 :]]
        _, place, times = torch.cat([each.runs, runs]).unique(dim=0, return_inverse=True, return_counts=True)
        often = times[place[: len(each.runs)]] > _SEEN  # once more than seen, for itself
        kept.append(Table(each.keys[often], each.runs[often], each.values[often]))
    often = RunTable(tuple(kept), table.other)
    return (often if often.told(STRONG) else table).text(names)


def _directions(layer: LayerRecords) -> tuple[float, float]:
    """The mean and the largest correlation of explained random directions on validation excerpts of their own."""
    found = []
    for each in _explanations(layer.layer, layer.directions):
        part = each.examples.valid
        found.append(scored(each.examples.scaled(part), each.table.predict(part.ids), part.counted, draws=0).pearson)
    known = [each for each in found if not math.isnan(each)]
    return (sum(known) / len(known), max(known)) if known else (math.nan, math.nan)


def _judged(
    made: Sequence[_Made],
    drawn: Sequence[Int64[Tensor, " _"]],
    ask: Callable[[RuleJudge, Explanation, Examples, Questions], Judged],
) -> tuple[Float64[Tensor, " unit"], Float64[Tensor, " unit"]]:
    """The accuracy by each end's own explanation, and the mean of those by explanations of others of the same excerpts."""
    judge, plain = RuleJudge(ByRule()), Questions(draws=0)
    every = [[each, *(made[other] for other in others.tolist())] for each, others in zip(made, drawn, strict=True)]
    found = [
        torch.tensor([ask(judge, said.explanation, few[0].examples, plain).accuracy for said in few], dtype=torch.float64)
        for few in every
    ]
    return torch.stack([each[0] for each in found]), torch.stack([each[1:].nanmean() for each in found])


def _named(kind: str, layer: int) -> str:
    return f"neurons.explained.{kind}.{layer}"
