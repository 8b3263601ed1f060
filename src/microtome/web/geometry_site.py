"""Everything about the hidden states of one site, thinned out so that an answer stays below a megabyte.

At most 512 positions, 128 values of a spectrum, 64 x 64 frequencies, 160 rows of cosines and 2,000 windows are told, evenly taken
of all (of spectra the first 64, and then ever fewer).
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from microtome.core import NotFound
from microtome.web.depth import layer_of
from microtome.web.gathered import Gathered
from microtome.web.geometry import TABLES, evenly, sites, stat_rows, told_stat
from microtome.web.reader import View
from microtome.web.records import (
    Block,
    ContextMap,
    CosineRow,
    Cosines,
    GeometrySite,
    GeometryStat,
    Matrix,
    Position,
    Positions,
    Spectrum,
    packed,
    rounded,
)

__all__ = ["geometry_site"]

POSITIONS: Final = 512
SPECTRUM: Final = 128
FREQUENCIES: Final = 64
COSINES: Final = 160
WINDOWS: Final = 2000
STATS: Final = 400
NAME: Final = 80
"""Characters of a document's name or label."""


def geometry_site(view: View, site: str) -> GeometrySite:
    """What is known of the states at `site`; a table that cannot be read is named and left out.

    Errors: `NotFound` where no table of geometry has a row of it.
    """
    gathered = Gathered(view, *(f"geometry_{name}" for name in TABLES), "documents")
    every = [each.site for each in sites(view, gathered)]
    if site not in every:
        raise NotFound(f"site {site[:80]}", why="this run has no geometry of it", instead="choose one of the list of sites")
    at = every.index(site)
    stats = [told_stat(row) for row in stat_rows(gathered, [site])[:STATS]]
    return GeometrySite(
        run=view.run, site=site, layer=layer_of(site), previous=every[at - 1] if at else None,
        next=every[at + 1] if at + 1 < len(every) else None, stats=stats, positions=_positions(gathered, site),
        spectra=_spectra(gathered, site), frequencies=_frequencies(gathered, site), cosines=_cosines(gathered, site),
        map=_map(gathered, site, stats), problems=gathered.problems,
    )  # fmt: skip


def _positions(gathered: Gathered, site: str) -> Positions:
    rows = gathered.rows(
        "geometry_positions",
        "SELECT position, windows, norm, state_norm, x, y, z FROM geometry_positions WHERE site = ? ORDER BY position",
        site,
    )
    told = [
        Position(
            position=position,
            windows=windows,
            **dict(zip(("norm", "state_norm", "x", "y", "z"), map(rounded, numbers), strict=True)),
        )
        for position, windows, *numbers in (rows[n] for n in evenly(len(rows), POSITIONS))
    ]
    return Positions(of=len(rows), rows=told)


def _spectra(gathered: Gathered, site: str) -> list[Spectrum]:
    rows = gathered.rows(
        "geometry_spectra",
        "SELECT subject::VARCHAR, list(value ORDER BY rank), list(rank ORDER BY rank) FROM geometry_spectra WHERE site = ? GROUP BY 1 ORDER BY 1",
        site,
    )
    found = []
    for subject, values, ranks in rows:
        shown = _thinning(len(values))
        found.append(
            Spectrum(subject=subject, of=len(values), rank=[ranks[n] for n in shown], value=[rounded(values[n]) for n in shown])
        )
    return found


def _thinning(count: int) -> list[int]:
    """The first half of the places that are told, then ever fewer, to the last."""
    if count <= SPECTRUM:
        return list(range(count))
    first = SPECTRUM // 2
    later = np.geomspace(first, count - 1, SPECTRUM - first).round().astype(int)
    return [*range(first), *np.unique(later).tolist()]


def _frequencies(gathered: Gathered, site: str) -> list[Block]:
    rows = gathered.rows(
        "geometry_frequencies",
        'SELECT subject::VARCHAR, "row", "column", value FROM geometry_frequencies WHERE site = ? AND "row" BETWEEN 0 AND ? '
        'AND "column" BETWEEN 0 AND ? ORDER BY 1, 2, 3',
        site, FREQUENCIES - 1, FREQUENCIES - 1,
    )  # fmt: skip
    groups: dict[str, list[tuple[Any, ...]]] = {}
    for subject, *entry in rows:
        groups.setdefault(subject, []).append(tuple(entry))
    found = []
    for subject, entries in groups.items():
        matrix = np.full(
            (1 + max(row for row, _, _ in entries), 1 + max(column for _, column, _ in entries)), np.nan, np.float32
        )
        for row, column, value in entries:
            matrix[row, column] = np.nan if value is None else value
        found.append(Block(subject=subject, matrix=_matrix(matrix)))
    return found


def _matrix(values: np.ndarray) -> Matrix:
    return Matrix(rows=values.shape[0], columns=values.shape[1], values=packed(values.ravel()))


def _cosines(gathered: Gathered, site: str) -> Cosines | None:
    rows = gathered.rows(
        "geometry_cosines",
        'SELECT subject::VARCHAR, "index", cosines FROM geometry_cosines WHERE site = ? ORDER BY "row"',
        site,
    )
    if not rows:
        return None
    shown = evenly(len(rows), COSINES)
    values = np.full((len(shown), len(shown)), np.nan, np.float32)
    for line, n in enumerate(shown):
        own = np.array(rows[n][2] or [], np.float32)
        there = [column for column in shown if column < len(own)]
        values[line, : len(there)] = own[there]
    return Cosines(of=len(rows), rows=[CosineRow(subject=rows[n][0], index=rows[n][1]) for n in shown], matrix=_matrix(values))


def _map(gathered: Gathered, site: str, stats: Sequence[GeometryStat]) -> ContextMap | None:
    rows = gathered.rows(
        "geometry_windows",
        'SELECT "window", document, label::VARCHAR, cluster, norm, x, y FROM geometry_windows WHERE site = ? ORDER BY 1',
        site,
    )
    if not rows:
        return None
    told = [rows[n] for n in evenly(len(rows), WINDOWS)]
    documents = sorted({row[1] for row in told if row[1] is not None})
    names = dict(
        gathered.rows(
            "documents",
            "SELECT document, coalesce(name, 'document ' || document)[:?] FROM documents WHERE document IN (SELECT unnest(?::BIGINT[]))",
            NAME, documents,
        )
    )  # fmt: skip
    labels = sorted({row[2] for row in told if row[2] is not None})
    return ContextMap(
        of=len(rows),
        documents=[names.get(document, f"document {document}") for document in documents],
        labels=[label[:NAME] for label in labels],
        window=[row[0] for row in told],
        document=_codes([row[1] for row in told], documents),
        label=_codes([row[2] for row in told], labels),
        cluster=[row[3] for row in told],
        **{name: [rounded(row[n]) for row in told] for n, name in ((4, "norm"), (5, "x"), (6, "y"))},
        trustworthiness=next((each for each in stats if (each.subject, each.stat) == ("ctx", "map_trustworthiness")), None),
    )


def _codes(values: Sequence[Any], known: Sequence[Any]) -> list[int]:
    places = {each: n for n, each in enumerate(known)}
    return [places.get(value, -1) for value in values]
