"""Typical contexts of every unit: a few tokens from each tenth of its own distribution, and its histogram.

Extremes show what a unit is best at; what it does on ordinary text is seen here. Both folds look at a sample of tokens chosen by
hash, so that their cost does not grow with the corpus and any split of the stream selects the same tokens. `PilotQuantiles` runs
first, on a few windows, and says where the tenths lie. An additional axis, `decile_edge`, counts the eleven quantiles
0, 0.1, ..., 1; `bin` counts bins of a histogram, of which the first and last hold what lies beyond the pilot's range.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from microtome.core import CONTENT, Basis, Batch, Role, Site, State, places_of, token_keys
from microtome.core.bases import ExpertRows
from microtome.examples.entries import PAYLOAD, Contexts, empty_entries, to_device
from microtome.examples.top import accompany
from microtome.numerics import hash_parts, hash_text, histogram, quantiles, reservoir, uniform
from microtome.store.schemas_units import NEIGHBOURS

__all__ = ["BINS", "DecileContexts", "DecileRecord", "PilotQuantiles", "PilotRecord"]

BINS: Final = 64
DECILES: Final = 10
_ROWS, _TOKENS, _LISTS = 1, 2, 3
_SAMPLES: Final = ("hashes", "keys", "values")
_KEPT_AS: Final = ("value", "window")
"""Fields of an entry that the samples keep as values and keys."""


@dataclass(frozen=True, eq=False)
class PilotRecord:
    """Eleven quantiles of each unit over the tokens kept, the smallest and largest being its range; and how many were kept."""

    edges: Float32[Tensor, "decile_edge unit"]
    rows: int


@dataclass(frozen=True)
class PilotQuantiles:
    """Quantiles of each unit over `rows` tokens: those with the lowest hash of (seed, window, token).

    Cost: `rows` vectors of activations are kept; a batch costs one hash per token and a copy of the vectors that enter.
    """

    kind: ClassVar[str] = "examples.pilot_quantiles"
    version: ClassVar[int] = 1

    basis: Basis
    rows: int = 512
    seed: int = 0
    roles: frozenset[Role] = CONTENT

    @property
    def sites(self) -> tuple[Site, ...]:
        """What the basis reads."""
        return self.basis.sites

    def init(self) -> State:
        """No vector kept: places still empty have the highest hash."""
        return {
            "hash": torch.full((self.rows,), reservoir.EMPTY, dtype=torch.int64),
            "vectors": torch.zeros((self.rows, self.basis.units), dtype=torch.float32),
        }

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Keep the vectors of tokens whose hash is among the lowest."""
        x = self.basis.encode(values)
        to_device(state, x.device)
        row, position = batch.counted(self.roles).nonzero(as_tuple=True)
        hashed = hash_parts(self.seed, _ROWS, batch.window[row], position).to(x.device)
        lowest = hashed.sort().indices[: self.rows]
        lowest = lowest[hashed[lowest] < state["hash"][-1]]
        row, position = row.to(x.device)[lowest], position.to(x.device)[lowest]
        state.update(self._lowest(state, {"hash": hashed[lowest], "vectors": x[row, position].float()}))

    def merge(self, state: State, later: State) -> State:
        """The lowest hashes of both."""
        return self._lowest(state, later)

    def result(self, state: State) -> PilotRecord:
        """Quantiles by linear interpolation between order statistics; zeros where no token was seen."""
        kept = state["vectors"][state["hash"] < reservoir.EMPTY].cpu()
        if not len(kept):
            return PilotRecord(torch.zeros((DECILES + 1, self.basis.units)), 0)
        tenths = torch.linspace(0, 1, DECILES + 1, dtype=torch.float64)
        return PilotRecord(quantiles(kept, tenths).float(), len(kept))

    def _lowest(self, state: State, later: State) -> State:
        both = {name: torch.cat([state[name], later[name].to(state[name].device)]) for name in state}
        order = both["hash"].argsort(stable=True)[: self.rows]
        return {name: tensor[order] for name, tensor in both.items()}


@dataclass(frozen=True, eq=False)
class DecileRecord:
    """Contexts per decile (groups decile0 to decile9), histogram counts on the sampled tokens, and how many these were."""

    contexts: Contexts
    edges: Float32[Tensor, "decile_edge unit"]
    histogram: Int64[Tensor, "unit bin"]
    sampled: int


