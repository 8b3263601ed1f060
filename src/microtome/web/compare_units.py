"""Statistics of units in two runs, unit by unit: how far they agree, and the units that differ most.

The rows and their test are those of `atlas.differences` (effect, z, q); a statistic is compared when it is first asked for, and a
page of its units is then a pass over arrays. What units are called and write is in `compare_words`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import rankdata

from microtome.atlas.differences import LARGEST_Q, compare_statistics
from microtome.core import NotFound
from microtome.web.browse import bases
from microtome.web.columns import Floats, Places, basis_names, numbers_of
from microtome.web.compare_sides import Pair
from microtome.web.gathered import Gathered
from microtome.web.index import indexed, measured_words, stat_names
from microtome.web.reader import View
from microtome.web.records import Agreement, ComparedUnits, SideUnits, StatAgreement
from microtome.web.words import basis_label, column

__all__ = ["Beside", "Part", "agreement", "common", "compared_units", "dictionary_files", "part_of", "statistic"]

_NORMAL: Final = 1.959964
TABLES: Final = ("units", "unit_stats", "dictionaries")


def dictionary_files(view: View) -> dict[str, str]:
    """What tells dictionaries of a run apart: their bytes, or where they are where these are not recorded."""
    files = view.card.files if view.card else {}
    rows = Gathered(view, "dictionaries").rows("dictionaries", "SELECT name::VARCHAR, file FROM dictionaries ORDER BY 1")
    return {name: files.get(file, f"{file} of {view.signature}") for name, file in rows}


@dataclass(frozen=True)
class Common:
    """For each unit of the other run (by place) its place in this one, and `back`; -1 where it is not there; which units each run has at all."""

    place: Places
    back: Places
    mine: NDArray[np.bool_]
    theirs: NDArray[np.bool_]


def common(pair: Pair) -> Common:
    """Units by their addresses; factors only where both runs have the very same dictionary."""
    return pair.once("common", _common)


_UNITS: Final = (
    "SELECT unit, name IS NULL OR list_contains(?::VARCHAR[], name) AS own, name IS NULL OR list_contains(?::VARCHAR[], name) AS alike "
    "FROM mt_rows ORDER BY place"
)
"""Units of a run: those of its own dictionaries, and of those that both runs have."""


def _common(pair: Pair) -> Common:
    for view in pair.both:
        indexed(view)
    files = [dictionary_files(view) for view in pair.both]
    same = [name for name, file in files[0].items() if files[1].get(name) == file]
    rows = [view.arrow(_UNITS, list(own), same) for view, own in zip(pair.both, files, strict=True)]
    mine, theirs = (each["own"].to_numpy() for each in rows)
    there = np.full(len(theirs), -1, np.int64)
    if not pair.card.units_why:
        places = {unit: place for place, unit in enumerate(rows[0]["unit"].to_pylist())}
        found = (places.get(unit, -1) for unit in rows[1]["unit"].to_pylist())
        there = np.where(rows[1]["alike"].to_numpy(), np.fromiter(found, np.int64, len(theirs)), -1)
    back = np.full(len(mine), -1, np.int64)
    back[there[there >= 0]] = np.flatnonzero(there >= 0)
    return Common(there, back, mine, theirs)


@dataclass(frozen=True)
class Part:
    """Rows of a statistic that belong together: units of a basis, at a site where a unit has several. `rows` are in address order."""

    basis: str
    site: str
    rows: Places


@dataclass(frozen=True)
class Beside:
    """A statistic of the units that have it in both runs: their places in this one, sites by number, both values with their intervals, effect and q."""

    place: NDArray[np.int32]
    site: NDArray[np.int16]
    one: Floats
    other: Floats
    ends: NDArray[np.float32]
    effect: NDArray[np.float32]
    q: NDArray[np.float32]
    only: tuple[NDArray[np.int32], NDArray[np.int32]]
    parts: tuple[Part, ...]

    @cached_property
    def clear(self) -> NDArray[np.int8]:
        """1 where q is at most 0.05, 0 where not, -1 without a test."""
        return np.where(np.isnan(self.q), -1, self.q <= LARGEST_Q).astype(np.int8)


def statistic(pair: Pair, stat: str) -> Beside:
    """A statistic in both runs.

    Errors: `NotFound` where one of them has none of that name.
    """
    if not all(stat in stat_names(view) for view in pair.both):
        raise NotFound(f"statistic {stat[:80]}", why="not both runs have it", instead="choose one of the list of statistics")
    return pair.lately(stat, lambda both: _statistic(both, stat))


def _statistic(pair: Pair, stat: str) -> Beside:
    mapping = common(pair).place
    tables = [_rows(view, stat) for view in pair.both]
    words = [["", *measured_words(view, "site")] for view in pair.both]
    codes = np.array([words[0].index(site) if site in words[0] else -1 for site in words[1]], np.int16)
    place = mapping[tables[1]["unit"].to_numpy()]
    site = codes[tables[1]["site"].to_numpy()]
    known = (place >= 0) & (site >= 0)
    theirs = tables[1].set_column(0, "unit", pa.array(place.astype(np.int32))).set_column(2, "site", pa.array(site))
    rows = compare_statistics(tables[0], theirs.filter(pa.array(known)))
    names = ("unit", "site", "base", "tuned", "effect", "q")
    at, sites, one, other, effect, q = (rows[name].to_numpy() for name in names)
    key = _keys(at, sites)
    return Beside(
        place=at.astype(np.int32), site=sites.astype(np.int16), one=one, other=other,
        ends=np.stack([_found(table, key, name) for table in (tables[0], theirs) for name in ("lo", "hi")]),
        effect=effect.astype(np.float32), q=q.astype(np.float32), only=_only(tables, place, known, key, site),
        parts=tuple(_parts(pair.one, at, sites, words[0])),
    )  # fmt: skip


def _rows(view: View, stat: str) -> pa.Table:
    """A statistic of a run: place, name, number of the site (0: none), value and its interval."""
    return view.arrow(
        "SELECT place::INTEGER AS unit, '' AS stat, coalesce(site, 0)::SMALLINT AS site, value, lo, hi FROM mt_measured "
        "WHERE stat = ? AND isfinite(value) ORDER BY place, site NULLS FIRST",
        stat_names(view).index(stat) + 1,
    )


def _keys(place: NDArray[np.integer], site: NDArray[np.integer]) -> Places:
    return place.astype(np.int64) * (1 << 16) + site.astype(np.int64)


def _found(table: pa.Table, key: Places, name: str) -> NDArray[np.float32]:
    """A column of a table at rows by their keys."""
    own = _keys(table["unit"].to_numpy(), table["site"].to_numpy())
    order = np.argsort(own, kind="stable")
    values = table[name].cast(pa.float32()).to_numpy()
    return values[order[np.searchsorted(own, key, sorter=order)]] if len(key) else values[:0]


def _only(
    tables: list[pa.Table], place: Places, known: NDArray[np.bool_], key: Places, site: NDArray[np.int16]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Places of the rows that only one run has: this one's by its places, the other's by its own."""
    own = _keys(tables[0]["unit"].to_numpy(), tables[0]["site"].to_numpy())
    ordered = np.sort(key)
    alone = ~(known & _among(_keys(place, site), ordered))
    return tables[0]["unit"].to_numpy()[~_among(own, ordered)], tables[1]["unit"].to_numpy()[alone]


