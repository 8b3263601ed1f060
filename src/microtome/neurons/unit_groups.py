"""Units of a feed-forward block in groups of one size: by what they read, by when they are active together, or at random.

What groups are good for is asked in `moefication`. The axis `part` counts what a unit reads with, W_in, or W_gate and W_up; `coordinate` is
one of the points that are clustered.
"""

from dataclasses import dataclass
from typing import Final, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import Refusal
from microtome.model import Model
from microtome.neurons.sparsity import MASS, units_needed

__all__ = ["GROUPINGS", "Block", "Grouping", "Groups", "block_of", "centroids", "grouped"]

Grouping = Literal["reads", "co-activation", "random"]
GROUPINGS: Final[tuple[Grouping, ...]] = ("reads", "co-activation", "random")
"""Ways of grouping, the last of which is the control."""
_ROUNDS: Final = 20
_TINY: Final = 1e-6


@dataclass(frozen=True, eq=False)
class Block:
    """The weights of a dense feed-forward block: reads of a unit (one, or gate and up), and what it writes."""

    layer: int
    reads: Float[Tensor, "part unit d_model"]
    values: Float[Tensor, "unit d_model"]

    def written(self, h: Float[Tensor, "row unit"]) -> Float[Tensor, "row unit"]:
        """|h_i| |v_i|: what a unit writes, whatever its sign and scale."""
        return h.abs() * self.values.norm(dim=1)


@dataclass(frozen=True, eq=False)
class Groups:
    """The group of every unit; all groups are of one size."""

    group: Int[Tensor, " unit"]
    by: Grouping
    seed: int

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self.group.max()) + 1

    def summed(self, rows: Float[Tensor, "row unit"]) -> Float[Tensor, "row expert"]:
        """Sums over the units of each group."""
        return rows.new_zeros(len(rows), self.count).index_add_(1, self.group.to(rows.device), rows)


def block_of(model: Model, layer: int) -> Block:
    """The block's weights in float32. Errors: `Refusal` for a mixture of experts, which has groups of its own."""
    if model.shape.experts:
        why = "its units are in experts already"
        raise Refusal(f"groups of units of {model.name}", why=why, instead="use a model with dense feed-forward blocks")
    names = ("W_gate", "W_up") if model.shape.gated else ("W_in",)
    reads = torch.stack([model.weights.get(name, layer).detach().float().T for name in names])
    return Block(layer, reads.cpu(), model.weights.get("W_out", layer).detach().float().cpu())


def grouped(
    block: Block, by: Grouping, size: int = 32, *, h: Float[Tensor, "row unit"] | None = None, starts: int = 4, seed: int = 0
) -> Groups:
    """Groups of `size` units.

    "reads": k-means of what units read with, each part brought to length 1. Which end of a gated unit is called + is a matter of spelling, so
    that up vectors are compared by |cosine| (a centroid's is the mean of up vectors turned its way): reversing a unit moves none.
    "co-activation": c_ij counts the tokens of `h` at which i and j are both among the units that write 95 %; points of the first eigenvectors of
    c_ij / sqrt(c_i c_j), rows brought to length 1, are clustered alike. "random" is the control.
    All clusters are of one size: units are dealt by the assignment whose sum of similarities is largest. Of `starts` clusterings the best counts.
    Source: Ng, Jordan and Weiss 2001, On spectral clustering (no arXiv entry), for the partition of the graph.
    Errors: `Refusal` where groups of this size do not come out even, and for co-activation without `h`.
    Cost: at most 20 assignments a start, each about 0.2 s for 1536 units and 2 s for 4096, and 8 units^2 bytes.
    """
    units = len(block.values)
    if size < 1 or units % size or size == units:
        why = f"there are {units} units"
        raise Refusal(f"groups of {size} units", why=why, instead="name a divisor of that")
    count = units // size
    generator = torch.Generator().manual_seed(seed)
    if by == "random":
        return Groups(torch.randperm(units, generator=generator) % count, by, seed)
    if by == "reads":
        points = torch.nn.functional.normalize(block.reads, dim=2)
    elif h is None:
        raise Refusal("groups by co-activation", why="no activation is given", instead="give rows of `mlp_act`")
    else:
        points = _spectral(_together(block.written(h)), count)[None]
    return Groups(_clustered(points, count, starts, generator), by, seed)


