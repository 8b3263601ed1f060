"""The compiled kernel that reads activations once: extremes of windows with their tokens, and moments of groups of windows.

Inner loops run over units, tiles are copied into a core's cache first; see `compiled`, which is what others import.
"""

import numpy as np

from microtome.numerics.jit import BLOCK
from microtome.numerics.jit import jit as _jit
from microtome.numerics.jit import load as _load

__all__ = ["room", "sweep", "sweep_window", "widen"]

_TILE = 64
"""Rows of a tile: 64 x 256 float32 are 64 KiB, which stay in a core's L2; what is done once a tile is done half as often as with 32."""
_SPAN = 8
"""Blocks of a row that are read in one go, because memory is fast in order: half a megabyte for the tiles of a row."""
_AT_ONCE = 4
"""Rows that an inner loop takes together, so that sums so far are read and written once for them."""


@_jit
def _extremes(tile, token, value, arg):
    """Running maximum (first half of value and arg) and minimum (second half) over the tile's rows; the first of equals stays."""
    rows = token.shape[0]
    few = rows - rows % _AT_ONCE
    for i in range(0, few, _AT_ONCE):  # the largest of four rows first, so that what was found so far is read once
        a, b, c, d = i * BLOCK, (i + 1) * BLOCK, (i + 2) * BLOCK, (i + 3) * BLOCK
        t = np.int32(token[i])
        t1, t2, t3 = np.int32(token[i + 1]), np.int32(token[i + 2]), np.int32(token[i + 3])
        for u in range(BLOCK):
            v0, v1, v2, v3 = tile[a + u], tile[b + u], tile[c + u], tile[d + u]
            high, at = value[u], arg[u]
            at = t if v0 > high else at
            high = v0 if v0 > high else high
            at = t1 if v1 > high else at
            high = v1 if v1 > high else high
            at = t2 if v2 > high else at
            high = v2 if v2 > high else high
            at = t3 if v3 > high else at
            high = v3 if v3 > high else high
            value[u], arg[u] = high, at
            low, at = value[BLOCK + u], arg[BLOCK + u]
            at = t if v0 < low else at
            low = v0 if v0 < low else low
            at = t1 if v1 < low else at
            low = v1 if v1 < low else low
            at = t2 if v2 < low else at
            low = v2 if v2 < low else low
            at = t3 if v3 < low else at
            low = v3 if v3 < low else low
            value[BLOCK + u], arg[BLOCK + u] = low, at
    for i in range(few, rows):
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
def _swap(value, arg, w, column, width, best, at):
    """Exchange a block's extremes so far with the buffers that the inner loop works on."""
    for end in range(2):
        for u in range(width):
            k, c = end * BLOCK + u, column + u
            value[end, w, c], best[k] = best[k], value[end, w, c]
            arg[end, w, c], at[k] = at[k], arg[end, w, c]


@_jit
def _powers(tile, rows, power, mean, positive):
    """Centre, number of positive values, and sums of the first four powers about the centre, of each unit of the tile.

    In float32, whose rounding a tile is too small to add up; the centre is the rounded mean, and `_join` goes on in float64.
    """
    wide, zero = np.uint64(BLOCK), np.float32(0)
    mean[:] = zero
    positive[:] = 0
    power[:] = zero
    few = rows - rows % _AT_ONCE
    for i in range(0, few, _AT_ONCE):
        a = np.uint64(i) * wide
        b, c, d = a + wide, a + np.uint64(2) * wide, a + np.uint64(3) * wide
        for u in range(wide):
            v0, v1, v2, v3 = tile[a + u], tile[b + u], tile[c + u], tile[d + u]
            mean[u] += (v0 + v1) + (v2 + v3)
            positive[u] += np.int32(v0 > zero) + np.int32(v1 > zero) + np.int32(v2 > zero) + np.int32(v3 > zero)
    for i in range(few, rows):
        a = np.uint64(i) * wide
        for u in range(wide):
            mean[u] += tile[a + u]
            positive[u] += np.int32(tile[a + u] > zero)
    for u in range(wide):
        mean[u] /= np.float32(rows)
    for i in range(0, few, _AT_ONCE):
        a = np.uint64(i) * wide
        b, c, d = a + wide, a + np.uint64(2) * wide, a + np.uint64(3) * wide
        for u in range(wide):
            m = mean[u]
            d0, d1, d2, d3 = tile[a + u] - m, tile[b + u] - m, tile[c + u] - m, tile[d + u] - m
            q0, q1, q2, q3 = d0 * d0, d1 * d1, d2 * d2, d3 * d3
            power[u] += (d0 + d1) + (d2 + d3)
            power[wide + u] += (q0 + q1) + (q2 + q3)
            power[np.uint64(2) * wide + u] += (q0 * d0 + q1 * d1) + (q2 * d2 + q3 * d3)
            power[np.uint64(3) * wide + u] += (q0 * q0 + q1 * q1) + (q2 * q2 + q3 * q3)
    for i in range(few, rows):
        a = np.uint64(i) * wide
        for u in range(wide):
            d0 = tile[a + u] - mean[u]
            q0 = d0 * d0
            power[u] += d0
            power[wide + u] += q0
            power[np.uint64(2) * wide + u] += q0 * d0
            power[np.uint64(3) * wide + u] += q0 * q0