@dataclass(frozen=True, eq=False)
class DecileContexts:
    """A few contexts from each tenth of every unit's distribution, and its histogram, over a sample of tokens.

    A token is looked at if its hash of (seed, window, token), as a fraction of all hashes, is below `rate`. Its activation x of
    a unit is in decile #{inner edges <= x}. Of a unit's tokens in a decile those with the lowest hash of (seed, basis, unit,
    window, token) are kept. Histogram: bin 0 is below the lowest edge, bins 1 to 64 divide the pilot's range equally, bin 65 is above.
    `of` "active": tokens at which a unit is not above 0 belong to none of its deciles, and to no bin: of a sparse code they are nearly all.

    Cost: per sampled token and unit one hash, two searches. Not: weighted by activation, see `UnitSurvey` for extremes.
    """

    kind: ClassVar[str] = "examples.decile_contexts"
    version: ClassVar[int] = 2

    basis: Basis
    edges: Float[Tensor, "decile_edge unit"]
    per_decile: int = 2
    rate: float = 1.0
    seed: int = 0
    neighbours: int = NEIGHBOURS
    roles: frozenset[Role] = CONTENT
    of: Literal["all", "active"] = "all"

    @property
    def sites(self) -> tuple[Site, ...]:
        """What the basis reads."""
        return self.basis.sites

    def init(self) -> State:
        """Empty lists and bins."""
        shape = (self.basis.units, DECILES, self.per_decile)
        lists = {name: tensor for name, tensor in empty_entries(*shape, self.neighbours).items() if name not in _KEPT_AS}
        samples = {name: reservoir.init(self._inner, self.per_decile)[name] for name in _SAMPLES}
        counts = histogram.init(*self._bins, BINS)["counts"]
        return {**lists, **samples, "histogram": counts, "sampled": torch.zeros((), dtype=torch.int64)}

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Look at the batch's sampled tokens."""
        place = torch.arange(batch.ids.shape[1], device=batch.ids.device)
        hashed = hash_parts(self.seed, _TOKENS, batch.window[:, None], place)
        chosen = batch.counted(self.roles) & (uniform(hashed) < self.rate)
        if not bool(chosen.any()):
            return
        x = self.basis.encode(values)
        to_device(state, x.device)
        chosen, keys = chosen.to(x.device), token_keys(batch.window[:, None], place).to(x.device)
        state["sampled"] += chosen.sum()
        offered = x if self.of == "all" else x.masked_fill(x <= 0, torch.nan)
        histogram.update(self._histogram(state), offered, chosen)
        source = reservoir.update(self._samples(state), offered, keys, self._list_seed, chosen)
        accompany({name: state[name] for name in PAYLOAD if name not in _KEPT_AS}, source, x, batch)

    def merge(self, state: State, later: State) -> State:
        """The lowest hashes of both per list; sums of the counts."""
        later = {name: tensor.to(state[name].device) for name, tensor in later.items()}
        merged, source = reservoir.merge(self._samples(state), self._samples(later))
        for name in state.keys() - {*_SAMPLES, "histogram", "sampled"}:
            both = torch.cat([state[name], later[name]], 2)
            order = source if both.dim() == 3 else source[..., None].expand(*source.shape, both.shape[3])
            merged[name] = both.gather(2, order)
        merged["histogram"] = histogram.merge(self._histogram(state), self._histogram(later))["counts"]
        merged["sampled"] = state["sampled"] + later["sampled"]
        return {name: merged[name] for name in state}

    def result(self, state: State) -> DecileRecord:
        """The lists, each by rising hash, and the counts."""
        empty = state["keys"] < 0
        entries = {**state, "value": state["values"], "window": torch.where(empty, -1, places_of(state["keys"])[0])}
        fields = {name: entries[name].cpu().transpose(0, 1).contiguous() for name in PAYLOAD}
        contexts = Contexts(ends=tuple(f"decile{i}" for i in range(DECILES)), **fields)
        return DecileRecord(contexts, self.edges.float().cpu(), state["histogram"].cpu(), int(state["sampled"]))

    @functools.cached_property
    def _list_seed(self) -> int:
        return int(hash_parts(self.seed, _LISTS, hash_text(str(self.basis.address(0)))))

    def _samples(self, state: State) -> State:
        """The part of a state that is a state of `numerics.reservoir`."""
        return {"edges": self._on(state["hashes"].device)[0], **{name: state[name] for name in _SAMPLES}}

    def _histogram(self, state: State) -> State:
        """The part of a state that is a state of `numerics.histogram`."""
        _, low, width = self._on(state["histogram"].device)
        return {"low": low, "width": width, "counts": state["histogram"]}

    def _on(
        self, device: torch.device
    ) -> tuple[Float32[Tensor, "unit edge"], Float32[Tensor, " unit"], Float32[Tensor, " unit"]]:
        """Edges between deciles, lower ends and widths of bins, copied to a device once."""
        if device not in self._copies:
            low, width = self._bins
            self._copies[device] = (self._inner.to(device), low.to(device), width.to(device))
        return self._copies[device]

    @functools.cached_property
    def _copies(self) -> dict[torch.device, tuple[Tensor, Tensor, Tensor]]:
        return {}

    @functools.cached_property
    def _inner(self) -> Float32[Tensor, "unit edge"]:
        """The edges between deciles."""
        return self.edges[1:-1].to("cpu", torch.float32).T.contiguous()

    @functools.cached_property
    def _bins(self) -> tuple[Float32[Tensor, " unit"], Float32[Tensor, " unit"]]:
        """Lower end of the first bin, and the width of a bin: a little wider than its share, so that the range's end is inside."""
        low, high = self.edges[0].to("cpu", torch.float32), self.edges[-1].to("cpu", torch.float32)
        return low, ((high - low) * ((1 + 1e-5) / BINS)).clamp_min(1e-30)
