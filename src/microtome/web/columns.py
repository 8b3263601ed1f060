"""The index of a run's units as arrays by place: what is compared, counted and sorted for every unit of an atlas at once.

A question about a million units is a few passes over arrays, some milliseconds each, whatever it asks. An array is made when it is
first asked for. Questions belong in `browse`, `maps`, `related`.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from microtome.web.index import KINDS, indexed
from microtome.web.reader import View

__all__ = [
    "NONE",
    "Floats",
    "Places",
    "Told",
    "basis_names",
    "clear_column",
    "labelled",
    "numbers_of",
    "page_of",
    "rows_between",
    "stat_column",
    "told",
    "units_of",
]

NONE: Final = np.iinfo(np.int16).max
"""Stands for no rank."""

Floats = NDArray[np.float64]
Places = NDArray[np.int64]


class Told:
    """Units by the tokens they have to do with: for each of `KINDS`, places and numbers in order of token."""

    def __init__(self, view: View) -> None:
        counts = view.columns(
            "SELECT kind::BIGINT AS kind, token::BIGINT AS token, count(*) AS times FROM mt_told GROUP BY 1, 2"
        )
        self._tokens = int(counts["token"].max()) + 1 if len(counts["token"]) else 0
        times = np.zeros(len(KINDS) * self._tokens, np.int64)
        times[counts["kind"] * self._tokens + counts["token"]] = counts["times"]
        self._bounds = np.concatenate([[0], np.cumsum(times)])
        columns = view.columns("SELECT place, number FROM mt_told ORDER BY kind, token, place")
        self._places, self._numbers = columns["place"], columns["number"]

    def of(self, kind: int, tokens: Sequence[int] | NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Places and numbers of the units that have to do with any of `tokens`, which are in order."""
        known = np.asarray([token for token in tokens if 0 <= token < self._tokens], np.int64)
        if not len(known):
            return self._places[:0], self._numbers[:0]
        base = kind * self._tokens
        rows = rows_between(self._bounds[base + known], self._bounds[base + known + 1])
        return self._places[rows], self._numbers[rows]

    def tokens(self, kind: int, place: int) -> list[int]:
        """The tokens that the unit at `place` has to do with, in order."""
        begin, end = self._bounds[kind * self._tokens], self._bounds[(kind + 1) * self._tokens]
        at = begin + np.flatnonzero(self._places[begin:end] == place)
        keys = np.searchsorted(self._bounds, at, "right") - 1
        return sorted(set((keys - kind * self._tokens).tolist()))


def rows_between(first: NDArray[np.int64], last: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows from each of `first` up to, without it, that of `last`, one stretch after the other.

    >>> rows_between(np.array([2, 7, 9]), np.array([5, 7, 11])).tolist()
    [2, 3, 4, 9, 10]
    """
    counts = last - first
    return np.repeat(last - np.cumsum(counts), counts) + np.arange(int(counts.sum()))


def told(view: View) -> Told:
    """Units by token."""
    indexed(view)
    return view.once("told", Told)


def units_of(view: View) -> int:
    """How many units there are."""
    indexed(view)
    return view.once("units", lambda v: v.sql("SELECT count(*) FROM mt_rows")[0][0])


def basis_names(view: View) -> list[str]:
    """The bases in alphabetical order: `numbers_of(view, "basis")` are places in it."""
    indexed(view)
    return view.once("basis names", lambda v: [name for (name,) in v.sql("SELECT DISTINCT basis FROM mt_rows ORDER BY 1")])


def _column(view: View, expression: str) -> NDArray[Any]:
    """A column of `mt_rows` by place."""
    return view.once(
        ("column", expression),
        lambda v: v.columns(f"SELECT {expression} AS it FROM mt_rows ORDER BY place")["it"],
    )


def stat_column(view: View, number: int) -> Floats:
    """A statistic, by its number in `stat_names`; NaN where a unit has none."""
    return _column(view, f"coalesce(s{number}, 'nan'::DOUBLE)")


def clear_column(view: View, number: int | None) -> NDArray[np.int8]:
    """1 where a statistic survives its control, 0 where not, -1 where it has none; without a number any of the unit's."""
    return _column(view, f"coalesce({'clear' if number is None else f'c{number}'}::TINYINT, -1::TINYINT)")


def numbers_of(view: View, name: str) -> NDArray[Any]:
    """A whole number of each unit (`layer`, `total`), or where its basis is in alphabetical order; -1 where it has none."""
    return _column(view, f"coalesce({name}, -1)" if name != "basis" else "dense_rank() OVER (ORDER BY basis) - 1")


def labelled(view: View, label: str) -> NDArray[np.bool_]:
    """Which units have a label of the kind `label`, or one whose text contains it, whatever its case."""
    codes = view.arrow(
        "SELECT code FROM mt_label_texts WHERE kind = ? OR contains(lower(text), lower(?)) ORDER BY 1", label, label
    )["code"].to_numpy()
    every = view.once("labels", lambda v: v.columns("SELECT code, place FROM mt_labels ORDER BY 1, 2"))
    wanted = np.zeros(int(codes.max()) + 1 if len(codes) else 0, np.bool_)
    wanted[codes] = True
    own = every["code"]
    first = own[: np.searchsorted(own, len(wanted))]
    found = np.zeros(units_of(view), np.bool_)
    found[every["place"][: len(first)][wanted[first]]] = True
    return found


def page_of(places: Places, keys: Sequence[NDArray[np.floating]], offset: int, limit: int) -> Places:
    """Of `places`, those at `offset` to `offset` + `limit` if they were sorted by `keys`, least first, NaN last, and then as given.

    Only what may be on the page is sorted. `keys` are of the places, the one that counts most first.
    """
    end = min(offset + limit, len(places))
    if offset >= end:
        return places[:0]
    if not keys:
        return places[offset:end]
    first = np.nan_to_num(keys[0], nan=np.inf)
    low, high = np.partition(first, (offset, end - 1))[[offset, end - 1]]
    candidates = np.flatnonzero((first >= low) & (first <= high))
    before = int((first < low).sum())
    order = np.lexsort([*(np.nan_to_num(key[candidates], nan=np.inf) for key in reversed(keys))])
    return places[candidates[order[offset - before : end - before]]]
