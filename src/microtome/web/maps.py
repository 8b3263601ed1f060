"""All units at once: their places on maps, and columns by place to colour these by.

Columns are packed: a million units are four million bytes, not a million words.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Final

import numpy as np
from pydantic import BaseModel, Field

from microtome.core import NotFound, Refusal
from microtome.web.columns import stat_column, units_of
from microtome.web.depth import by_depth
from microtome.web.gathered import Gathered
from microtome.web.index import indexed, measured_words, stat_names
from microtome.web.reader import View
from microtome.web.records import ColumnSites, Kept, LabelColumn, LabelKind, Layout, MapPage, Maps, UnitColumn, packed
from microtome.web.words import column

__all__ = [
    "KindAsked", "LayoutAsked", "StatAsked", "column_keys", "kind_keys", "label_column", "layout_keys", "map_page", "maps", "unit_column",
]  # fmt: skip

CATEGORIES: Final = 30
"""Labels of a kind that have a colour of their own; all others are one."""
OTHER: Final = "other"


class LayoutAsked(BaseModel):
    """A map by its name in `maps`."""

    layout: Annotated[str, Field(max_length=200)]


class StatAsked(BaseModel):
    """A statistic, of one site or, without, the largest over all."""

    stat: Annotated[str, Field(max_length=100)]
    site: Annotated[str, Field(max_length=80)] = ""


class KindAsked(BaseModel):
    """A kind of label."""

    kind: Annotated[str, Field(max_length=100)]


def maps(view: View) -> Maps:
    """The maps that there are, and what they can be coloured by."""
    return view.once("maps", _maps)


def _maps(view: View) -> Maps:
    indexed(view)
    gathered = Gathered(view, "unit_places", "dictionary_stats", "units", "unit_stats", "unit_labels", "explanations")
    return Maps(
        units=units_of(view),
        layouts=_layouts(gathered),
        columns=_columns(view),
        labels=_kinds(view),
        problems=gathered.problems,
    )


def _layouts(gathered: Gathered) -> list[Layout]:
    kept: dict[str, list[Kept]] = {}
    for name, *values in gathered.rows(
        "dictionary_stats",
        "SELECT name::VARCHAR, stat::VARCHAR, value, control, control_kind::VARCHAR FROM dictionary_stats "
        "WHERE stat IN ('trustworthiness', 'continuity') AND coalesce(site::VARCHAR, '') = '' ORDER BY 1, stat DESC, control_kind",
    ):
        kept.setdefault(name, []).append(Kept(**dict(zip(Kept.model_fields, values, strict=True))))
    rows = gathered.rows(
        "unit_places",
        "SELECT r.basis, r.name, p.layout::VARCHAR AS method, count(*) FROM unit_places p JOIN mt_rows r ON r.unit = p.unit::VARCHAR "
        "GROUP BY ALL ORDER BY 4 DESC, 1, 2, 3",
    )
    return [
        Layout(
            layout=f"{basis}@{name}/{method}" if name is not None else f"{basis}/{method}",
            basis=basis, name=name, method=method, units=units,
            kept=kept.get(name, []) if name is not None else [],
        )
        for basis, name, method, units in rows
    ]  # fmt: skip


def _columns(view: View) -> list[ColumnSites]:
    stats, sites = stat_names(view), measured_words(view, "site")
    several: dict[int, list[str]] = {}
    for stat, site in view.sql(
        "WITH spread AS (SELECT m.stat, m.site, m.place FROM mt_measured m JOIN mt_rows r USING (place) WHERE r.layer IS NULL AND m.site IS NOT NULL), "
        "many AS (SELECT stat FROM spread GROUP BY stat, place HAVING count(*) > 1) "
        "SELECT DISTINCT stat, site FROM spread SEMI JOIN many USING (stat)"
    ):
        if sites[site - 1]:
            several.setdefault(stat, []).append(sites[site - 1])
    return [
        ColumnSites(column=column(stat), sites=sorted(several.get(n, []), key=by_depth))
        for n, stat in enumerate(stats, start=1)
    ]


def _kinds(view: View) -> list[LabelKind]:
    rows = view.sql(
        "SELECT t.kind, count(DISTINCT l.place) FROM mt_labels l JOIN mt_label_texts t USING (code) GROUP BY 1 ORDER BY 2 DESC, 1"
    )
    return [LabelKind(kind=kind, units=units) for kind, units in rows]


def layout_keys(view: View) -> Iterator[LayoutAsked]:
    """Every map."""
    return (LayoutAsked(layout=layout.layout) for layout in maps(view).layouts)


def column_keys(view: View) -> Iterator[StatAsked]:
    """Every column that units can be placed and coloured by."""
    for each in maps(view).columns:
        yield from (StatAsked(stat=each.column.name, site=site) for site in ("", *each.sites))


def kind_keys(view: View) -> Iterator[KindAsked]:
    """Every kind of label that units can be coloured by."""
    return (KindAsked(kind=each.kind) for each in maps(view).labels)


def map_page(view: View, asked: str) -> MapPage:
    """The places of a map's units, in address order.

    Errors: `Refusal` where there is no such map.
    """
    layout = next((each for each in maps(view).layouts if each.layout == asked), None)
    if layout is None:
        raise NotFound(f"map {asked[:80]}", why="this atlas has no map of that name", instead="choose one of the list of maps")
    return view.once(("map", asked), lambda v: _map_page(v, layout))


def _map_page(view: View, layout: Layout) -> MapPage:
    gathered = Gathered(view, "unit_places")
    query = (
        "SELECT r.place::INTEGER AS place, p.x, p.y FROM unit_places p JOIN mt_rows r ON r.unit = p.unit::VARCHAR "
        "WHERE r.basis = ? AND r.name IS NOT DISTINCT FROM ? AND p.layout = ? ORDER BY 1"
    )
    try:
        columns = _arrays(view, query, layout.basis, layout.name, layout.method)
    except Refusal as refusal:
        gathered.report("unit_places", refusal)
        columns = {"place": np.zeros(0), "x": np.zeros(0), "y": np.zeros(0)}
    return MapPage(
        layout=layout,
        count=len(columns["place"]),
        place=packed(columns["place"], "<i4"),
        x=packed(columns["x"]),
        y=packed(columns["y"]),
        problems=gathered.problems,
    )


def _arrays(view: View, query: str, *parameters: Any) -> dict[str, np.ndarray]:
    table = view.arrow(query, *parameters)
    return {name: table[name].to_numpy() for name in table.column_names}


def unit_column(view: View, asked: StatAsked) -> UnitColumn:
    """A statistic of all units, by place.

    Errors: `Refusal` where the run has no such statistic, or not at this site.
    """
    indexed(view)
    stats, sites = stat_names(view), measured_words(view, "site")
    if asked.stat not in stats or asked.site not in ("", *sites):
        what = f"statistic {asked.stat[:80]}" + (f" at {asked.site}" if asked.site else "")
        raise NotFound(what, why="this run has no such column", instead="choose one of the list of columns")
    if asked.site:
        values = np.full(units_of(view), np.nan, np.float32)
        found = _arrays(
            view, "SELECT place, value FROM mt_measured WHERE stat = ? AND site = ? AND isfinite(value)",
            stats.index(asked.stat) + 1, sites.index(asked.site) + 1,
        )  # fmt: skip
        values[found["place"]] = found["value"]
    else:
        values = stat_column(view, stats.index(asked.stat)).astype(np.float32)
    there = values[np.isfinite(values)]
    return UnitColumn(
        column=column(asked.stat), site=asked.site, count=len(values), least=float(there.min()) if len(there) else None,
        most=float(there.max()) if len(there) else None, values=packed(values), problems=Gathered(view, "unit_stats", "units").problems,
    )  # fmt: skip


def label_column(view: View, kind: str) -> LabelColumn:
    """The label of a kind that is surest (least q, then largest value) of each unit, by place; the commonest have codes of their own.

    Errors: `Refusal` where no unit has a label of this kind.
    """
    return view.once(("label column", kind), lambda v: _label_column(v, kind))


def _label_column(view: View, kind: str) -> LabelColumn:
    indexed(view)
    rows = view.sql("SELECT code, text FROM mt_label_texts WHERE kind = ? ORDER BY code", kind)
    if not rows:
        raise NotFound(f"label {kind[:80]}", why="no unit has a label of that kind", instead="choose one of the list of kinds")
    best = _arrays(
        view,
        "SELECT place, arg_min(code, (coalesce(q, 2), -coalesce(value, 0), code)) AS code FROM mt_labels WHERE code BETWEEN ? AND ? GROUP BY 1",
        rows[0][0],
        rows[-1][0],
    )
    numbers, times = np.unique(best["code"], return_counts=True)
    order = np.lexsort((numbers, -times))
    own, rest = order[:CATEGORIES], order[CATEGORIES:]
    categories = np.full(rows[-1][0] - rows[0][0] + 1, len(own), np.int8)
    categories[numbers[own] - rows[0][0]] = np.arange(len(own))
    codes = np.full(units_of(view), -1, np.int8)
    codes[best["place"]] = categories[best["code"] - rows[0][0]]
    texts = dict(rows)
    return LabelColumn(
        kind=kind, count=len(codes), texts=[texts[n] for n in numbers[own].tolist()] + [OTHER] * bool(len(rest)),
        units=times[own].tolist() + [int(times[rest].sum())] * bool(len(rest)), codes=packed(codes, "i1"),
        problems=Gathered(view, "unit_labels", "explanations").problems,
    )  # fmt: skip
