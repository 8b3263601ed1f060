"""Numbers of a dictionary beside those of its controls, site by site, as values that are joined; and their means over the sites that both have.

What the numbers are is said where they are made, how one is a row in `evaluation.stat_rows`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from microtome.core import Site
from microtome.factors.evaluation import Stat, stat_rows

__all__ = ["Mean", "Numbers", "mean_beside", "means_of"]


@dataclass(frozen=True, eq=False)
class Numbers:
    """Numbers of a dictionary, by site ("" for all together), and those of its controls by kind: rows of `dictionary_stats` to be."""

    own: Mapping[str, Mapping[str, Stat]] = field(default_factory=dict)
    beside: Mapping[str, Mapping[str, Mapping[str, Stat]]] = field(default_factory=dict)

    @staticmethod
    def at(site: Site | str, own: Mapping[str, Stat], controls: Mapping[str, Mapping[str, Stat]] | None = None) -> "Numbers":
        """Those of one site."""
        return Numbers({str(site): own}, {str(site): controls or {}})

    @staticmethod
    def undefined(stats: Sequence[str], why: str) -> "Numbers":
        """Numbers that there are not, and why."""
        return Numbers.at("", {stat: Stat(math.nan, undefined=why) for stat in stats})

    @staticmethod
    def joined(parts: Iterable["Numbers"]) -> "Numbers":
        """All of several; of one that is there twice the later."""
        own: dict[str, dict[str, Stat]] = {}
        beside: dict[str, dict[str, dict[str, Stat]]] = {}
        for part in parts:
            for site, stats in part.own.items():
                own.setdefault(site, {}).update(stats)
            for site, controls in part.beside.items():
                for kind, stats in controls.items():
                    beside.setdefault(site, {}).setdefault(kind, {}).update(stats)
        return Numbers(own, beside)

    def mean(self, stat: str, control: str | None = None) -> float:
        """Over the sites that have the number; of a control over those of them that have it of both. NaN where none has."""
        own = {site: of[stat].value for site, of in self.own.items() if stat in of}
        if control is None:
            return mean_beside(own, own).own
        found = {site: of[control][stat].value for site, of in self.beside.items() if stat in of.get(control, {})}
        return mean_beside(own, found).control

    def rows(self, run: str, name: str) -> pa.Table:
        """Rows of `dictionary_stats`; a number that there is not stands once, and beside controls that there are."""
        tables = []
        for site, own in self.own.items():
            beside = {
                kind: {stat: value for stat, value in of.items() if any(map(math.isfinite, (value.value, own[stat].value)))}
                for kind, of in self.beside.get(site, {}).items()
            }
            tables.append(stat_rows(run, name, site, own, beside))
        return pa.concat_tables(tables)


@dataclass(frozen=True)
class Mean:
    """Means of a number and of its control over the same `sites`, so many; NaN where there are none."""

    own: float
    control: float
    sites: int


def mean_beside(own: Mapping[str, float], control: Mapping[str, float]) -> Mean:
    """Over the sites that have a finite number of both."""
    both = [(own[site], value) for site, value in control.items() if math.isfinite(own.get(site, math.nan) + value)]
    if not both:
        return Mean(math.nan, math.nan, 0)
    return Mean(sum(one for one, _ in both) / len(both), sum(other for _, other in both) / len(both), len(both))


def means_of(rows: pa.Table) -> dict[str, dict[str, Mean]]:
    """Of one dictionary's rows of `dictionary_stats`, by number and by control: "" is itself over all its sites, others are over those of both."""
    own: dict[str, dict[str, float]] = {}
    beside: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows.select(["site", "stat", "control_kind", "value", "control"]).to_pylist():
        if row["value"] is None:
            continue
        own.setdefault(row["stat"], {})[row["site"]] = row["value"]
        if row["control"] is not None:
            beside.setdefault(row["stat"], {}).setdefault(row["control_kind"], {})[row["site"]] = row["control"]
    found = {stat: {"": mean_beside(values, values)} for stat, values in own.items()}
    for stat, kinds in beside.items():
        found[stat] |= {kind: mean_beside(own[stat], values) for kind, values in kinds.items()}
    return found
