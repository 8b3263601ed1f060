"""A seeded sample of windows: their mean hidden states and some of their tokens, for what needs contexts or tokens one by one.

Clusters, maps, angles between position and context, dimensions of what is left over: none of these can be summed up over a stream,
and all of them are well served by a few hundred windows. The sample is of the lowest hashes of (seed, window), so it is the same
under any split. What is computed from it belongs in `context`, `incoherence` and `dimension`. The axis `pick` counts a window's
sampled tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from microtome.core import CONTENT, Batch, ExpertRows, Half, Role, Site, State
from microtome.geometry.decomposition import Parts
from microtome.geometry.measured import cleared
from microtome.numerics import hash_parts

__all__ = ["Contexts", "Tokens", "WindowSample", "Windows"]

_WINDOWS: Final = 0x5A3
_LAST: Final = torch.iinfo(torch.int64).max
_NONE: Final = -1


@dataclass(frozen=True, eq=False)
class Windows:
    """Sampled windows in the order of the corpus: the mean of their counted tokens, and the states of some of these.

    `length` counts the counted tokens, `place` says which of them the `state`s are of, in their order; -1 where a window has fewer.
    """

    site: Site
    window: Int[Tensor, " window"]
    document: Int[Tensor, " window"]
    label: Int[Tensor, " window"]
    half: UInt8[Tensor, " window"]
    length: Int[Tensor, " window"]
    place: Int[Tensor, "window pick"]
    mean: Float[Tensor, "window d_model"]
    state: Float[Tensor, "window pick d_model"]

    def split(self, parts: Parts) -> "Contexts":
        """ctx_c = m_c - mu - mean of pos over the window, and resid = h - mu - pos_t - ctx_c, in float64; 0 where that is rounding."""
        mean_pos = parts.pos.cumsum(0)[self.length - 1] / self.length[:, None].double()
        row, pick = (self.place != _NONE).nonzero(as_tuple=True)
        place, state = self.place[row, pick], self.state[row, pick].double()
        size = float(state.square().sum(1).mean().sqrt())
        ctx = cleared(self.mean.double() - parts.mu - mean_pos, size)
        resid = cleared(state - parts.mu - parts.pos[place] - ctx[row], size)
        return Contexts(ctx, Tokens(row, place, state, resid))


@dataclass(frozen=True, eq=False)
class Tokens:
    """Sampled tokens: the row of `Windows` they are of, their place among its counted tokens, their states, and what no part explains."""

    window: Int[Tensor, " row"]
    place: Int[Tensor, " row"]
    state: Float[Tensor, "row d_model"]
    resid: Float[Tensor, "row d_model"]


@dataclass(frozen=True, eq=False)
class Contexts:
    """Context part of each sampled window, and the sampled tokens."""

    ctx: Float[Tensor, "window d_model"]
    tokens: Tokens


@dataclass(frozen=True)
class WindowSample:
    """The `rows` windows with the lowest hash of (seed, window) that have a counted token, and of each the `picks` tokens with the lowest.

    Cost: a hash per window, and one read of the windows that enter the sample; a state of (1 + picks) x rows x width in float32.
    """

    kind: ClassVar[str] = "geometry.window_sample"
    version: ClassVar[int] = 2

    site: Site
    width: int
    rows: int = 256
    picks: int = 4
    seed: int = 0
    roles: frozenset[Role] = CONTENT

    @property
    def sites(self) -> tuple[Site, ...]:
        """The one site."""
        return (self.site,)

    def init(self) -> State:
        """No window: empty places have the highest hash."""
        whole = {name: torch.full((self.rows,), _NONE) for name in ("window", "document", "label", "length")}
        return {
            "hash": torch.full((self.rows,), _LAST),
            **whole,
            "half": torch.full((self.rows,), int(Half.DISCOVER), dtype=torch.uint8),
            "place": torch.full((self.rows, self.picks), _NONE),
            "mean": torch.zeros(self.rows, self.width),
            "state": torch.zeros(self.rows, self.picks, self.width),
        }

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Let the batch's windows compete for places."""
        x = values[self.site]
        assert isinstance(x, Tensor)
        hashes = hash_parts(self.seed, _WINDOWS, batch.window)
        counted = batch.counted(self.roles)
        length = counted.sum(1)
        enters = ((hashes < state["hash"].max().to(hashes.device)) & (length > 0)).nonzero()[:, 0]
        if not len(enters):
            return
        place, mean, picked = (
            torch.stack(each) for each in zip(*(self._row(x, counted, batch, int(row)) for row in enters), strict=True)
        )
        new = {
            "hash": hashes[enters],
            "window": batch.window[enters],
            "document": batch.document[enters],
            "label": batch.label[enters],
            "half": batch.half[enters],
            "length": length[enters],
            "place": place,
            "mean": mean,
            "state": picked,
        }
        _admit(state, {name: tensor.cpu() for name, tensor in new.items()})

    def _row(
        self, x: Float[Tensor, "window token d_model"], counted: Tensor, batch: Batch, row: int
    ) -> tuple[Int[Tensor, " pick"], Float[Tensor, " d_model"], Float[Tensor, "pick d_model"]]:
        """One window: places of its tokens, its mean, their states."""
        states = x[row][counted[row].to(x.device)].float()
        order = hash_parts(self.seed, _WINDOWS, batch.window[row].cpu(), torch.arange(len(states)) + 1).argsort()
        chosen = order[: self.picks].sort().values
        place = torch.full((self.picks,), _NONE)
        place[: len(chosen)] = chosen
        picked = torch.zeros(self.picks, self.width)
        picked[: len(chosen)] = states[chosen.to(x.device)].cpu()
        return place, states.mean(0).cpu(), picked

    def merge(self, state: State, later: State) -> State:
        """The lowest hashes of both."""
        _admit(state, later)
        order = state["hash"].argsort(stable=True)
        return {name: tensor[order] for name, tensor in state.items()}

    def result(self, state: State) -> Windows:
        """The windows there are, in the order of the corpus."""
        order = state["window"].argsort()
        order = order[state["hash"][order] < _LAST]
        return Windows(self.site, **{name: tensor[order] for name, tensor in state.items() if name != "hash"})


def _admit(state: State, new: State) -> None:
    """Put the new windows with the lowest hashes in the places of those with the highest; only the rows that change are written."""
    rows = len(state["hash"])
    kept = torch.cat([state["hash"], new["hash"]]).argsort(stable=True)[:rows]
    leaving = torch.ones(rows, dtype=torch.bool)
    leaving[kept[kept < rows]] = False
    entering = kept[kept >= rows] - rows
    for name, tensor in state.items():
        tensor[leaving] = new[name][entering]
