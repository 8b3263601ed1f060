"""How well the order of a unit's activations agrees with a label: average precision, AUROC, overlap of masks, information; all units at once.

Units are signed, so both ends are tried: end 0 is h, end 1 is -h. Axes of this module: task counts labellings of the same rows, end the
two ends. What depends on means only belongs in `class_moments`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from microtome.core import Refusal
from microtome.numerics import quantiles

__all__ = [
    "Overlap",
    "auroc",
    "average_precision",
    "average_precisions",
    "best_overlap",
    "chance_overlap",
    "mutual_information",
    "overlap_at",
]

_TILE: Final = 1 << 22
"""Activations that are sorted at a time."""
_SAMPLE: Final = 1 << 14
"""Rows that decide a unit's quantiles at most."""


@dataclass(frozen=True, eq=False)
class _Sorted:
    """Some units' rows in descending order.

    `group` is the place of the last row of equal activation, `before` that of the last row of the group before, or -1.
    """

    value: Float[Tensor, "unit row"]
    order: Int[Tensor, "unit row"]
    group: Int[Tensor, "unit row"]
    before: Int[Tensor, "unit row"]

    def found(self, y: Bool[Tensor, " row"]) -> tuple[Tensor, Tensor, Tensor]:
        """Of each place, whether its row is positive, and how many are up to its group's end, and before its group."""
        hit = y.to(self.order.device)[self.order].double()
        total = hit.cumsum(1)
        return hit, total.gather(1, self.group), torch.where(self.before < 0, 0.0, total.gather(1, self.before.clamp(min=0)))


