"""Which factors separate the senses of one word, layer by layer: one number of a code against all numbers of the state.

A word's occurrences are labelled with senses (or parts of speech); a factor is chosen on some of them and judged on others. Which sense is meant is said
by who labels: `probes.labels` reads such files, `probes.words` finds the tokens. Questions that hold of every token belong in `patterns`.

Additional axes: `candidate` counts what a probe of one number may choose from, `fold` the parts of the rows.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor

from microtome.core import Refusal, Site
from microtome.factors.basis import Factors
from microtome.numerics import hash_parts
from microtome.probes import Scores, auroc, balanced_logistic, judged

__all__ = ["METHODS", "Method", "Nested", "Sense", "Separated", "folds_of", "nested", "polysemy"]

Method = Literal["factor", "state", "coordinate", "component", "random direction", "majority"]
METHODS: Final[tuple[Method, ...]] = ("factor", "state", "coordinate", "component", "random direction", "majority")
"""factor: one factor's code; state: a logistic regression on all of the state; coordinate, component, random direction: one number of the state, in the model's
own axes, along its first principal components, and along as many random directions as there are factors; majority: the commoner answer for all."""

_COMPONENTS: Final = 50


@dataclass(frozen=True)
class Nested:
    """How rows are parted: `outer` parts are judged in turn, and among the rest `inner` parts choose.

    Errors: `Refusal` for fewer than two of either.
    """

    outer: int = 5
    inner: int = 4
    penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.outer, self.inner) < 2:
            why = "rows that choose must not be those that judge"
            raise Refusal(f"{self.outer} and {self.inner} parts", why=why, instead="use two or more of each")


NESTED: Final = Nested()


def folds_of(y: Bool[Tensor, " row"], document: Int[Tensor, " row"], parts: int, seed: int = 0) -> Int64[Tensor, " row"]:
    """A part for each row: documents stay whole, and are dealt in the order of their share of positives, ties by hash, so that parts are alike.

    Errors: `Refusal` where there are fewer documents than parts, and where a part would be without positives or negatives to learn from.
    """
    names, number = document.unique(return_inverse=True)
    if len(names) < parts:
        why = f"there are {len(names)} documents"
        raise Refusal(f"{parts} parts of labelled rows", why=why, instead="give more documents, or ask for fewer parts")
    rows = torch.bincount(number).double()
    share = torch.bincount(number, weights=y.double()) / rows
    order = sorted(range(len(names)), key=lambda each: (float(share[each]), int(hash_parts(seed, int(names[each])))))
    part = torch.empty(len(names), dtype=torch.int64)
    part[torch.tensor(order)] = torch.arange(len(names)) % parts
    found = part[number]
    for each in range(parts):
        rest = y[found != each]
        if not bool(rest.any()) or bool(rest.all()):
            why = "without one part all rows have the same label"
            raise Refusal(f"{parts} parts of labelled rows", why=why, instead="give more examples of the rarer label")
    return found


@dataclass(frozen=True, eq=False)
class Separated:
    """How well a method tells a sense from the word's other senses: `scores` at rows that chose and taught nothing.

    `chosen` are the candidates that were taken, and in how many of the outer parts; (site, index) for a method of one number. `in_sample` is the AUROC of the
    best candidate where all rows choose and judge: what a search without held-out rows would have said.
    """

    scores: Scores
    chosen: Mapping[tuple[Site, int], int]
    in_sample: float


@dataclass(frozen=True, eq=False)
class Sense:
    """One label of a word: how many of its rows have it, and what each method makes of each site, and of all sites together (`anywhere`)."""

    name: str
    positives: int
    rows: int
    sites: Mapping[tuple[Site, Method], Separated]
    anywhere: Mapping[Method, Separated]


def polysemy(
    states: Mapping[Site, Float[Tensor, "row d_model"]],
    bases: Sequence[Factors],
    labels: Sequence[str],
    document: Int[Tensor, " row"],
    settings: Nested = NESTED,
) -> list[Sense]:
    """For every label of a word's occurrences, each against the others, how well single factors tell it at each site, beside what else could.

    `states` are those of the occurrences at the sites of the bases (`probes.word_vectors`).
    Source: Yun et al. 2021, arXiv:2103.15949, section 4.1, there of one factor chosen by hand.
    Errors: `Refusal` for fewer than two labels, and as of `folds_of`.
    Cost: for each label, site and outer part a sort of all candidates' rows for each inner part, and a Newton fit of d_model weights.
    """
    names = [name for name, _ in Counter(labels).most_common()]
    if len(names) < 2:
        raise Refusal(
            "senses of a word", why="there is one label only", instead="label its occurrences with two or more senses"
        )
    codes = {basis.site: basis.dictionary.encode({basis.site: states[basis.site].float()}) for basis in bases}
    directions = torch.randn(
        max(basis.units for basis in bases), next(iter(states.values())).shape[1], generator=torch.Generator().manual_seed(settings.seed)
    )  # fmt: skip
    found = []
    for name in names[:1] if len(names) == 2 else names:
        y = torch.tensor([label == name for label in labels])
        fold = folds_of(y, document, settings.outer, settings.seed)
        sites: dict[tuple[Site, Method], Separated] = {}
        pools: dict[Method, dict[Site, Tensor]] = {method: {} for method in METHODS}
        for site in codes:
            state = states[site].float()
            pools["factor"][site], pools["coordinate"][site] = codes[site], state
            pools["random direction"][site], pools["state"][site] = state @ directions.T, state
            pools["component"][site] = state
            for method in METHODS[:-1]:
                sites[site, method] = nested({site: pools[method][site]}, y, document, fold, method, settings)
        anywhere: dict[Method, Separated] = {
            method: nested(pools[method], y, document, fold, method, settings) for method in METHODS[:-1]
        }
        anywhere["majority"] = _majority(y, fold)
        found.append(Sense(name, int(y.sum()), len(y), sites, anywhere))
    return found


def nested(
    candidates: Mapping[Site, Float[Tensor, "row candidate"]],
    y: Bool[Tensor, " row"],
    document: Int[Tensor, " row"],
    fold: Int64[Tensor, " row"],
    method: Method,
    settings: Nested = NESTED,
) -> Separated:
    """Choose among the candidates of all sites on the rows outside of a part, fit there, and judge on the part; all parts together.

    A candidate is chosen by its AUROC at held-out inner parts, up or down as the other inner parts say; "state" chooses a site and uses all its numbers.
    """
    score, areas, chosen = torch.zeros(len(y), dtype=torch.float64), [], Counter[tuple[Site, int]]()
    for part in fold.unique().tolist():
        learn = fold != part
        inner = folds_of(y[learn], document[learn], settings.inner, settings.seed + 1)
        best: tuple[float, Site, int] | None = None
        for site, x in _numbers(candidates, method, learn):
            if method == "state" and len(candidates) == 1:
                best = 0.0, site, 0  # there is nothing to choose
                break
            value = (
                _state_value(x[learn], y[learn], inner, settings) if method == "state" else _values(x[learn], y[learn], inner)
            )
            index = int(value.argmax())
            if best is None or float(value[index]) > best[0]:
                best = float(value[index]), site, index
        assert best is not None, "there is a site"
        _, site, index = best
        chosen[site, -1 if method == "state" else index] += 1
        (x,) = (found for where, found in _numbers({site: candidates[site]}, method, learn) if where == site)
        used = x if method == "state" else x[:, index : index + 1]
        score[~learn] = _fitted(used[learn], y[learn], used[~learn], settings.penalty)
        mine = y[~learn]
        if bool(mine.any()) and not bool(mine.all()):
            areas.append(float(auroc(score[~learn][:, None], mine)[0]))
    # scores of different fits have no common order: areas are of each part by itself
    area = sum(areas) / len(areas) if areas else torch.nan
    return Separated(replace(judged(score, y), auroc=area), dict(chosen), _in_sample(candidates, y, method))


def _numbers(
    candidates: Mapping[Site, Tensor], method: Method, learn: Bool[Tensor, " row"]
) -> Iterator[tuple[Site, Float[Tensor, "row candidate"]]]:
    """What may be chosen from at each site: principal components are those of the rows that choose."""
    for site, x in candidates.items():
        if method == "component":
            centred = x - x[learn].mean(0)
            axes = torch.linalg.svd(centred[learn], full_matrices=False).Vh[:_COMPONENTS]
            yield site, centred @ axes.T
        else:
            yield site, x


def _values(
    x: Float[Tensor, "row candidate"], y: Bool[Tensor, " row"], inner: Int64[Tensor, " row"]
) -> Float64[Tensor, " candidate"]:
    """Mean AUROC of each candidate at held-out parts, up or down as the others say."""
    found = []
    for part in inner.unique().tolist():
        out = inner == part
        if bool(y[out].any()) and not bool(y[out].all()):
            up = auroc(x[~out], y[~out]) >= 0.5
            area = auroc(x[out], y[out])
            found.append(torch.where(up, area, 1 - area))
    return torch.stack(found).mean(0) if found else torch.full((x.shape[1],), 0.5, dtype=torch.float64)


def _state_value(x: Tensor, y: Tensor, inner: Tensor, settings: Nested) -> Float64[Tensor, " one"]:
    """The same of a regression on all numbers."""
    found = []
    for part in inner.unique().tolist():
        out = inner == part
        if bool(y[out].any()) and not bool(y[out].all()):
            found.append(auroc(_fitted(x[~out], y[~out], x[out], settings.penalty)[:, None], y[out])[0])
    return torch.stack(found).mean()[None] if found else torch.full((1,), 0.5, dtype=torch.float64)


def _fitted(learn: Tensor, y: Tensor, other: Tensor, penalty: float) -> Float64[Tensor, " row"]:
    """Log-odds of other rows by a balanced logistic regression on numbers of mean 0 and deviation 1."""
    mean, deviation = learn.mean(0), learn.std(0)
    scale = torch.where(deviation > 0, deviation, torch.inf)
    fit = balanced_logistic(((learn - mean) / scale)[None].double(), y, penalty)
    return fit.scores(((other - mean) / scale)[None].double())[0]


def _in_sample(candidates: Mapping[Site, Tensor], y: Bool[Tensor, " row"], method: Method) -> float:
    if method == "state":
        return torch.nan
    every = torch.ones_like(y)
    best = 0.0
    for _, x in _numbers(candidates, method, every):
        area = auroc(x, y)
        best = max(best, float(torch.maximum(area, 1 - area).max()))
    return best


def _majority(y: Bool[Tensor, " row"], fold: Int64[Tensor, " row"]) -> Separated:
    """All rows of a part called what most of the others are."""
    score = torch.zeros(len(y), dtype=torch.float64)
    for part in fold.unique().tolist():
        score[fold == part] = 1.0 if float(y[fold != part].double().mean()) > 0.5 else -1.0
    return Separated(replace(judged(score, y), auroc=0.5), {}, 0.5)
