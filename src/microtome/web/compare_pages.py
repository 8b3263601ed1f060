"""The units that differ most between two runs, page by page; and all of them at once, one run against the other."""

from collections.abc import Iterator
from typing import Annotated, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from microtome.core import NotFound
from microtome.web.columns import Places, numbers_of
from microtome.web.compare_sides import Pair, SideAsked, pair_of, pairs
from microtome.web.compare_units import Beside, Part, common, compared_units, part_of, statistic
from microtome.web.index import measured_words
from microtome.web.reader import View
from microtome.web.records import BesideUnit, Differences, Pairs, UnitGroup, packed
from microtome.web.words import column

__all__ = ["DifferencesAsked", "StatSideAsked", "differences", "scatter", "scatter_keys"]

POINTS: Final = 100_000
LARGEST: Final = 20_000
"""Points of the largest effect that are shown whatever their address, where there are more than `POINTS`."""


class StatSideAsked(SideAsked):
    """A statistic of a basis in a run and another, at a site where a unit has several."""

    basis: Annotated[str, Field(max_length=80)]
    stat: Annotated[str, Field(max_length=100)]
    site: Annotated[str, Field(max_length=80)] = ""


class DifferencesAsked(StatSideAsked):
    """A page of units: those with q at most 0.05 first and then by |effect| (surest), by |effect|, by difference down or up, or by address."""

    layer: Annotated[int | None, Field(ge=0, le=32767)] = None
    order: Literal["surest", "effect", "down", "up", "unit"] = "surest"
    offset: Annotated[int, Field(ge=0, le=1 << 40)] = 0
    limit: Annotated[int, Field(ge=1, le=200)] = 50


def _found(view: View, asked: StatSideAsked) -> tuple[Pair, Beside, Part]:
    """Errors: `NotFound` where the units do not correspond, or not both runs have the statistic there."""
    pair = pair_of(view, asked.side)
    if pair.card.units_why:
        raise NotFound(f"side {asked.side[:200]}", why=pair.card.units_why, instead="choose another of the list of sides")
    found = statistic(pair, asked.stat)
    return pair, found, part_of(found, asked.basis, asked.site)


def differences(view: View, asked: DifferencesAsked) -> Differences:
    """One page of the units of a basis by how a statistic differs.

    Errors: `NotFound` where there is no such side, or not both have the statistic.
    """
    pair, found, part = _found(view, asked)
    rows = pair.lately(("order", asked.stat, part.basis, part.site, asked.order), lambda _: _ordered(found, part, asked.order))
    if asked.layer is not None:
        rows = rows[numbers_of(view, "layer")[found.place[rows]] == asked.layer]
    return Differences(
        total=len(rows), offset=asked.offset, column=column(asked.stat),
        rows=_rows(pair, found, rows[asked.offset : asked.offset + asked.limit]),
    )  # fmt: skip


def _ordered(found: Beside, part: Part, order: str) -> Places:
    """The rows of a part in an order; of equal ones the first in address order is first, what has no effect is last."""
    rows = part.rows
    size = np.nan_to_num(-np.abs(found.effect[rows].astype(np.float64)), nan=np.inf)
    change = found.other[rows] - found.one[rows]
    keys = {
        "surest": [size, found.clear[rows] != 1],
        "effect": [size],
        "down": [-change],
        "up": [change],
        "unit": [],
    }[order]
    return rows[np.lexsort([np.arange(len(rows)), *keys])] if keys else rows


