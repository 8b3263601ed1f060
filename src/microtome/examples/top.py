"""The most extreme contexts of every unit: k windows at each end, in each half of the documents. The lists of `UnitSurvey`.

Groups are (top, discover), (top, confirm), and of a signed basis (bottom, discover), (bottom, confirm).
One entry per window, its most extreme counted token, so that one document cannot fill a list by repeating itself. Selection is
exact, ties included (the lower window, and in a window the lower position), hence the same under any split of the stream.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import Basis, Batch, Half, Refusal, Role, State
from microtome.examples.entries import NO_TOKEN, PAYLOAD, Contexts, Seen, empty_entries, following, payload, to_device
from microtome.numerics import Extremes, kernels, moments, topk
from microtome.numerics.kernels import Counted

__all__ = ["accompany", "counted_of", "empty_top", "insert_extremes", "merge_top", "settle", "surveyed", "top_record"]

_ENDS: Final = ("top", "bottom")
_HALVES: Final = len(Half)


def counted_of(batch: Batch, roles: frozenset[Role], device: torch.device) -> Counted:
    """The batch's counted tokens as a slice where one will do, else as a mask on `device`."""
    span = batch.span(roles)
    return batch.counted(roles).to(device) if span is None else span


def empty_top(basis: Basis, k: int, neighbours: int) -> State:
    """Lists of extremes with no entry; at the bottom end values are kept negated, so that every list is of largest values."""
    return empty_entries(_HALVES * (1 + basis.signed), basis.units, k, neighbours)


def insert_extremes(state: State, x: Float[Tensor, "window token unit"], extremes: Extremes, batch: Batch) -> None:
    """Let each window's extremes compete for the lists in `state`, in place; only those that enter cost a neighbourhood.

    Errors: `Refusal` for NaN or infinities around an extreme.
    """
    to_device(state, x.device)
    compiled = kernels.compiled_for(x)
    if compiled is None:
        _insert(state, x, extremes, batch)
        return
    pairs = (extremes.maximum, extremes.minimum), (extremes.argmax, extremes.argmin)
    found = tuple(torch.stack(pair).numpy() for pair in pairs)
    tensor, told = (kernels.memory(x), np.array(x.stride())), _told(batch)
    lists = tuple(state[name].numpy() for name in PAYLOAD)
    _spread(x, compiled.BLOCK, lambda units: compiled.enter(tensor, told, found, units, lists, NO_TOKEN))


def surveyed(sums: State, lists: State, x: Float[Tensor, "window token unit"], batch: Batch, counted: Counted) -> None:
    """Add a batch to moments by half (`moments.sweep`) and to lists of extremes (`insert_extremes`), in place, in one read of `x`.

    Errors: `Refusal` for NaN or infinities around an extreme.
    """
    compiled = kernels.compiled_for(x)
    if compiled is None:
        _insert(lists, x, moments.sweep(sums, x, batch.half, counted), batch)
        return
    x = x if x.stride(2) == 1 else x.contiguous()  # so that its strides are those of what is read
    rows, told = kernels.rows_of(x, counted), _told(batch)
    where = rows.bits, np.array(x.stride()), rows.place, rows.begin
    shape = (len(_ENDS), len(batch.window), x.shape[2])
    found = np.empty(shape, np.float32), np.empty(shape, np.int32)
    state, entries = (tuple(of[name].numpy() for name in names) for of, names in ((sums, moments.NAMES), (lists, PAYLOAD)))
    _spread(x, compiled.BLOCK, lambda units: compiled.survey(where, told, units, state, found, entries, NO_TOKEN))


