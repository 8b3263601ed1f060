"""Random orders of positions: the null under which the order of positions means nothing.

What is measured in them is the business of the caller; what a number is beside its draws, of `measured`.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from microtome.core import Refusal

__all__ = ["FEWEST", "orders"]

FEWEST = 100
"""Draws that a null distribution has at least."""


def orders(tokens: int, draws: int, seed: int) -> Int[Tensor, "draw token"]:
    """Random orders of the positions 0 .. tokens - 1, each equally likely.

    Errors: `Refusal` for fewer than 100 draws.
    """
    if draws < FEWEST:
        why = "its interval and p-value would be coarse"
        raise Refusal(f"a control of {draws} draws", why=why, instead=f"draw at least {FEWEST}")
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(draws, tokens, generator=generator, dtype=torch.float64).argsort(1)