def _rows(pair: Pair, found: Beside, rows: Places) -> list[BesideUnit]:
    place = found.place[rows].tolist()
    known = {
        at: (unit, layer)
        for at, unit, layer in pair.one.sql(
            "SELECT place, unit, layer FROM mt_rows WHERE place IN (SELECT unnest(?::BIGINT[]))", sorted(set(place))
        )
    }
    back = dict(zip(place, common(pair).back[place].tolist(), strict=True))
    called = _called(pair.one, place), _called(pair.other, [back[each] for each in place])
    words = ["", *measured_words(pair.one, "site")]
    return [
        BesideUnit(
            unit=known[at][0], layer=known[at][1], site=words[found.site[row]], one=one, one_lo=ends[0], one_hi=ends[1],
            other=other, other_lo=ends[2], other_hi=ends[3], difference=other - one,
            effect=float(found.effect[row]), q=float(found.q[row]), label_one=called[0].get(at), label_other=called[1].get(back[at]),
        )
        for at, row, one, other in zip(place, rows.tolist(), found.one[rows].tolist(), found.other[rows].tolist(), strict=True)
        for ends in [found.ends[:, row].astype(float).tolist()]
    ]  # fmt: skip


def _called(view: View, places: list[int]) -> dict[int, str]:
    """The surest label of each unit, whatever its kind."""
    return dict(
        view.sql(
            "SELECT l.place, arg_min(t.text, (coalesce(l.q, 2), -coalesce(l.value, 0), t.code)) FROM mt_labels l "
            "JOIN mt_label_texts t USING (code) WHERE l.place IN (SELECT unnest(?::BIGINT[])) GROUP BY 1",
            sorted(set(places)),
        )
    )


def scatter(view: View, asked: StatSideAsked) -> Pairs:
    """A statistic in one run against the other.

    Errors: `NotFound` where there is no such side, or not both have the statistic.
    """
    pair, found, part = _found(view, asked)
    return pair.lately(("scatter", asked.stat, part.basis, part.site), lambda both: _scatter(both, asked, found, part))


def _scatter(pair: Pair, asked: StatSideAsked, found: Beside, part: Part) -> Pairs:
    rows = part.rows[_shown(found.effect[part.rows])]
    groups, number = _groups(pair.one, found.place[rows])
    return Pairs(
        of=len(part.rows), largest=LARGEST if len(part.rows) > POINTS else 0, column=column(asked.stat), site=asked.site, groups=groups,
        count=len(rows), number=packed(number, "<i4"), x=packed(found.one[rows]), y=packed(found.other[rows]),
        clear=packed(found.clear[rows], "i1"),
    )  # fmt: skip


def _shown(effect: NDArray[np.float32]) -> Places:
    """Which of many rows are shown, in order: those of the largest effect, and of the others as many as fit, evenly taken."""
    count = len(effect)
    if count <= POINTS:
        return np.arange(count)
    order = np.argsort(np.nan_to_num(-np.abs(effect), nan=np.inf), kind="stable")
    rest = np.sort(order[LARGEST:])
    even = rest[np.linspace(0, len(rest) - 1, POINTS - LARGEST).round().astype(np.int64)]
    return np.sort(np.concatenate([order[:LARGEST], even]))


def _groups(view: View, place: NDArray[np.int32]) -> tuple[list[UnitGroup], NDArray[np.int32]]:
    """Addresses of units as runs of one prefix, and the number of each behind it."""
    wanted = view.arrow('SELECT unit, layer, "index" FROM mt_rows ORDER BY place').take(place)
    groups: list[UnitGroup] = []
    number = np.full(len(place), -1, np.int32)
    for n, (unit, layer, index) in enumerate(zip(*(wanted[name].to_pylist() for name in wanted.column_names), strict=True)):
        prefix = unit.removesuffix(str(index))
        if prefix != unit:
            number[n] = index
        if groups and groups[-1].prefix == prefix:
            groups[-1].count += 1
        else:
            groups.append(UnitGroup(prefix=prefix, layer=layer, count=1))
    return groups, number


def scatter_keys(view: View) -> Iterator[StatSideAsked]:
    """Every statistic of this run with every other run."""
    for asked in pairs(view):
        for each in compared_units(pair_of(view, asked.side)).stats:
            yield StatSideAsked(side=asked.side, basis=each.basis, stat=each.column.name, site=each.site)
