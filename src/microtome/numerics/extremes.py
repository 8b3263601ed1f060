"""One read of a tensor of activations: each window's largest and smallest value of each unit, and moments of groups of windows.

Activations are read once, tile by tile, because memory is what a fold inside a forward pass costs. bfloat16 becomes float32 in
the tile. What moments are and how they are read off is told in `moments`. Selecting among windows belongs in `topk`.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from microtome.core import State
from microtome.numerics import kernels
from microtome.numerics.kernels import Counted
from microtome.numerics.tiles import Tile, tiles

__all__ = ["NAMES", "Extremes", "combine", "merge", "one_read"]

_ROOM: Final = 1 << 19
"""Values of a tile on the CPU: what is done once a tile costs as much as reading a few hundred thousand values."""
NAMES: Final = ("count", "positive", "mean", "m2", "m3", "m4", "minimum", "maximum")
"""The tensors of a state of moments, as the kernel takes them."""


@dataclass(frozen=True, eq=False)
class Extremes:
    """Per window and unit: the largest and the smallest counted value and the token of each, the first one among equals.

    Tokens are positions in the tensor that was read, also when a slice of them counts. Where a window has no counted token the
    values are -inf and +inf and the tokens -1.
    """

    maximum: Float[Tensor, "window unit"]
    argmax: Int[Tensor, "window unit"]
    minimum: Float[Tensor, "window unit"]
    argmin: Int[Tensor, "window unit"]


def one_read(
    state: State, x: Float[Tensor, "window token unit"], group: Integer[Tensor, " window"], counted: Counted
) -> Extremes:
    """Add each window to the row `group[window]` of a state of `moments` over groups and units, in place; extremes of each window.

    Errors: none for NaN, which is never an extreme (where kernels are not compiled, nor is anything else of its tile); it shows in the means,
    and `moments.result` refuses it.
    """
    group = group.to(device=x.device, dtype=torch.int64)
    compiled = kernels.compiled_for(x)
    if compiled is None:
        part, extremes = _reference(x, counted, group, len(state["mean"]))
        for name, value in merge(state, part).items():
            state[name].copy_(value)
        return extremes
    rows, of = kernels.rows_of(x, counted), group.numpy()
    assert not len(of) or 0 <= of.min() <= of.max() < len(state["mean"]), "a kernel writes where it is told"
    windows, _, units = x.shape
    value, place = np.empty((2, windows, units), np.float32), np.empty((2, windows, units), np.int32)
    sums = tuple(state[name].numpy() for name in NAMES)
    kernels.spread(
        units,
        compiled.BLOCK,
        lambda begin, end: compiled.sweep(rows.bits, rows.place, rows.begin, of, (begin, end), sums, value, place),
    )
    best, arg = torch.from_numpy(value), torch.from_numpy(place)
    return Extremes(best[0], arg[0], best[1], arg[1])


def merge(state: State, later: State) -> State:
    """The moments of both streams, as a new state.

    Source: Pebay 2008, SAND2008-6212, equations 2.1 to 2.5 (Chan's formulas for mean and M2).
    """
    later = {name: value.to(state["mean"].device) for name, value in later.items()}
    names = ("count", "mean", "m2", "m3", "m4", "positive")
    both = torch.stack([torch.stack([side[name].to(torch.float64) for side in (state, later)]) for name in names])
    mean, m2, m3, m4, positive = combine(both)
    return {
        "count": state["count"] + later["count"],
        "positive": positive.to(torch.int64),
        "mean": mean,
        "m2": m2,
        "m3": m3,
        "m4": m4,
        "minimum": torch.minimum(state["minimum"], later["minimum"]),
        "maximum": torch.maximum(state["maximum"], later["maximum"]),
    }


def _stacked(states: list[State]) -> State:
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


def _state(
    count: Int[Tensor, " unit"], sums: Float[Tensor, "5 unit"], extremes: Extremes, mine: Bool[Tensor, " window"]
) -> State:
    """The moments of one group, whose windows are `mine`."""
    mean, m2, m3, m4, positive = sums
    low, high = (torch.full((1, len(mean)), limit, device=mean.device) for limit in (torch.inf, -torch.inf))
    minimum = torch.where(mine[:, None], extremes.minimum, torch.inf)
    maximum = torch.where(mine[:, None], extremes.maximum, -torch.inf)
    return {
        "count": count,
        "positive": positive.to(torch.int64),
        "mean": mean,
        "m2": m2,
        "m3": m3,
        "m4": m4,
        "minimum": torch.cat([low, minimum]).amin(0).to(torch.float64),
        "maximum": torch.cat([high, maximum]).amax(0).to(torch.float64),
    }


def _reference(
    x: Float[Tensor, "window token unit"], counted: Counted, group: Int[Tensor, " window"], groups: int
) -> tuple[State, Extremes]:
    """In torch: eighteen passes over each tile in cache, float32 within a tile, float64 across tiles. Never waits for a device."""
    windows, _, units = x.shape
    best = torch.tensor([-torch.inf, torch.inf], device=x.device)[:, None, None].repeat(1, windows, units)
    place = torch.full((2, windows, units), -1, dtype=torch.int64, device=x.device)
    counts, sums, owners = [x.new_zeros(0, dtype=torch.float64)], [x.new_zeros((6, 0, units), dtype=torch.float32)], [group[:0]]
    spare = x.new_empty((0, 0, units), dtype=torch.float32)
    for tile in tiles(x, counted, _ROOM if x.device.type == "cpu" else 0):
        if spare.shape != tile.values.shape:
            spare = torch.empty_like(tile.values)
        span = slice(tile.window, tile.window + tile.values.shape[0])
        for end in range(2):
            _widen(best[end, span], place[end, span], tile, spare, end)
        count, found = _sums(tile, spare)
        counts.append(count)
        sums.append(found)
        owners.append(group[span])
    extremes = Extremes(best[0], place[0], best[1], place[1])
    stacked, owner = _about_means(torch.cat(counts), torch.cat(sums, 1)), torch.cat(owners)
    states = []
    for g in range(groups):
        mine = torch.where((owner == g)[:, None], stacked, 0)
        states.append(_state(mine[0].sum(0).to(torch.int64), combine(mine), extremes, group == g))
    return _stacked(states), extremes


def _widen(
    best: Float[Tensor, "window unit"],
    place: Int[Tensor, "window unit"],
    tile: Tile,
    spare: Float[Tensor, "window token unit"],
    end: int,
) -> None:
    """Bring `best` to the maxima (end 0) or minima of the tile, in place, where these are beyond it; only such a value moves the place.

    The first of equals is found by numbering them from behind: a search that says where is ten times as dear as one that does not.
    """
    values = tile.values
    if tile.mask is not None:
        values = values.masked_fill(~tile.mask.unsqueeze(-1), torch.inf if end else -torch.inf)
    value = values.amin(1) if end else values.amax(1)
    length = values.shape[1]
    from_behind = torch.arange(length, 0, -1, dtype=torch.float32, device=values.device)
    torch.eq(values, value.unsqueeze(1), out=spare)
    token = (length - spare.mul_(from_behind[:, None]).amax(1)).long()
    beyond = value < best if end else value > best
    best.copy_(torch.where(beyond, value, best))
    place.copy_(torch.where(beyond, token + tile.token, place))


def _sums(
    tile: Tile, spare: Float[Tensor, "window token unit"]
) -> tuple[Float[Tensor, " window"], Float[Tensor, "6 window unit"]]:
    """Per window of the tile the count; and a centre, the sums of the first four powers about it, and the number of positive values."""
    x, mask = tile.values, tile.mask
    windows, tokens, units = x.shape
    found = x.new_empty((6, windows, units))
    if mask is None:
        count = x.new_full((windows,), tokens, dtype=torch.float64)
    else:
        keep = mask.unsqueeze(-1)
        count = mask.sum(1).to(torch.float64)
        x = torch.where(keep, x, 0)
    centre, s1, s2, s3, s4, positive = found
    torch.gt(x, 0, out=spare)
    torch.sum(spare, 1, out=positive)
    torch.sum(x, 1, out=centre)
    centre.div_(count.clamp(min=1).to(torch.float32)[:, None])
    d = x - centre.unsqueeze(1)
    if mask is not None:
        d = torch.where(mask.unsqueeze(-1), d, 0)
    torch.sum(d, 1, out=s1)
    q = torch.mul(d, d, out=spare)
    torch.sum(q, 1, out=s2)
    torch.sum(d.mul_(q), 1, out=s3)
    torch.sum(q.square_(), 1, out=s4)
    return count, found


def _about_means(count: Float[Tensor, " part"], sums: Float[Tensor, "6 part unit"]) -> Float[Tensor, "6 part unit"]:
    """Count, mean, M2, M3, M4 about that mean, and positive count, in float64, of sums about centres, which are rounded means."""
    centre, s1, s2, s3, s4, positive = sums.to(torch.float64)
    n = count[:, None]
    e = s1 / n.clamp(min=1)
    return torch.stack(
        [
            n.expand_as(e),
            centre + e,
            s2 - n * e**2,
            s3 - 3 * e * s2 + 2 * n * e**3,
            s4 - 4 * e * s3 + 6 * e**2 * s2 - 3 * n * e**4,
            positive,
        ]
    )


def combine(parts: Float[Tensor, "6 part ..."]) -> Float[Tensor, "5 ..."]:
    """Mean, M2, M3, M4 and positive count of the union of parts that have count, mean, M2, M3, M4 and positive count.

    About the common mean m, a part with mean m + d has M3' = M3 + 3 d M2 + n d^3 and M4' = M4 + 4 d M3 + 6 d^2 M2 + n d^4.
    Source: Chan, Golub and LeVeque 1979, for M2; Pebay 2008, SAND2008-6212, for the higher ones.
    """
    n, mean, m2, m3, m4, positive = parts
    total = n.sum(0)
    common = (n * mean).sum(0) / total.clamp(min=1)
    d = torch.where(n > 0, mean - common, 0)
    common = common + (n * d).sum(0) / total.clamp(min=1)  # once more: the first sum of large means has rounded
    d = torch.where(n > 0, mean - common, 0)
    return torch.stack(
        [
            common,
            (m2 + n * d**2).sum(0),
            (m3 + 3 * d * m2 + n * d**3).sum(0),
            (m4 + 4 * d * m3 + 6 * d**2 * m2 + n * d**4).sum(0),
            positive.sum(0),
        ]
    )
