"""The k largest values of each unit over a stream, with a key for each: which token it was.

The order is total, value descending and then key ascending, so every split of the stream gives the same list, ties included.
For the smallest values, negate. An update says where each entry came from, so that what goes along with an entry (the
activations around it, say) is gathered for the few that survive and never kept in the state by this module. Random samples
belong in `reservoir`, rows of matrix products in `matmul_topk`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import State
from microtome.numerics import kernels

__all__ = ["Fresh", "fresh", "init", "merge", "merge_topk", "update"]

_CHUNK = 256
"""Rows that the torch path sorts at a time."""


@dataclass(frozen=True, eq=False)
class Fresh:
    """The entries that an update brought in: entry i is now at (unit[i], slot[i]) and was row[i] of the update's rows."""

    unit: Int[Tensor, " entry"]
    slot: Int[Tensor, " entry"]
    row: Int[Tensor, " entry"]


def init(units: int, k: int, device: torch.device | str = "cpu") -> State:
    """An empty list for each unit: values (unit x k, float32) -inf and keys (int64) -1."""
    return {
        "values": torch.full((units, k), -torch.inf, device=device),
        "keys": torch.full((units, k), -1, dtype=torch.int64, device=device),
    }


def update(
    state: State, values: Float[Tensor, "row unit"], keys: Int[Tensor, " row"] | Int[Tensor, "row unit"]
) -> Int[Tensor, "unit k"]:
    """Offer a value of every unit per row, in place; returns the source of each entry of the new lists.

    Keys are not negative, and a unit meets each key once. NaN and -inf are never taken. A source below k is the slot that the
    entry had before; k + r is row r; see `fresh`. An empty slot's source is a slot.
    Cost: one comparison per value, and an insertion for the ever fewer that enter.
    """
    held = state["values"].shape[1]
    compiled = kernels.compiled_for(values, keys, state["values"])
    if compiled is None:
        return _reference(state, values, keys)
    numbers = values.to(torch.float32).numpy()
    labels = (keys if keys.ndim == 2 else keys.unsqueeze(1).expand(-1, values.shape[1])).numpy()
    source = torch.arange(held).repeat(values.shape[1], 1)
    lists = (state["values"].numpy(), state["keys"].numpy(), source.numpy())
    kernels.spread(values.shape[1], compiled.BLOCK, lambda begin, end: compiled.topk(numbers, labels, (begin, end), *lists))
    return source


def _reference(
    state: State, values: Float[Tensor, "row unit"], keys: Int[Tensor, " row"] | Int[Tensor, "row unit"]
) -> Int[Tensor, "unit k"]:
    """In torch: sort, by chunks of rows, the units that have a value as large as their k-th."""
    held = state["values"].shape[1]
    source = torch.arange(held, device=values.device).repeat(values.shape[1], 1)
    for begin in range(0, values.shape[0], _CHUNK):
        part = values[begin : begin + _CHUNK].to(torch.float32)
        last = state["values"][:, -1]
        hot = ((part >= last) & (part > -torch.inf)).any(0).nonzero()[:, 0]
        if len(hot) == 0:
            continue
        labels = keys[begin : begin + _CHUNK]
        labels = labels[:, hot].T if labels.ndim == 2 else labels.expand(len(hot), -1)
        best, key, came = merge_topk(state["values"][hot], state["keys"][hot], part[:, hot].T, labels, held)
        before = source[hot].gather(1, came.clamp(max=held - 1))
        source[hot] = torch.where(came < held, before, came + begin)
        state["values"][hot], state["keys"][hot] = best, key
    return source


def merge(state: State, later: State) -> tuple[State, Int[Tensor, "unit k"]]:
    """The lists of both streams, and the source of each entry: below k a slot of `state`, from k on a slot of `later` plus k."""
    k = state["values"].shape[1]
    later = {name: value.to(state["values"].device) for name, value in later.items()}
    values, keys, source = merge_topk(state["values"], state["keys"], later["values"], later["keys"], k)
    return {"values": values, "keys": keys}, source


def merge_topk(
    values_a: Float[Tensor, "unit m"],
    keys_a: Int[Tensor, "unit m"],
    values_b: Float[Tensor, "unit n"],
    keys_b: Int[Tensor, "unit n"],
    k: int,
) -> tuple[Float[Tensor, "unit k"], Int[Tensor, "unit k"], Int[Tensor, "unit k"]]:
    """The k best of two sets of entries per unit: values, keys, and indices into a's entries followed by b's.

    The sets need not be sorted. NaN and -inf count as empty; where fewer than k entries are left, the rest is empty (-inf, -1).
    """
    values, keys = torch.cat([values_a, values_b], 1), torch.cat([keys_a, keys_b], 1)
    empty = ~(values > -torch.inf)
    values, keys = values.masked_fill(empty, -torch.inf), keys.masked_fill(empty, -1)
    if values.shape[1] < k:
        missing = (0, k - values.shape[1])
        values, keys = (
            torch.nn.functional.pad(values, missing, value=-torch.inf),
            torch.nn.functional.pad(keys, missing, value=-1),
        )
    by_key = keys.argsort(dim=1, stable=True)
    by_value = values.gather(1, by_key).argsort(dim=1, descending=True, stable=True)
    source = by_key.gather(1, by_value)[:, :k]
    return values.gather(1, source), keys.gather(1, source), source


def fresh(source: Int[Tensor, "unit k"], held: int) -> Fresh:
    """The entries that came from rows rather than from one of the `held` slots, by unit and slot."""
    unit, slot = (source >= held).nonzero(as_tuple=True)
    return Fresh(unit, slot, source[unit, slot] - held)
