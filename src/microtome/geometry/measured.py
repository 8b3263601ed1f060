"""A number beside what chance gives: the record that the measures of the geometry lens share.

What is rotated, permuted or drawn is said by the function that returns the record; the rows of tables belong in `lens`.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Refusal
from microtome.numerics import permutation_p

__all__ = ["ROUNDING", "Measured", "against", "cleared", "finite", "undefined"]

ROUNDING = 1e-6
"""A part this much shorter than hidden states is rounding of fp32: no direction or share is made of it."""

_TAILS = (0.025, 0.975)


@dataclass(frozen=True)
class Measured:
    """A value with its control.

    `lo` to `hi` is a 95 % interval of the value. `control` is its mean under the null, `control_lo` to `control_hi` hold 95 % of the
    null, `p` is the p-value. NaN is what was not computed, or cannot be: then `undefined` says why.
    """

    value: float
    lo: float = math.nan
    hi: float = math.nan
    control: float = math.nan
    control_lo: float = math.nan
    control_hi: float = math.nan
    p: float = math.nan
    undefined: str = ""


def undefined(why: str) -> Measured:
    """Nothing but the reason."""
    return Measured(math.nan, undefined=why)


def against(
    value: float,
    null: Float[Tensor, " draw"],
    tail: Literal["greater", "less", "both"] = "greater",
    control: float | None = None,
) -> Measured:
    """A value beside draws of its null. `control` is the exact mean of the null where it is known, for that of the draws.

    A draw equal to the value up to rounding is equal: permutations that give the same groups again count as at least as extreme.
    """
    observed = torch.tensor(value, dtype=torch.float64)
    near = (null.double() - observed).abs() <= 1e-9 * torch.maximum(null.double().abs(), observed.abs())
    null = torch.where(near, observed, null.double())
    ends = torch.quantile(null, torch.tensor(_TAILS, dtype=torch.float64))
    p = permutation_p(observed[None], null[:, None], tail)
    mean = float(null.mean()) if control is None else control
    return Measured(value, control=mean, control_lo=float(ends[0]), control_hi=float(ends[1]), p=float(p))


def cleared(rows: Float[Tensor, "row d_model"], size: float) -> Float[Tensor, "row d_model"]:
    """Rows that are rounding beside hidden states of length `size` become 0, which every measure knows to have no direction."""
    return rows * (rows.norm(dim=1, keepdim=True) > ROUNDING * size)


def finite(what: str, *tensors: Float[Tensor, "..."]) -> None:
    """Refuse NaN and infinity: no measure of them means anything."""
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise Refusal(what, why="the numbers contain NaN or infinity", instead="leave those rows out, or run the model in fp32")
