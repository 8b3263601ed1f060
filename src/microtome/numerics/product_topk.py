"""The largest, smallest and largest by magnitude of all entries of a matrix product that is too large to hold.

Exact: as if every entry were summed in float64, rounded to float32 and all were sorted. Larger keys come first, equal ones by row and then
by column. Reading heads through it belongs in `vocabulary`, the ends of each row in `matmul_topk`. The axis `entry` counts pairs of
a row and a column.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import Refusal
from microtome.numerics import kernels, rounding
from microtome.numerics.matmul_topk import Classes, as_labels, classes_of
from microtome.numerics.rounding import Factor, Precision, tile_shape

__all__ = ["End", "Pairs", "product_diagonal", "product_ends", "product_topk"]

End = Literal["top", "bottom", "magnitude"]
"""What comes first: the largest entries, the smallest, or those of the largest absolute value."""

_BUFFER = 8
"""Candidates per wanted pair that are kept before they are decided."""
_NEAREST: Final = 2.0**-23
"""Relative distance below which a sum may round to the same float32."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Entries of a product with their rows and columns, best first."""

    value: Float[Tensor, " entry"]
    row: Int[Tensor, " entry"]
    column: Int[Tensor, " entry"]

    def __len__(self) -> int:
        return len(self.value)


def product_topk(
    a: Float[Tensor, "row d"],
    b: Float[Tensor, "column d"],
    k: int,
    end: End = "top",
    *,
    row_class: Int[Tensor, " row"] | None = None,
    column_class: Int[Tensor, " column"] | None = None,
    precision: Precision = "float32",
) -> Pairs:
    """The k first entries of a b^T at one end; fewer where there are not k that are numbers and not left out.

    Pairs whose row and column have the same class are left out before anything is selected (no classes: none). NaN is never taken. Values
    are float32 roundings of float64 sums; they and the selection depend on no tile, thread, device or `precision`.

    Rows and columns are taken longest first. Tiles of the rounded product are searched for entries that can reach the k-th best exact
    one so far, by the bound of `rounding.error`; tiles in which none can, by Cauchy and Schwarz, are not multiplied. What is found is
    decided by exact sums once there are 8k of it.
    Errors: `Refusal` for k below 1, and where only one of the classes is given.
    Cost: 2 row column d FLOP, one pass also for magnitude; memory of a rounded copy of a and b, a tile (8 MB) and 8k pairs. Millions of
    entries that are equal to the k-th are exact too, but slow.
    Source: Dar et al. 2023, arXiv:2209.02535, section 3.
    """
    ends: Sequence[End] = ("top", "bottom") if end == "magnitude" else (end,)
    best = _search(a, b, k, ends, classes_of(row_class, column_class, a.device), precision)
    return _by_magnitude(best[0], best[1], k) if end == "magnitude" else best[0]


def product_ends(
    a: Float[Tensor, "row d"],
    b: Float[Tensor, "column d"],
    k: int,
    *,
    row_class: Int[Tensor, " row"] | None = None,
    column_class: Int[Tensor, " column"] | None = None,
    precision: Precision = "float32",
) -> dict[End, Pairs]:
    """All three ends in one pass. See `product_topk`."""
    top, bottom = _search(a, b, k, ("top", "bottom"), classes_of(row_class, column_class, a.device), precision)
    return {"top": top, "bottom": bottom, "magnitude": _by_magnitude(top, bottom, k)}


def product_diagonal(
    a: Float[Tensor, "row d"],
    b: Float[Tensor, "column d"],
    row_token: Int[Tensor, " row"] | None = None,
    column_token: Int[Tensor, " column"] | None = None,
) -> Pairs:
    """The entries at which a token meets itself, by row. Without tokens, row i and column i are the same.

    Tokens of the columns are all different; a row whose token is no column is left out. Cost: 2 row d FLOP.
    Errors: `Refusal` where columns repeat a token, or the sides differ in length and tokens are not given.
    """
    if row_token is None or column_token is None:
        if row_token is not column_token or len(a) != len(b):
            raise Refusal(
                "a diagonal", why="what rows and columns share is not known", instead="give row_token and column_token"
            )
        row_token = column_token = torch.arange(len(a), device=a.device)
    known, place = column_token.sort()
    if bool((known[1:] == known[:-1]).any()):
        raise Refusal("a diagonal", why="a token is in several columns", instead="give each token one column")
    slot = torch.searchsorted(known, row_token).clamp(max=len(known) - 1)
    row = (known[slot] == row_token).nonzero()[:, 0] if len(known) else row_token.new_empty(0)
    column = place[slot[row]]
    return Pairs(rounding.entries(a.float().contiguous(), b.float().contiguous(), row, column), row, column)


