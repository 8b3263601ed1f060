"""Compiled sparse coding on the products of a dictionary's factors (numba): the positive lasso by active sets, and greedy codes.

Imported by `kernels` only. A code of k factors costs a few solves of k equations and a few scans of k rows of the products; rows of a batch do not
depend on each other, and a row's arithmetic depends on no thread. Systems are solved in float64, by a Cholesky factor that grows and shrinks by
one factor at a time; scans are in the products' own type. Loops run along memory, so that they become vector instructions without
reassociation. What is asked for and what it means is in `factors.coding`, whose torch solvers are the references.
"""

import numpy as np

from microtome.numerics.jit import BLOCK
from microtome.numerics.jit import jit as _jit

__all__ = ["lasso", "matching", "pursuit"]

_AT_ONCE = 16
"""Factors that enter an active set together, at most."""
_NEAR = 0.3
"""Of the largest pull beyond the penalty: what enters together is above this share of it."""
_DEPENDENT, _DEPENDENT_ROUNDED = 1e-12, 1e-5
"""A factor less than this share of whose squared length is outside the span of the others has no coefficient of its own: products are rounded,
to float64 or to float32."""


@_jit
def _scan(gram, target, members, value, size, rest):
    """What is left of a vector as each factor sees it: target - sum_i value_i gram[member_i]. Reference: `coding.duality_gap`."""
    units = target.shape[0]
    for begin in range(0, units, BLOCK):
        end = min(begin + BLOCK, units)
        for u in range(np.uint64(begin), np.uint64(end)):
            rest[u] = target[u]
        i = 0
        while i + 4 <= size:
            g0, g1, g2, g3 = gram[members[i]], gram[members[i + 1]], gram[members[i + 2]], gram[members[i + 3]]
            v0, v1 = gram.dtype.type(value[i]), gram.dtype.type(value[i + 1])
            v2, v3 = gram.dtype.type(value[i + 2]), gram.dtype.type(value[i + 3])
            for u in range(np.uint64(begin), np.uint64(end)):
                rest[u] -= v0 * g0[u] + v1 * g1[u] + v2 * g2[u] + v3 * g3[u]
            i += 4
        while i < size:
            g0, v0 = gram[members[i]], gram.dtype.type(value[i])
            for u in range(np.uint64(begin), np.uint64(end)):
                rest[u] -= v0 * g0[u]
            i += 1


@_jit
def _forward(upper, y, size):
    """Y becomes L^-1 y, of the factor's transpose."""
    for j in range(size):
        y[j] /= upper[j, j]
        by = y[j]
        for i in range(np.uint64(j + 1), np.uint64(size)):
            y[i] -= by * upper[j, i]


@_jit
def _backward(lower, y, size):
    """Y becomes L'^-1 y."""
    for j in range(size - 1, -1, -1):
        y[j] /= lower[j, j]
        by = y[j]
        for i in range(np.uint64(j)):
            y[i] -= by * lower[j, i]


@_jit
def _bordered(gram, members, size, factor, upper, y):
    """Y becomes the new row of L for one more factor; what of its squared length is outside their span is returned, 0 if that is rounding."""
    for i in range(size):
        y[i] = gram[factor, members[i]]
    _forward(upper, y, size)
    left = np.float64(gram[factor, factor])
    for i in range(size):
        left -= y[i] * y[i]
    share = _DEPENDENT if gram.itemsize == 8 else _DEPENDENT_ROUNDED
    return left if left > share * gram[factor, factor] else 0.0


@_jit
def _append(members, size, factor, lower, upper, y, left):
    """The system with one more factor, whose row `_bordered` made."""
    members[size] = factor
    y[size] = np.sqrt(left)
    for i in range(size + 1):
        lower[size, i] = y[i]
        upper[i, size] = y[i]


@_jit
def _remove(members, value, size, at, lower, upper):
    """The system without member `at`: rotations make what is left of the factor triangular again."""
    for i in range(at, size - 1):
        members[i], value[i] = members[i + 1], value[i + 1]
    for j in range(size):
        for i in range(max(at, j - 1), size - 1):
            upper[j, i] = upper[j, i + 1]
    size -= 1
    for j in range(at, size):
        a, b = upper[j, j], upper[j + 1, j]
        length = np.sqrt(a * a + b * b)
        c, s = a / length, b / length
        for i in range(np.uint64(j), np.uint64(size)):
            p, q = upper[j, i], upper[j + 1, i]
            upper[j, i] = c * p + s * q
            upper[j + 1, i] = c * q - s * p
    for i in range(at, size):
        for j in range(i + 1):
            lower[i, j] = upper[j, i]
    return size


