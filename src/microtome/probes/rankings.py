"""Orders of units by how much they know of a label: one interface, vectors and labels to a ranking, for every method.

How good a ranking is must not be asked of the probe that made it: `evaluation` asks others, and random and reversed rankings beside.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from microtome.numerics import hash_parts, uniform
from microtome.probes.associations import average_precisions, best_overlap, mutual_information
from microtome.probes.class_moments import class_moments, f_statistic, mean_differences, probeless
from microtome.probes.gaussian import class_gaussians, greedy_units
from microtome.probes.linear import LinearProbe, elastic_probe, prefix_steps

__all__ = ["RANKERS", "Ranker", "Ranking", "probe_ranking", "random_ranking", "ranked", "reversed_ranking"]

_GREEDY: Final = 50
"""Units that the Gaussian method chooses; those behind them follow by how much they tell alone."""


@dataclass(frozen=True, eq=False)
class Ranking:
    """Units, the best first. `score` is each unit's own, from which the order comes: larger first, of equal ones the lower index."""

    name: str
    order: Int64[Tensor, " unit"]
    score: Float64[Tensor, " unit"]


Ranker = Callable[[Tensor, Tensor, int], Ranking]
"""Vectors (row, unit), labels (row) and the number of classes to a ranking."""


def ranked(name: str, score: Float[Tensor, " unit"]) -> Ranking:
    """The order of a score."""
    return Ranking(name, score.sort(descending=True, stable=True).indices, score.double())


def random_ranking(units: int, seed: int) -> Ranking:
    """A random order of units, the same for a seed."""
    return ranked("random", uniform(hash_parts(seed, torch.arange(units))))


def reversed_ranking(ranking: Ranking) -> Ranking:
    """The worst first."""
    return replace(ranking, name=f"{ranking.name}, reversed", order=ranking.order.flip(0))


def probe_ranking(probe: LinearProbe) -> Ranking:
    """By the share of weight at which units are selected (`prefix_steps`); those of one step by the sum of their |w| over classes.

    The published order inside a step is that of a set in memory. Scores are minus the step, plus the sum's share of the largest, less than 1.
    """
    mass = probe.weight.abs().double().sum(0)
    step = prefix_steps(probe.weight)
    last = step[step.isfinite()].max() + 1 if bool(step.isfinite().any()) else step.new_zeros(())
    return ranked("probe", -torch.where(step.isfinite(), step, last) + mass / (2 * mass.max().clamp(min=1e-300)))


def _by_probe(x: Tensor, y: Tensor, classes: int) -> Ranking:
    return probe_ranking(elastic_probe(x, y, classes))


def _by_probeless(x: Tensor, y: Tensor, classes: int) -> Ranking:
    return ranked("probeless", probeless(class_moments(x, y, classes)).sum(0) / 2)


def _by_mean_difference(x: Tensor, y: Tensor, classes: int) -> Ranking:
    return ranked("mean difference", mean_differences(class_moments(x, y, classes)).abs().amax(0))


def _by_f(x: Tensor, y: Tensor, classes: int) -> Ranking:
    return ranked("F", f_statistic(class_moments(x, y, classes)))


def _by_information(x: Tensor, y: Tensor, classes: int) -> Ranking:
    return ranked("mutual information", mutual_information(x, y, classes))


def _by_precision(x: Tensor, y: Tensor, classes: int) -> Ranking:
    labels = torch.arange(classes == 2, classes)
    return ranked("average precision", average_precisions(x, y == labels[:, None]).amax((0, 1)))


def _by_overlap(x: Tensor, y: Tensor, classes: int) -> Ranking:
    labels = range(classes == 2, classes)
    return ranked("overlap", torch.stack([best_overlap(x, y == label).value for label in labels]).amax((0, 1)))


def _by_gaussian(x: Tensor, y: Tensor, classes: int) -> Ranking:
    gaussians = class_gaussians(x, y, classes)
    first = greedy_units(gaussians, x, y, _GREEDY)
    score = f_statistic(class_moments(x, y, classes))
    score = score / (1 + score)
    score[first] = torch.arange(len(first), 0, -1, dtype=torch.float64) + 1
    return ranked("gaussian", score)


RANKERS: Final[dict[str, Ranker]] = {
    "probe": _by_probe,
    "probeless": _by_probeless,
    "gaussian": _by_gaussian,
    "mean difference": _by_mean_difference,
    "F": _by_f,
    "mutual information": _by_information,
    "average precision": _by_precision,
    "overlap": _by_overlap,
}
"""Methods by name. One label against the rest is two classes, of which class 1 has the label."""
