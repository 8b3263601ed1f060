"""How probable a statistic is by chance, when each unit, or each layer, has draws of its own and too few of them for a tail.

Each value is measured from the mean of its own draws in units of their standard deviation, and so is each draw from the others of its
set: the control is matched. The tail is then that of all draws of all sets together. What is drawn belongs to the lenses. The axis
column has the values of a set that have draws of their own.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["central_interval", "pooled_chance"]

_TINY = 1e-12


def pooled_chance(
    values: Sequence[Float[Tensor, "..."]], draws: Sequence[Float[Tensor, "draw column"]], tail: Literal["greater", "both"]
) -> list[Float[Tensor, "..."]]:
    """P-values of several sets of values, (1 + draws at least as far out) / (1 + draws of all sets).

    Column j of a set's draws is the null of its j-th value; a single column is that of all. `both` measures distance on either side.
    Not: valid where the nulls of the sets differ in shape; where they differ in place and width only, it is.
    """
    sided = torch.abs if tail == "both" else torch.clone
    null = sided(torch.cat([_left_out(each.double()).flatten() for each in draws])).sort().values
    found = []
    for mine, drawn in zip(values, draws, strict=True):
        mean, width = drawn.double().mean(0), drawn.double().std(0).clamp(min=_TINY)
        distance = sided((mine.double() - mean) / (width * (1 + 1 / len(drawn)) ** 0.5))
        found.append((1 + len(null) - torch.searchsorted(null, distance.contiguous())).double() / (1 + len(null)))
    return found


def central_interval(draws: Float[Tensor, "draw ..."]) -> Float[Tensor, "end ..."]:
    """Where 95 % of the draws are: their 2.5 % and 97.5 % quantiles, for each value."""
    return torch.quantile(draws.double(), torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)


def _left_out(draws: Float[Tensor, "draw column"]) -> Float[Tensor, "draw column"]:
    """Distance of each draw from the mean of the others, in units of what their standard deviation lets expect."""
    count = len(draws)
    rest = (draws.sum(0) - draws) / (count - 1)
    centred = draws - draws.mean(0)
    square = centred.square().sum(0) - centred.square() - (count - 1) * (rest - draws.mean(0)).square()
    variance = square / max(count - 2, 1)
    return (draws - rest) / (variance.clamp(min=_TINY**2) * count / (count - 1)).sqrt()
