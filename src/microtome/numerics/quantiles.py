"""Quantiles and distribution functions of a sample that is held in memory, per unit.

Of a stream too long to hold, take a sample by hash (`hashing`) or counts (`histogram`).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Refusal

__all__ = ["cdf", "quantiles"]


def quantiles(sample: Float[Tensor, "row unit"], q: Float[Tensor, " q"]) -> Float[Tensor, "q unit"]:
    """Exact quantiles of each unit in float64: order statistics, linear between neighbours (numpy's default).

    Errors: `Refusal` for an empty sample.
    Cost: one sort of the sample.
    """
    if len(sample) == 0:
        raise Refusal("quantiles", why="the sample has no rows", instead="count at least one token")
    ordered = sample.sort(0).values
    place = q.to(device=sample.device, dtype=torch.float64).clamp(0, 1) * (len(sample) - 1)
    below = place.floor().to(torch.int64)
    low, high = ordered[below].double(), ordered[(below + 1).clamp(max=len(sample) - 1)].double()
    part = (place - below).unsqueeze(1)
    return low + part * (high - low)


def cdf(sample: Float[Tensor, "row unit"], at: Float[Tensor, "point unit"]) -> Float[Tensor, "point unit"]:
    """The share of each unit's sample below the points, linear between order statistics: the inverse of `quantiles`.

    The i-th of n order statistics (from 0) has share i / (n - 1); equal ones share the mean of theirs. Points outside of the
    sample have 0 or 1. A sample of one row is a step of height 1/2 at its value.
    """
    n = len(sample)
    if n == 0:
        raise Refusal("distribution function", why="the sample has no rows", instead="count at least one token")
    ordered = sample.T.double().sort(1).values.contiguous()
    points = at.T.double().contiguous()
    left = torch.searchsorted(ordered, points)
    right = torch.searchsorted(ordered, points, right=True)
    last = max(n - 1, 1)
    low, high = ordered.gather(1, (left - 1).clamp(min=0)), ordered.gather(1, left.clamp(max=n - 1))
    inside = (points - low) / (high - low).clamp(min=torch.finfo(torch.float64).tiny)
    between = torch.where(left == 0, 0.0, torch.where(left == n, 1.0, (left - 1 + inside) / last))
    tied = (left + right - 1) / 2 / last if n > 1 else torch.full_like(points, 0.5)
    return torch.where(right > left, tied, between).T