def _by_magnitude(top: Pairs, bottom: Pairs, k: int) -> Pairs:
    """The k entries of largest absolute value, which are all among the k largest and the k smallest."""
    value, row, column = (torch.cat([getattr(top, name), getattr(bottom, name)]) for name in ("value", "row", "column"))
    order = _order(value.abs(), row, column)
    value, row, column = value[order], row[order], column[order]
    fresh = torch.ones(len(value), dtype=torch.bool, device=value.device)  # with few entries, one can be at both ends
    fresh[1:] = (row[1:] != row[:-1]) | (column[1:] != column[:-1])
    return Pairs(value[fresh][:k], row[fresh][:k], column[fresh][:k])


def _order(key: Float[Tensor, " entry"], row: Int[Tensor, " entry"], column: Int[Tensor, " entry"]) -> Int[Tensor, " entry"]:
    """The order of entries: key descending, row ascending, column ascending."""
    order = column.argsort(stable=True)
    order = order[row[order].argsort(stable=True)]
    return order[key[order].argsort(descending=True, stable=True)]


@dataclass(eq=False)
class _Best:
    """The best pairs of one end so far, and the candidates found since: rows and columns as they are walked, of each worker."""

    sign: int
    k: int
    key: Float[Tensor, " entry"]
    row: Int[Tensor, " entry"]
    column: Int[Tensor, " entry"]
    found: np.ndarray
    count: np.ndarray = field(repr=False)

    @property
    def least(self) -> float:
        """The k-th key, or -inf where there are fewer."""
        return float(self.key[-1]) if len(self.key) == self.k else -torch.inf

    def reach(self, error: Float[Tensor, " row"], step: float) -> Float[Tensor, " row"]:
        """For each row, the least rounded key with which an entry can be among the best."""
        if math.isinf(self.least):
            return torch.full_like(error, self.least).float()
        least = self.least - abs(self.least) * _NEAREST - error
        return (least - least.abs() * step).float()


@dataclass(frozen=True, eq=False)
class _Walk:
    """Both matrices as they are, their factors and classes longest rows first, and where each row was."""

    a: Float[Tensor, "row d"]
    b: Float[Tensor, "column d"]
    left: Factor
    right: Factor
    row: Int[Tensor, " row"]
    column: Int[Tensor, " column"]
    classes: Classes


@dataclass(frozen=True, eq=False)
class _Tile:
    """Where a tile is, what its products cannot exceed, the first pair of it, and what is known of its rounding."""

    rows: slice
    columns: slice
    longest: float
    first: tuple[int, int]
    error: Float[Tensor, " row"]
    step: float


def _walk(a: Float[Tensor, "row d"], b: Float[Tensor, "column d"], classes: Classes, precision: Precision) -> _Walk:
    """Round and sort."""
    a, b = a.to(torch.float32).contiguous(), b.to(torch.float32).contiguous()
    left, right = rounding.factors(a, b, precision)
    row, column = (x.length.argsort(descending=True, stable=True) for x in (left, right))
    classes = classes and (classes[0][row], classes[1][column])
    return _Walk(a, b, left.part(row), right.part(column), row, column, classes)


def _tiles(walk: _Walk) -> Iterator[_Tile]:
    """All tiles, longest rows first, then longest columns."""
    height, width = tile_shape(walk.left)
    slices = [slice(first, first + width) for first in range(0, len(walk.column), width)]
    columns = [
        (part, float(walk.right.length[part].max()), float(walk.right.lost[part].max()), int(walk.column[part].min()))
        for part in slices
    ]
    for begin in range(0, len(walk.row), height):
        rows = slice(begin, begin + height)
        left, row = walk.left.part(rows), int(walk.row[rows].min())
        for part, length, lost, column in columns:
            longest = torch.inf if left.certain else float(left.length.max()) * length * (1 + _NEAREST)
            yield _Tile(rows, part, longest, (row, column), rounding.error(left, length, lost), rounding.step(left))