@_jit
def _blocking(value, fitted, size):
    """How far the way from value to fitted leads before one is 0, which (-1: none), and whether one that has just entered goes below at once."""
    share, first, fresh = 1.0, -1, False
    for i in range(size):
        if fitted[i] > 0:
            continue
        if value[i] <= 0:
            fresh = True
        elif first < 0 or value[i] / (value[i] - fitted[i]) < share:
            share, first = value[i] / (value[i] - fitted[i]), i
    return share, first, fresh


@_jit
def _settle(target, penalty, members, value, size, lower, upper, fitted):
    """Values become those of the lasso's minimum over the members alone; members whose value would be below 0 leave.

    Factors that have just entered stand at 0: those of them that would go below leave first. Their pull being above the penalty, one at
    least stays, so that each way from one set to the next goes down. Source: Lawson and Hanson 1974, chapter 23.
    """
    while size > 0:
        for i in range(size):
            fitted[i] = np.float64(target[members[i]]) - penalty
        _forward(upper, fitted, size)
        _backward(lower, fitted, size)
        share, first, fresh = _blocking(value, fitted, size)
        if first < 0 and not fresh:
            value[:size] = fitted[:size]
            break
        if not fresh:
            for i in range(size):
                value[i] += share * (fitted[i] - value[i])
            value[first] = 0
        for i in range(size - 1, -1, -1):
            if value[i] <= 0 and fitted[i] <= 0:
                size = _remove(members, value, size, i, lower, upper)
    return size


@_jit
def _exchange(gram, members, value, size, factor, lower, upper, y):
    """A factor in the span of the members, y of `_bordered` still there, takes as much from them as the first can give, and its place.

    What is made stays the same and the sum of values falls. Returns the new size, or -1 where no member gives.
    """
    _backward(lower, y, size)
    most, first = np.inf, -1
    for i in range(size):
        if y[i] > 0 and value[i] / y[i] < most:
            most, first = value[i] / y[i], i
    if first < 0:
        return -1
    for i in range(size):
        value[i] = max(value[i] - most * y[i], 0.0)
    size = _remove(members, value, size, first, lower, upper)
    left = _bordered(gram, members, size, factor, upper, y)
    if left > 0:
        _append(members, size, factor, lower, upper, y, left)
        value[size] = most
        size += 1
    return size


@_jit
def _furthest(rest, penalty, inside, waiting):
    """The factors outside whose pull is furthest beyond the penalty, into `waiting`, first the furthest; how many."""
    most = penalty
    for u in range(rest.shape[0]):
        if rest[u] > most and not inside[u]:
            most = np.float64(rest[u])
    bar, count = penalty + _NEAR * (most - penalty), 0
    for u in range(rest.shape[0]):
        if rest[u] > bar and not inside[u] and (count < _AT_ONCE or rest[u] > rest[waiting[count - 1]]):
            slot = min(count, _AT_ONCE - 1)
            while slot > 0 and rest[u] > rest[waiting[slot - 1]]:
                waiting[slot] = waiting[slot - 1]
                slot -= 1
            waiting[slot] = u
            count = min(count + 1, _AT_ONCE)
    return count


@_jit
def _enter(gram, waiting, members, value, size, lower, upper, y):
    """Factors that wait enter at 0, if they do not depend on the members; if the first does, it takes a member's place. Returns the new size."""
    entered = False
    for factor in waiting:
        left = _bordered(gram, members, size, factor, upper, y)
        if size < members.shape[0] and left > 0:
            _append(members, size, factor, lower, upper, y, left)
            value[size] = 0
            size, entered = size + 1, True
        elif not entered:
            changed = _exchange(gram, members, value, size, factor, lower, upper, y)
            if changed >= 0:
                return changed
    return size


@_jit
def _gap(rest, square, penalty, target, members, value, size):
    """The duality gap: (1 - s)^2 |r|^2 / 2 + sum_i a_i (penalty - s r_i), s as in `coding.duality_gap`."""
    most = np.float64(rest[0])
    for u in range(rest.shape[0]):
        most = rest[u] if rest[u] > most else most
    share = penalty / most if most > penalty else 1.0
    made, slack = 0.0, 0.0
    for i in range(size):
        own = np.float64(rest[members[i]])
        made += value[i] * (np.float64(target[members[i]]) + own)
        slack += value[i] * (penalty - share * own)
    return max((1 - share) ** 2 * max(square - made, 0.0) / 2 + slack, 0.0)


@_jit
def _begin(gram, code, members, value, lower, upper, y):
    """The members and values of a start, which is cleared; a factor that depends on those before it is left out. Returns how many."""
    size = 0
    for u in range(code.shape[0]):
        if code[u] > 0 and size < members.shape[0]:
            left = _bordered(gram, members, size, u, upper, y)
            if left > 0:
                _append(members, size, u, lower, upper, y, left)
                value[size] = code[u]
                size += 1
        code[u] = 0
    return size


