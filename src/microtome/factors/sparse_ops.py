"""Products with codes of which few entries are not 0: choosing them, decoding and going backward through them alone.

An encoder's product is dense, once; all other products of a step (decoding, and the gradients of codes, directions and encoder) are made of the
active entries, and no dense code or gradient of one is laid out. What a code is, and its loss, belongs in `variants`. Additional axes: `entry`
counts active entries, by row; `bound` counts the rows' first entries and the end; `width` is the numbers that a unit reads or writes at all places.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from microtome.factors.mesh import ALONE, Mesh
from microtome.factors.selection import among_largest, nth_largest

__all__ = ["Active", "above", "decode", "dense", "largest", "largest_of_all", "read"]

_SAMPLE: Final = 1 << 16
"""Entries that a first guess of the least kept value is made of."""
_MARGIN: Final = 1.2
"""By how much more entries than wanted the guess lets pass."""


@dataclass(frozen=True, eq=False)
class Active:
    """Which entries of a [row, unit] matrix are kept: those of row r are `unit[starts[r] : starts[r + 1]]`."""

    starts: Int[Tensor, " bound"]
    unit: Int[Tensor, " entry"]
    units: int

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.starts) - 1

    @cached_property
    def row(self) -> Int[Tensor, " entry"]:
        """Of each entry."""
        every = torch.arange(self.rows, device=self.unit.device)
        return every.repeat_interleave(self.starts.diff(), output_size=len(self.unit))

    @cached_property
    def turned(self) -> tuple[Int[Tensor, " entry"], "Active"]:
        """The order of entries by unit, and the same entries of the transposed matrix."""
        order = self.unit.argsort(stable=True)
        return order, Active(_starts(self.unit, self.units), self.row[order], self.rows)

    def between(self, first: int, last: int) -> tuple[Int[Tensor, " some"], "Active"]:
        """Which entries are of units from `first` up to `last`, and these alone."""
        some = ((self.unit >= first) & (self.unit < last)).nonzero()[:, 0]
        return some, Active(_starts(self.row[some], self.rows), self.unit[some], self.units)


def _starts(sorted_or_not: Int[Tensor, " entry"], groups: int) -> Int[Tensor, " bound"]:
    counts = torch.bincount(sorted_or_not, minlength=groups)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _of_flat(flat: Int[Tensor, " entry"], z: Float[Tensor, "row unit"]) -> Active:
    """Entries by their places in the flattened matrix, which are ascending."""
    width = z.shape[1]
    row = flat.div(width, rounding_mode="floor")
    return Active(_starts(row, len(z)), flat - row * width, width)


def above(z: Float[Tensor, "row unit"], least: Float[Tensor, "*unit"], most: int) -> Active | None:
    """All entries above a value, or above a value of each unit; None where they are more than `most`."""
    flat = (z > least).view(-1).nonzero()[:, 0]
    return _of_flat(flat, z) if len(flat) <= most else None


def largest(z: Float[Tensor, "row unit"], k: int, mesh: Mesh = ALONE) -> Active:
    """The k largest entries of each row, of whatever sign, over all ranks' units: those of them that are this rank's."""
    values, unit = z.topk(min(k, z.shape[1]), dim=1, sorted=False)
    kept = among_largest(mesh, values, k)
    counts = kept.sum(1)
    return Active(torch.cat([counts.new_zeros(1), counts.cumsum(0)]), unit[kept], z.shape[1])


def largest_of_all(z: Float[Tensor, "row unit"], count: int, mesh: Mesh = ALONE) -> Active:
    """The `count` largest of those entries that are above 0, over all ranks' rows and units: of equal ones, the first.

    A value that somewhat more than `count` entries exceed is guessed from a sample, and the exact ones are found among them: a full search
    follows only where the guess was too high. The result does not depend on the guess.
    Cost: a comparison of every entry, and a selection among about 1.2 count.
    """
    numbers = z.reshape(-1)
    least = float(mesh.reduced(z.new_tensor(_guess(numbers, count // mesh.ranks)), "all", "min"))
    flat = (numbers > least).nonzero()[:, 0]
    there = mesh.count(len(flat), "all")
    if there < count and least > 0:
        flat = (numbers > 0).nonzero()[:, 0]
        there = mesh.count(len(flat), "all")
    if there > count:
        values = numbers[flat]
        smallest = nth_largest(mesh, values, count)
        flat = flat[values >= smallest]
        if (spare := mesh.count(len(flat), "all") - count) > 0:
            equal = (numbers[flat] == smallest).nonzero()[:, 0]
            kept = mesh.count(len(equal), "all") - spare - mesh.before(len(equal), "all")
            chosen = torch.ones_like(flat, dtype=torch.bool)
            chosen[equal[max(0, kept) :]] = False
            flat = flat[chosen]
    return _of_flat(flat, z)


def _guess(numbers: Float[Tensor, " number"], count: int) -> float:
    """A value not below 0 that a little more than `count` numbers are likely to exceed."""
    step = max(1, len(numbers) // _SAMPLE) | 1
    sample = numbers[::step]
    wanted = count / step
    place = int(_MARGIN * wanted + 3 * wanted**0.5) + 1
    return 0.0 if place >= len(sample) else max(0.0, float(sample.topk(place, sorted=False).values.min()))


def dense(values: Float[Tensor, " entry"], active: Active) -> Float[Tensor, "row unit"]:
    """The matrix, with zeros."""
    return values.new_zeros(active.rows, active.units).index_put((active.row, active.unit), values)


def read(
    z: Float[Tensor, "row unit"],
    x: Float[Tensor, "row width"],
    weights: Float[Tensor, "unit width"],
    bias: Float[Tensor, " unit"],
    active: Active,
) -> Float[Tensor, " entry"]:
    """The active entries of z = x W' + b, which was made before and without a graph; gradients reach W and b through these entries alone.

    Cost: backward 2 width FLOP an entry.
    """
    return cast(Tensor, _Read.apply(z, x, weights, bias, active))


def decode(
    values: Float[Tensor, " entry"], active: Active, directions: Float[Tensor, "unit width"]
) -> Float[Tensor, "row width"]:
    """Codes times directions. Gradients reach codes and directions through the active entries alone.

    Cost: forward 2 width FLOP an entry, backward 4.
    """
    return cast(Tensor, _Decode.apply(values, directions, active))


def _product(values: Tensor | None, active: Active, matrix: Tensor) -> Tensor:
    return embedding_bag(active.unit, matrix, active.starts, mode="sum", per_sample_weights=values, include_last_offset=True)


def _turned_product(values: Tensor, active: Active, matrix: Tensor) -> Tensor:
    order, turned = active.turned
    return _product(values[order], turned, matrix)


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, x: Tensor, weights: Tensor, bias: Tensor, active: Active) -> Tensor:
        ctx.active = active
        ctx.save_for_backward(x)
        return z[active.row, active.unit]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x,), (grad,) = ctx.saved_tensors, grads
        bias = grad.new_zeros(ctx.active.units).index_add_(0, ctx.active.unit, grad)
        return None, None, _turned_product(grad, ctx.active, x), bias, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, directions: Tensor, active: Active) -> Tensor:
        """The inner graph is that of the weights of a sum of rows, whose backward gathers no rows."""
        with torch.enable_grad():
            ctx.values = values.detach().requires_grad_()
            ctx.made = _product(ctx.values, active, directions.detach())
        ctx.active = active
        return ctx.made.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0].contiguous()
        values = directions = None
        if ctx.needs_input_grad[1]:
            directions = _turned_product(ctx.values.detach(), ctx.active, grad)
        if ctx.needs_input_grad[0]:
            (values,) = torch.autograd.grad(ctx.made, ctx.values, grad)
        return values, directions, None
