"""Matrices rounded so that they multiply fast, with bounds that tell which entries of a product they can decide.

A product of rounded matrices says where large entries can be; `entries` says what those are: the float32 nearest to a sum in float64,
which depends on no tile, thread or device. So what is selected is the same in every precision. The axis `column` counts the rows of
the right factor. Selecting belongs in `matmul_topk` and `product_topk`.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.numerics import kernels

__all__ = [
    "Columns",
    "Factor",
    "Precision",
    "Weights",
    "decoded",
    "entries",
    "error",
    "factors",
    "full_sums",
    "multiplied",
    "signed_bits",
    "step",
    "tile_shape",
    "weights_of",
]

Precision = Literal["float32", "bfloat16"]
"""What candidates are looked for in. bfloat16 pays where the hardware multiplies it fast; the result is the same."""

_BLOCK = 1024
"""Rows that are rounded together."""
_GATHERED = 1 << 22
"""Numbers gathered at a time for exact sums."""
_LARGEST = 1e18
"""Longer rows could overflow in a product: such factors are multiplied in float64."""
_SUM = 2.0**-22
"""Bound on the relative error of one addition or multiplication in float32, four times that of rounding to nearest."""
_FLUSHED = 2.0**-120
"""Bound on what a product loses where numbers below float32's normal ones count as zero."""
_TF32: Final = {"highest": 0.0, "high": 2.0**-9, "medium": 2.0**-7}
"""What torch's setting for float32 products may take from each number."""


@dataclass(frozen=True, eq=False)
class Factor:
    """Rows of a matrix as they are multiplied.

    `rounded` is what is multiplied, `length` the length of each exact row and `lost` that of its difference to the rounded one.
    `rounded` is float64, and nothing counts as lost, where a number is not finite or too large for products.
    """

    rounded: Float[Tensor, "row inner"]
    length: Float[Tensor, " row"]
    lost: Float[Tensor, " row"]

    def part(self, rows: slice | Int[Tensor, " part"]) -> "Factor":
        """Some of the rows."""
        return Factor(self.rounded[rows], self.length[rows], self.lost[rows])

    @property
    def certain(self) -> bool:
        """Whether it is multiplied in float64."""
        return self.rounded.dtype == torch.float64


def _factor(rows: Float[Tensor, "row inner"], precision: Precision) -> Factor:
    """Round the rows. Cost: one read, and a copy in the precision's width unless that is the rows' own."""
    length = torch.empty(len(rows), dtype=torch.float64, device=rows.device)
    for block, out in zip(rows.split(_BLOCK), length.split(_BLOCK), strict=True):
        out.copy_(torch.linalg.vector_norm(block, dim=1, dtype=torch.float64))
    if not bool((length < _LARGEST).all()):
        return Factor(rows.double(), length, torch.zeros_like(length))
    if precision == "float32":
        return Factor(rows, length, length * _TF32[torch.get_float32_matmul_precision()])
    rounded, lost = torch.empty_like(rows, dtype=torch.bfloat16), torch.empty_like(length)
    for block, into, out in zip(rows.split(_BLOCK), rounded.split(_BLOCK), lost.split(_BLOCK), strict=True):
        into.copy_(block)
        out.copy_(torch.linalg.vector_norm(block - into.float(), dim=1, dtype=torch.float64))
    return Factor(rounded, length, lost)


@dataclass(frozen=True, eq=False)
class Columns:
    """The right factor of many products, as float32 rows: rounded when that is first needed, and not again."""

    exact: Float[Tensor, "column inner"]
    _rounded: dict[tuple[Precision, str], Factor] = field(default_factory=dict, repr=False)

    def rounded(self, precision: Precision) -> Factor:
        """As it is multiplied. Cost: a read of it and a copy in the precision's width, the first time."""
        key = precision, torch.get_float32_matmul_precision()
        if key not in self._rounded:
            self._rounded[key] = _factor(self.exact, precision)
        return self._rounded[key]


def factors(
    a: Float[Tensor, "row inner"], b: Float[Tensor, "column inner"] | Columns, precision: Precision
) -> tuple[Factor, Factor]:
    """Both factors of a product of float32 rows, rounded alike."""
    columns = b if isinstance(b, Columns) else Columns(b)
    left, right = _factor(a, precision), columns.rounded(precision)
    if left.certain == right.certain:
        return left, right
    nothing = torch.zeros_like(left.length), torch.zeros_like(right.length)
    return Factor(a.double(), left.length, nothing[0]), Factor(columns.exact.double(), right.length, nothing[1])


