"""Parts of a tensor of activations that fit a cache, in float32: what the torch references of streaming statistics loop over.

A bfloat16 tensor is never converted as a whole, and a strided view never copied as a whole. Compiled kernels have tiles of
their own.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microtome.numerics.kernels import Counted

__all__ = ["Tile", "row_tiles", "tiles"]

_CPU_TILE = 1 << 17
"""Values of a tile on the CPU: half a megabyte of float32, so that passes over it stay in a core's second-level cache."""
_GPU_TILE = 1 << 26


@dataclass(frozen=True, eq=False)
class Tile:
    """A part of a tensor in float32, small enough for a cache: windows and tokens from the given ones on, and which count."""

    values: Float[Tensor, "window token unit"]
    window: int
    token: int
    mask: Bool[Tensor, "window token"] | None


def tiles(x: Float[Tensor, "window token unit"], counted: Counted = None, room: int = 0) -> Iterator[Tile]:
    """Cover the counted tokens of `x` by tiles of about `room` values (0: what suits the device), in order."""
    windows, tokens, units = x.shape
    mask = counted if isinstance(counted, Tensor) else None
    start, stop, _ = counted.indices(tokens) if isinstance(counted, slice) else (0, tokens, 1)
    if stop <= start or units == 0:
        return
    rows = max(1, (room or (_CPU_TILE if x.device.type == "cpu" else _GPU_TILE)) // units)
    length = min(stop - start, rows)
    group = max(1, rows // length)
    for window in range(0, windows, group):
        for token in range(start, stop, length):
            part = (slice(window, window + group), slice(token, min(stop, token + length)))
            inside = None if mask is None else mask[part]
            if inside is not None and inside.device.type == "cpu" and bool(inside.all()):  # elsewhere looking would be waiting
                inside = None
            yield Tile(x[part].to(torch.float32), window, token, inside)


def row_tiles(
    x: Float[Tensor, "row unit"] | Float[Tensor, "window token unit"], counted: Counted = None, room: int = 0
) -> Iterator[tuple[Float[Tensor, "part unit"], Int[Tensor, " part"]]]:
    """The counted rows of `x` in order, as matrices of about `room` values, and the flat index window * tokens + token of each."""
    x = x if x.ndim == 3 else x.unsqueeze(0)
    if isinstance(counted, Tensor):  # few of many rows, perhaps: the others are not touched
        window, token = counted.nonzero(as_tuple=True)
        size = max(1, (room or (_CPU_TILE if x.device.type == "cpu" else _GPU_TILE)) // max(1, x.shape[2]))
        for row, place in zip(window.split(size), token.split(size), strict=True):
            if len(row):
                yield x[row, place].to(torch.float32), row * x.shape[1] + place
        return
    for tile in tiles(x, counted, room):
        windows, tokens, units = tile.values.shape
        window = torch.arange(tile.window, tile.window + windows, device=x.device).unsqueeze(1)
        index = window * x.shape[1] + torch.arange(tile.token, tile.token + tokens, device=x.device)
        yield tile.values.reshape(windows * tokens, units), index.flatten()
