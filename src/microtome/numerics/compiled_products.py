"""The compiled kernels of matrix products: what of a tile of products is worth keeping, and the exact values of what was kept.

A key is what is sorted by, larger first: the product, or its negative for the smallest. Tiles are read as bits, in signed
integers as wide as the products.
"""

import numpy as np

from microtome.numerics.jit import jit, load

__all__ = ["balance", "collect", "entries", "settle", "shortlist"]

_LANES = 32
_PART = 64
"""Products that are looked at together before each is."""
_RUN = 32
"""The most products of a strip, of which one is looked at before each is."""


@jit
def _dot(x, y, lane):
    """Sum x . y in float64, in `_LANES` sums side by side: a fixed order, so that the result is the same everywhere."""
    whole = x.shape[0] - x.shape[0] % _LANES
    for i in range(_LANES):
        lane[i] = 0.0
    for begin in range(0, whole, _LANES):
        for i in range(_LANES):
            lane[np.uint64(i)] += np.float64(x[np.uint64(begin + i)]) * np.float64(y[np.uint64(begin + i)])
    for i in range(whole, x.shape[0]):
        lane[i - whole] += np.float64(x[i]) * np.float64(y[i])
    total = 0.0
    for i in range(_LANES):
        total += lane[i]
    return total


@jit
def _code(value, one, bits_of_one, short):
    """An integer in the order of the floats, of the float32 `value` or, if `short`, of the bfloat16 at or below it."""
    one[0] = value
    x = bits_of_one[0]
    return np.int32(x ^ ((x >> np.int32(31)) & np.int32(0x7FFFFFFF))) >> np.int32(16 if short else 0)


@jit
def entries(a, b, row, column, part, value):
    """value[i] = a[row[i]] . b[column[i]] for i in `part`. Reference: `rounding.entries`."""
    room = np.empty(_LANES)
    for i in range(part[0], part[1]):
        value[i] = np.float32(_dot(a[row[i]], b[column[i]], room))


@jit
def _reaching(part, flip, level):
    """How many products of a part have codes that reach the level; with `flip` -1, codes of their negatives."""
    mask = np.int32(0x7FFF if part.itemsize == 2 else 0x7FFFFFFF)
    hits = np.int32(0)
    for c in range(part.shape[0]):
        x = np.int32(part[c])
        hits += np.int32(np.int32(x ^ ((x >> np.int32(31)) & mask) ^ flip) >= level)
    return hits


@jit
def _extremes(line, plain, most, far):
    """The largest bits of each strip of a row, as signed and as unsigned integers: the largest and a negative smallest.

    Strip i has the columns i, i + strips, i + 2 strips, ..., so that all strips are compared side by side.
    """
    strips = most.shape[0]
    for i in range(strips):
        most[i], far[i] = line[i], plain[i]
    for begin in range(strips, line.shape[0], strips):
        some, same = line[begin : begin + strips], plain[begin : begin + strips]
        for i in range(some.shape[0]):
            x, y = some[i], same[i]
            most[i] = x if x > most[i] else most[i]
            far[i] = y if y > far[i] else far[i]


@jit
def _codes(bits, flip, codes):
    """Codes of products, given by bits as integers; with `flip` -1, of their negatives."""
    mask, top = np.int32(0x7FFF if bits.itemsize == 2 else 0x7FFFFFFF), np.int64(0x8000 if bits.itemsize == 2 else 0x80000000)
    for i in range(bits.shape[0]):
        whole = np.int64(bits[i])
        x = np.int32(whole - 2 * top if whole >= top else whole)
        codes[i] = np.int32(x ^ ((x >> np.int32(31)) & mask) ^ flip)


@jit
def _without(own, column_class, codes, index, start, count):
    """Leave out the entries from `start` on whose columns have the row's own class; how many entries stay."""
    kept = start
    for i in range(start, count):
        codes[kept], index[kept] = codes[i], index[i]
        kept += column_class[index[i]] != own
    return kept