def _among(keys: Places, ordered: Places) -> NDArray[np.bool_]:
    """Which keys are among others, which are in order."""
    if not len(ordered):
        return np.zeros(len(keys), np.bool_)
    return ordered[np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)] == keys


def _parts(view: View, place: NDArray[np.integer], site: NDArray[np.integer], words: list[str]) -> Iterator[Part]:
    """Bases in alphabetical order; one whose units have several sites, site by site."""
    order = np.argsort(place, kind="stable")
    of = numbers_of(view, "basis")[place[order]]
    for number, basis in enumerate(basis_names(view)):
        mine = order[of == number]
        if not len(mine):
            continue
        own = site[mine]
        if not (np.diff(place[mine]) == 0).any():
            yield Part(basis, "", mine)
        else:
            yield from (Part(basis, words[each], mine[own == each]) for each in np.unique(own).tolist())


def part_of(found: Beside, basis: str, site: str) -> Part:
    """The rows of a basis, at a site.

    Errors: `NotFound` where there are none.
    """
    for part in found.parts:
        if (part.basis, part.site) == (basis, site):
            return part
    where = f" of {basis[:80]}" + (f" at {site[:80]}" if site else "")
    raise NotFound(f"statistic{where}", why="not both runs have it there", instead="choose one of the list of statistics")


