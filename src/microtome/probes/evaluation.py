"""What a ranking of units, and a probe, are worth: judged on documents they have not seen, beside what chance and memory reach.

Units are chosen and probes trained on the discover half; every accuracy here is of the confirm half. Making rankings belongs in `rankings`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from microtome.core import Half, Refusal
from microtome.numerics import hash_parts, uniform
from microtome.probes.cases import Cases
from microtome.probes.gaussian import class_gaussians
from microtome.probes.linear import ElasticNet, elastic_probe
from microtome.probes.rankings import Ranker, random_ranking, reversed_ranking
from microtome.probes.words import LabelledWords

__all__ = [
    "PROBES",
    "Crossed",
    "Fit",
    "Kept",
    "Minimal",
    "Redundancy",
    "Selectivity",
    "control_labels",
    "crossed",
    "kept_units",
    "minimal_set",
    "redundancy",
    "selectivity",
    "sizes_to",
]

Fit = Callable[[Tensor, Tensor, int], Callable[[Tensor], Tensor]]
"""Vectors, labels and the number of classes to a function from vectors to predicted classes."""


def _linear(x: Tensor, y: Tensor, classes: int) -> Callable[[Tensor], Tensor]:
    return elastic_probe(x, y, classes)


def _gaussian(x: Tensor, y: Tensor, classes: int) -> Callable[[Tensor], Tensor]:
    gaussians, units = class_gaussians(x, y, classes), torch.arange(x.shape[1])
    return lambda other: gaussians.logits(other, units).argmax(1)


PROBES: Final[dict[str, Fit]] = {"linear": _linear, "gaussian": _gaussian}
"""Probes that judge rankings, by name."""


def sizes_to(units: int) -> tuple[int, ...]:
    """1 to 8, 10, 12, 16, 32, 64, ..., and all units."""
    doubled = (16 << step for step in range(units.bit_length()))
    return tuple(sorted({size for size in (*range(1, 9), 10, 12, *doubled, units) if size <= units}))


@dataclass(frozen=True, eq=False)
class Kept:
    """Accuracies of one probe that sees some units only, and 0 for the others: the first of a ranking, the last, and random ones."""

    sizes: tuple[int, ...]
    top: Float64[Tensor, " size"]
    bottom: Float64[Tensor, " size"]
    random: Float64[Tensor, "draw size"]
    full: float
    majority: float


def kept_units(
    cases: Cases,
    ranker: Ranker,
    shares: Sequence[float] = (0.01, 0.05, 0.1, 0.25, 0.5),
    *,
    penalty: ElasticNet = ElasticNet(),  # noqa: B008 - a frozen value
    draws: int = 10,
    seed: int = 0,
) -> Kept:
    """Train once on all units, then keep shares of them, without training again. Standardise first, so that 0 is a unit's mean.

    Source: Dalvi et al. 2019, arXiv:1812.09355.
    Errors: `Refusal` for a share outside of 0 to 1.
    """
    if not all(0 < share <= 1 for share in shares):
        raise Refusal(f"shares {tuple(shares)} of the units", why="one is not in 0 .. 1", instead="give shares up to 1")
    (x, y), (held, truth) = cases.discover, cases.confirm
    probe = elastic_probe(x, y, len(cases.classes), penalty)
    units = x.shape[1]
    order = ranker(x, y, len(cases.classes)).order
    others = [random_ranking(units, seed + draw).order for draw in range(draws)]
    sizes = tuple(max(1, round(share * units)) for share in shares)

    def accuracies(order: Int64[Tensor, " unit"]) -> Float64[Tensor, " size"]:
        return torch.tensor([_share(probe.keeping(order[:size])(held), truth) for size in sizes], dtype=torch.float64)

    random = torch.stack([accuracies(other) for other in others]) if others else torch.empty(0, len(sizes))
    return Kept(
        sizes, accuracies(order), accuracies(order.flip(0)), random.double(), _share(probe(held), truth), cases.majority
    )


@dataclass(frozen=True, eq=False)
class Minimal:
    """Accuracies of probes trained on the first units of a ranking alone; `size` units lose at most `allowed` against all, on the confirm half.

    `size` was found inside the discover half, on documents kept from training, and `tuned` is what was seen there; so the accuracies are not
    of a choice made on them. `random` is of as many random units.
    """

    sizes: tuple[int, ...]
    tuned: Float64[Tensor, " size"]
    size: int
    allowed: float
    accuracy: float
    full: float
    random: Float64[Tensor, " draw"]
    majority: float


def minimal_set(
    cases: Cases, ranker: Ranker, fit: Fit = _linear, *, allowed: float = 0.01, draws: int = 5, seed: int = 0
) -> Minimal:
    """The smallest number of units, of `sizes_to` all, whose retrained probe is at most `allowed` less accurate than that of all.

    Source: Dalvi et al. 2019, arXiv:1812.09355; Durrani et al. 2020, arXiv:2010.02695.
    Errors: `Refusal` where the discover half has one document, or a class in one of its documents only.
    Cost: as many probes as there are sizes, and `draws` + 2.
    """
    inner, units, classes = _inner(cases), cases.x.shape[1], len(cases.classes)
    sizes = sizes_to(units)
    order = ranker(*inner.discover, classes).order
    tuned = torch.tensor([_retrained(inner, order[:size], fit) for size in sizes], dtype=torch.float64)
    size = next(size for size, value in zip(sizes, tuned.tolist(), strict=True) if value >= float(tuned[-1]) - allowed)
    chosen = ranker(*cases.discover, classes).order[:size]
    random = [_retrained(cases, random_ranking(units, seed + draw).order[:size], fit) for draw in range(draws)]
    accuracy, full = (_retrained(cases, each, fit) for each in (chosen, torch.arange(units)))
    return Minimal(sizes, tuned, size, allowed, accuracy, full, torch.tensor(random, dtype=torch.float64), cases.majority)


@dataclass(frozen=True, eq=False)
class Selectivity:
    """The accuracy of a probe less that of the same probe on control tasks."""

    task: float
    control: Float64[Tensor, " draw"]
    majority: float

    @property
    def value(self) -> float:
        """Accuracy of the task less the mean accuracy of control tasks."""
        return self.task - float(self.control.mean())

    @property
    def extremes(self) -> tuple[float, float]:
        """The smallest and the largest selectivity over the draws, which are too few for a confidence interval."""
        return self.task - float(self.control.max()), self.task - float(self.control.min())


def selectivity(cases: Cases, fit: Fit = _linear, *, draws: int = 5, seed: int = 0) -> Selectivity:
    """What a probe owes to the vectors and not to remembering words: a control task gives every kind of word a random label for good.

    Random labels are drawn by hash, with the frequencies that classes have among words of the discover half. About 0, or below, where a probe
    only remembers words.
    Source: Hewitt and Liang 2019, arXiv:1909.03368, section 2.
    Cost: 1 + `draws` probes.
    """
    every = torch.arange(cases.x.shape[1])
    control = [_control(cases, control_labels(cases, draw, seed), fit) for draw in range(draws)]
    return Selectivity(_retrained(cases, every, fit), torch.tensor(control, dtype=torch.float64), cases.majority)


def control_labels(words: Cases | LabelledWords, draw: int, seed: int = 0) -> Int64[Tensor, " row"]:
    """The labels of a control task: a random one for every kind of word, for good."""
    shares = torch.bincount(words.y[words.half == Half.DISCOVER], minlength=len(words.classes)).double()
    edges = (shares / shares.sum()).cumsum(0)[:-1]
    return torch.searchsorted(edges, uniform(hash_parts(seed, draw, words.kind)), right=True)


@dataclass(frozen=True, eq=False)
class Crossed:
    """Accuracies of probes retrained on the first units of rankings, (ranking, probe, size): as they are, reversed, and random orders.

    What a probe reaches with the units of another's ranking says that the ranking is good; what it reaches with random units, that the probe is.
    """

    rankings: tuple[str, ...]
    probes: tuple[str, ...]
    sizes: tuple[int, ...]
    accuracy: Float64[Tensor, "ranking probe size"]
    reversed: Float64[Tensor, "ranking probe size"]
    random: Float64[Tensor, "draw probe size"]
    majority: float


def crossed(
    cases: Cases,
    rankers: Mapping[str, Ranker],
    probes: Mapping[str, Fit] = PROBES,
    sizes: Sequence[int] = (10, 50),
    *,
    draws: int = 3,
    seed: int = 0,
) -> Crossed:
    """Rank with every method, judge with every probe.

    Source: Antverg and Belinkov 2022, arXiv:2110.07483.
    Errors: `Refusal` for more units than there are.
    """
    units = cases.x.shape[1]
    if not sizes or min(sizes) < 1 or max(sizes) > units:
        raise Refusal(f"the first {tuple(sizes)} units", why=f"there are {units}", instead="name sizes from 1 to that")
    found = [ranker(*cases.discover, len(cases.classes)) for ranker in rankers.values()]

    def accuracies(order: Int64[Tensor, " unit"]) -> Float64[Tensor, "probe size"]:
        values = [[_retrained(cases, order[:size], fit) for size in sizes] for fit in probes.values()]
        return torch.tensor(values, dtype=torch.float64)

    forward = torch.stack([accuracies(each.order) for each in found])
    backward = torch.stack([accuracies(reversed_ranking(each).order) for each in found])
    random = torch.stack([accuracies(random_ranking(units, seed + draw).order) for draw in range(draws)])
    return Crossed(tuple(rankers), tuple(probes), tuple(sizes), forward, backward, random, cases.majority)


@dataclass(frozen=True, eq=False)
class Redundancy:
    """Clusters of units that go together: `cluster` numbers them by their first unit, `kept` has the first unit of each cluster."""

    cluster: Int64[Tensor, " unit"]
    kept: Int64[Tensor, " cluster"]


def redundancy(x: Float[Tensor, "row unit"], *, cut: float = 0.5) -> Redundancy:
    """Join units by average linkage of 1 - |correlation| up to `cut`; opposite units are as near as equal ones, constant ones near to none.

    Source: Dalvi et al. 2020, arXiv:2004.04010.
    Cost: 2 rows units^2 FLOP, and linkage in units^2 steps. Memory: 16 units^2 bytes.
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    centred = (x - x.mean(0)).double()
    size = centred.square().sum(0).sqrt()
    unit = torch.where(size > 0, centred / size, 0.0)
    apart = (1 - (unit.T @ unit).abs()).clamp(0, 1).fill_diagonal_(0)
    if len(apart) < 2:
        return Redundancy(torch.zeros(len(apart), dtype=torch.int64), torch.arange(len(apart)))
    joined = fcluster(linkage(squareform(apart.cpu().numpy(), checks=False), "average"), cut, "distance")
    _, first, cluster = np.unique(joined, return_index=True, return_inverse=True)
    number = np.argsort(np.argsort(first))
    return Redundancy(torch.from_numpy(number[cluster]).long(), torch.from_numpy(np.sort(first)).long())


