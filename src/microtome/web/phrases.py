"""Search by phrase: units whose top contexts are inside a phrase of several words, wherever the run's text has it.

A phrase is looked for in the text as it was read, whatever its case, so how it is cut into tokens does not matter. What else units are
searched by is in `browse`.
"""

import itertools
import re
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from microtome.core import Malformed
from microtome.web.columns import rows_between, units_of
from microtome.web.reader import View
from microtome.web.records import Phrase
from microtome.web.windows import windows

__all__ = ["Inside", "inside"]

_MOST: Final = 20_000
"""Places of a phrase that are looked at: the first ones of the text."""
_PLACES: Final = 24
"""Bits of a place in a window, in a key of a token of the text."""
_KEY: Final = f'("window" << {_PLACES}) + position'


@dataclass(frozen=True, eq=False)
class Inside:
    """How many top contexts of each unit are at a token of the phrase, by place."""

    times: NDArray[np.int64]
    told: Phrase


def inside(view: View, phrase: str) -> Inside:
    """Units by how many of their top contexts are inside `phrase`.

    Errors: `Malformed` for a single letter or sign. Cost: a pass over the text, and a search in the contexts' places for each token found.
    """
    wanted = " ".join(phrase.split())
    if len(wanted) < 2 and wanted.isascii():
        raise Malformed(f"phrase {phrase[:80]}", why="it is a single letter or sign", instead="search for a word or a pattern")
    spelt = re.compile(r"\s+".join(re.escape(word) for word in wanted.split(" ")), re.IGNORECASE)
    at, found = _places(view, wanted, spelt)
    tops = view.once("tops", lambda v: v.columns(f"SELECT {_KEY} AS key, place FROM mt_tops ORDER BY 1, 2"))
    first, last = (np.searchsorted(tops["key"], at, side) for side in ("left", "right"))
    times = np.bincount(tops["place"][rows_between(first, last)], minlength=units_of(view))
    return Inside(times, Phrase(text=wanted, places=found, cut=found >= _MOST))


def _places(view: View, wanted: str, spelt: "re.Pattern[str]") -> tuple[NDArray[np.int64], int]:
    """Keys of the tokens of every occurrence, in order, and how many occurrences there are."""
    longest = max(wanted.split(" "), key=len)
    spans: dict[int, NDArray[np.int64]] = {}
    found = 0
    for document, text in view.sql(
        "SELECT document, text FROM documents WHERE contains(lower(text), lower(?)) ORDER BY 1", longest
    ):
        here = [match.span() for match in itertools.islice(spelt.finditer(text), _MOST - found)]
        if here:
            spans[document] = np.array(here)
            found += len(here)
    numbers = view.sql('SELECT "window" FROM windows WHERE document IN (SELECT unnest(?::BIGINT[])) ORDER BY 1', sorted(spans))
    keys = [np.zeros(0, np.int64)]
    for number, window in sorted(windows(view, {number for (number,) in numbers}).items()):
        begins, finishes = spans[window.document].T
        starts, ends = np.asarray(window.starts), np.asarray(window.ends)
        # occurrences follow each other: of those that end behind a token's start the first begins first
        after = np.searchsorted(finishes, starts, "right")
        inside = (starts >= 0) & (after < len(begins)) & (begins[np.minimum(after, len(begins) - 1)] < ends)
        keys.append((number << _PLACES) + np.flatnonzero(inside))
    return np.concatenate(keys), found
