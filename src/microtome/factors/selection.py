"""The largest of numbers that several ranks have: exactly those of one process that had them all, and no rank sends all of its own.

With one rank these are plain searches. Which entries of a product become codes belongs in `sparse_ops`. Additional axes: `some` counts what a rank has,
`joined` what all have.
"""

from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microtome.factors.mesh import Mesh

__all__ = ["among_largest", "nth_largest", "nth_of_rows"]

_DIGITS: Final = ((21, 11), (10, 11), (0, 10))
"""A float32 as three digits: where each begins, and its bits."""


def nth_largest(mesh: Mesh, x: Float[Tensor, " some"], n: int) -> Float[Tensor, ""]:
    """The n-th largest of all ranks' numbers, exactly.

    Ranks tell how many of their numbers have each digit, from the highest digit on: 2048 counts three times, however many numbers there are.
    """
    if mesh.ranks == 1:
        return x.topk(n, sorted=False).values.min()
    keys, chosen, left = _ordered(x), 0, n
    for shift, bits in _DIGITS:
        within = keys[keys >> (shift + bits) == chosen]
        counts = mesh.reduced(torch.bincount((within >> shift) & (2**bits - 1), minlength=2**bits), "all", "sum")
        beyond = counts.flip(0).cumsum(0)
        place = int((beyond >= left).nonzero()[0, 0])
        left -= int(beyond[place] - counts[-1 - place])
        chosen = (chosen << bits) + 2**bits - 1 - place
    return _number(chosen, x)


def nth_of_rows(mesh: Mesh, z: Float[Tensor, "row some"], n: int) -> Float[Tensor, "row 1"]:
    """The n-th largest number of each row, of all ranks' units."""
    if mesh.shards == 1:
        return z.topk(n, dim=1).values[:, -1:]
    own = z.topk(min(n, z.shape[1]), dim=1).values
    return _side_by_side(mesh, own, n).topk(n, dim=1).values[:, -1:]


def among_largest(mesh: Mesh, own: Float[Tensor, "row some"], n: int) -> Bool[Tensor, "row some"]:
    """Which of this rank's numbers are among the n largest of their rows, of all ranks' units; it has n at most in a row, its largest.

    Cost: n numbers of each row and rank are sent.
    """
    if mesh.shards == 1:
        return torch.ones_like(own, dtype=torch.bool)
    joined = _side_by_side(mesh, own, n)
    best = joined.topk(min(n, joined.shape[1]), dim=1).indices
    kept = torch.zeros_like(joined, dtype=torch.bool).scatter_(1, best, value=True)
    first = mesh.unit_rank * n
    return kept[:, first : first + own.shape[1]]


def _side_by_side(mesh: Mesh, own: Float[Tensor, "row some"], n: int) -> Float[Tensor, "row joined"]:
    """Of every rank n numbers of each row, of which those that it lacks are below all others."""
    padded = torch.cat([own, own.new_full((len(own), n - own.shape[1]), -torch.inf)], 1)
    return torch.cat(mesh.gathered(padded, "units"), 1)


def _ordered(x: Float[Tensor, " some"]) -> Int[Tensor, " some"]:
    """Numbers from 0 to 2^32 that are ordered as x is."""
    bits = x.float().contiguous().view(torch.int32)
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int64) + 2**31


def _number(key: int, like: Tensor) -> Float[Tensor, ""]:
    """What `_ordered` was made of."""
    bits = torch.tensor(key - 2**31, dtype=torch.int32)
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).view(torch.float32).to(like)
