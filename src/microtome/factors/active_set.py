"""The lasso by active sets of many vectors at once, on the products of a dictionary's factors.

The minimum over the few factors that a code has is the solution of as many equations; factors that pull harder than the penalty enter, those
whose coefficient would be negative leave, and what remains when none does is the code. A handful of rounds is exact where steps along a
gradient need hundreds. This is for any device, and the reference of the compiled kernel; `coding` chooses and knows what codes mean. Additional
axes: `other` is a second factor, `member` one of the places of a vector's active set.
"""

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microtome.numerics import solve_positive

__all__ = ["gap_of", "searched"]

_AT_ONCE: Final = 16
"""Factors that enter an active set together, at most."""
_NEAR: Final = 0.3
"""Of the largest pull beyond the penalty: what enters together is above this share of it."""
_DEPENDENT: Final = {torch.float32: 1e-5, torch.float64: 1e-12}
"""A factor less than this share of whose squared length is outside the span of the others has no coefficient of its own: products are rounded."""
_ROOM: Final = 1 << 23
"""Numbers of the systems that are solved at a time."""


def gap_of(
    rest: Float[Tensor, "row unit"], made: Float[Tensor, " row"], code: Float[Tensor, "row unit"], penalty: float
) -> Float[Tensor, " row"]:
    """The lasso's duality gap from what is left over as factors see it, and from its squared length: (1 - s)^2 |r|^2 / 2 + sum_c a_c (penalty - s r . Phi_c).

    s = min(1, penalty / max_c r . Phi_c). It is the difference of objective and dual without their cancellation: no term is negative.
    """
    most = rest.amax(1)
    share = torch.where(most > penalty, penalty / most, 1.0).to(rest.dtype)
    slack = (code * (penalty - share[:, None] * rest)).sum(1)
    return ((1 - share).square() * made / 2 + slack).clamp(min=0)


def searched(
    gram: Float[Tensor, "unit other"],
    target: Float[Tensor, "row unit"],
    square: Float[Tensor, " row"],
    start: Float[Tensor, "row unit"],
    penalty: float,
    tolerance: float,
    steps: int,
) -> tuple[Float[Tensor, "row unit"], Float[Tensor, " row"], int]:
    """Codes, their gaps over |x|^2 / 2, and rounds of the slowest, of vectors x with x . Phi_c in `target` and |x|^2 in `square`.

    Each round: the factors that pull most enter at 0, and the minimum over the set is walked to, factors that reach 0 on the way leaving
    (Lawson and Hanson's, with several factors at a time). A vector whose set no longer changes is left as it is, its gap telling.
    Cost: for each round and vector 2 k units FLOP, and k^3 / 3 for each solve of a set of k.
    Source: Lawson and Hanson 1974, doi:10.1137/1.9781611971217, chapter 23.
    """
    code, gaps = start.clone(), torch.zeros_like(square)
    at, step = square.nonzero()[:, 0], 0
    code[square == 0] = 0
    stalled = torch.zeros(len(at), dtype=torch.bool, device=at.device)
    while len(at):
        now = code[at]
        rest = target[at] - torch.sparse.mm(now.to_sparse(), gram)  # few of the codes are not 0
        left = (square[at] - (now * (target[at] + rest)).sum(1)).clamp(min=0)
        gap = gap_of(rest, left, now, penalty) / (square[at] / 2)
        gaps[at] = gap
        going = (gap > tolerance) & ~stalled
        if step == steps or not bool(going.any()):
            break
        at, now, rest = at[going], now[going], rest[going]
        chosen = _entered(rest, now > 0, penalty)
        wanted = int(chosen.sum(1).max())
        for rows in torch.arange(len(at), device=at.device).split(max(1, _ROOM // max(1, wanted * wanted))):
            code[at[rows]] = _settled(gram, target[at[rows]] - penalty, now[rows], chosen[rows], wanted)
        lost = ~torch.isfinite(code[at]).all(1)
        code[at[lost]] = now[lost]
        stalled = (code[at] == now).all(1)
        step += 1
    return code, gaps, step


def _entered(rest: Tensor, inside: Bool[Tensor, "row unit"], penalty: float) -> Bool[Tensor, "row unit"]:
    """The active sets and the factors outside that pull most."""
    beyond = (rest - penalty).masked_fill(inside, -torch.inf)
    value, factor = beyond.topk(min(_AT_ONCE, rest.shape[1]), dim=1)
    enter = (value > 0) & (value >= _NEAR * value[:, :1])
    return inside | torch.zeros_like(inside).scatter_(1, factor, enter)


@dataclass(eq=False)
class _Sets:
    """Active sets by place: the products of their factors, what the factors should see, and their values."""

    gram: Float[Tensor, "row member other"]
    wanted: Float[Tensor, "row member"]
    value: Float[Tensor, "row member"]
    inside: Bool[Tensor, "row member"]
    dependent: float

    def minimum(self, rows: Int[Tensor, " row"]) -> Float[Tensor, "row member"]:
        """Of some rows the minimum over the set. Where factors depend on each other there are many: a small ridge chooses one."""
        inside, system = self.inside[rows], self.gram[rows]
        system.mul_(inside[:, :, None]).mul_(inside[:, None, :])
        own = system.diagonal(dim1=1, dim2=2)
        own.add_(torch.where(inside, 0.0, own.amax(1, keepdim=True).clamp(min=torch.finfo(own.dtype).tiny)))
        right = torch.where(inside, self.wanted[rows], 0.0)
        return torch.where(inside, solve_positive(system, right, self.dependent), 0.0)


def _settled(
    gram: Tensor, wanted: Tensor, code: Float[Tensor, "row unit"], chosen: Bool[Tensor, "row unit"], most: int
) -> Float[Tensor, "row unit"]:
    """The lasso's minimum over each vector's chosen factors, or over those of them that are needed."""
    order = chosen.to(torch.uint8) + (code > 0)  # those that have entered behind the others
    place = order.topk(most, dim=1).indices
    products = gram[place[:, :, None], place[:, None, :]].double()
    seen, value = wanted.gather(1, place).double(), code.gather(1, place).double()
    sets = _Sets(products, seen, value, chosen.gather(1, place), _DEPENDENT[gram.dtype])
    rows = torch.arange(len(code), device=code.device)
    while len(rows):
        fitted, value, inside = sets.minimum(rows), sets.value[rows], sets.inside[rows]
        below = inside & (fitted <= 0)
        fresh = below & (value <= 0)
        again = fresh.any(1)
        share = torch.where(below & ~fresh, value / (value - fitted), torch.inf)
        least = share.amin(1, keepdim=True).clamp(max=1.0)
        moved = torch.where(share <= least, 0.0, value + least * (fitted - value))
        sets.value[rows] = torch.where(again[:, None], value, torch.where(below.any(1)[:, None], moved, fitted))
        sets.inside[rows] = inside & ~torch.where(again[:, None], fresh, below & (share <= least))
        rows = rows[below.any(1)]
    return torch.zeros_like(code).scatter_(1, place, torch.where(sets.inside, sets.value, 0.0).to(code.dtype))
