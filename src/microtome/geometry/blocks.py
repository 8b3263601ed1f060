"""What even and odd blocks of tokens of a window agree on: the share of context without the likeness of neighbouring tokens.

Sums over windows, kept in the state of the fold in `decomposition`.
"""

import math
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import State
from microtome.geometry.anova import Fit

__all__ = ["BLOCK", "add_blocks", "agreed_blocks", "no_blocks"]

BLOCK: Final = 16
"""Tokens of a block, when a window is cut into even and odd blocks."""


def no_blocks(width: int) -> State:
    """No window."""
    return {
        "block_windows": torch.zeros((), dtype=torch.int64),
        "block_sums": torch.zeros(2, width, dtype=torch.float64),
        "block_product": torch.zeros((), dtype=torch.float64),
    }


def add_blocks(
    state: State, about: Float[Tensor, "window token d_model"], offset: Float[Tensor, "window d_model"], longest: int
) -> None:
    """Means over even and over odd blocks of windows, their sums and their products; nothing where windows lack some of the blocks.

    `about` are distances from a centre of each window, `offset` that of the centre from the origin, `longest` is the most tokens of a window.
    """
    covered = (longest - 2) // (2 * BLOCK) * 2 * BLOCK
    if not about.shape[1] >= covered > 0:
        return
    about = about[:, :covered]
    windows, length, width = about.shape
    blocks = about.reshape(windows, length // (2 * BLOCK), 2, BLOCK, width).mean((1, 3)).double() + offset[:, None]
    state["block_windows"] += windows
    state["block_sums"] += blocks.sum(0)
    state["block_product"] += (blocks[:, 0] * blocks[:, 1]).sum()


def agreed_blocks(state: State, whole: Fit) -> float:
    """Covariance of even with odd blocks' means over windows, summed over coordinates, against the variance of a token.

    The position part is the same in every window and drops out.
    """
    windows = int(state["block_windows"])
    if windows < 2 or whole.total <= 0:
        return math.nan
    even, odd = state["block_sums"] / windows
    covariance = (float(state["block_product"]) / windows - float(even.dot(odd))) * windows / (windows - 1)
    return covariance / (whole.total / whole.tokens)