@_jit
def _join(state, rows, power, mean, positive, column, width):
    """Chan's and Pebay's formulas: add a tile's sums to one group's count, positive, mean, M2, M3 and M4."""
    count, above, means, m2, m3, m4 = state
    b = float(rows)
    for u in range(width):
        c = column + u
        s1, s2 = np.float64(power[u]), np.float64(power[BLOCK + u])
        s3, s4 = np.float64(power[2 * BLOCK + u]), np.float64(power[3 * BLOCK + u])
        e = s1 / b  # from the centre to the mean itself
        p2 = s2 - b * e * e
        p3 = s3 - 3 * e * s2 + 2 * b * e * e * e
        p4 = s4 - 4 * e * s3 + 6 * e * e * s2 - 3 * b * e * e * e * e
        a = float(count[c])
        d = np.float64(mean[u]) + e - means[c]
        s = d / (a + b)
        cross = d * s * a * b
        m4[c] += (
            p4
            + cross * s * s * (a * a - a * b + b * b)
            + 6 * s * s * (a * a * p2 + b * b * m2[c])
            + 4 * s * (a * p3 - b * m3[c])
        )
        m3[c] += p3 + cross * s * (a - b) + 3 * s * (a * p2 - b * m2[c])
        m2[c] += p2 + cross
        means[c] += d * (b / (a + b))  # all of it for the first, so that a constant has no variance
        count[c] += rows
        above[c] += positive[u]


@_jit
def sweep_window(rows, w, sums, units, found, space):
    """The sweep of window w, whose moments are added to `sums`; space is a tile and what is summed up in it, a `room`."""
    (bits, place, begin), (value, arg) = rows, found
    tile_bits, tile, best, at, power, mean, positive = space
    value[0, w, units[0] : units[1]] = -np.inf
    value[1, w, units[0] : units[1]] = np.inf
    arg[:, w, units[0] : units[1]] = -1
    size = _TILE * BLOCK
    for first in range(begin[w], begin[w + 1], _TILE):
        last = min(first + _TILE, begin[w + 1])
        many = last - first
        for left in range(units[0], units[1], _SPAN * BLOCK):
            right = min(left + _SPAN * BLOCK, units[1])
            for i in range(many):  # whole rows first: memory is read in order
                for column in range(left, right, BLOCK):
                    start = (column - left) * _TILE + i * BLOCK
                    _load(bits, place[0, first + i] + column, min(BLOCK, right - column), tile_bits, start)
            for column in range(left, right, BLOCK):
                width = min(BLOCK, right - column)
                part = tile[(column - left) * _TILE : (column - left) * _TILE + size]
                _swap(value, arg, w, column, width, best, at)
                _extremes(part, place[1, first:last], best, at)
                _swap(value, arg, w, column, width, best, at)
                _powers(part, many, power, mean, positive)
                _join(sums, many, power, mean, positive, column, width)


@_jit
def room():
    """What a sweep works in."""
    tile_bits = np.zeros(_SPAN * _TILE * BLOCK, np.uint32)
    best, at = np.zeros(2 * BLOCK, np.float32), np.zeros(2 * BLOCK, np.int32)
    power, mean, positive = np.empty(4 * BLOCK, np.float32), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.int32)
    return tile_bits, tile_bits.view(np.float32), best, at, power, mean, positive


@_jit
def sweep(bits, place, begin, group, units, state, value, arg):
    """One read of the rows: per window maxima and minima with their tokens; moments are added to the state of the window's group.

    state is that of `moments`, each of group x unit: count, positive, mean, m2, m3, m4, minimum, maximum; value and arg are
    2 x window x units, maxima first. Reference: `extremes._reference`.
    """
    space = room()
    count, above, means, m2, m3, m4, minimum, maximum = state
    for w in range(begin.shape[0] - 1):
        g = group[w]
        sweep_window((bits, place, begin), w, (count[g], above[g], means[g], m2[g], m3[g], m4[g]), units, (value, arg), space)
        widen(minimum[g], maximum[g], value, w, units)


@_jit
def widen(minimum, maximum, value, w, units):
    """The range of a group with that of window w."""
    for u in range(units[0], units[1]):
        maximum[u] = max(maximum[u], np.float64(value[0, w, u]))
        minimum[u] = min(minimum[u], np.float64(value[1, w, u]))
