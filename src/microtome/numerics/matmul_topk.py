"""The largest and smallest entries of each row of a matrix product that is too large to hold.

Exact: as if the whole product were sorted, ties to the lowest column. Reading vocabularies through it belongs in `readout` and
`vocabulary`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microtome.core import Refusal
from microtome.numerics import kernels
from microtome.numerics.topk import merge_topk

__all__ = ["Ends", "matmul_topk"]

_ROWS = 512
_COLUMNS = 4096


@dataclass(frozen=True, eq=False)
class Ends:
    """The k largest entries of each row, descending, and the k smallest, ascending, with their columns."""

    top: Float[Tensor, "row k"]
    top_index: Int[Tensor, "row k"]
    bottom: Float[Tensor, "row k"]
    bottom_index: Int[Tensor, "row k"]


def matmul_topk(
    a: Float[Tensor, "row d"],
    b: Float[Tensor, "d column"],
    k: int,
    *,
    excluded: Bool[Tensor, " column"] | None = None,
    bias: Float[Tensor, " column"] | None = None,
) -> Ends:
    """Both ends of each row of a @ b + bias over the columns that are not excluded, computed in float32.

    Tiles of the product (8 MB) are scanned against each row's k-th entry so far, and few get further. Products that are NaN are
    never taken.
    Errors: `Refusal` where fewer than k columns are left.
    Cost: that of the product; memory 8 MB besides the result.
    """
    columns = b.shape[1]
    left = columns - (0 if excluded is None else int(excluded.sum()))
    if k > left:
        raise Refusal(f"the {k} largest of {left} columns", why="there are not as many", instead=f"ask for at most {left}")
    ends = _empty(len(a), k, a.device)
    out = None if excluded is None else excluded.nonzero()[:, 0]
    for row in range(0, len(a), _ROWS):
        block = a[row : row + _ROWS].to(torch.float32)
        part = Ends(*(tensor[row : row + _ROWS] for tensor in (ends.top, ends.top_index, ends.bottom, ends.bottom_index)))
        for column in range(0, columns, _COLUMNS):
            scores = block @ b[:, column : column + _COLUMNS].to(torch.float32)
            if bias is not None:
                scores += bias[column : column + _COLUMNS]
            if out is not None:
                scores[:, out[(out >= column) & (out < column + _COLUMNS)] - column] = torch.nan
            _take(part, scores, column)
    return ends


def _empty(rows: int, k: int, device: torch.device) -> Ends:
    values, index = torch.full((rows, k), -torch.inf, device=device), torch.full((rows, k), -1, device=device)
    return Ends(values, index, -values, index.clone())


def _take(ends: Ends, scores: Float[Tensor, "row column"], first: int) -> None:
    """Move the scores that belong there into the ends, in place."""
    compiled = kernels.compiled_for(scores)
    if compiled is None:
        _reference(ends.top, ends.top_index, scores, first)
        negated = -ends.bottom
        _reference(negated, ends.bottom_index, -scores, first)
        ends.bottom.copy_(-negated)
        return
    lists = tuple(tensor.numpy() for tensor in (ends.top, ends.top_index, ends.bottom, ends.bottom_index))
    kernels.spread(len(scores), 64, lambda begin, end: compiled.scan(scores.numpy(), first, (begin, end), *lists))


def _reference(
    best: Float[Tensor, "row k"], index: Int[Tensor, "row k"], scores: Float[Tensor, "row column"], first: int
) -> None:
    """In torch: of the rows that have a score above their k-th, take the tile's k largest and merge."""
    k = best.shape[1]
    scores = scores.nan_to_num(-torch.inf, torch.inf, -torch.inf)
    hot = (scores.amax(1) > best[:, -1]).nonzero()[:, 0]
    if len(hot) == 0:
        return
    tile = scores[hot]
    count = min(k, tile.shape[1])
    value, column = tile.topk(count, 1)
    border = value[:, -1:]
    torn = ((tile == border).sum(1) > (value == border).sum(1)).nonzero()[:, 0]  # equal scores on both sides of the k-th
    if len(torn):
        column[torn] = tile[torn].argsort(dim=1, descending=True, stable=True)[:, :count]
        value[torn] = tile[torn].gather(1, column[torn])
    best[hot], index[hot], _ = merge_topk(best[hot], index[hot], value, column + first, k)
