"""How sparse the codes are that directions are learnt from: a number of factors to aim at, or the source work's fixed number of steps.

A penalty that is given is `coding.Lasso`, and needs nothing here. What is learnt from the codes belongs in `learning`.
"""

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Refusal
from microtome.factors.coding import Lasso, coded, steepness

__all__ = ["Aimed", "Fixed", "paper_codes", "penalty_for"]

_SMALLEST: Final = 1024
"""Of the largest penalty that matters, the smallest that is tried is this part."""
_BISECTIONS: Final = 6


@dataclass(frozen=True)
class Aimed:
    """The lasso with that penalty which gives `l0` factors a code on average: sought anew as the directions change.

    Errors: `Refusal` for less than one factor.
    """

    l0: float
    tolerance: float = 1e-3
    steps: int = 200

    def __post_init__(self) -> None:
        if not self.l0 >= 1:
            raise Refusal(f"codes of {self.l0} factors", why="there is nothing to learn from", instead="aim at one or more")


@dataclass(frozen=True)
class Fixed:
    """The lasso by a number of accelerated steps from 0, near its minimum or not: `paper_codes`."""

    penalty: float
    steps: int = 500

    def __post_init__(self) -> None:
        Lasso(self.penalty, steps=self.steps)


def penalty_for(directions: Float[Tensor, "unit d_model"], sample: Float[Tensor, "row d_model"], aim: Aimed) -> float:
    """The penalty at which codes of these states have as many factors as aimed at: halved until they have, then by bisection.

    Large penalties come first, since codes of many factors are what takes long.
    Errors: `Refusal` where a thousandth of the largest penalty that matters gives fewer.
    Cost: codes of the sample, 16 times at most.
    """
    steep, codes = steepness(directions), None
    low = high = float((sample @ directions.T).max().clamp(min=torch.finfo(sample.dtype).tiny))

    def factors(penalty: float) -> float:
        nonlocal codes
        codes = coded(directions, sample, Lasso(penalty, aim.tolerance, aim.steps), codes, steep=steep).values
        return float((codes > 0).sum(1).double().mean())

    most, smallest = 0.0, high / _SMALLEST
    while most < aim.l0:
        if low <= smallest:
            why = f"even a penalty of {low:.3g} gives {most:.1f}"
            raise Refusal(f"codes of {aim.l0} factors", why=why, instead="aim at fewer, or learn more directions")
        low, high = low / 2, low
        most = factors(low)
    for _ in range(_BISECTIONS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if factors(middle) >= aim.l0 else (low, middle)
    return (low * high) ** 0.5


def paper_codes(
    directions: Float[Tensor, "unit d_model"], x: Float[Tensor, "row d_model"], settings: Fixed
) -> Float[Tensor, "row unit"]:
    """The source work's codes: accelerated proximal steps from 0, as many as are asked for, neither restarted nor stopped.

    Source: Yun et al. 2021, arXiv:2103.15949, its code; Beck and Teboulle 2009, doi:10.1137/080716542, equations 4.1 to 4.3.
    Cost: for each step and vector 4 d_model units FLOP; once an eigendecomposition of d_model^3.
    """
    step = 1 / torch.linalg.eigvalsh(directions.T @ directions)[-1]
    code = ahead = x.new_zeros(len(x), len(directions))
    time = 1.0
    for _ in range(settings.steps):
        later = (1 + (1 + 4 * time * time) ** 0.5) / 2
        moved = (ahead + step * ((x - ahead @ directions) @ directions.T) - step * settings.penalty).clamp_(min=0)
        ahead = moved + (time - 1) / later * (moved - code)
        code, time = moved, later
    return code