@jit
def _level(codes, held):
    """A code that at least `held` of the codes reach, and few more unless they are equal. By halves, as counting is fast."""
    low, high = np.int64(codes.min()), np.int64(codes.max()) + 1
    while high - low > 1:
        middle, count = np.int32((low + high) // 2), np.int32(0)
        for i in range(codes.shape[0]):
            count += np.int32(codes[i] >= middle)
        if count < held:
            high = np.int64(middle)
        else:
            low = np.int64(middle)
            if count <= held + held // 16:
                break
    return np.int32(low)


@jit
def _shorten(codes, index, count, held):
    """Keep about `held` entries of a list, the largest; how many these are, and the level they reach."""
    level = _level(codes[:count], held)
    kept = 0
    for i in range(count):
        code = codes[np.uint64(i)]
        codes[np.uint64(kept)], index[np.uint64(kept)] = code, index[np.uint64(i)]
        kept += np.int64(code >= level)
    return kept, level


@jit
def _take(line, tile, strip, flip, allowed, listed, state, held):
    """List the products of a strip of a row, at one end, that reach the level in state[1]; there are state[0] already.

    `strip` is which, and how many there are; `tile` the row's first column, and how many further the next is.
    """
    (own, column_class), (codes, index) = allowed, listed
    mask = np.int32(0x7FFF if line.itemsize == 2 else 0x7FFFFFFF)
    start, level = state[0], state[1]
    count = start
    for c in range(strip[0], line.shape[0], strip[1]):
        x = np.int32(line[np.uint64(c)])
        x = np.int32(x ^ ((x >> np.int32(31)) & mask) ^ flip)
        codes[np.uint64(count)], index[np.uint64(count)] = x, tile[0] + c * tile[1]
        count += np.int64(x >= level)  # no branch: which of them it is cannot be foreseen
    if column_class.shape[0]:
        count = _without(own, column_class, codes, index, start, count)
    if count + _RUN >= codes.shape[0]:
        count, level = _shorten(codes, index, count, held)
        if count + _RUN >= codes.shape[0]:
            count, level = 0, np.int32(0x7FFFFFFF)
    state[0], state[1] = count, level


@jit
def _share(held, tile, tiles):
    """How many of the largest to list after so many tiles, for at least `held` of all to be as large.

    Three deviations above their part.
    """
    part = held * (tile + 1) / tiles
    return held if tile + 1 == tiles else min(held, np.int64(part + 3 * np.sqrt(part)) + 2)


@jit
def shortlist(bits, columns, rows, first, wanted, classes, top, bottom):
    """Of each row and at both ends, list the products of a tile that are likely to be among the largest, and some more.

    `wanted` is how many of each row, and of how many tiles: the columns of this one are first, first + tiles, first + 2 tiles,
    ... There may be fewer in the end where tiles are unlike. `bits` are those of the products, as signed and as unsigned
    integers. `top` and `bottom` are lists of codes (see `_code`) and columns, and for each row how many they hold and the least
    code that is still listed: negative infinity's or less at first, the largest integer where equal entries left no room.
    Reference: `matmul_topk._larger`.
    """
    (signed, unsigned), (row_class, column_class), (held, tiles) = bits, classes, wanted
    share = _share(held, first, tiles)
    (up, up_at, up_state), (down, down_at, down_state) = top, bottom
    strips = min(columns, max(2 * held, (columns + _RUN - 1) // _RUN))
    most, far, codes = np.empty(strips, signed.dtype), np.empty(strips, unsigned.dtype), np.empty(strips, np.int32)
    negative = np.int64(0x8000 if signed.itemsize == 2 else 0x80000000)
    for r in range(rows[0], rows[1]):
        line, plain = signed[r * columns : (r + 1) * columns], unsigned[r * columns : (r + 1) * columns]
        allowed = (row_class[r] if column_class.shape[0] else 0, column_class)
        above, below, upper, lower = up_state[r], down_state[r], (up[r], up_at[r]), (down[r], down_at[r])
        _extremes(line, plain, most, far)
        if first == 0 and column_class.shape[0] == 0 and strips >= share:
            _codes(most, np.int32(0), codes)
            above[1] = _level(codes, share)
            _codes(far, np.int32(-1), codes)
            below[1] = _level(codes, share)
        for i in range(strips):
            if above[1] < 0 or most[i] >= above[1]:
                _take(line, (first, tiles), (i, strips), np.int32(0), allowed, upper, above, held)
            if below[1] < 0 or far[i] >= negative + below[1]:
                _take(line, (first, tiles), (i, strips), np.int32(-1), allowed, lower, below, held)
        if above[0] > share + share // 8:
            above[0], above[1] = _shorten(up[r], up_at[r], above[0], share)
        if below[0] > share + share // 8:
            below[0], below[1] = _shorten(down[r], down_at[r], below[0], share)


@jit
def _insert(key, column, keys, index):
    """Put an entry into a list sorted by key, larger first, and column, if it belongs there."""
    at = keys.shape[0]
    while at > 0 and (key > keys[at - 1] or (key == keys[at - 1] and column < index[at - 1])):
        if at < keys.shape[0]:
            keys[at], index[at] = keys[at - 1], index[at - 1]
        at -= 1
    if at < keys.shape[0]:
        keys[at], index[at] = key, column


@jit
def _likely(keys, k):
    """A value that at least k of the keys reach, and few more, or -inf where there are not so many."""
    if keys.shape[0] <= k:
        return -np.inf
    low, high = keys.min(), keys.max()
    for _ in range(12):
        middle, count = (low + high) / 2, 0
        for i in range(keys.shape[0]):
            count += keys[i] >= middle
        if count < k:
            high = middle
        else:
            low = middle
    return low


@jit
def settle(a, b, sign, listed, bound, rows, best):
    """The k best of each row's shortlist by their exact keys, and whether nothing outside it can be among them.

    `listed` is keys, columns and what no other key exceeds, `bound` what the error of an entry is made of (`rounding.Weights`
    of the rows, length and loss of the columns, the largest error of each row, the last rounding), `best` what is written:
    keys, columns, and whether they are sure. Reference: `matmul_topk._settle`.
    """
    (held, held_at, rest), (keys, index, sure) = listed, best
    of_length, of_lost, least_error, length, lost, slack, step = bound
    k, room = keys.shape[1], np.empty(_LANES)
    for r in range(rows[0], rows[1]):
        x, mine, at, some_keys, some_at = a[r], keys[r], index[r], held[r], held_at[r]
        count = 0
        while count < some_at.shape[0] and some_at[count] >= 0:
            count += 1
        likely = _likely(some_keys[:count], k)
        for turn in range(2):  # the likely ones first, so that few of the others are summed
            for i in range(count):
                v, column = some_keys[i], some_at[i]
                if (v >= likely) == (turn == 1):
                    continue
                error = of_length[r] * length[column] + of_lost[r] * lost[column] + least_error
                if v + abs(v) * step + error >= mine[k - 1]:
                    _insert(np.float32(sign * _dot(x, b[column], room)), column, mine, at)
        far = rest[r]
        sure[r] &= far == -np.inf or far + abs(far) * step + slack[r] < mine[k - 1]


@jit
def _allowed(row_class, column_class, row, column):
    """Whether a pair is not left out; no classes: none is."""
    return column_class.shape[0] == 0 or column_class[column] != row_class[row]


@jit
def collect(bits, columns, rows, reach, classes, corner, found, progress):
    """Append the pairs of a tile whose keys reach their row's threshold, until there is no room for another part of a row.

    `reach` is the thresholds and the sign that makes keys of products, `corner` the first row and column of the tile.
    `progress` is how many are found and which part is next; it is negative at the tile's end. Reference:
    `product_topk._collect`.
    """
    (row_class, column_class), (threshold, sign) = classes, reach
    bits_here = np.zeros(_PART, np.uint32)
    here, one = bits_here.view(np.float32), np.zeros(1, np.float32)
    bits_of_one = one.view(np.int32)
    parts, flip = (columns + _PART - 1) // _PART, np.int32(0 if sign > 0 else -1)
    count, skipped = progress[0], progress[1] % parts
    for r in range(rows[0] + progress[1] // parts, rows[1]):
        level = np.int32(_code(threshold[r], one, bits_of_one, bits.itemsize == 2) - 1)  # as zeros have two codes
        for begin in range(skipped * _PART, columns, _PART):
            width = min(_PART, columns - begin)
            if _reaching(bits[r * columns + begin : r * columns + begin + width], flip, level) == 0:
                continue
            if count + _PART > found.shape[1]:
                progress[0], progress[1] = count, (r - rows[0]) * parts + begin // _PART
                return
            load(bits, r * columns + begin, width, bits_here, 0)
            for c in range(width):
                row, column = corner[0] + r, corner[1] + begin + c
                if sign * here[c] >= threshold[r] and _allowed(row_class, column_class, row, column):
                    found[0, count], found[1, count] = row, column
                    count += 1
        skipped = 0
    progress[0], progress[1] = count, -1


@jit
def balance(products, first, rows, found):
    """How many more entries of a row are above its own, number (first + row) of all columns from 0 on, than below.

    Reference: `places._balance`.
    """
    columns = products.shape[1]
    for r in range(rows[0], rows[1]):
        line = products[r]
        own, more, bad = line[(first + r) % columns], np.int32(0), np.int32(0)
        for c in range(columns):
            x = line[np.uint64(c)]
            more += np.int32(x > own) - np.int32(x < own)
            bad += np.int32(x != x)
        found[r] = np.float32(np.nan if bad else more)