@_jit
def lasso(gram, target, square, asked, rows, found):
    """Codes of rows[0] to rows[1] by active sets, from the codes that stand there. Reference: `active_set.searched`.

    target is row x unit, square |x|^2 of each row; asked is penalty, tolerance (of the gap over |x|^2 / 2), rounds at most and the width of
    a vector, above which no factors are independent. found is codes, gaps over |x|^2 / 2, and rounds taken.
    """
    penalty, tolerance, steps, room = asked
    codes, gaps, taken = found
    units = gram.shape[0]
    lower, upper = np.empty((room, room)), np.empty((room, room))
    members, value, fitted = np.empty(room, np.int64), np.empty(room), np.empty(room + 1)
    rest, inside, waiting = np.empty(units, gram.dtype), np.zeros(units, np.bool_), np.empty(_AT_ONCE, np.int64)
    for r in range(rows[0], rows[1]):
        half, turn = square[r] / 2, 0
        size = _begin(gram, codes[r], members, value, lower, upper, fitted)
        further = size > 0
        while True:
            _scan(gram, target[r], members, value, size, rest)
            gap = _gap(rest, square[r], penalty, target[r], members, value, size)
            if gap <= tolerance * half or turn >= steps or not (further or turn == 0):
                break
            further = further and turn == 0  # a start's own minimum comes first
            if not further:
                for i in range(size):
                    inside[members[i]] = True
                count = _furthest(rest, penalty, inside, waiting)
                size = _enter(gram, waiting[:count], members, value, size, lower, upper, fitted)
            size = _settle(target[r], penalty, members, value, size, lower, upper, fitted)
            for i in range(size):
                further |= not inside[members[i]]
            inside[:] = False
            turn += 1
        for i in range(size):
            codes[r, members[i]] = value[i]
        gaps[r], taken[r] = gap / half if half > 0 else 0.0, turn


@_jit
def _solve(target, members, size, lower, upper, value):
    """Least squares by the members."""
    for i in range(size):
        value[i] = target[members[i]]
    _forward(upper, value, size)
    _backward(lower, value, size)


@_jit
def _without_negative(gram, target, kept, value, count, lower, upper, row):
    """The fit without the members whose coefficients are below 0, until none is. Returns how many are left."""
    while count > 0 and value[:count].min() < 0:
        fewer = 0
        for i in range(count):
            if value[i] < 0:
                continue
            left = _bordered(gram, kept, fewer, kept[i], upper, row)
            if left > 0:
                _append(kept, fewer, kept[i], lower, upper, row, left)
                fewer += 1
        count = fewer
        _solve(target, kept, count, lower, upper, value)
    return count


@_jit
def matching(gram, target, floor, factors, rows, codes):
    """Non-negative orthogonal matching pursuit of rows[0] to rows[1]. Reference: `coding._chosen`.

    The next factor is the one that the rest points along most, further than the row's floor; all that were chosen are fitted again, and of those
    whose coefficients are below 0 the fit is without.
    """
    units = gram.shape[0]
    lower, upper = np.empty((factors, factors)), np.empty((factors, factors))
    fewer_lower, fewer_upper = np.empty((factors, factors)), np.empty((factors, factors))
    chosen, kept = np.empty(factors, np.int64), np.empty(factors, np.int64)
    value, row = np.empty(factors), np.empty(factors + 1)
    rest, inside = np.empty(units, gram.dtype), np.zeros(units, np.bool_)
    for r in range(rows[0], rows[1]):
        size = count = 0
        for _ in range(factors):
            _scan(gram, target[r], kept, value, count, rest)
            factor, best = -1, floor[r]
            for u in range(units):
                if rest[u] > best and not inside[u]:
                    factor, best = u, rest[u]
            if factor < 0:
                break
            inside[factor] = True
            left = _bordered(gram, chosen, size, factor, upper, row)
            if left <= 0:
                continue
            _append(chosen, size, factor, lower, upper, row, left)
            size = count = size + 1
            kept[:size] = chosen[:size]
            _solve(target[r], kept, count, lower, upper, value)
            count = _without_negative(gram, target[r], kept, value, count, fewer_lower, fewer_upper, row)
        for i in range(count):
            codes[r, kept[i]] = value[i]
        inside[:] = False


@_jit
def pursuit(gram, target, floor, factors, rows, codes):
    """Plain matching pursuit of rows[0] to rows[1]: what the rest has of the best factor is added to its coefficient. Reference: `coding._pursued`."""
    units = gram.shape[0]
    rest = np.empty(units, gram.dtype)
    for r in range(rows[0], rows[1]):
        rest[:] = target[r]
        for _ in range(factors):
            factor, best = -1, floor[r]
            for u in range(units):
                if rest[u] > best:
                    factor, best = u, rest[u]
            if factor < 0:
                break
            share = rest[factor] / gram[factor, factor]
            codes[r, factor] += share
            for u in range(np.uint64(units)):
                rest[u] -= share * gram[factor, u]