def _told(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Of each window its key, half and length, and of each token its id and that which follows, as kernels take them."""
    windows = torch.stack([batch.window.long(), batch.half.long(), (batch.roles != Role.PAD).sum(1)])
    return windows.numpy(), torch.stack([batch.ids, following(batch)]).long().numpy()


def accompany(
    fields: State, source: Int[Tensor, "unit list slot"], x: Float[Tensor, "window token unit"], batch: Batch
) -> None:
    """Bring `fields`, what goes along with entries, to where a selection put them, in place; new entries get theirs from `x`.

    `source` is as `reservoir.update` returns it, of rows of all tokens of `x`.
    Errors: `Refusal` for NaN or infinities around a new entry.
    """
    held = source.shape[2]
    compiled = kernels.compiled_for(x)
    if compiled is None:
        new = topk.fresh(source.flatten(0, 1), held)
        row, position, unit = new.row // x.shape[1], new.row % x.shape[1], new.unit // source.shape[1]
        seen = Seen(row, position, unit, x[row, position, unit].float())
        lists = {name: tensor.flatten(0, 1) for name, tensor in fields.items()}
        settle(lists, source.flatten(0, 1), new, payload(seen, x, batch, fields["activations"].shape[-1] // 2))
        return
    tensor, told = (kernels.memory(x), np.array(x.stride())), _told(batch)
    lists = tuple(fields[name].numpy() for name in PAYLOAD if name in fields)
    _spread(
        x,
        compiled.BLOCK,
        lambda units: compiled.accompany(tensor, told, source.numpy(), units, lists, NO_TOKEN),
    )


def _spread(x: Float[Tensor, "window token unit"], block: int, work: Callable[[tuple[int, int]], bool]) -> None:
    """Call `work` on ranges of units; it says whether all activations that it kept are finite."""
    fine: list[bool] = []
    kernels.spread(x.shape[2], block, lambda begin, end: fine.append(work((begin, end))))
    if not all(fine):
        raise Refusal("quantising rows", why="a row holds NaN or infinities", instead="leave such rows out")


def _insert(state: State, x: Float[Tensor, "window token unit"], extremes: Extremes, batch: Batch) -> None:
    """In torch. All groups at once: a window is -inf, which nothing takes, in the groups of the half that it is not in."""
    groups, units, k = state["value"].shape
    half, window = batch.half.to(x.device), batch.window.to(x.device)
    found = (extremes.maximum, -extremes.minimum)[: groups // _HALVES]
    value = torch.cat([torch.where((half == each)[:, None], best, -torch.inf) for best in found for each in Half], 1)
    lists = {name: state[name].flatten(0, 1) for name in PAYLOAD}
    source = topk.update({"values": lists["value"], "keys": lists["window"]}, value, window)
    new = topk.fresh(source, k)
    end, unit = new.unit // (units * _HALVES), new.unit % units
    position = torch.stack([extremes.argmax, extremes.argmin])[end, new.row, unit]
    seen = Seen(new.row, position, unit, value[new.row, new.unit])
    settle(lists, source, new, payload(seen, x, batch, state["activations"].shape[-1] // 2))


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
    shape = state["value"].shape[:2]
    ours = {name: state[name].flatten(0, 1) for name in PAYLOAD}
    theirs = {name: later[name].flatten(0, 1).to(ours[name].device) for name in PAYLOAD}
    lists, source = topk.merge(*({"values": side["value"], "keys": side["window"]} for side in (ours, theirs)))
    row = torch.arange(len(source), device=source.device)[:, None]
    merged = {name: torch.cat([ours[name], theirs[name]], 1)[row, source] for name in PAYLOAD}
    merged |= {"value": lists["values"], "window": lists["keys"]}
    return {name: tensor.unflatten(0, shape) for name, tensor in merged.items()}


def top_record(state: State) -> Contexts:
    """The lists as a record, on the host."""
    fields = {name: state[name].cpu() for name in PAYLOAD}
    ends = tuple(_ENDS[group // _HALVES] for group in range(len(fields["value"])))
    sign = torch.tensor([1.0 if end == "top" else -1.0 for end in ends])[:, None, None]
    return Contexts(ends=ends, **{**fields, "value": fields["value"] * sign})
