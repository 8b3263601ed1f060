"""Search by phrase: units whose top contexts are inside a phrase of several words, wherever the run's text has it.

A phrase is looked for in the text as it was read, whatever its case, so how it is cut into tokens does not matter. What else units are
searched by is in `browse`.
"""

import re
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from microtome.core import Refusal
from microtome.web.columns import units_of
from microtome.web.reader import View
from microtome.web.records import Phrase
from microtome.web.windows import windows

__all__ = ["Inside", "inside"]

_MOST: Final = 20_000
"""Places of a phrase that are looked at: the first ones of the text."""
_SHORTEST: Final = 2


@dataclass(frozen=True, eq=False)
class Inside:
    """How many top contexts of each unit are at a token of the phrase, by place."""

    times: NDArray[np.int64]
    told: Phrase


def inside(view: View, phrase: str) -> Inside:
    """Units by how many of their top contexts are inside `phrase`.

    Errors: `Refusal` for a phrase that nearly every text has. Cost: a pass over the text and over the contexts' places.
    """
    wanted = " ".join(phrase.split())
    if len(wanted) < _SHORTEST:
        raise Refusal(
            f"phrase {phrase[:80]}", why="it is shorter than two characters", instead="search for a word or a pattern"
        )
    spelt = re.compile(r"\s+".join(re.escape(word) for word in wanted.split(" ")), re.IGNORECASE)
    at, found = _places(view, wanted, spelt)
    times = np.zeros(units_of(view), np.int64)
    if at:
        rows = view.sql(
            "SELECT r.place, count(*) FROM contexts c JOIN (SELECT unnest(?::BIGINT[]) AS w, unnest(?::INTEGER[]) AS p) s "
            """ON c."window" = s.w AND c.position = s.p JOIN mt_rows r ON r.unit = c.unit::VARCHAR WHERE c."end" = 'top' GROUP BY 1""",
            *(list(column) for column in zip(*sorted(at), strict=True)),
        )
        for place, count in rows:
            times[place] = count
    return Inside(times, Phrase(text=wanted, places=found, cut=found >= _MOST))


def _places(view: View, wanted: str, spelt: "re.Pattern[str]") -> tuple[set[tuple[int, int]], int]:
    """Windows and places of the tokens of every occurrence, and how many occurrences there are."""
    first = max(wanted.split(" "), key=len)
    spans: dict[int, list[tuple[int, int]]] = {}
    found = 0
    for document, text in view.sql(
        "SELECT document, text FROM documents WHERE contains(lower(text), lower(?)) ORDER BY 1", first
    ):
        for match in spelt.finditer(text):
            if found == _MOST:
                break
            spans.setdefault(document, []).append(match.span())
            found += 1
    numbers = view.sql('SELECT "window" FROM windows WHERE document IN (SELECT unnest(?::BIGINT[]))', sorted(spans))
    at: set[tuple[int, int]] = set()
    for number, window in windows(view, {number for (number,) in numbers}).items():
        starts, ends = np.asarray(window.starts), np.asarray(window.ends)
        there = starts >= 0
        for begin, finish in spans[window.document]:
            at |= {(number, int(place)) for place in np.flatnonzero(there & (starts < finish) & (ends > begin))}
    return at, found
