"""Masks as bits, 64 rows in a word: the sizes of many masks and of all their intersections, by counting ones.

What a mask is a mask of is the business of the caller. In this module `word` counts words of 64 bits; arrays are numpy's, whose unsigned
words count their ones. Bits behind the last row are 0, so `a & ~b` is safe and `~a` alone is not.
"""

from typing import Final

import numpy as np
from jaxtyping import Bool, Int64, UInt64
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Bits", "at_rows", "intersections", "ones", "packed", "rows_of"]

Bits = NDArray[np.uint64]
_HELD: Final = 1 << 15
"""Words of one tile: 256 KiB stay in a core's cache."""


def packed(mask: Bool[Tensor, "*any row"]) -> UInt64[np.ndarray, "*any word"]:
    """Rows to bits: rows / 64 words, rounded up.

    >>> import torch
    >>> packed(torch.ones(65, dtype=torch.bool)).shape
    (2,)
    """
    return _words(mask.cpu().numpy())


def rows_of(bits: UInt64[np.ndarray, " word"]) -> Int64[np.ndarray, " row"]:
    """The rows that a mask has, in order."""
    return np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little"))


def at_rows(bits: UInt64[np.ndarray, "*any word"], rows: Int64[np.ndarray, " row"]) -> UInt64[np.ndarray, "*any few"]:
    """Masks of some of the rows alone: row i of the new ones is row `rows`[i] of the old."""
    octets = np.take(bits.view(np.uint8), rows >> 3, axis=-1)
    return _words(octets & np.left_shift(1, rows & 7).astype(np.uint8))


def ones(bits: UInt64[np.ndarray, "*any word"]) -> Int64[np.ndarray, "*any"]:
    """How many rows each mask has."""
    return np.asarray(np.bitwise_count(bits).sum(-1, dtype=np.int64))


def intersections(
    a: UInt64[np.ndarray, "first word"], b: UInt64[np.ndarray, "second word"]
) -> Int64[np.ndarray, "first second"]:
    """|a and b| of every pair. Cost: about a nanosecond for each pair and word, a third of float32 matmul's on one core."""
    found = np.empty((len(a), len(b)), np.int64)
    step = max(1, _HELD // max(b.shape[1], 1))
    for begin in range(0, len(b), step):
        part = b[begin : begin + step]
        for row, one in enumerate(a):
            found[row, begin : begin + step] = ones(part & one)
    return found


def _words(truth: np.ndarray) -> Bits:
    """Bits of what is not 0."""
    found = np.packbits(truth, axis=-1, bitorder="little")
    missing = -found.shape[-1] % 8
    filled = np.pad(found, [(0, 0)] * (found.ndim - 1) + [(0, missing)])
    return np.ascontiguousarray(filled).view(np.uint64)
