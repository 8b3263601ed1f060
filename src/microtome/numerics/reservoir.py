"""Random samples from each tenth of each unit's own distribution: the n entries with the lowest hashes, whatever the split.

A token's hash for a unit is hash_parts(seed, unit, key), so a unit's sample is uniform without replacement within a decile,
and the same for any order, split and number of workers. Edges of the deciles come from an earlier pass. Largest values
belong in `topk`.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import State
from microtome.numerics import kernels
from microtome.numerics.hashing import hash_parts, splitmix64
from microtome.numerics.kernels import Counted
from microtome.numerics.tiles import row_tiles

__all__ = ["EMPTY", "init", "merge", "merge_lowest", "update"]

EMPTY = (1 << 63) - 1
"""The hash of an empty slot."""


def init(edges: Float[Tensor, "unit edge"], n: int) -> State:
    """Empty samples. Decile d of a unit holds the values v with edges[d - 1] <= v < edges[d]; edges ascend, and may repeat.

    hashes and keys (int64) and values (float32) are unit x decile x n, hashes ascending; an empty slot has hash `EMPTY` and
    key -1. Any number of edges may be given; one less than the number of parts.
    """
    shape = (edges.shape[0], edges.shape[1] + 1, n)
    return {
        "edges": edges.to(torch.float32).clone(),
        "hashes": torch.full(shape, EMPTY, device=edges.device),
        "keys": torch.full(shape, -1, device=edges.device),
        "values": torch.zeros(shape, device=edges.device),
    }


def update(
    state: State,
    x: Float[Tensor, "row unit"] | Float[Tensor, "window token unit"],
    keys: Int[Tensor, " row"] | Int[Tensor, "window token"],
    seed: int,
    counted: Counted = None,
) -> Int[Tensor, "unit decile n"]:
    """Offer rows, or the counted tokens of windows, in place; returns the source of each entry of the new samples.

    A key is met once. Units of several layers get samples of their own by seeds of their own. A source below n is the slot
    that the entry had before, n + r is row r (of windows: r = window * tokens + token); `topk.fresh` reads sources, of
    states whose first two axes are flattened into one. NaN is never taken.
    Cost: one hash per value: about 1.3 ns a value and core with compiled kernels, 9 ns without.
    """
    shape = state["hashes"].shape
    source = torch.arange(shape[2], device=x.device).expand(shape).contiguous()
    by_unit = hash_parts(seed, torch.arange(shape[0], device=x.device))
    compiled = kernels.compiled_for(x, keys, state["hashes"])
    if compiled is None:
        for part, index in row_tiles(x, counted):
            _offer(state, source, splitmix64(by_unit ^ keys.flatten()[index].unsqueeze(1)), part, keys.flatten()[index], index)
        return source
    x = x if x.ndim == 3 else x.unsqueeze(0)
    rows = kernels.rows_of(x, counted)
    labels = keys.to(torch.int64).flatten().numpy()
    lists = tuple(state[name].numpy() for name in ("edges", "hashes", "keys", "values"))
    kernels.spread(
        shape[0],
        compiled.BLOCK,
        lambda begin, end: compiled.reservoir(
            rows.bits, rows.place[0], rows.index(x.shape[1]), labels, by_unit.numpy(), (begin, end), lists, source.numpy()
        ),
    )
    return source


def _offer(
    state: State,
    source: Int[Tensor, "unit decile n"],
    hashes: Int[Tensor, "row unit"],
    values: Float[Tensor, "row unit"],
    keys: Int[Tensor, " row"],
    index: Int[Tensor, " row"],
) -> None:
    """The reference: keep the candidates whose hash is below the highest of their part, rank them, and merge with what is held."""
    units, deciles, n = source.shape
    row, unit = ((hashes < state["hashes"][..., -1].amax(1)) & ~values.isnan()).nonzero(as_tuple=True)
    value, score = values[row, unit], hashes[row, unit]
    part = unit * deciles + (state["edges"][unit] <= value.unsqueeze(1)).sum(1)
    keep = (score < state["hashes"].view(-1, n)[part, -1]).nonzero()[:, 0]
    order = keep[score[keep].argsort(stable=True)]
    order = order[part[order].argsort(stable=True)]
    row, value, score, part = row[order], value[order], score[order], part[order]
    parts, place, counts = part.unique_consecutive(return_inverse=True, return_counts=True)
    rank = torch.arange(len(part), device=part.device) - (counts.cumsum(0) - counts)[place]
    few = (rank < n).nonzero()[:, 0]
    place, rank, row, value, score = place[few], rank[few], row[few], value[few], score[few]
    new = torch.full((len(parts), n), EMPTY, device=part.device)
    came = torch.zeros_like(new)
    new[place, rank], came[place, rank] = score, torch.arange(len(row), device=part.device)
    lowest, chosen = merge_lowest(state["hashes"].view(-1, n)[parts], new, n)
    held = chosen < n
    old, fresh = chosen.clamp(max=n - 1), came.gather(1, (chosen - n).clamp(min=0))
    for name, entries in (("keys", keys[row]), ("values", value)):
        flat = state[name].view(-1, n)
        flat[parts] = torch.where(held, flat[parts].gather(1, old), _taken(entries, fresh, flat))
    state["hashes"].view(-1, n)[parts] = lowest
    flat = source.view(-1, n)
    flat[parts] = torch.where(held, flat[parts].gather(1, old), n + _taken(index[row], fresh, flat))


def _taken(entries: Tensor, at: Int[Tensor, "part n"], like: Tensor) -> Tensor:
    """entries[at], of the dtype of `like`, also where there are no entries."""
    return entries.to(like.dtype)[at] if len(entries) else torch.zeros_like(at, dtype=like.dtype)


def merge(state: State, later: State) -> tuple[State, Int[Tensor, "unit decile n"]]:
    """The samples of both streams, and the source of each entry: below n a slot of `state`, from n on a slot of `later` plus n."""
    later = {name: value.to(state["hashes"].device) for name, value in later.items()}
    assert torch.equal(state["edges"], later["edges"]), "samples with different edges do not merge"
    n = state["hashes"].shape[2]
    hashes, source = merge_lowest(state["hashes"], later["hashes"], n)
    both = {name: torch.cat([state[name], later[name]], -1).gather(-1, source) for name in ("keys", "values")}
    return {"edges": state["edges"], "hashes": hashes, **both}, source


def merge_lowest(
    a: Int[Tensor, "*part m"], b: Int[Tensor, "*part n"], k: int
) -> tuple[Int[Tensor, "*part k"], Int[Tensor, "*part k"]]:
    """The k lowest hashes of two sets, ascending, and their indices into a's entries followed by b's."""
    lowest, source = torch.cat([a, b], -1).sort(dim=-1, stable=True)
    return lowest[..., :k], source[..., :k]
