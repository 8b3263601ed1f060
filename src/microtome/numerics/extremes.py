"""One read of a tensor of activations: each window's largest and smallest value of each unit, and moments of groups of windows.

Activations are read once, tile by tile, because memory is what a fold inside a forward pass costs. bfloat16 becomes float32 in
the tile. `moments.sweep` adds what `one_read` finds to a state. Selecting among windows belongs in `topk`.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from microtome.core import State
from microtome.numerics import kernels
from microtome.numerics.kernels import Counted
from microtome.numerics.tiles import Tile, tiles

__all__ = ["Extremes", "combine", "one_read"]


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
    x: Float[Tensor, "window token unit"], counted: Counted, group: Integer[Tensor, " window"], groups: int
) -> tuple[State, Extremes]:
    """Moments of the counted rows of each group of windows (a state of `moments`, group x unit), and extremes of each window.

    Errors: none for NaN, which is never selected where kernels are compiled and always selected where they are not; it shows in
    the means, and `moments.result` refuses it.
    """
    group = group.to(device=x.device, dtype=torch.int64)
    compiled = kernels.compiled_for(x)
    if compiled is None:
        return _reference(x, counted, group, groups)
    rows = kernels.rows_of(x, counted)
    windows, _, units = x.shape
    sums, of = np.zeros((groups, 5, units)), group.numpy()
    value, place = np.empty((2, windows, units), np.float32), np.empty((2, windows, units), np.int32)
    kernels.spread(
        units,
        compiled.BLOCK,
        lambda begin, end: compiled.sweep(rows.bits, rows.place, rows.begin, of, (begin, end), sums, value, place),
    )
    best, arg = torch.from_numpy(value), torch.from_numpy(place).to(torch.int64)
    extremes = Extremes(best[0], arg[0], best[1], arg[1])
    count = torch.zeros(groups, dtype=torch.int64).index_add_(0, group, torch.from_numpy(np.diff(rows.begin)))
    states = [_state(count[g].expand(units), torch.from_numpy(sums[g]), extremes, group == g) for g in range(groups)]
    return _stacked(states), extremes


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
    """In torch: twelve passes over each tile in cache, float32 within a tile, float64 across tiles. Never waits for a device."""
    windows, _, units = x.shape
    best = x.new_full((2, windows, units), -torch.inf, dtype=torch.float32)
    place = torch.full((2, windows, units), -1, dtype=torch.int64, device=x.device)
    parts, owners = [x.new_zeros((6, 0, units), dtype=torch.float64)], [group[:0]]
    for tile in tiles(x, counted):
        span = slice(tile.window, tile.window + tile.values.shape[0])
        for end, sign in enumerate((1, -1)):
            _raise_to(best[end, span], place[end, span], tile, sign)
        parts.append(_powers(tile))
        owners.append(group[span])
    extremes = Extremes(best[0], place[0], -best[1], place[1])
    stacked, owner = torch.cat(parts, 1), torch.cat(owners)
    states = []
    for g in range(groups):
        mine = torch.where((owner == g)[:, None], stacked, 0)
        states.append(_state(mine[0].sum(0).to(torch.int64), combine(mine), extremes, group == g))
    return _stacked(states), extremes


def _raise_to(best: Float[Tensor, "window unit"], place: Int[Tensor, "window unit"], tile: Tile, sign: int) -> None:
    """Raise `best` to the maxima of sign * tile, in place; only a larger value moves the place."""
    values = tile.values if sign > 0 else -tile.values
    if tile.mask is not None:
        values = values.masked_fill(~tile.mask.unsqueeze(-1), -torch.inf)
    value, token = values.max(1)
    higher = value > best
    best.copy_(torch.where(higher, value, best))
    place.copy_(torch.where(higher, token + tile.token, place))


def _powers(tile: Tile) -> Float[Tensor, "6 window unit"]:
    """Per window of the tile: count, mean, M2, M3, M4 about that mean, and the number of positive values."""
    x, mask = tile.values, tile.mask
    if mask is None:
        count = x.new_full((x.shape[0], 1), x.shape[1], dtype=torch.float64)
    else:
        keep = mask.unsqueeze(-1)
        count = keep.sum(1).to(torch.float64)
        x = torch.where(keep, x, 0)
    centre = (x.sum(1) / count.clamp(min=1)).to(torch.float32)
    d = x - centre.unsqueeze(1)
    if mask is not None:
        d = torch.where(mask.unsqueeze(-1), d, 0)
    q = d * d
    s1, s2, s3, s4 = (part.to(torch.float64) for part in (d.sum(1), q.sum(1), (q * d).sum(1), (q * q).sum(1)))
    e = s1 / count.clamp(min=1)  # the centre is a rounded mean: move to the mean itself
    return torch.stack(
        [
            count.expand_as(e),
            centre + e,
            s2 - count * e**2,
            s3 - 3 * e * s2 + 2 * count * e**3,
            s4 - 4 * e * s3 + 6 * e**2 * s2 - 3 * count * e**4,
            (x > 0).sum(1).to(torch.float64),
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
