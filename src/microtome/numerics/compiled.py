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
    "accompany",
    "balance",
    "collect",
    "enter",
    "entries",
    "histogram",
    "reservoir",
    "settle",
    "shortlist",
    "survey",
    "sweep",
    "topk",
]

_TILE = 64
"""Rows of a tile: 64 x 256 float32 are 64 KiB, which stay in a core's L2; what is done once a tile is done half as often as with 32."""
_SPAN = 8
"""Blocks of a row that are read in one go, because memory is fast in order: half a megabyte for the tiles of a row."""
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
        means[c] += s * b
        count[c] += rows
        above[c] += positive[u]


@_jit
def _sweep_window(rows, w, sums, units, found, room):
    """The sweep of window w, whose moments are added to `sums`; room is a tile and what is summed up in it."""
    (bits, place, begin), (value, arg) = rows, found
    tile_bits, tile, best, at, power, mean, positive = room
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
def _room():
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
    room = _room()
    count, above, means, m2, m3, m4, minimum, maximum = state
    for w in range(begin.shape[0] - 1):
        g = group[w]
        _sweep_window((bits, place, begin), w, (count[g], above[g], means[g], m2[g], m3[g], m4[g]), units, (value, arg), room)
        _widen(minimum[g], maximum[g], value, w, units)


@_jit
def _widen(minimum, maximum, value, w, units):
    """The range of a group with that of window w."""
    for u in range(units[0], units[1]):
        maximum[u] = max(maximum[u], np.float64(value[0, w, u]))
        minimum[u] = min(minimum[u], np.float64(value[1, w, u]))


@_jit
def survey(where, told, units, state, found, lists, none):
    """`sweep`, and each window's extremes inserted, with what goes along, into the sorted lists of its half while the window is in cache.

    where are bits, strides, places and beginnings of the rows; told, of each window key, half (which is the group) and length, and of
    each token its id and that which follows; found is value and arg of `sweep`; lists the fields of entries, group x unit x k, the lower end
    negated. Returns whether all activations around are finite. References:
    `extremes._reference`, `top._insert`.
    """
    room = _room()
    bits, strides, place, begin = where
    count, above, means, m2, m3, m4, minimum, maximum = state
    found_bits, fine = np.empty(lists[7].shape[3], np.uint32), True
    around = found_bits.view(np.float32), found_bits
    for w in range(begin.shape[0] - 1):
        g = told[0][1, w]
        _sweep_window((bits, place, begin), w, (count[g], above[g], means[g], m2[g], m3[g], m4[g]), units, found, room)
        _widen(minimum[g], maximum[g], found[0], w, units)
        fine &= _enter_window((bits, strides), told, w, found, units, lists, none, around)
    return fine


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
def _around(bits, base, step, place, none, room, codes, to):
    """Activations around a token of one unit as codes of one scale, into codes[to] and on; the scale, NaN if some are not finite.

    place is the first token around and how many there are in the window; room is as many float32 as there are codes, and their bits.
    """
    begin, length = place
    found, found_bits = room
    wide, first = np.uint64(found.shape[0]), np.uint64(to)
    shift = np.uint32(16 if bits.itemsize == 2 else 0)
    tiny = np.float32(1.1754943508222875e-38)
    for j in range(wide):
        at = begin + np.int64(j)
        inside = 0 <= at < length
        found_bits[j] = np.uint32(bits[np.uint64(base + at * step)]) << shift if inside else np.uint32(0)
    largest, fine = np.float32(0), True
    for j in range(wide):
        size = abs(found[j])
        fine &= size < np.float32(np.inf)
        largest = size if size > largest else largest
    scale = max(largest / np.float32(127), tiny) if largest > 0 else np.float32(0)
    by = max(scale, tiny)
    for j in range(wide):
        code = np.rint(found[j] / by)
        code = code if code > np.float32(-127) else np.float32(-127)
        codes[first + j] = np.int8(code if code < np.float32(127) else np.float32(127))
    for at in range(begin, min(begin + found.shape[0], 0)):
        codes[first + np.uint64(at - begin)] = none
    for at in range(max(begin, length), begin + found.shape[0]):
        codes[first + np.uint64(at - begin)] = none
    return scale if fine else np.float32(np.nan)


@_jit
def _enter_window(tensor, told, w, extremes, units, lists, none, room):
    """Insert the extremes of window w."""
    (bits, strides), (windows, texts), (best, arg) = tensor, told, extremes
    value, key, position, token, following, half, scale, codes = lists
    k, wide, fine = value.shape[2], codes.shape[3], True
    label = windows[0, w]
    for end in range(value.shape[0] // 2):
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
            one = _around(bits, base, strides[1], (at - wide // 2, windows[2, w]), none, room, codes[g, u, slot], 0)
            scale[g, u, slot] = one
            fine &= one == one
    return fine


@_jit
def enter(tensor, told, extremes, units, lists, none):
    """Insert extremes that were found before, as `survey` does those that it finds. Reference: `top._insert`."""
    found_bits, fine = np.empty(lists[7].shape[3], np.uint32), True
    room = found_bits.view(np.float32), found_bits
    for w in range(told[0].shape[1]):
        fine &= _enter_window(tensor, told, w, extremes, units, lists, none, room)
    return fine


@_jit
def accompany(tensor, told, source, units, lists, none):
    """Bring what goes along with entries to where a selection put them, and fill in that of new ones.

    source is unit x list x slot: below the number of slots the slot that an entry had, which is never behind where it is now; above it
    that number plus the row (window * tokens + token) that it came from. told is as in `survey`, lists
    the fields of entries but for value and key. Returns whether all activations around are finite. Reference: `top.settle`.
    """
    (bits, strides), (windows, texts) = tensor, told
    position, token, following, half, scale, codes = lists
    slots, wide = source.shape[2], codes.shape[3]
    tokens, found_bits, fine = texts.shape[2], np.empty(wide, np.uint32), True
    room = found_bits.view(np.float32), found_bits
    for u in range(units[0], units[1]):
        for d in range(source.shape[1]):
            for slot in range(slots - 1, -1, -1):
                came = source[u, d, slot]
                if came >= slots:
                    w, at = (came - slots) // tokens, (came - slots) % tokens
                    position[u, d, slot], half[u, d, slot] = at, windows[1, w]
                    token[u, d, slot], following[u, d, slot] = texts[0, w, at], texts[1, w, at]
                    base = w * strides[0] + u * strides[2]
                    one = _around(bits, base, strides[1], (at - wide // 2, windows[2, w]), none, room, codes[u, d, slot], 0)
                    scale[u, d, slot] = one
                    fine &= one == one
                elif came != slot:
                    position[u, d, slot], half[u, d, slot] = position[u, d, came], half[u, d, came]
                    token[u, d, slot], following[u, d, slot] = token[u, d, came], following[u, d, came]
                    scale[u, d, slot] = scale[u, d, came]
                    codes[u, d, slot] = codes[u, d, came]
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
            _load(bits, place[r] + column, width, tile_bits, 0)
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
                _load(bits, place[r] + column, width, tile_bits, 0)
                for u in range(width):
                    b = np.floor((tile[u] - edges[0, column + u]) / edges[1, column + u])
                    at = np.int32(min(max(b, np.float32(-1)), top)) + 1
                    bins[u] = at if tile[u] == tile[u] else -1
                for u in range(width):
                    if bins[u] >= 0:
                        few[column - units[0] + u, bins[u]] += 1
        counts[units[0] : units[1]] += few
        few[:] = 0
