"""The compiled kernels (numba). Imported by `kernels` only, and only where numba is installed.

Each function has a torch reference next to its caller, named in its docstring, and a parity test. Inner loops run over units,
which are contiguous in memory, with accumulators in one small buffer per type so that LLVM vectorises them; tiles are copied
into L1/L2 first, because rows of a wide tensor are far apart. No reassociation is allowed: results do not depend on vector
width. What is computed and why belongs to the callers. Kernels of matrix products are in `compiled_products`.
"""

import numpy as np

from microtome.numerics.compiled_products import balance, collect, entries, settle, shortlist
from microtome.numerics.compiled_sweep import room as _room
from microtome.numerics.compiled_sweep import sweep
from microtome.numerics.compiled_sweep import sweep_window as _sweep_window
from microtome.numerics.compiled_sweep import widen as _widen
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

_FULL = 65535
"""The largest 16-bit count."""


@_jit
def survey(where, told, units, state, found, lists, none):
    """`sweep`, and each window's extremes inserted, with what goes along, into the sorted lists of its half while the window is in cache.

    where are bits, strides, places and beginnings of the rows; told, of each window key, half (which is the group) and length, and of
    each token its id and that which follows; found is value and arg of `sweep`; lists the fields of entries, group x unit x k, the lower end
    negated. Returns whether all activations around are finite. References: `extremes._reference`, `top._insert`.
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
    that number plus the row (window * tokens + token) that it came from. told is as in `survey`, lists the fields of entries but for value
    and key. Returns whether all activations around are finite. Reference: `top.settle`.
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
