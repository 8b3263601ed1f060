"""Hidden states by their parts over depth: which sites there are, every measure as a row of numbers, how alike sites are.

Everything about one site is in `geometry_site`, what attention makes of the parts in `geometry_heads`.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Final

import numpy as np
from pydantic import BaseModel, Field

from microtome.web.depth import by_depth, layer_of
from microtome.web.gathered import Gathered
from microtome.web.reader import View
from microtome.web.records import Alignment, Geometry, GeometryStat, Series, SiteTables, rounded
from microtome.web.words_geometry import headline, measure

__all__ = ["TABLES", "SiteAsked", "evenly", "every_site", "geometry", "sites", "stat_rows", "told_stat"]

SITES: Final = 200
"""Sites over which measures are told; of more, as many evenly taken."""
ALIGNED: Final = 80
"""Sites that are compared with each other; of more, as many evenly taken."""
TABLES: Final = ("shares", "stats", "positions", "spectra", "frequencies", "windows", "cosines")
"""Tables `geometry_...` with rows of a site."""
_COLUMNS: Final = ("value", "control", "control_lo", "control_hi", "lo", "hi", "q")
_TOLD: Final = "subject::VARCHAR, stat::VARCHAR, control_kind::VARCHAR, undefined::VARCHAR, " + ", ".join(_COLUMNS)


class SiteAsked(BaseModel):
    """A site as it is written."""

    site: Annotated[str, Field(max_length=80)]


def evenly(count: int, most: int) -> list[int]:
    """Places of at most `most` of `count` things, the first and the last among them, evenly apart.

    >>> evenly(5, 9), evenly(9, 3)
    ([0, 1, 2, 3, 4], [0, 4, 8])
    """
    return list(range(count)) if count <= most else np.linspace(0, count - 1, most).round().astype(int).tolist()


def sites(view: View, gathered: Gathered) -> list[SiteTables]:
    """All sites that a table of geometry has rows of, by depth."""
    found: dict[str, list[str]] = {}
    for name in TABLES:
        for (site,) in gathered.rows(f"geometry_{name}", f"SELECT DISTINCT site::VARCHAR FROM geometry_{name} ORDER BY 1"):
            found.setdefault(site, []).append(name)
    return [SiteTables(site=site, layer=layer_of(site), tables=found[site]) for site in sorted(found, key=by_depth)]


def every_site(view: View) -> Iterator[SiteAsked]:
    """Every site, whether or not it is among those over which measures are told."""
    return (SiteAsked(site=each.site) for each in sites(view, Gathered(view)))


def geometry(view: View) -> Geometry:
    """What is measured over depth; a table that cannot be read is named and left out."""
    return view.once("geometry", _geometry)


def _geometry(view: View) -> Geometry:
    gathered = Gathered(view, *(f"geometry_{name}" for name in (*TABLES, "alignment", "attention")))
    found = sites(view, gathered)
    shown = [found[n] for n in evenly(len(found), SITES)]
    heads = gathered.rows("geometry_attention", "SELECT count(*) FROM (SELECT 1 FROM geometry_attention LIMIT 1)")
    return Geometry(
        of=len(found), sites=shown, series=_series(gathered, [each.site for each in shown]), alignment=_alignment(gathered),
        heads=bool(heads and heads[0][0]), problems=gathered.problems,
    )  # fmt: skip


def stat_rows(gathered: Gathered, wanted: Sequence[str]) -> list[tuple[Any, ...]]:
    """Rows (site, subject, stat, control_kind, undefined, value and what is beside it) of the measures at sites, by subject and name."""
    return gathered.rows(
        "geometry_stats",
        f"SELECT site::VARCHAR, {_TOLD} FROM geometry_stats WHERE site IN (SELECT unnest(?::VARCHAR[])) ORDER BY 2, 3, 1",
        list(wanted),
    )


def told_stat(row: Sequence[Any]) -> GeometryStat:
    """A measure at a site, of a row of `stat_rows`."""
    _, subject, stat, kind, undefined, *numbers = row
    label, meaning = measure(stat)
    return GeometryStat(
        subject=subject, stat=stat, label=label, meaning=meaning, headline=headline(subject, stat) is not None, control_kind=kind,
        undefined=undefined, **dict(zip(_COLUMNS, numbers, strict=True)),
    )  # fmt: skip


def _series(gathered: Gathered, wanted: Sequence[str]) -> list[Series]:
    """Measures as rows of numbers over sites, headlines first in their order."""
    place = {site: n for n, site in enumerate(wanted)}
    columns: dict[tuple[str, str], dict[str, list[float | None]]] = {}
    kinds: dict[tuple[str, str], str] = {}
    for site, subject, stat, kind, _, *numbers in stat_rows(gathered, wanted):
        own = columns.setdefault((subject, stat), {name: [None] * len(wanted) for name in _COLUMNS})
        if kind is not None:
            kinds.setdefault((subject, stat), kind)
        for name, number in zip(_COLUMNS, numbers, strict=True):
            own[name][place[site]] = rounded(number)
    made = []
    for (subject, stat), own in columns.items():
        label, meaning = measure(stat)
        filled = {name: values if any(value is not None for value in values) else [] for name, values in own.items()}
        made.append(
            Series(
                subject=subject, stat=stat, label=label, meaning=meaning, headline=headline(subject, stat) is not None,
                control_kind=kinds.get((subject, stat)), **filled,
            )
        )  # fmt: skip
    return sorted(made, key=lambda each: (not each.headline, headline(each.subject, each.stat) or 0))


def _alignment(gathered: Gathered) -> list[Alignment]:
    rows = gathered.rows(
        "geometry_alignment",
        "SELECT subject::VARCHAR, stat::VARCHAR, site::VARCHAR, other::VARCHAR, control_kind::VARCHAR, value, control, q "
        "FROM geometry_alignment ORDER BY 1, 2, 3, 4",
    )
    groups: dict[tuple[str, str], list[tuple[Any, ...]]] = {}
    for subject, stat, *row in rows:
        groups.setdefault((subject, stat), []).append(tuple(row))
    return [_aligned(subject, stat, own) for (subject, stat), own in groups.items()]


def _aligned(subject: str, stat: str, rows: Iterable[tuple[Any, ...]]) -> Alignment:
    rows = list(rows)
    every = sorted({site for row in rows for site in row[:2]}, key=by_depth)
    shown = [every[n] for n in evenly(len(every), ALIGNED)]
    place = {site: n for n, site in enumerate(shown)}
    kept = [row for row in rows if row[0] in place and row[1] in place]
    return Alignment(
        subject=subject, stat=stat, control_kind=next((row[2] for row in kept if row[2] is not None), None), sites=shown,
        site=[place[row[0]] for row in kept], other=[place[row[1]] for row in kept], value=[rounded(row[3]) for row in kept],
        control=[rounded(row[4]) for row in kept], q=[rounded(row[5]) for row in kept],
    )  # fmt: skip
