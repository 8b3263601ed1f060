"""The compiled kernels (numba). Imported by `kernels` only, and only where numba is installed.

Each function has a torch reference next to its caller, named in its docstring, and a parity test. Inner loops run over units,
which are contiguous in memory, with accumulators in one small buffer per type so that LLVM vectorises them; tiles are copied
into L1/L2 first, because rows of a wide tensor are far apart. No reassociation is allowed: results do not depend on vector
width. What is computed and why belongs to the callers. Kernels of matrix products are in `compiled_products`.
"""

import numpy as np

from microtome.numerics.compiled_products import balance, collect, entries, settle, shortlist
from microtome.numerics.jit import BLOCK
from microtome.numerics.jit import jit as _jit
from microtome.numerics.jit import load as _load

__all__ = [
    "BLOCK",
    "balance",
    "collect",
    "enter",
    "entries",
    "histogram",
    "reservoir",
    "settle",
    "shortlist",
    "sweep",
    "topk",
]

_TILE = 32
"""Rows of a tile: 32 x 256 float32 fill 32 KiB, a core's L1."""
_SPAN = 8
"""Blocks of a row that are read in one go, because memory is fast in order: a quarter of a megabyte for the tiles of a row."""
_AT_ONCE = 4
"""Rows that an inner loop takes together, so that sums so far are read and written once for them."""
_FULL = 65535
"""The largest 16-bit count."""


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
    """Mean, number of positive values, and sums of the first four powers about the mean, of each unit of the tile."""
    mean[:] = 0.0
    positive[:] = 0
    power[:] = 0.0
    few = rows - rows % _AT_ONCE
    for i in range(0, few, _AT_ONCE):
        a, b, c, d = i * BLOCK, (i + 1) * BLOCK, (i + 2) * BLOCK, (i + 3) * BLOCK
        for u in range(BLOCK):
            v0, v1, v2, v3 = tile[a + u], tile[b + u], tile[c + u], tile[d + u]
            mean[u] += (np.float64(v0) + v1) + (np.float64(v2) + v3)
            zero = np.float32(0)
            positive[u] += np.int32(v0 > zero) + np.int32(v1 > zero) + np.int32(v2 > zero) + np.int32(v3 > zero)
    for i in range(few, rows):
        k = i * BLOCK
        for u in range(BLOCK):
            v = tile[k + u]
            mean[u] += v
            positive[u] += v > np.float32(0)
    for u in range(BLOCK):
        mean[u] /= rows
    for i in range(0, few, _AT_ONCE):
        a, b, c, e = i * BLOCK, (i + 1) * BLOCK, (i + 2) * BLOCK, (i + 3) * BLOCK
        for u in range(BLOCK):
            m = mean[u]
            d0, d1, d2, d3 = tile[a + u] - m, tile[b + u] - m, tile[c + u] - m, tile[e + u] - m
            q0, q1, q2, q3 = d0 * d0, d1 * d1, d2 * d2, d3 * d3
            power[u] += (d0 + d1) + (d2 + d3)
            power[BLOCK + u] += (q0 + q1) + (q2 + q3)
            power[2 * BLOCK + u] += (q0 * d0 + q1 * d1) + (q2 * d2 + q3 * d3)
            power[3 * BLOCK + u] += (q0 * q0 + q1 * q1) + (q2 * q2 + q3 * q3)
    for i in range(few, rows):
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
def sweep(bits, place, begin, group, units, moments, value, arg):
    """One read of the rows: per window maxima and minima with their tokens, and moments over the windows of each group.

    moments (group x 5 x units: mean, M2, M3, M4, positive) must come in as zeros; value and arg are 2 x window x units,
    maxima first. Reference: `extremes._reference`.
    """
    size = _TILE * BLOCK
    tile_bits = np.zeros(_SPAN * size, np.uint32)
    tile = tile_bits.view(np.float32)
    best, at = np.zeros(2 * BLOCK, np.float32), np.zeros(2 * BLOCK, np.int32)
    power, mean, positive = np.empty(4 * BLOCK), np.empty(BLOCK), np.empty(BLOCK, np.int32)
    seen = np.zeros(moments.shape[0], np.int64)
    for w in range(begin.shape[0] - 1):
        g = group[w]
        value[0, w, units[0] : units[1]] = -np.inf
        value[1, w, units[0] : units[1]] = np.inf
        arg[:, w, units[0] : units[1]] = -1
        for first in range(begin[w], begin[w + 1], _TILE):
            last = min(first + _TILE, begin[w + 1])
            rows = last - first
            for left in range(units[0], units[1], _SPAN * BLOCK):
                right = min(left + _SPAN * BLOCK, units[1])
                for i in range(rows):  # whole rows first: memory is read in order
                    for column in range(left, right, BLOCK):
                        start = (column - left) * _TILE + i * BLOCK
                        _load(bits, place[0, first + i : first + i + 1], column, min(BLOCK, right - column), tile_bits[start:])
                for column in range(left, right, BLOCK):
                    width = min(BLOCK, right - column)
                    part = tile[(column - left) * _TILE : (column - left) * _TILE + size]
                    _swap(value, arg, w, column, width, best, at)
                    _extremes(part, place[1, first:last], best, at)
                    _swap(value, arg, w, column, width, best, at)
                    _powers(part, rows, power, mean, positive)
                    _join(moments[g], seen[g], rows, power, mean, column, width)
                    for u in range(width):
                        moments[g, 4, column + u] += positive[u]
            seen[g] += rows


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