def _search(
    a: Float[Tensor, "row d"], b: Float[Tensor, "column d"], k: int, ends: Sequence[End], classes: Classes, precision: Precision
) -> list[Pairs]:
    """The best pairs of each end, in one pass over the tiles."""
    if k < 1:
        raise Refusal(f"the {k} first entries of a product", why="there is nothing to select", instead="ask for 1 or more")
    walk, workers = _walk(a, b, classes, precision), torch.get_num_threads()
    nothing = torch.empty(0, dtype=torch.int64, device=a.device)
    room = -(-max(_BUFFER * k, 4096) // workers) + 512
    bests = [
        _Best(-1 if end == "bottom" else 1, k, torch.empty(0, device=a.device), nothing, nothing,
              np.empty((workers, 2, room), np.int64), np.zeros((workers, 2), np.int64))
        for end in ends
    ]  # fmt: skip
    height, width = tile_shape(walk.left)
    products = torch.empty(min(height, len(a)) * min(width, len(b)), dtype=walk.left.rounded.dtype, device=a.device)
    with rounding.full_sums():
        for tile in _tiles(walk):
            wanting = [best for best in bests if not _hopeless(best, tile)]
            if wanting:
                scores = rounding.multiplied(walk.left.part(tile.rows), walk.right.part(tile.columns), products)
                for best in wanting:
                    _collect(walk, best, scores, tile)
    for best in bests:
        _decide(walk, best)
    return [Pairs(best.key * best.sign, best.row, best.column) for best in bests]


def _hopeless(best: _Best, tile: _Tile) -> bool:
    """Whether no entry of the tile can be among the best: too small, or equal to the last and behind it."""
    least = best.least - abs(best.least) * _NEAREST
    return tile.longest < least or (tile.longest == least and tile.first > (int(best.row[-1]), int(best.column[-1])))


def _collect(walk: _Walk, best: _Best, scores: Float[Tensor, "row column"], tile: _Tile) -> None:
    """Find the pairs of a tile that can be among the best, deciding as often as there is no room."""
    compiled = kernels.compiled_for(scores)
    if compiled is None:
        _collect_reference(walk, best, scores, tile)
        return
    bits, columns, workers = rounding.signed_bits(scores), scores.shape[1], len(best.found)
    ends = [len(scores) * worker // workers for worker in range(workers + 1)]
    labels, corner = as_labels(walk.classes), (tile.rows.start, tile.columns.start)
    best.count[:, 1] = 0
    while True:
        reach = (best.reach(tile.error, tile.step).numpy(), np.float32(best.sign))

        def work(begin: int, end: int, reach: tuple[np.ndarray, np.float32] = reach) -> None:
            for worker in range(begin, end):
                if best.count[worker, 1] >= 0:
                    rows, found, progress = (ends[worker], ends[worker + 1]), best.found[worker], best.count[worker]
                    compiled.collect(bits, columns, rows, reach, labels, corner, found, progress)

        kernels.spread(workers, 1, work)
        if (best.count[:, 1] < 0).all():
            return
        _decide(walk, best)


def _collect_reference(walk: _Walk, best: _Best, scores: Float[Tensor, "row column"], tile: _Tile) -> None:
    """In torch: of a tile with many candidates, first leave out those that k others of the tile exceed for certain."""
    keys = scores.to(torch.float32) * best.sign
    row, column = (keys >= best.reach(tile.error, tile.step)[:, None]).nonzero(as_tuple=True)
    key, error = keys[row, column].double(), tile.error[row]
    row, column = row + tile.rows.start, column + tile.columns.start
    if walk.classes is not None:
        kept = walk.classes[0][row] != walk.classes[1][column]
        row, column, key, error = row[kept], column[kept], key[kept], error[kept]
    many = max(_BUFFER * best.k, 4096)
    if len(row) > many:
        error = error + key.abs() * tile.step
        kept = key + error >= (key - error).topk(best.k).values[-1]
        row, column = row[kept], column[kept]
    for rows, columns in zip(row.split(many), column.split(many), strict=True):
        _join(walk, best, rows, columns)


def _decide(walk: _Walk, best: _Best) -> None:
    """Empty the buffers into the best."""
    row, column = (
        torch.from_numpy(
            np.concatenate([best.found[worker, side, : best.count[worker, 0]] for worker in range(len(best.found))])
        )
        for side in (0, 1)
    )
    best.count[:, 0] = 0
    if len(row):
        _join(walk, best, row, column)


def _join(walk: _Walk, best: _Best, row: Int[Tensor, " entry"], column: Int[Tensor, " entry"]) -> None:
    """Sum the candidates in float64, and keep the k first of them and the best so far."""
    row, column = walk.row[row], walk.column[column]
    key = rounding.entries(walk.a, walk.b, row, column) * best.sign
    number = ~key.isnan()
    key, row, column = (torch.cat([old, new[number]]) for old, new in ((best.key, key), (best.row, row), (best.column, column)))
    order = _order(key, row, column)[: best.k]
    best.key, best.row, best.column = key[order], row[order], column[order]
