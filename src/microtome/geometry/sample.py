"""A seeded sample of windows: their mean hidden states, and one whole token of each, for what needs contexts one by one.

Clusters, maps, angles between position and context, dimensions of what is left over: none of these can be summed up over a stream,
and all of them are well served by a few hundred windows. The sample is of the lowest hashes of (seed, window), so it is the same
under any split. What is computed from it belongs in `context`, `incoherence` and `dimension`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import CONTENT, Batch, ExpertRows, Role, Site, State
from microtome.geometry.decomposition import Parts
from microtome.numerics import hash_parts

__all__ = ["Contexts", "WindowSample", "Windows"]

_WINDOWS: Final = 0x5A3
_LAST: Final = torch.iinfo(torch.int64).max


@dataclass(frozen=True, eq=False)
class Windows:
    """Sampled windows in the order of the corpus: the mean of their counted tokens, and the state of one of these.

    `length` counts the counted tokens, `place` is which of them `state` is of.
    """

    site: Site
    window: Int[Tensor, " window"]
    document: Int[Tensor, " window"]
    label: Int[Tensor, " window"]
    length: Int[Tensor, " window"]
    place: Int[Tensor, " window"]
    mean: Float[Tensor, "window d_model"]
    state: Float[Tensor, "window d_model"]

    def split(self, parts: Parts) -> "Contexts":
        """ctx_c = m_c - mu - mean of pos over the window, and resid = h - mu - pos_t - ctx_c, in float64."""
        mean_pos = parts.pos.cumsum(0)[self.length - 1] / self.length[:, None].double()
        ctx = self.mean.double() - parts.mu - mean_pos
        return Contexts(ctx, self.state.double() - parts.mu - parts.pos[self.place] - ctx)


@dataclass(frozen=True, eq=False)
class Contexts:
    """Context part of each sampled window, and the residual of one token of each."""

    ctx: Float[Tensor, "window d_model"]
    resid: Float[Tensor, "window d_model"]


@dataclass(frozen=True)
class WindowSample:
    """The `rows` windows with the lowest hash of (seed, window) that have a counted token.

    Cost: a hash per window, and one read of the windows that enter the sample; a state of 2 x rows x width in float32.
    """

    kind: ClassVar[str] = "geometry.window_sample"
    version: ClassVar[int] = 1

    site: Site
    width: int
    rows: int = 256
    seed: int = 0
    roles: frozenset[Role] = CONTENT

    @property
    def sites(self) -> tuple[Site, ...]:
        """The one site."""
        return (self.site,)

    def init(self) -> State:
        """No window: empty places have the highest hash."""
        whole = {name: torch.full((self.rows,), -1) for name in ("window", "document", "label", "length", "place")}
        vectors = {name: torch.zeros(self.rows, self.width) for name in ("mean", "state")}
        return {"hash": torch.full((self.rows,), _LAST), **whole, **vectors}

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Let the batch's windows compete for places."""
        x = values[self.site]
        assert isinstance(x, Tensor)
        hashes = hash_parts(self.seed, _WINDOWS, batch.window)
        counted = batch.counted(self.roles)
        length = counted.sum(1)
        enters = ((hashes < state["hash"][-1].to(hashes.device)) & (length > 0)).nonzero()[:, 0]
        if not len(enters):
            return
        place = hash_parts(self.seed, _WINDOWS, batch.window, 1) % length.clamp(min=1)
        token = ((counted.cumsum(1) - 1 == place[:, None]) & counted).int().argmax(1)
        chosen = [x[int(row)][counted[row].to(x.device)].float().mean(0).cpu() for row in enters]
        new = {
            "hash": hashes[enters],
            "window": batch.window[enters],
            "document": batch.document[enters],
            "label": batch.label[enters],
            "length": length[enters],
            "place": place[enters],
            "mean": torch.stack(chosen),
            "state": x[enters.to(x.device), token[enters].to(x.device)].float(),
        }
        state.update(self._lowest(state, {name: tensor.cpu() for name, tensor in new.items()}))

    def merge(self, state: State, later: State) -> State:
        """The lowest hashes of both."""
        return self._lowest(state, later)

    def result(self, state: State) -> Windows:
        """The windows there are, in the order of the corpus."""
        order = state["window"].argsort()
        order = order[state["hash"][order] < _LAST]
        return Windows(self.site, **{name: tensor[order] for name, tensor in state.items() if name != "hash"})

    def _lowest(self, state: State, later: State) -> State:
        both = {name: torch.cat([state[name], later[name]]) for name in state}
        order = both["hash"].argsort(stable=True)[: self.rows]
        return {name: tensor[order] for name, tensor in both.items()}
