"""Typical contexts of every unit: a few tokens from each tenth of its own distribution, and its histogram.

Extremes show what a unit is best at; what it does on ordinary text is seen here. Both folds look at a sample of tokens chosen by
hash, so that their cost does not grow with the corpus and any split of the stream selects the same tokens. `PilotQuantiles` runs
first, on a few windows, and says where the tenths lie. An additional axis, `decile_edge`, counts the eleven quantiles
0, 0.1, ..., 1; `bin` counts bins of a histogram, of which the first and last hold what lies beyond the pilot's range.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from microtome.core import CONTENT, Basis, Batch, Role, Site, State
from microtome.core.bases import ExpertRows
from microtome.examples.entries import PAYLOAD, Contexts, Seen, empty_entries, payload, to_device
from microtome.numerics import hash_parts, uniform
from microtome.store.tables import NEIGHBOURS

__all__ = ["BINS", "DecileContexts", "DecileRecord", "PilotQuantiles", "PilotRecord"]

BINS: Final = 64
DECILES: Final = 10
_LAST = torch.iinfo(torch.int64).max
_ROWS, _TOKENS, _UNITS = 1, 2, 3


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
            "hash": torch.full((self.rows,), _LAST, dtype=torch.int64),
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
        kept = state["vectors"][state["hash"] < _LAST].cpu()
        if not len(kept):
            return PilotRecord(torch.zeros((DECILES + 1, self.basis.units)), 0)
        ordered = kept.sort(0).values
        place = torch.linspace(0, len(kept) - 1, DECILES + 1, dtype=torch.float64)
        below, above = place.floor().long(), place.ceil().long()
        return PilotRecord(torch.lerp(ordered[below], ordered[above], (place - below).float()[:, None]), len(kept))

    def _lowest(self, state: State, later: State) -> State:
        both = {name: torch.cat([state[name], later[name]]) for name in state}
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
    a unit is in decile #{inner edges <= x}. Of a unit's tokens in a decile those with the lowest hash of (seed, unit, window,
    token) are kept. Histogram: bin 0 is below the lowest edge, bins 1 to 64 divide the pilot's range equally, bin 65 is above.

    Cost: per sampled token and unit one hash and one search. Not: weighted by activation, see `TopContexts` for extremes.
    """

    kind: ClassVar[str] = "examples.decile_contexts"
    version: ClassVar[int] = 1

    basis: Basis
    edges: Float[Tensor, "decile_edge unit"]
    per_decile: int = 2
    rate: float = 1.0
    seed: int = 0
    neighbours: int = NEIGHBOURS
    roles: frozenset[Role] = CONTENT

    @property
    def sites(self) -> tuple[Site, ...]:
        """What the basis reads."""
        return self.basis.sites

    def init(self) -> State:
        """Empty lists and bins."""
        shape = (DECILES, self.basis.units, self.per_decile)
        return {
            **empty_entries(*shape, self.neighbours),
            "hash": torch.full(shape, _LAST, dtype=torch.int64),
            "histogram": torch.zeros((self.basis.units, BINS + 2), dtype=torch.int64),
            "sampled": torch.zeros((), dtype=torch.int64),
        }

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Look at the batch's sampled tokens."""
        row, position = batch.counted(self.roles).nonzero(as_tuple=True)
        hashed = hash_parts(self.seed, _TOKENS, batch.window[row], position)
        chosen = uniform(hashed) < self.rate
        row, position = row[chosen], position[chosen]
        if not len(row):
            return
        x = self.basis.encode(values)
        to_device(state, x.device)
        row, position, window = row.to(x.device), position.to(x.device), batch.window.to(x.device)[row]
        sampled = x[row, position].float().T.contiguous()
        edges = self.edges.to(x.device, torch.float32).T.contiguous()
        state["sampled"] += len(row)
        state["histogram"] += _histogram(sampled, edges)
        decile = torch.searchsorted(edges[:, 1:-1].contiguous(), sampled, right=True)
        units = torch.arange(self.basis.units, device=x.device)
        priority = hash_parts(self.seed, _UNITS, units[:, None], window, position)
        worst = state["hash"][:, :, -1].T
        unit, token = (priority < worst.gather(1, decile)).nonzero(as_tuple=True)
        found = Seen(row[token], position[token], unit, sampled[unit, token])
        self._insert(state, decile[unit, token], priority[unit, token], found, x, batch)

    def merge(self, state: State, later: State) -> State:
        """The lowest hashes of both per list; sums of the counts."""
        names = (*PAYLOAD, "hash")
        both = {name: torch.cat([state[name], later[name]], 2) for name in names}
        order = both["hash"].argsort(dim=2, stable=True)[..., : self.per_decile]
        merged = {name: _along(tensor, order) for name, tensor in both.items()}
        merged["histogram"] = state["histogram"] + later["histogram"]
        merged["sampled"] = state["sampled"] + later["sampled"]
        return merged

    def result(self, state: State) -> DecileRecord:
        """The lists, each by rising hash, and the counts."""
        fields = {name: state[name].cpu() for name in PAYLOAD}
        contexts = Contexts(ends=tuple(f"decile{i}" for i in range(DECILES)), **fields)
        return DecileRecord(contexts, self.edges.float().cpu(), state["histogram"].cpu(), int(state["sampled"]))

    def _insert(
        self, state: State, decile: Tensor, priority: Tensor, found: Seen, x: Float[Tensor, "window token unit"], batch: Batch
    ) -> None:
        """Give each list its lowest hashes among those it has and those found."""
        group = decile * self.basis.units + found.unit
        by_hash = priority.sort().indices
        order = by_hash[group[by_hash].argsort(stable=True)]
        group, place = group[order], torch.arange(len(order), device=order.device)
        rank = place - torch.searchsorted(group, group)
        keep = rank < self.per_decile
        order, group, rank = order[keep], group[keep], rank[keep]
        found = Seen(found.row[order], found.position[order], found.unit[order], found.value[order])
        new = {**payload(found, x, batch, self.neighbours), "hash": priority[order]}
        fresh = self.init()
        to_device(fresh, x.device)
        decile, unit = group // self.basis.units, group % self.basis.units
        for name, field in new.items():
            fresh[name][decile, unit, rank] = field
        state.update({**self.merge(state, fresh)})


def _histogram(sampled: Float32[Tensor, "unit row"], edges: Float32[Tensor, "unit decile_edge"]) -> Int64[Tensor, "unit bin"]:
    """Counts per unit: below the range, in each of the equal bins of the range, above it."""
    low, high = edges[:, :1], edges[:, -1:]
    width = (high - low).clamp_min(torch.finfo(torch.float32).tiny) / BINS
    inside = ((sampled - low) / width).floor().clamp(0, BINS - 1).long() + 1
    bins = torch.where(sampled < low, 0, torch.where(sampled > high, BINS + 1, inside))
    counts = torch.zeros((len(sampled), BINS + 2), dtype=torch.int64, device=sampled.device)
    return counts.scatter_add_(1, bins, torch.ones_like(bins))


def _along(field: Tensor, order: Int64[Tensor, "group unit k"]) -> Tensor:
    """Entries of each list in the order given; `field` may have an axis after k."""
    if field.dim() == 4:
        order = order[..., None].expand(*order.shape, field.shape[3])
    return field.gather(2, order)
