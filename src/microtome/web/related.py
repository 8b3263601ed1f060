"""Units that are like a unit, by everything that the lenses know: links, activity, the tokens they write and fire on."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from microtome.core import NotFound, Refusal
from microtome.web.columns import Places, page_of, told, units_of
from microtome.web.gathered import Gathered
from microtome.web.index import KINDS, indexed, spelt_token, vocabulary
from microtome.web.reader import View
from microtome.web.records import Reason, Related, RelatedUnit
from microtome.web.unit import TIES, tied

__all__ = ["RelatedAsked", "related"]

SHOWN: Final = 50
CANDIDATES: Final = 200
"""Units of a reason, best first, that are ranked."""
TOKENS: Final = 8
"""Shared tokens that are named, the rarest first."""
_LATE: Final = 10
"""How little a first place counts more than a second: a reason of rank r counts 1 / (this + r)."""
_SHARED: Final = {"promotes": "promotes the same tokens", "fires": "fires on the same tokens"}

Candidate = tuple[int, Reason]
"""The place of a unit, and why it is related."""


class RelatedAsked(BaseModel):
    """A unit by its address."""

    unit: Annotated[str, Field(max_length=200)]


def related(view: View, unit: str) -> Related:
    """Units like `unit`: ranked for each reason, and then by the sum of 1 / (10 + rank) over the reasons.

    A reason counts where its number is larger than its control. The control of a number of shared tokens is how many a unit of this atlas has in common with it in the mean.
    Errors: `Refusal` where this atlas has no such unit.
    """
    indexed(view)
    places = view.sql("SELECT place FROM mt_rows WHERE unit = ?", unit)
    if not places:
        raise NotFound(
            f"unit {unit[:80]}", why="this atlas has no unit of that address", instead="look for it in the unit browser"
        )
    [(place,)] = places
    gathered = Gathered(view, *TIES, "tokens", "contexts", "windows", "vocabulary")
    found: dict[int, list[Reason]] = {}
    for other, reason in (*_linked(view, gathered, unit), *(each for kind in _SHARED for each in _sharing(view, place, kind))):
        if other != place:
            found.setdefault(other, []).append(reason)
    score = {other: sum(1 / (_LATE + reason.rank) for reason in reasons if reason.clear) for other, reasons in found.items()}
    best = sorted((other for other in found if score[other]), key=lambda other: (-score[other], other))
    known = _named(view, best[:SHOWN], "unit", "basis", "layer")
    rows = []
    for other in best[:SHOWN]:
        name, basis, layer = known[other]
        rows.append(RelatedUnit(unit=name, basis=basis, layer=layer, score=score[other], reasons=found[other]))
    return Related(
        unit=unit,
        of=len(best),
        rows=rows,
        problems=gathered.problems,
    )


def _named(view: View, places: Sequence[int], *columns: str) -> dict[int, list[Any]]:
    """Columns of the units at some places."""
    query = f"SELECT place, {', '.join(columns)} FROM mt_rows WHERE place IN (SELECT unnest(?::BIGINT[]))"
    return {place: values for place, *values in view.sql(query, list(places))}


def _reason(kind: str, rank: int, value: float | None, control: float | None, tokens: list[str]) -> Reason:
    clear = value is not None and (control is None or abs(value) > abs(control))
    return Reason(kind=kind, rank=rank, value=value, control=control, clear=clear, tokens=tokens)


def _linked(view: View, gathered: Gathered, unit: str) -> list[Candidate]:
    """Ties of the tables, each kind ranked by size whatever the sign."""
    counts: dict[str, int] = {}
    found: list[tuple[str, Reason]] = []
    for table in TIES:
        try:
            links = tied(view, table, [unit]).get(unit, [])
        except Refusal as refusal:
            gathered.report(table, refusal)
            continue
        for link in links:
            counts[link.kind] = rank = counts.get(link.kind, 0) + 1
            if rank <= CANDIDATES:
                reason = _reason(link.kind, rank, link.score, link.control, [])
                found.append((link.other, reason))
    others = sorted({other for other, _ in found})
    places = dict(view.sql("SELECT unit, place FROM mt_rows WHERE unit IN (SELECT unnest(?::VARCHAR[]))", others))
    return [(places[other], reason) for other, reason in found if other in places]


def _sharing(view: View, place: int, kind: str) -> list[Candidate]:
    """Units that write or fire on tokens of the unit at `place`; a token counts the more the fewer units have it."""
    number, units = KINDS.index(kind), units_of(view)
    having = {token: _once(told(view).of(number, [token])[0]) for token in told(view).tokens(number, place)}
    weight = np.zeros(units)
    for places in having.values():
        weight[places] += math.log(units / len(places))
    weight[place] = 0.0
    others = np.flatnonzero(weight)
    best = page_of(others, [-weight[others]], 0, CANDIDATES)
    rarest = sorted(having, key=lambda token: (len(having[token]), token))
    common = sum(len(places) for places in having.values()) / units
    shared = {token: _among(best, having[token], units) for token in rarest}
    texts = vocabulary(view)
    found = []
    for rank, other in enumerate(best.tolist(), start=1):
        tokens = [token for token in rarest if other in shared[token]]
        told_of = [spelt_token(texts, token) for token in tokens[:TOKENS]]
        found.append((other, _reason(_SHARED[kind], rank, float(len(tokens)), common, told_of)))
    return found


def _among(places: Places, having: NDArray[Any], units: int) -> set[int]:
    """Those of `places` that are in `having`."""
    marked = np.zeros(units, np.bool_)
    marked[having] = True
    return set(places[marked[places]].tolist())


def _once(places: NDArray[Any]) -> NDArray[Any]:
    """Places in order, each once."""
    return places[np.diff(places, prepend=-1) > 0]
