"""Planted activations: windows of known values, as batches of any cut, and brute-force answers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from microtome.core import Batch, ExpertRows, Role, Site, UnitAddress
from microtome.core.folds import Fold, State

SITE = Site("resid_post", 0)
JUNK = 1e6


@dataclass(frozen=True)
class Plain:
    """Coordinates of a site, as they are."""

    units: int
    signed: bool = True

    @property
    def sites(self) -> tuple[Site, ...]:
        return (SITE,)

    def encode(self, values: Mapping[Site, Tensor | ExpertRows]) -> Tensor:
        found = values[SITE]
        assert isinstance(found, Tensor)
        return found

    def address(self, index: int) -> UnitAddress:
        return UnitAddress("plain", index, layer=0)


@dataclass(frozen=True)
class Window:
    """One window: its index, half, roles, ids and activations."""

    index: int
    half: int
    roles: Tensor
    ids: Tensor
    values: Tensor

    def counted(self) -> list[int]:
        return (self.roles == int(Role.CONTENT)).nonzero()[:, 0].tolist()


def plant(seed: int, count: int, units: int, longest: int = 12, levels: int = 5) -> list[Window]:
    """Windows of various lengths with few distinct values, so that ties abound; uncounted tokens hold junk."""
    generator = torch.Generator().manual_seed(seed)
    windows = []
    for index in range(count):
        length = int(torch.randint(2, longest + 1, (), generator=generator))
        values = torch.randint(-levels, levels + 1, (length, units), generator=generator).float() / 2
        values[0] = JUNK
        roles = torch.full((length,), int(Role.CONTENT), dtype=torch.uint8)
        roles[0] = int(Role.FIRST)
        half = int(torch.randint(0, 2, (), generator=generator))
        windows.append(Window(index, half, roles, torch.randint(0, 9, (length,), generator=generator), values))
    return windows


def batch_of(windows: Sequence[Window], dtype: torch.dtype = torch.float32) -> tuple[dict[Site, Tensor | ExpertRows], Batch]:
    """The windows as one padded batch, junk under the padding."""
    longest = max(len(w.ids) for w in windows)
    values = torch.full((len(windows), longest, windows[0].values.shape[1]), JUNK, dtype=dtype)
    ids = torch.zeros((len(windows), longest), dtype=torch.int64)
    roles = torch.zeros((len(windows), longest), dtype=torch.uint8)
    for row, window in enumerate(windows):
        length = len(window.ids)
        values[row, :length], ids[row, :length], roles[row, :length] = window.values.to(dtype), window.ids, window.roles
    index = torch.tensor([w.index for w in windows])
    zero = torch.zeros_like(index)
    half = torch.tensor([w.half for w in windows], dtype=torch.uint8)
    batch = Batch(ids=ids, roles=roles, window=index, document=index, start=zero, half=half, label=zero, extra={})
    return {SITE: values}, batch


def cut(windows: Sequence[Window], sizes: Sequence[int]) -> Iterator[list[Window]]:
    """The windows in runs of the sizes given, cycled."""
    begin, turn = 0, 0
    while begin < len(windows):
        size = sizes[turn % len(sizes)]
        yield list(windows[begin : begin + size])
        begin, turn = begin + size, turn + 1


def folded(fold: Fold, batches: Iterator[list[Window]] | Sequence[list[Window]], dtype: torch.dtype = torch.float32) -> State:
    """The state of a fold over batches of windows."""
    state = fold.init()
    for windows in batches:
        fold.update(state, *batch_of(windows, dtype))
    return state


def best(windows: Sequence[Window], unit: int, half: int, sign: int, k: int) -> list[tuple[float, int, int]]:
    """The k best (value, window, position) of a unit by sorting everything."""
    entries = []
    for window in windows:
        if window.half == half and window.counted():
            score, position = max((sign * float(window.values[p, unit]), -p) for p in window.counted())
            entries.append((sign * score, window.index, -position))
    return sorted(entries, key=lambda entry: (-sign * entry[0], entry[1]))[:k]
