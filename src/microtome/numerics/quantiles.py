"""Quantiles of a sample that is held in memory, per unit.

Of a stream too long to hold, take a sample by hash (`hashing`) or counts (`histogram`).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Refusal

__all__ = ["quantiles"]


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
