"""What parts of a model add to the right logit, over a text: means of `attribution` beside their control, as rows and sentences.

Also which feed-forward units write the longest sub-updates, so that they can be looked at one by one. How a logit is taken apart belongs
in `attribution`. The axis `column` counts what is reported: parts, and the sums of a layer's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import UnitAddress
from microtome.numerics import benjamini_hochberg, bootstrap_interval
from microtome.readout import central_interval, pooled_chance
from microtome.store.schemas import TABLES
from microtome.vocabulary.active import Active
from microtome.vocabulary.attribution import Attributions, Part
from microtome.vocabulary.findings import HEADS, LARGEST_Q, Row
from microtome.vocabulary.tables import stat_table

__all__ = [
    "CONTROL",
    "STAT",
    "Contributions",
    "contribution_findings",
    "contribution_rows",
    "contributions",
    "dominant_rows",
    "dominant_units",
    "unit_contribution_rows",
]

CONTROL: Final = "another target of the window"
ANY: Final = "all units alike"
STAT: Final = "logit_attribution"
_SUMS: Final = {
    "head": "attention",
    "attention bias": "attention",
    "feed-forward": "feed-forward",
    "feed-forward bias": "feed-forward",
    "norm bias": "norm bias",
    "embedding": "embedding",
    "positions": "positions",
    "output bias": "output bias",
}
"""The group of a layer that a part is counted in. Units are in none: they are part of their feed-forward layer."""


@dataclass(frozen=True, eq=False)
class Contributions:
    """Mean contributions to the logit of the right token, by part and by (group, layer), with what they are for another target.

    `low` and `high` bound the means at 95 %, whole documents drawn anew, NaN where there is but one; q over each of both lists.
    """

    parts: tuple[Part, ...]
    groups: tuple[tuple[str, int | None], ...]
    mean: Float[Tensor, " column"]
    drawn: Float[Tensor, "draw column"]
    low: Float[Tensor, " column"]
    high: Float[Tensor, " column"]
    q: Float[Tensor, " column"]
    tokens: int

    @property
    def control(self) -> Float[Tensor, " column"]:
        """Means over the draws."""
        return self.drawn.mean(0)


def contributions(found: Attributions) -> Contributions:
    """Means over tokens. The first columns are the parts, the others groups of a layer and, last, the sum of all: the logit itself.

    Errors: an empty sample has no mean. Cost: a pass over the attributions.
    """
    assert len(found.own), "an empty sample has no mean"
    groups: list[tuple[str, int | None]] = []
    for part in found.parts:
        name = _SUMS.get(part.kind)
        if name is not None and (name, part.layer) not in groups:
            groups.append((name, part.layer))
    summed = torch.zeros(len(found.parts), len(groups) + 1, dtype=torch.float64)
    for number, part in enumerate(found.parts):
        name = _SUMS.get(part.kind)
        if name is not None:
            summed[number, groups.index((name, part.layer))] = summed[number, -1] = 1
    own, drawn = (torch.cat([each, each @ summed], 1) for each in (found.own, found.drawn))
    low = high = torch.full(own.shape[1:], torch.nan, dtype=torch.float64)
    documents, owner = found.document.unique(return_inverse=True)
    if len(documents) > 1:
        sums = torch.zeros(len(documents), own.shape[1], dtype=torch.float64).index_add_(0, owner, own)
        low, high = bootstrap_interval(sums, owner.bincount().double())
    mean, first = own.mean(0), len(found.parts)
    tests = (slice(0, first), slice(first, None))
    q = torch.cat([benjamini_hochberg(pooled_chance([mean[of]], [drawn[:, of]], "both")[0]) for of in tests])
    return Contributions(found.parts, (*groups, ("all", None)), mean, drawn, low, high, q, len(own))


def contribution_rows(found: Contributions, run: str) -> pa.Table:
    """Rows of `vocabulary_stats`: what a layer's attention, its feed-forward layer and the rest add, and the whole ("all")."""
    first, ends = len(found.parts), central_interval(found.drawn)
    rows: list[dict[str, object]] = []
    for number, (group, layer) in enumerate(found.groups, first):
        low, high = (float(end[number]) for end in (found.low, found.high))
        interval = {} if low != low else {"lo": low, "hi": high}
        rows.append(
            {"run": run, "group": group, "layer": layer, "stat": STAT, "value": float(found.mean[number]),
             "control": float(found.control[number]), "control_kind": CONTROL, "control_lo": float(ends[0, number]),
             "control_hi": float(ends[1, number]), **interval, "q": float(found.q[number])}
        )  # fmt: skip
    rows.sort(key=lambda row: (str(row["group"]), -1 if row["layer"] is None else row["layer"]))
    return pa.Table.from_pylist(rows, TABLES["vocabulary_stats"].schema)


