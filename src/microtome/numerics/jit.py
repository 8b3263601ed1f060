"""How kernels are compiled (numba), and how they read a run of units. Imported by the modules of kernels only."""

import inspect
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

__all__ = ["BLOCK", "jit", "load"]

BLOCK = 256
"""Units that a kernel works on at a time."""


def jit(function: Callable[..., Any]) -> Any:
    """Compile at first call, keep the machine code on disk where a cache folder can be written.

    What runs is the bare function: a wrapper that checks shapes (in tests) cannot be compiled.
    """
    function = inspect.unwrap(function)
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:
        return numba.njit(**options)(function)


@jit
def load(bits, begin, width, tile, to):
    """Copy `width` values from bits[begin] on into the tile from `to` on, as bits of float32.

    Indices are unsigned: a signed one may count from the end, which keeps a loop from becoming vector instructions.
    """
    shift = np.uint32(16 if bits.itemsize == 2 else 0)
    begin, to = np.uint64(begin), np.uint64(to)
    for u in range(np.uint64(width)):
        tile[to + u] = np.uint32(bits[begin + u]) << shift