def error(left: Factor, length: float, lost: float) -> Float[Tensor, " row"]:
    """For each row, a bound on how far its products with rows up to `length` long, of which up to `lost` is lost, are from exact.

    The rounding of the products themselves (`step`) comes on top.

        |a'.b' - a.b| <= |a' - a| |b| + |a'| |b' - b|,  and  (inner + 8) 2^-22 |a'| |b'|  for summing in float32
    """
    weights = weights_of(left)
    return weights.of_length * length + weights.of_lost * lost + weights.least


@dataclass(frozen=True, eq=False)
class Weights:
    """The error of a product of row i with a row of the other factor is at most of_length[i] length + of_lost[i] lost + least."""

    of_length: Float[Tensor, " row"]
    of_lost: Float[Tensor, " row"]
    least: float


def weights_of(left: Factor) -> Weights:
    """See `error`."""
    if left.certain:
        return Weights(torch.zeros_like(left.length), torch.zeros_like(left.length), 0.0)
    inner = left.rounded.shape[1] + 8
    long, sums = left.length + left.lost, inner * _SUM
    return Weights((left.lost + long * sums) * (1 + _SUM), long * (1 + sums) * (1 + _SUM), inner * _FLUSHED)


def step(x: Factor) -> float:
    """The relative error of rounding a product to the dtype it is stored in, and of comparing in float32."""
    return (2.0**-8 if x.rounded.dtype == torch.bfloat16 else 0.0) + _SUM


def tile_shape(x: Factor) -> tuple[int, int]:
    """Rows and columns of a tile of products: 4 MB on the CPU, so that it is still in the cache when it is read."""
    return (512, 8192 // x.rounded.element_size()) if x.rounded.device.type == "cpu" else (4096, 16384)


def multiplied(left: Factor, right: Factor, room: Float[Tensor, " number"]) -> Float[Tensor, "row column"]:
    """The products of rounded rows, in `room` where its dtype allows."""
    if left.certain:
        return (left.rounded @ right.rounded.T).float()
    rows, columns = len(left.rounded), len(right.rounded)
    return torch.mm(left.rounded, right.rounded.T, out=room[: rows * columns].view(rows, columns))


def signed_bits(products: Float[Tensor, "row column"]) -> np.ndarray:
    """The memory of a tile as the kernels of products read it."""
    bits = kernels.memory(products)
    return bits.view(np.dtype(f"i{bits.itemsize}"))


def decoded(codes: Int[Tensor, "..."], dtype: torch.dtype) -> Float[Tensor, "..."]:
    """The numbers of codes (integers in the order of the numbers) that the kernels of products return for products of this dtype."""
    short = dtype == torch.bfloat16
    bits = codes ^ ((codes >> 31) & (0x7FFF if short else 0x7FFFFFFF))
    return (bits << 16 if short else bits).view(torch.float32)


@contextlib.contextmanager
def full_sums() -> Iterator[None]:
    """Inside, CUDA sums products of bfloat16 in float32 throughout, which the bounds rely on."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_bf16_reduced_precision_reduction
    matmul.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        matmul.allow_bf16_reduced_precision_reduction = before


def entries(
    a: Float[Tensor, "row inner"], b: Float[Tensor, "column inner"], row: Int[Tensor, " entry"], column: Int[Tensor, " entry"]
) -> Float[Tensor, " entry"]:
    """a[row[i]] . b[column[i]], summed in float64 and rounded to float32. Cost: 2 inner FLOP and two gathered rows per entry."""
    value = torch.empty(len(row), dtype=torch.float32, device=a.device)
    compiled = kernels.compiled_for(a, b)
    if compiled is not None:
        arrays = [tensor.numpy() for tensor in (a, b, row, column)]
        numbers = value.numpy()
        kernels.spread(len(row), 64, lambda begin, end: compiled.entries(*arrays, (begin, end), numbers))
        return value
    some = max(1, _GATHERED // max(1, a.shape[1]))
    for rows, columns, out in zip(row.split(some), column.split(some), value.split(some), strict=True):
        out.copy_((a[rows].double() * b[columns].double()).sum(1))
    return value