@_jit
def _around(bits, base, step, begin, length, none, codes):
    """Activations at the places from `begin` on of one unit, as codes of one scale, which is returned; NaN if some are not finite."""
    wide = codes.shape[0]
    found_bits = np.zeros(wide, np.uint32)
    found = found_bits.view(np.float32)
    shift = np.uint32(16 if bits.itemsize == 2 else 0)
    tiny = np.float32(1.1754943508222875e-38)
    largest, fine = np.float32(0), True
    for j in range(wide):
        at = begin + j
        if 0 <= at < length:
            found_bits[j] = np.uint32(bits[base + at * step]) << shift
            size = abs(found[j])
            fine &= size < np.float32(np.inf)
            largest = max(largest, size)
    scale = max(largest / np.float32(127), tiny) if largest > 0 else np.float32(0)
    for j in range(wide):
        code = min(max(np.rint(found[j] / max(scale, tiny)), np.float32(-127)), np.float32(127))
        codes[j] = np.int8(code) if 0 <= begin + j < length else none
    return scale if fine else np.float32(np.nan)


@_jit
def enter(bits, strides, extremes, windows, texts, units, lists, none):
    """Insert each window's extremes with what goes along with them into the sorted lists of its half that they belong in.

    extremes are values and tokens, 2 x window x unit each; windows are key, half and length of each, texts the ids and those that follow, lists the fields of
    entries, group x unit x k, the lower end negated. Returns whether all activations around are finite. Reference: `top._insert`.
    """
    best, arg = extremes
    value, key, position, token, following, half, scale, codes = lists
    groups, k, wide = value.shape[0], value.shape[2], codes.shape[3]
    fine = True
    for w in range(best.shape[1]):
        label = windows[0, w]
        for end in range(groups // 2):
            g = 2 * end + windows[1, w]
            for u in range(units[0], units[1]):
                v = best[0, w, u] if end == 0 else -best[1, w, u]
                if not (v > value[g, u, k - 1] or (v == value[g, u, k - 1] and label < key[g, u, k - 1] and v > -np.inf)):
                    continue
                slot = k - 1
                while slot > 0 and (v > value[g, u, slot - 1] or (v == value[g, u, slot - 1] and label < key[g, u, slot - 1])):
                    value[g, u, slot], key[g, u, slot] = value[g, u, slot - 1], key[g, u, slot - 1]
                    position[g, u, slot], token[g, u, slot] = position[g, u, slot - 1], token[g, u, slot - 1]
                    following[g, u, slot], half[g, u, slot] = following[g, u, slot - 1], half[g, u, slot - 1]
                    scale[g, u, slot] = scale[g, u, slot - 1]
                    for j in range(wide):
                        codes[g, u, slot, j] = codes[g, u, slot - 1, j]
                    slot -= 1
                at = arg[end, w, u]
                value[g, u, slot], key[g, u, slot] = v, label
                position[g, u, slot], half[g, u, slot] = at, windows[1, w]
                token[g, u, slot], following[g, u, slot] = texts[0, w, at], texts[1, w, at]
                base = w * strides[0] + u * strides[2]
                one = _around(bits, base, strides[1], at - wide // 2, windows[2, w], none, codes[g, u, slot])
                scale[g, u, slot] = one
                fine &= one == one
    return fine


@_jit
def _mixed(x):
    """splitmix64 of an integer, as a signed one."""
    z = np.uint64(x) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.int64(z ^ (z >> np.uint64(31)))


@_jit
def _insert_lowest(score, label, value, row, lists):
    """Put an entry into a sample that is sorted by hash and whose highest hash it is below."""
    hashes, keys, values, source = lists
    slot = hashes.shape[0] - 1
    while slot > 0 and score < hashes[slot - 1]:
        hashes[slot], keys[slot] = hashes[slot - 1], keys[slot - 1]
        values[slot], source[slot] = values[slot - 1], source[slot - 1]
        slot -= 1
    hashes[slot], keys[slot], values[slot], source[slot] = score, label, value, row


@_jit
def reservoir(bits, place, index, labels, by_unit, units, lists, source):
    """Offer each value of each row to the sample of its unit and decile. Reference: `reservoir._offer`."""
    edges, hashes, keys, values = lists
    n = hashes.shape[2]
    tile_bits = np.zeros(BLOCK, np.uint32)
    tile = tile_bits.view(np.float32)
    score, highest = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64)
    for column in range(units[0], units[1], BLOCK):
        width = min(BLOCK, units[1] - column)
        for u in range(width):
            highest[u] = hashes[column + u, :, n - 1].max()
        for r in range(place.shape[0]):
            label = labels[index[r]]
            hits = 0
            for u in range(width):
                score[u] = _mixed(by_unit[column + u] ^ label)
                hits += score[u] < highest[u]
            if hits == 0:
                continue
            _load(bits, place[r : r + 1], column, width, tile_bits)
            for u in range(width):
                if score[u] < highest[u] and tile[u] == tile[u]:
                    c = column + u
                    d = 0
                    for e in range(edges.shape[1]):
                        d += tile[u] >= edges[c, e]
                    if score[u] < hashes[c, d, n - 1]:
                        slots = (hashes[c, d], keys[c, d], values[c, d], source[c, d])
                        _insert_lowest(score[u], label, tile[u], n + index[r], slots)
                        highest[u] = hashes[c, :, n - 1].max()


@_jit
def histogram(bits, place, units, edges, counts):
    """Count values by bin; edges are rows of low and width. Reference: the torch loop in `histogram.update`."""
    last = counts.shape[1] - 1
    top = np.float32(last - 1)
    tile_bits = np.zeros(BLOCK, np.uint32)
    tile = tile_bits.view(np.float32)
    bins = np.empty(BLOCK, np.int32)
    few = np.zeros((units[1] - units[0], last + 1), np.uint16)  # small, so that it stays in cache
    for begin in range(0, place.shape[0], _FULL):
        for r in range(begin, min(begin + _FULL, place.shape[0])):
            for column in range(units[0], units[1], BLOCK):
                width = min(BLOCK, units[1] - column)
                _load(bits, place[r : r + 1], column, width, tile_bits)
                for u in range(width):
                    b = np.floor((tile[u] - edges[0, column + u]) / edges[1, column + u])
                    at = np.int32(min(max(b, np.float32(-1)), top)) + 1
                    bins[u] = at if tile[u] == tile[u] else -1
                for u in range(width):
                    if bins[u] >= 0:
                        few[column - units[0] + u, bins[u]] += 1
        counts[units[0] : units[1]] += few
        few[:] = 0