def unit_contribution_rows(found: Contributions, run: str) -> pa.Table:
    """Rows of `unit_stats`: what each head, and each unit that was looked at, adds."""
    at = [number for number, part in enumerate(found.parts) if part.kind in ("head", "unit")]
    names = [_address(found.parts[number]) for number in at]
    return stat_table(
        names, STAT, found.mean[at], (found.control[at], CONTROL), run, found.q[at], (found.low[at], found.high[at])
    )


def contribution_findings(found: Contributions) -> list[Row]:
    """The heads, and units looked at, that add most to the right logit (or take most from it), beyond their control with q at most 0.01."""
    effect, ends, whole = found.mean - found.control, central_interval(found.drawn), float(found.mean[-1])
    named = [number for number, part in enumerate(found.parts) if part.kind in ("head", "unit")]
    sure = [number for number in named if float(found.q[number]) <= LARGEST_Q]
    rows: list[Row] = []
    for number in sorted(sure, key=lambda number: (-abs(float(effect[number])), number))[:HEADS]:
        part, mean, control = found.parts[number], float(found.mean[number]), float(found.control[number])
        low, high = ends[:, number].tolist()
        address, verb = _address(part), "adds to" if float(effect[number]) > 0 else "takes from"
        interval = (
            "" if found.low[number].isnan() else f", 95 % over documents {found.low[number]:+.3f} to {found.high[number]:+.3f}"
        )
        sentence = (
            f"{address} directly {verb} the logit of the token that comes: {mean:+.3f} of {whole:+.2f} by the whole model{interval} (to "
            f"another token of the window: {control:+.3f}, 95 % of {len(found.drawn)} draws within {low:+.3f} to {high:+.3f})"
        )
        rows.append(
            {"kind": "attribution", "subject": address, "sentence": sentence, "value": mean, "control": control,
             "control_kind": CONTROL, "q": float(found.q[number])}
        )  # fmt: skip
    return rows


def dominant_units(active: Sequence[Active], count: int) -> dict[int, tuple[int, ...]]:
    """The `count` units that are most often among the longest sub-updates of their layer, by layer; ties to the earlier one.

    Source: Geva et al. 2022, arXiv:2203.14680, section 4.
    """
    shares = _shares(active)
    first = sorted(shares, key=lambda place: (-float(shares[place].mean()), place))[:count]
    return {layer: tuple(sorted(unit for at, unit in first if at == layer)) for layer in sorted({at for at, _ in first})}


def dominant_rows(active: Sequence[Active], count: int, width: int, run: str) -> pa.Table:
    """Rows of `unit_stats` for `dominant_units`: at which share of tokens each is among its layer's longest sub-updates.

    The control is the share that each of the `width` units of a layer would have if all were alike. Not for experts.
    """
    shares, documents = _shares(active), active[0].document
    names, owner = documents.unique(return_inverse=True)
    chosen = [(layer, unit) for layer, units in dominant_units(active, count).items() for unit in units]
    there = torch.stack([shares[place].double() for place in chosen], 1)
    interval: tuple[Tensor | None, Tensor | None] = (None, None)
    if len(names) > 1:
        sums = torch.zeros(len(names), len(chosen), dtype=torch.float64).index_add_(0, owner, there)
        interval = bootstrap_interval(sums, owner.bincount().double())
    addresses = [str(UnitAddress("neurons", unit, layer=layer)) for layer, unit in chosen]
    beside = (active[0].units.shape[1] / width, ANY)
    return stat_table(addresses, "dominant_share", there.mean(0), beside, run, None, interval)


def _shares(active: Sequence[Active]) -> dict[tuple[int, int], Float[Tensor, " row"]]:
    """By layer and unit, 1 for tokens where it is among the longest sub-updates: units that are nowhere are left out."""
    found: dict[tuple[int, int], Tensor] = {}
    for each in active:
        layer = each.site.layer
        assert layer is not None, "feed-forward units are in layers"
        assert each.ranking == "dominant", "ranked by the length of sub-updates"
        units = torch.where(each.units < 0, ~each.units, each.units)
        for unit in units.unique().tolist():
            found[layer, unit] = (units == unit).any(1).float()
    return found


def _address(part: Part) -> str:
    assert part.index is not None, "heads and units are counted"
    return str(UnitAddress("heads" if part.kind == "head" else "neurons", part.index, layer=part.layer))
