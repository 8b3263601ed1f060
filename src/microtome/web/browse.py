"""The unit browser: units of a basis by layer, by statistic, by label, and by what is searched (`matching`).

It reads the index alone (`index`, as arrays in `columns`), so that its time hardly depends on the size of the atlas. Everything about one unit is in `unit`.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from microtome.core import Malformed
from microtome.web.columns import Places, basis_names, clear_column, labelled, numbers_of, page_of, stat_column, units_of
from microtome.web.index import indexed, spelt_token, stat_names, vocabulary
from microtome.web.matching import Kind, Matched, matching
from microtome.web.reader import View
from microtome.web.records import BasisCard, UnitPlaces, UnitRow, Units, packed
from microtome.web.words import basis_label, column

__all__ = ["Query", "Word", "bases", "places", "units"]


class Query(BaseModel):
    """What the browser shows: `sort` is a statistic, `unit` (address order) or `match` (how well the token or pattern fits)."""

    basis: Annotated[str | None, Field(max_length=80)] = None
    layer: Annotated[int | None, Field(ge=0, le=32767)] = None
    sort: Annotated[str, Field(max_length=80)] = "unit"
    order: Literal["down", "up"] = "down"
    token: Annotated[str, Field(max_length=100)] = ""
    exact: Annotated[
        int | None,
        Field(ge=0, le=(1 << 31) - 1, description="of the tokens that spell the word the one that is meant; all if none"),
    ] = None
    phrase: Annotated[str, Field(max_length=200, description="words that top contexts are inside of")] = ""
    meaning: Annotated[str, Field(max_length=200, description="words whose meaning top contexts or promoted tokens have")] = ""
    match: Kind = "any"
    label: Annotated[str, Field(max_length=200, description="a kind of label, or words that are in its text")] = ""
    least: Annotated[float | None, Field(allow_inf_nan=False, description="of the statistic sorted by")] = None
    most: Annotated[float | None, Field(allow_inf_nan=False, description="of the statistic sorted by")] = None
    clear: Annotated[
        Literal["any", "yes", "no"],
        Field(description="whether the statistic sorted by, or else any of the unit's, survives its control (q at most 0.05)"),
    ] = "any"
    pattern: Annotated[
        str, Field(max_length=200, description="a regular expression (RE2) over the tokens that units fire on")
    ] = ""
    offset: Annotated[int, Field(ge=0, le=1 << 40)] = 0
    limit: Annotated[int, Field(ge=1, le=200)] = 50


class Word(BaseModel):
    """A word whose tokens are asked for."""

    word: Annotated[str, Field(max_length=100)]


def bases(view: View) -> list[BasisCard]:
    """The bases of this atlas, with their layers and the statistics that this run has of them."""
    return view.once("bases", _bases)


def _bases(view: View) -> list[BasisCard]:
    indexed(view)
    stats = stat_names(view)
    counted = "".join(f", count(s{n})" for n in range(len(stats)))
    rows = view.sql(
        f"SELECT basis, count(*), list_sort(list(DISTINCT layer) FILTER (layer IS NOT NULL)){counted} FROM mt_rows GROUP BY 1 ORDER BY 2 DESC, 1"
    )
    return [
        BasisCard(
            basis=basis,
            label=basis_label(basis),
            units=count,
            layers=layers or [],
            columns=[column(stat) for stat, has in zip(stats, having, strict=True) if has],
        )
        for basis, count, layers, *having in rows
    ]


def units(view: View, query: Query) -> Units:
    """One page of units. An unknown statistic sorts by address; a token that is not there gives no rows and suggestions.

    Errors: `Malformed` where the pattern is none, or bounds are given of no statistic.
    """
    indexed(view)
    stats = stat_names(view)
    cards = [card for card in bases(view) if query.basis in (None, card.basis)]
    shown = {col.name for card in cards for col in card.columns}
    columns = [name for name in stats if name in shown]
    places, matched = _found(view, query, stats)
    page = _page(view, query, stats, places, matched)
    return Units(
        total=len(places),
        offset=query.offset,
        columns=[column(name) for name in columns],
        rows=_rows(view, page, [stats.index(name) for name in columns], matched, query.sort),
        search=matched and matched.search,
        pattern=matched and matched.pattern,
        phrase=matched and matched.inside and matched.inside.told,
        meaning=matched and matched.meant and matched.meant.told,
    )


def places(view: View, query: Query) -> UnitPlaces:
    """Where all units are that `units` gives page by page: what a map of them shows."""
    indexed(view)
    found, _ = _found(view, query, stat_names(view))
    return UnitPlaces(total=len(found), places=packed(found, "<i4"))


def _found(view: View, query: Query, stats: Sequence[str]) -> tuple[Places, Matched | None]:
    """The places of the units that are asked for, in order, and how they have to do with what is searched."""
    asked = {name: getattr(query, name) for name in ("token", "exact", "match", "pattern", "phrase", "meaning")}
    chosen, matched = _chosen(view, query, stats), matching(view, **asked)
    return np.flatnonzero(chosen if matched is None else chosen & matched.any), matched


def _chosen(view: View, query: Query, stats: Sequence[str]) -> NDArray[np.bool_]:
    """Which units are what is asked for, whatever tokens they have to do with."""
    chosen = np.ones(units_of(view), np.bool_)
    number = stats.index(query.sort) if query.sort in stats else None
    if query.basis is not None:
        names = basis_names(view)
        chosen &= numbers_of(view, "basis") == (names.index(query.basis) if query.basis in names else -1)
    if query.layer is not None:
        chosen &= numbers_of(view, "layer") == query.layer
    if number is None and (query.least is not None or query.most is not None):
        raise Malformed("bounds", why="units are sorted by nothing that has a value", instead="sort by a statistic")
    if number is not None and query.least is not None:
        chosen &= stat_column(view, number) >= query.least
    if number is not None and query.most is not None:
        chosen &= stat_column(view, number) <= query.most
    if query.clear != "any":
        chosen &= clear_column(view, number) == ("no", "yes").index(query.clear)
    if query.label.strip():
        chosen &= labelled(view, query.label.strip())
    return chosen


def _page(view: View, query: Query, stats: Sequence[str], places: Places, matched: Matched | None) -> Places:
    """The places that are shown, in their order; of units with the same value the first in address order is first."""
    if query.sort in stats:
        values = stat_column(view, stats.index(query.sort))[places]
        keys = [-values if query.order == "down" else values]
    elif query.sort == "match" and matched is not None:
        keys = matched.fit(places, numbers_of(view, "total"))
    else:
        places, keys = places if query.order == "down" else places[::-1], []
    return page_of(places, keys, query.offset, query.limit)


def _rows(view: View, places: Places, columns: Sequence[int], matched: Matched | None, sort: str) -> list[UnitRow]:
    stats = stat_names(view)
    beside = f"k{stats.index(sort)}" if sort in stats else "NULL"
    values = f", {beside}" + "".join(f", s{number}" for number in columns)
    rows = {
        place: row
        for place, *row in view.sql(
            f"SELECT place, unit, layer, promotes, fires, total{values} FROM mt_rows WHERE place IN (SELECT unnest(?::BIGINT[]))",
            places.tolist(),
        )
    }
    texts = vocabulary(view)
    told_of = []
    for place in places.tolist():
        unit, layer, promotes, fires, of, control, *numbers = rows[place]
        told_of.append(
            UnitRow(
                unit=unit, layer=layer, promotes=[spelt_token(texts, token) for token in promotes or ()],
                fires=[spelt_token(texts, token) for token in fires or ()], values=list(numbers), control=control,
                match=None if matched is None else matched.at(place, of),
            )
        )  # fmt: skip
    return told_of
