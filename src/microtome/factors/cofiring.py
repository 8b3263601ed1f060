"""Which factors are active at the same tokens, beyond what two that know nothing of each other would be.

Counts of pairs, by half of the documents, for the text and for circular shifts of one side: what is left in these is what a window's subject makes
of two factors, and not the token. Which factors point alike belongs in `tables`; how a pair acts on the model, in `intervene`. Additional axes:
`other` is a second factor, `half` a half of the documents, `side` has the text itself and then its shifts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from microtome.core import CONTENT, Basis, Batch, ExpertRows, Half, Refusal, Role, Site, State
from microtome.examples.entries import to_device
from microtome.numerics import window_shifts

__all__ = ["Cofired", "Cofiring", "Measure", "Partners", "jaccard", "partners", "pointwise_information"]

Measure = Literal["jaccard", "information"]
_PAIRS: Final = 1 << 22
"""Pairs of active factors that are counted at a time."""
_DEAR: Final = 1000
"""How many multiplications of a product of matrices the counting of one pair takes, as measured on one core."""
_UNITS: Final = 1 << 13


@dataclass(frozen=True, eq=False)
class Cofired:
    """Tokens of each half; at how many each factor is active; at how many two are, in the text (side 0) and in each shift of the second against the first."""

    tokens: Int64[Tensor, " half"]
    active: Int64[Tensor, "half unit"]
    both: Int64[Tensor, "half side unit other"]


@dataclass(frozen=True)
class Cofiring:
    """Counts of pairs of units that are above 0 at the same token, and in `draws` circular shifts of each window's tokens against themselves.

    No token of a window of two or more meets itself there: see `numerics.window_shifts`.
    Errors: `Refusal` for more than 8,192 units, whose pairs are too many to count.
    Cost: for each token and side k^2 counts with k active units, or units^2 multiplications where they are cheaper. Memory: 16 (1 + draws) units^2
    bytes.
    """

    kind: ClassVar[str] = "factors.cofiring"
    version: ClassVar[int] = 1

    basis: Basis
    draws: int = 1
    seed: int = 0
    roles: frozenset[Role] = CONTENT

    def __post_init__(self) -> None:
        if self.basis.units > _UNITS:
            why = f"its {self.basis.units:,} units have {self.basis.units**2:,} pairs"
            raise Refusal("units that are active together", why=why, instead=f"use a basis of {_UNITS:,} units at most")

    @property
    def sites(self) -> tuple[Site, ...]:
        """What is coded."""
        return self.basis.sites

    def init(self) -> State:
        """Nothing seen."""
        units, halves = self.basis.units, len(Half)
        return {
            "tokens": torch.zeros(halves, dtype=torch.int64),
            "active": torch.zeros(halves, units, dtype=torch.int64),
            "both": torch.zeros(halves, 1 + self.draws, units, units, dtype=torch.int64),
        }

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Count a batch's tokens."""
        x = self.basis.encode(values)
        to_device(state, x.device)
        row, place = batch.counted(self.roles).to(x.device).nonzero(as_tuple=True)
        fires = x[row, place] > 0
        half = batch.half.to(x.device)[row].long()
        window = batch.window.to(x.device)[row]
        sides = [fires, *(fires[order] for order in window_shifts(window, self.draws, self.seed, least=1))]
        for each in Half:
            mine = half == int(each)
            state["tokens"][each] += mine.sum()
            state["active"][each] += fires[mine].sum(0)
            for side, other in enumerate(sides):
                state["both"][each, side] += _together(fires[mine], other[mine])

    def merge(self, state: State, later: State) -> State:
        """Sums."""
        return {name: counts + later[name].to(counts.device) for name, counts in state.items()}

    def result(self, state: State) -> Cofired:
        """The counts, on the host."""
        return Cofired(**{name: counts.cpu() for name, counts in state.items()})


def _together(one: Bool[Tensor, "row unit"], other: Bool[Tensor, "row unit"]) -> Int64[Tensor, "unit other"]:
    """At how many rows each unit of one side and each of the other are true: pairs are counted where they are few, else a product of matrices."""
    rows, units = one.shape
    sizes, own = other.sum(1), one.sum(1)
    pairs = sizes * own
    if int(pairs.sum()) * _DEAR > rows * units * units:
        total = torch.zeros(units, units, dtype=torch.int64, device=one.device)
        for some in torch.arange(rows, device=one.device).split(1 << 14):  # so that float32 counts exactly
            total += (one[some].float().T @ other[some].float()).long()
        return total
    total = torch.zeros(units * units, dtype=torch.int64, device=one.device)
    block = pairs.cumsum(0) // _PAIRS
    for some in range(int(block[-1]) + 1 if rows else 0):
        mine = (block == some).nonzero()[:, 0]
        row, unit = one[mine].nonzero(as_tuple=True)
        partner = other[mine].nonzero()[:, 1]
        size = sizes[mine]
        start = size.cumsum(0) - size
        left = unit.repeat_interleave(size[row])
        first = start[row].repeat_interleave(size[row])
        step = torch.arange(len(left), device=left.device)
        step = step - (size[row].cumsum(0) - size[row]).repeat_interleave(size[row])
        total += torch.bincount(left * units + partner[first + step], minlength=units * units)
    return total.view(units, units)