def agreement(one: Floats, other: Floats, layer: NDArray[np.integer]) -> Agreement:
    """The rank correlation of two columns, and what it is in the mean over all ways to deal the units of each layer out anew.

    Of ranks r and s with layers l of n units: the mean is sum_l n (mean r - whole mean r) (mean s - whole mean s), the variance
    sum_l S_r S_s / (n - 1), S being a sum of squares within the layer, both over the root of the whole sums of squares. 95 % lie within
    1.96 standard deviations.
    """
    if len(one) < 3:
        return Agreement(value=None, control=None, control_lo=None, control_hi=None)
    r, s = (ranks - ranks.mean() for ranks in (rankdata(one), rankdata(other)))
    scale = float(np.sqrt((r @ r) * (s @ s)))
    if not scale > 0:
        return Agreement(value=None, control=None, control_lo=None, control_hi=None)
    _, group, count = np.unique(layer, return_inverse=True, return_counts=True)
    sums = [np.bincount(group, ranks) for ranks in (r, s)]
    inner = [np.bincount(group, ranks**2) - total**2 / count for ranks, total in zip((r, s), sums, strict=True)]
    mean = float((sums[0] * sums[1] / count).sum()) / scale
    spread = float(np.sqrt((inner[0] * inner[1] / np.maximum(count - 1, 1)).sum())) / scale
    return Agreement(
        value=float(r @ s) / scale, control=mean, control_lo=max(-1.0, mean - _NORMAL * spread), control_hi=min(1.0, mean + _NORMAL * spread)
    )  # fmt: skip


def compared_units(pair: Pair) -> ComparedUnits:
    """Every statistic that units have in both runs."""
    return pair.once("compared_units", _compared_units)


def _compared_units(pair: Pair) -> ComparedUnits:
    shared = [stat for stat in stat_names(pair.one) if stat in stat_names(pair.other)]
    found = [row for stat in shared for row in _agreements(pair, stat)] if not pair.card.units_why else []
    order = {card.basis: n for n, card in enumerate(bases(pair.one))}
    problems = pair.problems(*(Gathered(view, *TABLES).problems for view in pair.both))
    return ComparedUnits(bases=list(_bases(pair)), stats=sorted(found, key=lambda each: order[each.basis]), problems=problems)


def _agreements(pair: Pair, stat: str) -> Iterator[StatAgreement]:
    """A statistic, basis by basis. Not kept: there may be many, and each is large."""
    found = _statistic(pair, stat)
    layer = numbers_of(pair.one, "layer")
    numbers = [numbers_of(view, "basis") for view in pair.both]
    names = [basis_names(view) for view in pair.both]
    for part in found.parts:
        rows = part.rows
        one, other, q = found.one[rows], found.other[rows], found.q[rows]
        with np.errstate(invalid="ignore"):
            spread = float(one.std(ddof=1)) if len(one) > 1 else 0.0
        difference = float((other - one).mean())
        only = [
            int((numbers[n][found.only[n]] == names[n].index(part.basis)).sum())
            if not part.site and part.basis in names[n]
            else 0
            for n in (0, 1)
        ]
        yield StatAgreement(
            basis=part.basis, label=basis_label(part.basis), column=column(stat), site=part.site, units=len(rows),
            only_one=only[0], only_other=only[1], rank=agreement(one, other, layer[found.place[rows]]),
            mean_one=float(one.mean()), mean_other=float(other.mean()), difference=difference,
            effect=difference / spread if spread > 0 else None, equal=int((one == other).sum()),
            tested=int((~np.isnan(q)).sum()), differing=int((q <= LARGEST_Q).sum()),
        )  # fmt: skip


def _bases(pair: Pair) -> Iterator[SideUnits]:
    """How many units of each basis are in both runs, and why none are."""
    shared = common(pair)
    names = [basis_names(view) for view in pair.both]
    numbers = [numbers_of(view, "basis") for view in pair.both]
    met = shared.back >= 0
    for basis in dict.fromkeys([card.basis for view in pair.both for card in bases(view)]):
        own = [
            (numbers[n] == names[n].index(basis)) & has if basis in names[n] else np.zeros(len(has), np.bool_)
            for n, has in enumerate((shared.mine, shared.theirs))
        ]
        both = int((own[0] & met).sum())
        counts = [int(each.sum()) for each in own]
        yield SideUnits(
            basis=basis, label=basis_label(basis), both=both, only_one=counts[0] - both, only_other=counts[1] - both,
            why=_apart(pair, basis, both, counts),
        )  # fmt: skip


def _apart(pair: Pair, basis: str, both: int, counts: list[int]) -> str:
    if both or not all(counts):
        return ""
    if pair.card.units_why:
        return pair.card.units_why
    return (
        "their dictionaries were learnt apart, so a factor of one is not that factor of the other" if basis == "factors" else ""
    )
