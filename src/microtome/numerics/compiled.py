"""The compiled kernels (numba). Imported by `kernels` only, and only where numba is installed.

Each function has a torch reference next to its caller, named in its docstring, and a parity test. Inner loops run over units,
which are contiguous in memory, with accumulators in one small buffer per type so that LLVM vectorises them; tiles are copied
into L1/L2 first, because rows of a wide tensor are far apart. No reassociation is allowed: results do not depend on vector
width. What is computed and why belongs to the callers.
"""

import inspect
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

__all__ = ["BLOCK", "sweep", "topk"]

BLOCK = 256
"""Units that a kernel works on at a time."""
_TILE = 32
"""Rows of a tile: 32 x 256 float32 fill 32 KiB, a core's L1."""


def _jit(function: Callable[..., Any]) -> Any:
    """Compile at first call, keep the machine code on disk where a cache folder can be written.

    What runs is the bare function: a wrapper that checks shapes (in tests) cannot be compiled.
    """
    function = inspect.unwrap(function)
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:
        return numba.njit(**options)(function)


@_jit
def _load(bits, place, column, width, tile):
    """Copy rows of units column .. column + width into the tile, as bits of float32."""
    shift = np.uint32(16 if bits.itemsize == 2 else 0)
    for i in range(place.shape[0]):
        at = place[i] + column
        for u in range(width):
            tile[i * BLOCK + u] = np.uint32(bits[at + u]) << shift


@_jit
def _extremes(tile, token, value, arg):
    """Running maximum (first half of value and arg) and minimum (second half) over the tile's rows; the first of equals stays."""
    for i in range(token.shape[0]):
        k = i * BLOCK
        t = np.int32(token[i])
        for u in range(BLOCK):
            v = tile[k + u]
            above = v > value[u]
            value[u] = v if above else value[u]
            arg[u] = t if above else arg[u]
            below = v < value[BLOCK + u]
            value[BLOCK + u] = v if below else value[BLOCK + u]
            arg[BLOCK + u] = t if below else arg[BLOCK + u]


@_jit
def _powers(tile, rows, power, mean, positive):
    """Mean, number of positive values, and sums of the first four powers about the mean, of each unit of the tile."""
    mean[:] = 0.0
    positive[:] = 0
    power[:] = 0.0
    for i in range(rows):
        k = i * BLOCK
        for u in range(BLOCK):
            v = tile[k + u]
            mean[u] += v
            positive[u] += v > np.float32(0)
    for u in range(BLOCK):
        mean[u] /= rows
    for i in range(rows):
        k = i * BLOCK
        for u in range(BLOCK):
            d = tile[k + u] - mean[u]
            q = d * d
            power[u] += d
            power[BLOCK + u] += q
            power[2 * BLOCK + u] += q * d
            power[3 * BLOCK + u] += q * q


@_jit
def _join(moments, seen, rows, power, mean, column, width):
    """Chan's and Pebay's formulas: add a tile's central sums to moments[0:4] = mean, M2, M3, M4 of `seen` rows."""
    total = seen + rows
    a, b = float(seen), float(rows)
    for u in range(width):
        c = column + u
        d = mean[u] - moments[0, c]
        s = d / total
        m2, m3 = power[BLOCK + u], power[2 * BLOCK + u]
        cross = d * s * a * b
        moments[3, c] += (
            power[3 * BLOCK + u]
            + cross * s * s * (a * a - a * b + b * b)
            + 6 * s * s * (a * a * m2 + b * b * moments[1, c])
            + 4 * s * (a * m3 - b * moments[2, c])
        )
        moments[2, c] += m3 + cross * s * (a - b) + 3 * s * (a * m2 - b * moments[1, c])
        moments[1, c] += m2 + cross
        moments[0, c] += s * b


@_jit
def sweep(bits, place, begin, units, moments, value, arg):
    """One read of the rows: per window maxima and minima with their tokens, and moments over all windows.

    moments (5 x units: mean, M2, M3, M4, positive; 0 rows: not wanted) must come in as zeros; value and arg are
    2 x window x units, maxima first. Reference: `sweep._reference`.
    """
    tile_bits = np.zeros(_TILE * BLOCK, np.uint32)
    tile = tile_bits.view(np.float32)
    best, at = np.zeros(2 * BLOCK, np.float32), np.zeros(2 * BLOCK, np.int32)
    power, mean, positive = np.empty(4 * BLOCK), np.empty(BLOCK), np.empty(BLOCK, np.int32)
    seen = 0
    for w in range(begin.shape[0] - 1):
        value[0, w, units[0] : units[1]] = -np.inf
        value[1, w, units[0] : units[1]] = np.inf
        arg[:, w, units[0] : units[1]] = -1
        for first in range(begin[w], begin[w + 1], _TILE):
            last = min(first + _TILE, begin[w + 1])
            rows = last - first
            for column in range(units[0], units[1], BLOCK):
                width = min(BLOCK, units[1] - column)
                _load(bits, place[0, first:last], column, width, tile_bits)
                for end in range(2):
                    for u in range(width):
                        best[end * BLOCK + u], at[end * BLOCK + u] = value[end, w, column + u], arg[end, w, column + u]
                _extremes(tile, place[1, first:last], best, at)
                for end in range(2):
                    for u in range(width):
                        value[end, w, column + u], arg[end, w, column + u] = best[end * BLOCK + u], at[end * BLOCK + u]
                if moments.shape[0] > 0:
                    _powers(tile, rows, power, mean, positive)
                    _join(moments, seen, rows, power, mean, column, width)
                    for u in range(width):
                        moments[4, column + u] += positive[u]
            seen += rows


@_jit
def topk(values, keys, units, best, key, source):
    """Insert each value (row x unit) that belongs into its unit's sorted list. Reference: `topk._reference`."""
    k = best.shape[1]
    for r in range(values.shape[0]):
        for u in range(units[0], units[1]):
            v = values[r, u]
            if v > best[u, k - 1] or (v == best[u, k - 1] and keys[r, u] < key[u, k - 1]):
                label = keys[r, u]
                slot = k - 1
                while slot > 0 and (v > best[u, slot - 1] or (v == best[u, slot - 1] and label < key[u, slot - 1])):
                    best[u, slot] = best[u, slot - 1]
                    key[u, slot] = key[u, slot - 1]
                    source[u, slot] = source[u, slot - 1]
                    slot -= 1
                best[u, slot], key[u, slot], source[u, slot] = v, label, k + r
