"""The largest and smallest entries of each row of a matrix product that is too large to hold.

Exact: as if every entry were summed in float64, rounded to float32 and the row sorted, ties to the lowest column. Reading
vocabularies through it belongs in `readout` and `vocabulary`, the largest entries of the whole product in `product_topk`.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microtome.core import Refusal
from microtome.numerics import kernels, rounding
from microtome.numerics.rounding import Columns, Factor, Precision, tile_shape

__all__ = ["Classes", "Ends", "as_labels", "classes_of", "matmul_topk"]

_FEW = 64
"""Rows for which rounding the columns costs more than it saves."""
_SPARE = 128
"""Room for candidates besides four times as many as are wanted."""
_MOST = 0x7FFFFFFF
"""Above all codes of numbers."""
_LEAST = 64
"""Rows below which a part is not worth a thread."""
_WHOLE = 1 << 22
"""Products held when rows are sorted whole."""
_BLOCK = 4096
"""Columns multiplied at a time then."""

_NONE = np.empty(0, np.int64)

Classes = tuple[Int[Tensor, " row"], Int[Tensor, " column"]] | None
"""Classes of rows and of columns; pairs of equal class are left out. None: no pairs are."""


@dataclass(frozen=True, eq=False)
class Ends:
    """The k largest entries of each row, descending, and the k smallest, ascending, with their columns.

    Where fewer than k entries of a row are numbers of pairs that are not left out, the rest is (-inf, -1), at the
    bottom (inf, -1).
    """

    top: Float[Tensor, "row k"]
    top_index: Int[Tensor, "row k"]
    bottom: Float[Tensor, "row k"]
    bottom_index: Int[Tensor, "row k"]


def matmul_topk(
    a: Float[Tensor, "row d"],
    b: Float[Tensor, "d column"] | Columns,
    k: int,
    *,
    excluded: Bool[Tensor, " column"] | None = None,
    bias: Float[Tensor, " column"] | None = None,
    row_class: Int[Tensor, " row"] | None = None,
    column_class: Int[Tensor, " column"] | None = None,
    precision: Precision = "float32",
) -> Ends:
    """Both ends of each row of a @ b + bias over the columns that are not excluded.

    Tiles of the product are searched for about 2k candidates a row and end, whose sums in float64 decide; a row whose
    candidates do not suffice by the bound of `rounding.error` is looked at again with more, and at last sorted whole (many
    equal entries). So `precision` changes the time and not the result. Pairs whose row and column have the same class are left
    out before anything is selected. NaN is never taken. Fastest where b is the transpose of contiguous rows; given as
    `rounding.Columns` where it is multiplied often.
    Errors: `Refusal` where fewer than k columns are left, for k below 1, and where only one of the classes is given.
    Cost: that of the product and of k gathered columns a row; memory a tile (4 MB), and of b a copy if it is rounded or not
    the transpose of contiguous rows.
    """
    if k < 1:
        raise Refusal(f"the {k} largest entries of a row", why="there is nothing to select", instead="ask for 1 or more")
    columns = b if isinstance(b, Columns) else Columns(b.T.to(torch.float32).contiguous())
    left = len(columns.exact) - (0 if excluded is None else int(excluded.sum()))
    if k > left:
        raise Refusal(f"the {k} largest of {left} columns", why="there are not as many", instead=f"ask for at most {left}")
    classes = classes_of(row_class, column_class, a.device)
    rows = a.to(torch.float32).contiguous()
    if bias is not None:
        rows = torch.cat([rows, torch.ones_like(rows[:, :1])], 1)
        columns = Columns(torch.cat([columns.exact, bias.to(columns.exact)[:, None]], 1))
    kept = None if excluded is None else (~excluded).nonzero()[:, 0]
    if kept is not None:
        columns, classes = Columns(columns.exact[kept]), classes and (classes[0], classes[1][kept])
    ends = _empty(len(a), k, a.device)
    with rounding.full_sums():
        _fill(ends, rows, columns, classes, precision if len(a) > _FEW or columns is b else "float32")
    if kept is not None:
        for index in (ends.top_index, ends.bottom_index):
            index.copy_(torch.where(index >= 0, kept[index], -1))
    return ends


def classes_of(
    row_class: Int[Tensor, " row"] | None, column_class: Int[Tensor, " column"] | None, device: torch.device
) -> Classes:
    """Both classes, or None. Errors: `Refusal` for one without the other."""
    if row_class is None and column_class is None:
        return None
    if row_class is None or column_class is None:
        raise Refusal("classes of one side", why="pairs of equal class are left out", instead="give row_class and column_class")
    return row_class.to(device, torch.int64).contiguous(), column_class.to(device, torch.int64).contiguous()


def as_labels(classes: Classes) -> tuple[np.ndarray, np.ndarray]:
    """Classes as kernels read them: empty where there are none."""
    return (_NONE, _NONE) if classes is None else (classes[0].numpy(), classes[1].numpy())


def _empty(rows: int, k: int, device: torch.device) -> Ends:
    values, index = torch.full((rows, k), -torch.inf, device=device), torch.full((rows, k), -1, device=device)
    return Ends(values, index, -values, index.clone())


def _fill(ends: Ends, a: Float[Tensor, "row d"], columns: Columns, classes: Classes, precision: Precision) -> None:
    """Write the ends of all rows, a block of rows after another."""
    (left, right), b = rounding.factors(a, columns, precision), columns.exact
    work = functools.partial(_fill_rows, ends, (a, b), (left, right), classes)
    threads = torch.get_num_threads()
    count = -(-len(a) // (tile_shape(left)[0] * threads)) * threads  # as many for each
    parts = torch.arange(len(a), device=a.device).split(max(_LEAST, -(-len(a) // max(count, 1))))
    if a.device.type == "cpu":
        kernels.apart(work, parts)
    else:
        for part in parts:
            work(part)


def _fill_rows(
    ends: Ends, exact: tuple[Tensor, Tensor], factors: tuple[Factor, Factor], classes: Classes, rows: Int[Tensor, " part"]
) -> None:
    """Write the ends of some rows."""
    (a, b), (left, right), pending, held = exact, factors, rows, 2 * ends.top.shape[1] + 16
    width = tile_shape(left)[1]
    room = torch.empty(len(rows) * min(width, len(b)), dtype=right.rounded.dtype, device=b.device)
    while len(pending) and held < len(b) // 4 and not left.certain:
        some, mine = left.part(pending), classes and (classes[0][pending], classes[1])
        lists = _shortlisted(some, right, held, mine, room)
        pending = pending[~_settled(ends, pending, (a[pending], b), lists, (some, right))]
        held *= 4
    for some in pending.split(max(1, _WHOLE // len(b))) if len(pending) else ():
        _whole(ends, some, (a[some], b), classes and (classes[0][some], classes[1]))


@dataclass(frozen=True, eq=False)
class _Shortlist:
    """Of each row, some large keys of rounded products, their columns, and what no other key exceeds; (-inf, -1) is empty."""

    keys: Float[Tensor, "row held"]
    at: Int[Tensor, "row held"]
    rest: Float[Tensor, " row"]


def _shortlisted(
    left: Factor, right: Factor, held: int, classes: Classes, room: Float[Tensor, " number"]
) -> tuple[_Shortlist, _Shortlist]:
    """About the `held` largest and smallest rounded products of each row.

    Every tile has columns from all over, so that the first say how large the largest of all will be: neighbours are alike in a
    vocabulary.
    """
    count = -(-len(right.length) // (len(room) // len(left.length)))
    tiles = ((first, rounding.multiplied(left, right.part(slice(first, None, count)), room)) for first in range(count))
    compiled = kernels.compiled_for(left.rounded)
    if compiled is not None:
        return _compiled_lists(compiled, tiles, len(left.length), (held, count), classes)
    lists = None
    for first, scores in tiles:
        lists = _larger(lists, scores, slice(first, None, count), held, classes)
    assert lists is not None
    return lists


def _compiled_lists(
    compiled: ModuleType, tiles: Iterable[tuple[int, Tensor]], rows: int, wanted: tuple[int, int], classes: Classes
) -> tuple[_Shortlist, _Shortlist]:
    """The lists of all tiles; `codes` are keys as integers in their order, `state` how many and the least still listed.

    `wanted` is how many of each row, and from how many tiles.
    """
    room = 4 * wanted[0] + _SPARE
    codes, at = torch.empty((2, rows, room), dtype=torch.int32), torch.empty((2, rows, room), dtype=torch.int64)
    state = torch.tensor([0, -_MOST], dtype=torch.int32).repeat(2, rows, 1)
    arrays, labels, dtype = [tuple(x[end].numpy() for x in (codes, at, state)) for end in range(2)], as_labels(classes), None
    for first, scores in tiles:
        signed, columns, dtype = rounding.signed_bits(scores), scores.shape[1], scores.dtype
        both = signed, signed.view(np.dtype(f"u{signed.itemsize}"))

        def work(begin: int, end: int, bits: tuple[np.ndarray, ...] = both, columns: int = columns, first: int = first) -> None:
            compiled.shortlist(bits, columns, (begin, end), first, wanted, labels, *arrays)

        kernels.spread(rows, 16, work)
    assert dtype is not None
    used = max(1, int(state[:, :, 0].max()))
    at = at[:, :, :used].masked_fill(torch.arange(used) >= state[:, :, :1], -1)
    least = state[:, :, 1].contiguous()
    rest = rounding.decoded(least, dtype).masked_fill_(least == _MOST, torch.inf).masked_fill_(least == -_MOST, -torch.inf)
    keys = rounding.decoded(codes[:, :, :used], dtype)
    return _Shortlist(keys[0], at[0], rest[0]), _Shortlist(keys[1], at[1], rest[1])


def _larger(
    lists: tuple[_Shortlist, _Shortlist] | None, scores: Float[Tensor, "row column"], part: slice, held: int, classes: Classes
) -> tuple[_Shortlist, _Shortlist]:
    """In torch: the `held` largest and smallest products of a tile, which has some of the columns, and of the lists before."""
    keys = scores.to(torch.float32)
    equal = None if classes is None else classes[0][:, None] == classes[1][part]
    both = []
    for end, signed in enumerate((keys, -keys)):
        kept = signed if equal is None else signed.masked_fill_(equal, -torch.inf)
        value, at = kept.topk(min(held, kept.shape[1]), 1)
        at = torch.where(value > -torch.inf, part.start + at * part.step, -1)
        if lists is not None:
            value, at = torch.cat([lists[end].keys, value], 1), torch.cat([lists[end].at, at], 1)
            value, order = value.topk(min(held, value.shape[1]), 1)
            at = at.gather(1, order)
        both.append(_Shortlist(value, at, value[:, -1]))
    return both[0], both[1]


def _settled(
    ends: Ends,
    rows: Int[Tensor, " part"],
    exact: tuple[Tensor, Tensor],
    lists: tuple[_Shortlist, _Shortlist],
    factors: tuple[Factor, Factor],
) -> Bool[Tensor, " part"]:
    """Write the ends of `rows` from their shortlists; whether these are certain to hold them."""
    k, device = ends.top.shape[1], rows.device
    sure = torch.ones(len(rows), dtype=torch.bool, device=device)
    for held, sign, value, index in zip(
        lists, (1, -1), (ends.top, ends.bottom), (ends.top_index, ends.bottom_index), strict=True
    ):
        keys, at = torch.full((len(rows), k), -torch.inf, device=device), torch.full((len(rows), k), -1, device=device)
        _settle(exact, sign, held, factors, (keys, at, sure))
        value[rows], index[rows] = keys * sign, at
    return sure


def _settle(
    exact: tuple[Tensor, Tensor],
    sign: int,
    held: _Shortlist,
    factors: tuple[Factor, Factor],
    best: tuple[Tensor, Tensor, Tensor],
) -> None:
    """The k best of each row's shortlist by their exact keys, and whether nothing outside it can be among them."""
    (left, right), (keys, index, sure) = factors, best
    slack, step = rounding.error(left, float(right.length.max()), float(right.lost.max())), rounding.step(left)
    compiled = kernels.compiled_for(*exact)
    if compiled is not None:
        weights = rounding.weights_of(left)
        bound = (
            weights.of_length.numpy(),
            weights.of_lost.numpy(),
            weights.least,
            right.length.numpy(),
            right.lost.numpy(),
            slack.numpy(),
            step,
        )
        a, b, *listed = (x.numpy() for x in (*exact, held.keys, held.at, held.rest))
        results = tuple(x.numpy() for x in best)
        work = lambda begin, end: compiled.settle(a, b, sign, tuple(listed), bound, (begin, end), results)  # noqa: E731
        kernels.spread(len(a), 16, work)
        return
    at = held.at.sort(dim=1).values
    row, slot = (at >= 0).nonzero(as_tuple=True)
    found = torch.full_like(held.keys, -torch.inf)
    found[row, slot] = sign * rounding.entries(*exact, row, at[row, slot])
    order = found.argsort(dim=1, descending=True, stable=True)[:, : keys.shape[1]]
    keys.copy_(found.gather(1, order))
    index.copy_(at.gather(1, order))
    sure &= (held.rest == -torch.inf) | (held.rest + held.rest.abs() * step + slack < keys[:, -1])


def _whole(ends: Ends, rows: Int[Tensor, " part"], exact: tuple[Tensor, Tensor], classes: Classes) -> None:
    """Write the ends of `rows` by sorting them."""
    k = ends.top.shape[1]
    rows_exact = exact[0].double()
    scores = torch.cat([(rows_exact @ block.double().T).float() for block in exact[1].split(_BLOCK)], 1)
    if classes is not None:
        scores.masked_fill_(classes[0][:, None] == classes[1], torch.nan)
    for sign, value, index in ((1, ends.top, ends.top_index), (-1, ends.bottom, ends.bottom_index)):
        keys = (sign * scores).nan_to_num(-torch.inf, torch.inf, -torch.inf)
        best, column = keys.sort(dim=1, descending=True, stable=True)
        value[rows] = best[:, :k] * sign
        index[rows] = torch.where(best[:, :k] > -torch.inf, column[:, :k], -1)
