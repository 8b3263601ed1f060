"""Where the entry of a row that is its own stands among all entries of the row, in a product that is too large to keep.

Which entries are largest is selected in `matmul_topk`. The axis `column` counts the entries of a row.
"""

from collections.abc import Callable
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Refusal
from microtome.numerics import kernels

__all__ = ["diagonal_places"]

_TILE: Final = 1 << 18
"""Products of a tile: a megabyte, which is still in the cache when they are compared."""


def diagonal_places(a: Float[Tensor, "row d"], b: Float[Tensor, "column d"]) -> Float[Tensor, " row"]:
    """The share of the other entries of each row of a b^T that are below its own, equal ones half; NaN if there are none.

    Row i's own is column i; where there are more rows than columns, they begin anew: many `a` can be stacked. Products are
    float32.
    Errors: `Refusal` for rows that end before the columns do.
    Cost: 2 row column d FLOP and one pass over a tile of the products.
    """
    count = len(b)
    if count == 0 or len(a) % count:
        raise Refusal(f"places of {len(a)} rows among {count} columns", why="rows have no own column", instead="give as many")
    a, b = a.to(torch.float32).contiguous(), b.to(torch.float32)
    height, balance, of = max(1, _TILE // count), a.new_empty(len(a)), _products_with(b)
    for first in range(0, len(a), height):
        _balance(of(a[first : first + height]), first, balance[first : first + height])
    return (1 - balance / (count - 1)) / 2 if count > 1 else torch.full_like(balance, torch.nan)


def _products_with(b: Float[Tensor, "column d"]) -> Callable[[Tensor], Tensor]:
    """What multiplies rows by b^T.

    On CPUs oneDNN, which is twice as fast as the library that torch asks where that was made for another CPU.
    """
    if b.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return lambda rows: rows @ b.T
    packed = b.to_mkldnn()
    return lambda rows: torch.nn.functional.linear(rows.to_mkldnn(), packed).to_dense()


def _balance(products: Float[Tensor, "row column"], first: int, found: Float[Tensor, " row"]) -> None:
    """How many more entries of each row, of which the first has number `first`, are above its own than below it."""
    count = products.shape[1]
    compiled = kernels.compiled_for(products)
    if compiled is None:
        own = (torch.arange(len(products), device=products.device) + first) % count
        mine = products.gather(1, own[:, None])
        more = (products > mine).sum(1) - (products < mine).sum(1)
        found.copy_(more.to(found).masked_fill_(products.isnan().any(1), torch.nan))
        return
    values, numbers = products.numpy(), found.numpy()
    kernels.spread(len(products), 64, lambda begin, end: compiled.balance(values, first, (begin, end), numbers))
