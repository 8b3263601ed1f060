"""Rows of small integers with a scale each: activations kept for display at a quarter of the size, with a stated error.

Not for computing with: statistics are taken before anything is quantised.
"""

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from microtome.core import Refusal

__all__ = ["quantise"]


def quantise(x: Float[Tensor, "*row k"]) -> tuple[Int8[Tensor, "*row k"], Float[Tensor, "*row"]]:
    """Codes in -127 .. 127 and one float32 scale per row: scale = max |x| / 127, code = round(x / scale).

    The error |x - code * scale| is at most scale / 2 (and one rounding). A row of zeros has scale 0. The code -128 is never
    made: tables use it for a place without a token.
    Errors: `Refusal` for NaN or infinities; on another device than the CPU, where looking would be waiting, a row that holds any
    gets a scale that is no number or infinite.
    """
    x = x.to(torch.float32)
    largest = x.abs().amax(-1) if x.shape[-1] else x.new_zeros(x.shape[:-1])
    if x.device.type == "cpu" and not bool(torch.isfinite(largest).all()):
        raise Refusal("quantising rows", why="a row holds NaN or infinities", instead="leave such rows out")
    tiny = torch.finfo(torch.float32).tiny
    scale = torch.where(largest > 0, (largest / 127).clamp(min=tiny), largest)
    codes = (x / scale.clamp(min=tiny).unsqueeze(-1)).round().clamp(-127, 127)
    return codes.to(torch.int8), scale
