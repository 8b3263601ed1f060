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
def load(bits, place, column, width, tile):
    """Copy rows of units column .. column + width into the tile, as bits of float32."""
    shift = np.uint32(16 if bits.itemsize == 2 else 0)
    for i in range(place.shape[0]):
        at = place[i] + column
        for u in range(width):
            tile[i * BLOCK + u] = np.uint32(bits[at + u]) << shift
