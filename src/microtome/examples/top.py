"""The most extreme contexts of every unit: k windows at each end, in each half of the documents.

One entry per window, its most extreme counted token, so that one document cannot fill a list by repeating itself. Selection is
exact, ties included (the lower window, and in a window the lower position), hence the same under any split of the stream.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import CONTENT, Basis, Batch, Half, Role, Site, State
from microtome.core.bases import ExpertRows
from microtome.examples.entries import PAYLOAD, Contexts, Seen, empty_entries, payload, to_device
from microtome.numerics import Extremes, topk, window_extremes
from microtome.numerics.kernels import Counted
from microtome.store.tables import NEIGHBOURS

__all__ = ["TopContexts", "counted_of", "empty_top", "insert_extremes", "merge_top", "settle", "top_record"]

_ENDS: Final = ("top", "bottom")
_HALVES: Final = len(Half)


@dataclass(frozen=True)
class TopContexts:
    """The k windows in which each unit is most active (for a signed basis also the k in which it is least), per half.

    Result: `Contexts` with groups (top, discover), (top, confirm), (bottom, discover), (bottom, confirm).
    Cost: one read of the activations, plus about k ln(windows / k) gathered neighbourhoods per unit, end and half.
    """

    kind: ClassVar[str] = "examples.top_contexts"
    version: ClassVar[int] = 1

    basis: Basis
    k: int = 10
    neighbours: int = NEIGHBOURS
    roles: frozenset[Role] = CONTENT

    @property
    def sites(self) -> tuple[Site, ...]:
        """What the basis reads."""
        return self.basis.sites

    def init(self) -> State:
        """Empty lists."""
        return empty_top(self.basis, self.k, self.neighbours)

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Let the extremes of the batch's windows compete for the lists."""
        x = self.basis.encode(values)
        insert_extremes(state, x, window_extremes(x, counted_of(batch, self.roles, x.device)), batch)

    def merge(self, state: State, later: State) -> State:
        """The better k of both lists."""
        return merge_top(state, later)

    def result(self, state: State) -> Contexts:
        """The lists, best first."""
        return top_record(state)


def counted_of(batch: Batch, roles: frozenset[Role], device: torch.device) -> Counted:
    """The batch's counted tokens as a slice where one will do, else as a mask on `device`."""
    span = batch.span(roles)
    return batch.counted(roles).to(device) if span is None else span


def empty_top(basis: Basis, k: int, neighbours: int) -> State:
    """Lists of extremes with no entry; at the bottom end values are kept negated, so that every list is of largest values."""
    return empty_entries(_HALVES * (1 + basis.signed), basis.units, k, neighbours)


def insert_extremes(state: State, x: Float[Tensor, "window token unit"], extremes: Extremes, batch: Batch) -> None:
    """Let each window's extremes compete for the lists in `state`, in place; only those that enter cost a neighbourhood."""
    to_device(state, x.device)
    half, window = batch.half.to(x.device), batch.window.to(x.device)
    found = ((extremes.maximum, extremes.argmax), (-extremes.minimum, extremes.argmin))
    for group in range(state["value"].shape[0]):
        value, position = found[group // _HALVES]
        rows = (half == group % _HALVES).nonzero()[:, 0]
        if not len(rows):
            continue
        lists = {name: state[name][group] for name in PAYLOAD}
        source = topk.update({"values": lists["value"], "keys": lists["window"]}, value[rows], window[rows])
        new = topk.fresh(source, lists["value"].shape[1])
        row = rows[new.row]
        seen = Seen(row, position[row, new.unit], new.unit, value[row, new.unit])
        settle(lists, source, new, payload(seen, x, batch, lists["activations"].shape[-1] // 2))


def settle(lists: State, source: Tensor, new: topk.Fresh, fields: State) -> None:
    """Bring what goes along with entries to where a selection put them; it has placed values and windows itself."""
    held = source.shape[1]
    moved = (source != torch.arange(held, device=source.device)).any(1).nonzero()[:, 0]
    slots = source[moved]
    slots = torch.where(slots < held, slots, 0)
    first = moved[:, None] * held
    to, of = (first + torch.arange(held, device=source.device)).flatten(), (first + slots).flatten()
    for name, field in fields.items():
        if name not in ("value", "window"):
            entries = lists[name].view(-1, *field.shape[1:])
            entries[to] = entries.index_select(0, of)
            entries[new.unit * held + new.slot] = field


def merge_top(state: State, later: State) -> State:
    """The better k of two states' lists, in order."""
    merged: dict[str, list[Tensor]] = {name: [] for name in PAYLOAD}
    for group in range(state["value"].shape[0]):
        one, two = ({"values": side["value"][group], "keys": side["window"][group]} for side in (state, later))
        lists, source = topk.merge(one, two)
        for name in PAYLOAD:
            both = torch.cat([state[name][group], later[name][group].to(state[name].device)], 1)
            merged[name].append(both[torch.arange(len(source), device=source.device)[:, None], source])
        merged["value"][-1], merged["window"][-1] = lists["values"], lists["keys"]
    return {name: torch.stack(parts) for name, parts in merged.items()}


def top_record(state: State) -> Contexts:
    """The lists as a record, on the host."""
    fields = {name: state[name].cpu() for name in PAYLOAD}
    ends = tuple(_ENDS[group // _HALVES] for group in range(len(fields["value"])))
    sign = torch.tensor([1.0 if end == "top" else -1.0 for end in ends])[:, None, None]
    return Contexts(ends=ends, **{**fields, "value": fields["value"] * sign})