def _retrained(cases: Cases, units: Int[Tensor, " k"], fit: Fit) -> float:
    """Accuracy on the confirm half of a probe trained on some units of the discover half."""
    return _control(cases.only(units), cases.y, fit)


def _control(cases: Cases, y: Int[Tensor, " row"], fit: Fit) -> float:
    mine = cases.half == Half.DISCOVER
    predict = fit(cases.x[mine], y[mine], len(cases.classes))
    return _share(predict(cases.x[~mine]), y[~mine])


def _share(found: Int[Tensor, " row"], truth: Int[Tensor, " row"]) -> float:
    return float((found == truth).double().mean())


def _inner(cases: Cases) -> Cases:
    """The discover half alone, its documents dealt to halves in turn by hash."""
    mine = (cases.half == Half.DISCOVER).nonzero()[:, 0]
    documents, document = torch.unique(cases.document[mine], return_inverse=True)
    rank = hash_parts(1, documents).argsort().argsort()
    columns = {name: getattr(cases, name)[mine] for name in ("x", "y", "kind")}
    try:
        return replace(cases, **columns, document=document, half=rank[document] % 2)
    except Refusal as refusal:
        why = f"documents of the discover half are split once more, and there {refusal.what}: {refusal.why}"
        raise Refusal("a minimal set of units", why=why, instead=refusal.instead) from refusal
