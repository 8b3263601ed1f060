"""The unit browser: units of a basis by layer, by statistic, by token, by label.

It reads the index alone (`index`, as arrays in `columns`), so that its time hardly depends on the size of the atlas. Everything about one unit is in `unit`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from microtome.core import Refusal
from microtome.web.columns import NONE, Floats, Places, clear_column, labelled, numbers_of, page_of, stat_column, told, units_of
from microtome.web.index import KINDS, indexed, spelt_token, stat_names, vocabulary
from microtome.web.reader import View
from microtome.web.records import BasisCard, Match, Pattern, Suggestion, Suggestions, UnitRow, Units
from microtome.web.words import basis_label, column

__all__ = ["Query", "Word", "bases", "find_tokens", "units"]

SUGGESTED: Final = 24
_FIRES: Final = KINDS.index("fires")


class Query(BaseModel):
    """What the browser shows: `sort` is a statistic, `unit` (address order) or `match` (how well the token or pattern fits)."""

    basis: Annotated[str | None, Field(max_length=80)] = None
    layer: Annotated[int | None, Field(ge=0, le=32767)] = None
    sort: Annotated[str, Field(max_length=80)] = "unit"
    order: Literal["down", "up"] = "down"
    token: Annotated[str, Field(max_length=100)] = ""
    match: Literal["any", "promotes", "suppresses", "fires"] = "any"
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


def find_tokens(view: View, word: str) -> Suggestions:
    """Tokens equal to `word` but for spaces, case and word-piece marks, and the shortest tokens that contain it."""
    wanted = _bare(word)
    if not wanted:
        return Suggestions(tokens=[], near=[])
    bare = view.once("bare", lambda v: [_bare(text) for text in vocabulary(v)])
    texts = vocabulary(view)
    exact = [n for n, text in enumerate(bare) if text == wanted]
    near = sorted((len(text), n) for n, text in enumerate(bare) if wanted in text and text != wanted)[:SUGGESTED]
    return Suggestions(
        tokens=[Suggestion(token=n, text=texts[n]) for n in exact],
        near=[Suggestion(token=n, text=texts[n]) for _, n in near],
    )


def _bare(text: str) -> str:
    return text.removeprefix("##").strip().casefold()


def units(view: View, query: Query) -> Units:
    """One page of units. An unknown statistic sorts by address; a token that is not there gives no rows and suggestions.

    Errors: `Refusal` where the pattern is none, or bounds are given of no statistic.
    """
    indexed(view)
    stats = stat_names(view)
    cards = [card for card in bases(view) if query.basis in (None, card.basis)]
    shown = {col.name for card in cards for col in card.columns}
    columns = [name for name in stats if name in shown]
    chosen = _chosen(view, query, stats)
    found = find_tokens(view, query.token) if query.token.strip() else None
    fitting = _fitting(view, query.pattern) if query.pattern else None
    matched = None
    if fitting is not None:
        matched = _matched(view, fitting, [_FIRES])
        chosen &= matched.any
    if found is not None:
        kinds = [n for n, name in enumerate(KINDS) if query.match in ("any", name)]
        matched = _matched(view, [each.token for each in found.tokens], kinds)
        chosen &= matched.any
    places = np.flatnonzero(chosen)
    texts = vocabulary(view)
    return Units(
        total=len(places),
        offset=query.offset,
        columns=[column(name) for name in columns],
        search=found,
        pattern=None if fitting is None else _pattern(texts, fitting),
        rows=_rows(view, _page(view, query, stats, places, matched), [stats.index(name) for name in columns], matched),
    )


@dataclass(frozen=True)
class _Matched:
    """How each unit has to do with the tokens asked for: its best ranks, and how many of its top contexts."""

    any: NDArray[np.bool_]
    promotes: NDArray[np.int16]
    suppresses: NDArray[np.int16]
    fires: NDArray[np.int64]

    def at(self, place: int, of: int | None) -> Match:
        """What is told of the unit at `place`, which has `of` top contexts."""
        plus, minus = (None if ranks[place] == NONE else int(ranks[place]) for ranks in (self.promotes, self.suppresses))
        return Match(promotes=plus, suppresses=minus, fires=int(self.fires[place]) or None, of=of)

    def fit(self, places: Places, of: NDArray[Any]) -> list[Floats]:
        """What sorts units by how well they fit: the best of all shares, and the number of contexts."""
        plus, minus = (
            np.where(ranks[places] == NONE, 0.0, 1.0 / (1.0 + ranks[places])) for ranks in (self.promotes, self.suppresses)
        )
        times = self.fires[places].astype(np.float64)
        return [-np.maximum(np.maximum(plus, minus), times / np.maximum(of[places], 1)), -times]


def _matched(view: View, tokens: Sequence[int], kinds: Sequence[int]) -> _Matched:
    count = units_of(view)
    ranks = [np.full(count, NONE, np.int16) for _ in range(2)]
    fires = np.zeros(count, np.int64)
    for kind in kinds:
        places, numbers = told(view).of(kind, tokens)
        if kind == _FIRES:
            fires = np.bincount(places, weights=numbers, minlength=count).astype(np.int64)
        else:
            np.minimum.at(ranks[kind], places, numbers)
    return _Matched((fires > 0) | (ranks[0] != NONE) | (ranks[1] != NONE), ranks[0], ranks[1], fires)


def _fitting(view: View, pattern: str) -> list[int]:
    """The tokens in whose text a regular expression is found."""
    try:
        view.sql("SELECT regexp_matches('', ?)", pattern)
    except Refusal as refusal:
        why = str(refusal.__cause__).splitlines()[0].removeprefix("Invalid Input Error: ")
        raise Refusal(
            f"pattern {pattern[:80]}",
            why=f"it is no regular expression ({why[:120]})",
            instead="put a \\ before signs that stand for themselves",
        ) from refusal
    found = view.arrow("SELECT token FROM mt_texts WHERE regexp_matches(text, ?) ORDER BY 1", pattern)
    return found["token"].to_numpy().tolist()


def _pattern(texts: Sequence[str], fitting: Sequence[int]) -> Pattern:
    some = [Suggestion(token=token, text=spelt_token(texts, token)) for token in fitting[:SUGGESTED]]
    return Pattern(tokens=len(fitting), some=some)


def _chosen(view: View, query: Query, stats: Sequence[str]) -> NDArray[np.bool_]:
    """Which units are what is asked for, whatever tokens they have to do with."""
    chosen = np.ones(units_of(view), np.bool_)
    number = stats.index(query.sort) if query.sort in stats else None
    if query.basis is not None:
        names = sorted(card.basis for card in bases(view))
        chosen &= numbers_of(view, "basis") == (names.index(query.basis) if query.basis in names else -1)
    if query.layer is not None:
        chosen &= numbers_of(view, "layer") == query.layer
    if number is None and (query.least is not None or query.most is not None):
        raise Refusal("bounds", why="units are sorted by nothing that has a value", instead="sort by a statistic")
    if number is not None and query.least is not None:
        chosen &= stat_column(view, number) >= query.least
    if number is not None and query.most is not None:
        chosen &= stat_column(view, number) <= query.most
    if query.clear != "any":
        chosen &= clear_column(view, number) == ("no", "yes").index(query.clear)
    if query.label.strip():
        chosen &= labelled(view, query.label.strip())
    return chosen


def _page(view: View, query: Query, stats: Sequence[str], places: Places, matched: _Matched | None) -> Places:
    """The places that are shown, in their order; of units with the same value the first in address order is first."""
    if query.sort in stats:
        values = stat_column(view, stats.index(query.sort))[places]
        keys = [-values if query.order == "down" else values]
    elif query.sort == "match" and matched is not None:
        keys = matched.fit(places, numbers_of(view, "total"))
    else:
        places, keys = places if query.order == "down" else places[::-1], []
    return page_of(places, keys, query.offset, query.limit)


def _rows(view: View, places: Places, columns: Sequence[int], matched: _Matched | None) -> list[UnitRow]:
    values = "".join(f", s{number}" for number in columns)
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
        unit, layer, promotes, fires, of, *numbers = rows[place]
        told_of.append(
            UnitRow(
                unit=unit, layer=layer, promotes=[spelt_token(texts, token) for token in promotes or ()],
                fires=[spelt_token(texts, token) for token in fires or ()], values=list(numbers),
                match=None if matched is None else matched.at(place, of),
            )
        )  # fmt: skip
    return told_of