def _sorted(x: Float[Tensor, "row unit"]) -> Iterator[tuple[slice, _Sorted]]:
    """The units in tiles."""
    rows, units = x.shape
    width = max(1, _TILE // max(rows, 1))
    place = torch.arange(rows, device=x.device)
    for begin in range(0, units, width):
        value, order = x[:, begin : begin + width].T.contiguous().sort(dim=1, descending=True, stable=True)
        last = torch.ones(value.shape, dtype=torch.bool, device=x.device)
        last[:, :-1] = value[:, 1:] != value[:, :-1]
        group = torch.where(last, place, rows).flip(1).cummin(1).values.flip(1)
        earlier = torch.where(last, place, -1).cummax(1).values
        before = torch.cat([torch.full_like(group[:, :1], -1), earlier[:, :-1]], 1)
        yield slice(begin, begin + width), _Sorted(value, order, group, before)


def average_precisions(x: Float[Tensor, "row unit"], ys: Bool[Tensor, "task row"]) -> Float64[Tensor, "task end unit"]:
    """Average precision of every unit and its reverse for several labellings: sum over thresholds of (R_t - R_t-1) P_t, ties together.

    Errors: `Refusal` for a labelling without a positive or without a negative row.
    Cost: one sort for all labellings, and about 10 passes over the rows for each.
    """
    return _over(x, ys, _precision)


def average_precision(x: Float[Tensor, "row unit"], y: Bool[Tensor, " row"]) -> Float64[Tensor, "end unit"]:
    """The same for one labelling. Chance is about the share of positive rows."""
    return average_precisions(x, y[None])[0]


def auroc(x: Float[Tensor, "row unit"], y: Bool[Tensor, " row"]) -> Float64[Tensor, " unit"]:
    """How probably a positive row has the larger activation, ties half: that of -h is 1 less it. Errors as of `average_precisions`."""

    def area(found: _Sorted, y: Bool[Tensor, " row"]) -> Float64[Tensor, "end unit"]:
        hit, up_to, before = found.found(y)
        above = (before + up_to) / 2  # positive rows that a row of this place has above it
        value = ((1 - hit) * above).sum(1) / (hit.sum(1) * (1 - hit).sum(1))
        return torch.stack([value, 1 - value])

    return _over(x, y[None], area)[0, 0]


@dataclass(frozen=True, eq=False)
class Overlap:
    """The mask {end h >= threshold} of each unit and end that overlaps a label best, and by how much: |both| / |either|."""

    threshold: Float64[Tensor, "end unit"]
    value: Float64[Tensor, "end unit"]


def best_overlap(x: Float[Tensor, "row unit"], y: Bool[Tensor, " row"]) -> Overlap:
    """The threshold at which each unit's mask has the largest intersection over union with the label.

    It is chosen on these rows and flatters itself there: judge it elsewhere, by `overlap_at`. Not: average precision, which has been
    called by this name.
    Source: Mu and Andreas 2020, arXiv:2006.14032, section 2, on the overlap of masks.
    """
    _require_both(y[None])
    threshold, value = (torch.empty(2, x.shape[1], dtype=torch.float64, device=x.device) for _ in range(2))
    for end, sign in enumerate((1, -1)):
        for units, found in _sorted(x * sign):
            _, up_to, _ = found.found(y)
            overlap = up_to / (found.group + 1 + int(y.sum()) - up_to)
            value[end, units], place = overlap.max(1)
            threshold[end, units] = found.value.gather(1, place[:, None])[:, 0].double()
    return Overlap(threshold, value)


def overlap_at(
    x: Float[Tensor, "row unit"], y: Bool[Tensor, " row"], threshold: Float64[Tensor, "end unit"]
) -> Float64[Tensor, "end unit"]:
    """Intersection over union of the masks {end h >= threshold} with the label; 0 where both are empty."""
    found = []
    for sign, limit in zip((1, -1), threshold, strict=True):
        mask = (x * sign).double() >= limit
        both = (mask & y[:, None]).sum(0).double()
        found.append(both / (mask.sum(0) + y.sum() - both).clamp(min=1))
    return torch.stack(found)


def chance_overlap(mask: float, label: float) -> float:
    """The overlap of two masks of these shares that have nothing to do with each other: p q / (p + q - p q)."""
    return mask * label / (mask + label - mask * label)


def mutual_information(
    x: Float[Tensor, "row unit"], y: Int[Tensor, " row"], classes: int, *, bins: int = 10
) -> Float64[Tensor, " unit"]:
    """Information, in nats, between the label and which tenth of its own distribution a unit's activation is in.

    Equal activations are in one bin. Without dependence the value is about (bins - 1) (classes - 1) / (2 rows), not 0. Not: the estimate by
    nearest neighbours, which takes minutes for a layer.
    Cost: quantiles of up to 16,384 rows, and one search for each number.
    """
    sample = x[:: -(-len(x) // _SAMPLE)].float()
    steps = torch.arange(1, bins, dtype=torch.float64) / bins
    found = torch.empty(x.shape[1], dtype=torch.float64, device=x.device)
    width = max(1, _TILE // len(x))
    for begin in range(0, x.shape[1], width):
        units = slice(begin, begin + width)
        edges = quantiles(sample[:, units], steps).T.contiguous()
        part = x[:, units].T.double().contiguous()
        cell = torch.searchsorted(edges, part) * classes + y.to(x.device)
        cell += torch.arange(len(part), device=x.device)[:, None] * (bins * classes)
        joint = torch.bincount(cell.flatten(), minlength=len(part) * bins * classes).view(-1, bins, classes).double() / len(x)
        alone = joint.sum(2, keepdim=True) * joint.sum(1, keepdim=True)
        found[units] = torch.where(joint > 0, joint * (joint / alone).log(), 0.0).sum((1, 2))
    return found


def _over(
    x: Float[Tensor, "row unit"], ys: Bool[Tensor, "task row"], score: Callable[[_Sorted, Tensor], Tensor]
) -> Float64[Tensor, "task end unit"]:
    _require_both(ys)
    found = torch.empty(len(ys), 2, x.shape[1], dtype=torch.float64, device=x.device)
    for units, part in _sorted(x):
        for task, y in enumerate(ys):
            found[task, :, units] = score(part, y)
    return found


def _precision(found: _Sorted, y: Bool[Tensor, " row"]) -> Float64[Tensor, "end unit"]:
    """From above, a positive row's precision is that of all rows down to its group's end; from below, that of all up to its beginning."""
    hit, up_to, before = found.found(y)
    positives, rows = int(y.sum()), len(y)
    down = hit * up_to / (found.group + 1)
    up = hit * (positives - before) / (rows - 1 - found.before)
    return torch.stack([down.sum(1), up.sum(1)]) / positives


def _require_both(ys: Bool[Tensor, "task row"]) -> None:
    positives = ys.sum(1)
    if bool((positives == 0).any()) or bool((positives == ys.shape[1]).any()):
        why = "all rows are on one side" if ys.shape[1] else "there is no row"
        raise Refusal("a label's association with units", why=why, instead="give rows with the label and without it")
