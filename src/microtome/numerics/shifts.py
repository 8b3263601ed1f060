"""Circular shifts within windows: the null under which a place in its window means nothing, and everything else of the window stays.

A window keeps what it has, how often, and in what runs; which two things come at one token is by chance. What is shifted and counted is the business
of the lenses; orders of windows, and groups that are drawn anew, belong in `multiple`.
"""

from typing import Literal

import torch
from jaxtyping import Int, Int64
from torch import Tensor

from microtome.numerics.hashing import hash_parts

__all__ = ["window_shifts"]

_POSITIVE = 0x7FFFFFFF


def window_shifts(
    window: Int[Tensor, " row"], draws: int, seed: int, *, least: Literal[0, 1] = 0
) -> list[Int64[Tensor, " row"]]:
    """For each draw an index into rows, by which every window's rows go round among themselves; `window` is each row's, those of one next to each other.

    Row i of the n of a window gets row (i + s) mod n of it, s = least + hash(seed, draw, window) mod (n - least): the same under any split of the
    stream. With `least` 1 no row of a window of two or more keeps its place.
    """
    numbers, own, length = window.unique_consecutive(return_inverse=True, return_counts=True)
    first, choices = length.cumsum(0) - length, (length - least).clamp_min(1)
    place = torch.arange(len(window), device=window.device) - first[own]
    offsets = [least + (hash_parts(seed, draw, numbers) & _POSITIVE) % choices for draw in range(draws)]
    return [first[own] + (place + offset[own]) % length[own] for offset in offsets]
