"""Tokens to words: the vector of a word is that of its last token, of its first, or their average."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Pooling", "pooled"]

Pooling = Literal["last", "first", "average"]


def pooled(
    values: Float[Tensor, "window token unit"],
    window: Int[Tensor, " row"],
    first: Int[Tensor, " row"],
    last: Int[Tensor, " row"],
    how: Pooling,
) -> Float[Tensor, "row unit"]:
    """Vectors of words, which are tokens `first` to `last` of their windows; averages are taken in float32 at least.

    Of a decoder only the last token has seen the whole word.
    """
    window, first, last = (each.to(values.device) for each in (window, first, last))
    if how != "average":
        return values[window, last if how == "last" else first]
    sizes = last - first + 1
    owner = torch.repeat_interleave(torch.arange(len(sizes), device=values.device), sizes)
    step = torch.arange(len(owner), device=values.device) - (sizes.cumsum(0) - sizes)[owner]
    rows = values[window[owner], first[owner] + step].to(torch.promote_types(values.dtype, torch.float32))
    return rows.new_zeros(len(sizes), values.shape[2]).index_add_(0, owner, rows) / sizes[:, None]