def jaccard(found: Cofired, half: Half, side: int = 0) -> Float64[Tensor, "unit other"]:
    """Tokens with both of two factors, over those with either; 0 where neither is ever active, and of a factor with itself NaN."""
    both, active = found.both[half, side].double(), found.active[half].double()
    either = active[:, None] + active - both
    return torch.where(either > 0, both / either.clamp(min=1), 0.0).fill_diagonal_(torch.nan)


def pointwise_information(found: Cofired, half: Half, side: int = 0, *, least: float = 1.0) -> Float64[Tensor, "unit other"]:
    """log2 of how much more often two factors are active at one token than they would be if they knew nothing of each other.

    log2(n_ij N / (n_i n_j)), minus infinity where they never are together; NaN where fewer than `least` such tokens would be expected, and of a
    factor with itself. 0 is independence, with the same densities.
    """
    both, active = found.both[half, side].double(), found.active[half].double()
    expected = active[:, None] * active / found.tokens[half].clamp(min=1)
    value = (both / expected).log2()
    return torch.where(expected >= least, value, torch.nan).fill_diagonal_(torch.nan)


@dataclass(frozen=True, eq=False)
class Partners:
    """The k factors that go most with each by the discover half (-1: none), and how much in the confirm half.

    `value` is the measure there, `shifted` that of the same pairs where one of them is shifted, a mean over draws, and `expected` that of
    independent factors of the same densities. `control` is the mean, by rank, of partners that are chosen and judged in the same way from shifted
    counts: what the best of so many is worth by chance and by windows' subjects.
    """

    measure: Measure
    unit: Int64[Tensor, "unit k"]
    value: Float64[Tensor, "unit k"]
    shifted: Float64[Tensor, "unit k"]
    expected: Float64[Tensor, "unit k"]
    control: Float64[Tensor, " k"]


def partners(found: Cofired, measure: Measure = "jaccard", *, k: int = 10, least: float = 1.0) -> Partners:
    """The factors that fire with each factor. Pairs that never meet in the discover half are no partners.

    Of the information, only pairs that independence would let meet at `least` tokens take part.
    Source: Church and Hanks 1990, doi:10.3115/981623.981633, on pointwise information of words.
    Errors: `Refusal` for counts without a shift.
    """
    sides = found.both.shape[1]
    if sides < 2:
        raise Refusal("factors that fire together", why="nothing was shifted", instead="count with one draw or more")
    k = min(k, found.both.shape[2] - 1)

    def of(half: Half, side: int) -> Tensor:
        return jaccard(found, half, side) if measure == "jaccard" else pointwise_information(found, half, side, least=least)

    def chosen(side: int) -> tuple[Tensor, Tensor]:
        ready = torch.where(found.both[Half.DISCOVER, side] > 0, of(Half.DISCOVER, side), torch.nan).nan_to_num(nan=-torch.inf)
        value, unit = ready.topk(k, dim=1)
        there = torch.isfinite(value)
        confirmed = of(Half.CONFIRM, side).gather(1, unit)
        return torch.where(there, unit, -1), torch.where(there, confirmed, torch.nan)

    unit, value = chosen(0)
    index, nothing = unit.clamp(min=0), torch.where(unit >= 0, 0.0, torch.nan)
    shifted = torch.stack([of(Half.CONFIRM, side).gather(1, index) for side in range(1, sides)]).mean(0)
    active, tokens = found.active[Half.CONFIRM].double(), found.tokens[Half.CONFIRM].double().clamp(min=1)
    own, other = active[:, None].expand_as(index), active[index]
    meet = own * other / tokens
    alone = meet / (own + other - meet).clamp(min=1e-12) if measure == "jaccard" else torch.zeros_like(meet)
    drawn = torch.cat([chosen(side)[1] for side in range(1, sides)])
    finite = torch.where(torch.isfinite(drawn), drawn, torch.nan)
    return Partners(measure, unit, value, shifted + nothing, alone + nothing, finite.nanmean(0))
