"""Sums of rows by group: positions, labels, documents, tokens; mergeable.

Means of groups are `result`; what groups explain of the variance belongs to the lenses.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import State
from microtome.numerics import kernels
from microtome.numerics.kernels import Counted
from microtome.numerics.tiles import row_tiles

__all__ = ["GroupMeans", "init", "merge", "result", "update"]


@dataclass(frozen=True, eq=False)
class GroupMeans:
    """How many rows each group has and their mean, NaN for a group without rows."""

    count: Int[Tensor, " group"]
    mean: Float[Tensor, "group d"]


def init(groups: int, d: int, device: torch.device | str = "cpu") -> State:
    """The state of nothing seen: counts (int64) and sums (group x d, float64)."""
    return {
        "counts": torch.zeros(groups, dtype=torch.int64, device=device),
        "sums": torch.zeros(groups, d, dtype=torch.float64, device=device),
    }


def update(
    state: State,
    x: Float[Tensor, "row d"] | Float[Tensor, "window token d"],
    groups: Int[Tensor, " row"] | Int[Tensor, "window token"],
    counted: Counted = None,
) -> None:
    """Add each row, or each counted token of windows, to its group, in place; rows of negative groups are left out.

    Sums are float64 throughout. On CUDA the order of additions, and so the last bits, may differ from run to run.
    Cost: about 0.5 ns a value and core with compiled kernels, 0.9 ns without.
    """
    flat = groups.flatten()
    compiled = kernels.compiled_for(x, groups, state["counts"])
    if compiled is not None:
        x = x if x.ndim == 3 else x.unsqueeze(0)
        rows = kernels.rows_of(x, counted)
        group = flat.to(torch.int64).numpy()[rows.index(x.shape[1])]
        assert group.max(initial=-1) < len(state["sums"]), "a group is out of range"
        order = group.argsort(kind="stable")
        order = order[group[order] >= 0]
        place, group, sums = rows.place[0, order], group[order], state["sums"].numpy()
        kernels.spread(
            x.shape[2], compiled.BLOCK, lambda begin, end: compiled.grouped(rows.bits, place, group, (begin, end), sums)
        )
        _count(state, torch.from_numpy(group))
        return
    for part, index in row_tiles(x, counted):
        group = flat[index].to(torch.int64)
        part = torch.where((group >= 0).unsqueeze(1), part, 0)
        state["sums"].index_add_(0, group.clamp_min(0), part.to(torch.float64))
        _count(state, group)


def _count(state: State, groups: Int[Tensor, " row"]) -> None:
    state["counts"].index_add_(0, groups.clamp_min(0), (groups >= 0).to(torch.int64))


def merge(state: State, later: State) -> State:
    """The state of both streams."""
    return {name: value + later[name].to(value.device) for name, value in state.items()}


def result(state: State) -> GroupMeans:
    """Counts and means of groups."""
    return GroupMeans(state["counts"].clone(), state["sums"] / state["counts"].unsqueeze(1))
