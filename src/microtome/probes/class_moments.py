"""How units differ between classes, from first and second moments: one pass over the vectors, all units at once.

Moments of parts merge, so that a stream never needs to be held. In this module the axis class counts classes. What depends on the order of
activations (average precision, overlap, information) belongs in `associations`.
"""

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

__all__ = ["ClassMoments", "class_moments", "combined", "f_statistic", "mean_differences", "probeless"]

_TILE: Final = 2048
"""Rows that are summed in float32 before float64 takes over."""


@dataclass(frozen=True, eq=False)
class ClassMoments:
    """Of each class, how many rows there are, the units' means, and their sums of squared deviations from these."""

    count: Float64[Tensor, " class"]
    mean: Float64[Tensor, "class unit"]
    squares: Float64[Tensor, "class unit"]

    @property
    def deviation(self) -> Float64[Tensor, " unit"]:
        """Standard deviation of all rows together."""
        count = self.count[:, None]
        between = (count * (self.mean - (count * self.mean).sum(0) / count.sum()).square()).sum(0)
        return ((self.squares.sum(0) + between) / count.sum()).sqrt()


def class_moments(x: Float[Tensor, "row unit"], y: Int[Tensor, " row"], classes: int) -> ClassMoments:
    """Moments of the rows of each class; rows whose `y` is negative are left out.

    Cost: the rows are read once, and 4 classes FLOP for each number.
    """
    sums, squares = (torch.zeros(classes, x.shape[1], dtype=torch.float64, device=x.device) for _ in range(2))
    shift = x[:_TILE].float().mean(0)
    names = torch.arange(classes, device=x.device)
    for begin in range(0, len(x), _TILE):
        part = x[begin : begin + _TILE].float() - shift
        member = (y[begin : begin + _TILE].to(x.device) == names[:, None]).float()
        sums += (member @ part).double()
        squares += (member @ part.square_()).double()
    count = torch.bincount(y[y >= 0], minlength=classes).double().to(x.device)
    mean = sums / count.clamp(min=1)[:, None]
    return ClassMoments(count, mean + shift.double(), (squares - sums * mean).clamp(min=0))


def combined(one: ClassMoments, other: ClassMoments) -> ClassMoments:
    """Moments of the rows of both."""
    count = one.count + other.count
    share = (other.count / count.clamp(min=1))[:, None]
    apart = other.mean - one.mean
    between = apart.square() * one.count[:, None] * share
    return ClassMoments(count, one.mean + apart * share, one.squares + other.squares + between)


def mean_differences(moments: ClassMoments) -> Float64[Tensor, "class unit"]:
    """Mean of a class less the mean of all other rows, in standard deviations of all rows; 0 for a unit that is constant.

    Source: Gurnee et al. 2023, arXiv:2305.01610, section 3.
    """
    count = moments.count[:, None]
    total = (count * moments.mean).sum(0)
    rest = (total - count * moments.mean) / (count.sum() - count)
    return _ratio(moments.mean - rest, moments.deviation)


def f_statistic(moments: ClassMoments) -> Float64[Tensor, " unit"]:
    """Variance between classes over variance inside them: sum_c n_c (m_c - m)^2 / (C - 1) over sum_c S_c / (n - C).

    0 for a constant unit; infinite for one that is constant inside every class and not between them.
    """
    count = moments.count[:, None]
    mean = (count * moments.mean).sum(0) / count.sum()
    between = (count * (moments.mean - mean).square()).sum(0) / (len(count) - 1)
    inside = moments.squares.sum(0) / (count.sum() - len(count))
    return torch.where(between > 0, between / inside, 0.0)


def probeless(moments: ClassMoments) -> Float64[Tensor, "class unit"]:
    """Of each class and unit, how far the class's mean is from those of all others: sum over c' of |m_c - m_c'|.

    Summed over classes this is twice the score of a unit, the sum over pairs. Not free of the unit's scale: standardise first.
    Source: Antverg and Belinkov 2022, arXiv:2110.07483.
    """
    return torch.stack([(mean - moments.mean).abs().sum(0) for mean in moments.mean])


def _ratio(value: Tensor, deviation: Tensor) -> Tensor:
    return torch.where(deviation > 0, value / deviation, 0.0)