def centroids(
    points: Float[Tensor, "part unit coordinate"], group: Int[Tensor, " unit"], count: int, rounds: int = 5
) -> Float[Tensor, "part expert coordinate"]:
    """The mean of each group; of the second part with every vector turned to the side of the mean, at first to that of the first unit."""
    units = torch.arange(len(group))
    first = torch.full((count,), len(group)).scatter_reduce(0, group, units, "amin")
    means = [points.new_zeros(count, points.shape[2]).index_add_(0, group, points[0])]
    for up in points[1:]:
        side = up[first]
        for _ in range(rounds):
            turned = torch.where((up * side[group]).sum(1, keepdim=True) < 0, -up, up)
            side = torch.zeros_like(side).index_add_(0, group, turned)
        means.append(side)
    return torch.stack(means) / torch.bincount(group, minlength=count)[:, None]


def _together(written: Float[Tensor, "row unit"]) -> Float[Tensor, "unit unit"]:
    """At how many tokens two units are both among those that write a share `MASS`; 0 for a unit and itself."""
    sizes, order = written.double().sort(dim=1, descending=True, stable=True)
    first = torch.arange(written.shape[1]) < units_needed(sizes, MASS)[:, None]
    active = torch.zeros_like(first).scatter(1, order, first).double()
    return (active.T @ active).fill_diagonal_(0).float()


def _spectral(graph: Float[Tensor, "unit unit"], count: int) -> Float[Tensor, "unit coordinate"]:
    degree = graph.double().sum(1).clamp(min=1).rsqrt()
    vectors = torch.linalg.eigh(degree[:, None] * graph.double() * degree)[1][:, -count:]
    return torch.nn.functional.normalize(vectors, dim=1).float()


def _alike(
    points: Float[Tensor, "part unit coordinate"], means: Float[Tensor, "part expert coordinate"]
) -> Float[Tensor, "unit expert"]:
    """Sum of the products of each part, of the second (what goes up) without its sign."""
    first, *second = points @ means.mT
    return first + second[0].abs() if second else first


def _clustered(
    points: Float[Tensor, "part unit coordinate"], count: int, starts: int, generator: torch.Generator
) -> Int[Tensor, " unit"]:
    """k-means whose clusters are all of one size: assignments and means in turn until no unit moves, from several starts."""
    best, most = None, -torch.inf
    for _ in range(starts):
        group = _dealt(_alike(points, points[:, _spread(points, count, generator)]))
        for _ in range(_ROUNDS):
            new = _dealt(_alike(points, centroids(points, group, count)))
            if torch.equal(new, group):
                break
            group = new
        sum_alike = float(_alike(points, centroids(points, group, count)).gather(1, group[:, None]).double().sum())
        if sum_alike > most + 1e-4:
            best, most = group, sum_alike
    assert best is not None, "one start at least"
    return best


def _spread(points: Float[Tensor, "part unit coordinate"], count: int, generator: torch.Generator) -> list[int]:
    """Units to begin with, far from each other, drawn as k-means++ draws them."""
    parts, units = points.shape[:2]
    chosen = [int(torch.randint(units, (1,), generator=generator))]
    near = _alike(points, points[:, chosen])[:, 0]
    while len(chosen) < count:
        far = (parts - near).clamp(min=0) + _TINY
        far[chosen] = 0
        chosen.append(int(torch.multinomial(far, 1, generator=generator)))
        near = torch.maximum(near, _alike(points, points[:, chosen[-1:]])[:, 0])
    return chosen


def _dealt(alike: Float[Tensor, "unit expert"]) -> Int[Tensor, " unit"]:
    """A group for every unit, as many in each, so that the sum of what they are alike is largest."""
    from scipy.optimize import linear_sum_assignment

    units, count = alike.shape
    seats = alike.double().repeat_interleave(units // count, dim=1)
    return torch.from_numpy(linear_sum_assignment(seats.numpy(), maximize=True)[1]).long() // (units // count)
