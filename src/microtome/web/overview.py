"""The model as a stack of layers: how a block is put together, what this run knows where, what units can be called.

Shares, losses and quartiles by layer are in `summary.layers`.
"""

from typing import Final

from microtome.web.browse import bases
from microtome.web.depth import by_depth, layer_of
from microtome.web.gathered import Gathered
from microtome.web.index import indexed
from microtome.web.reader import View
from microtome.web.records import LayerLabels, LayerUnits, ModelShape, Overview, SiteAt
from microtome.web.words import basis_label

__all__ = ["overview"]

CLASSES: Final = 30
"""Labels of a kind with at most as many texts are counted text by text."""
_SITES: Final = {
    "geometry_shares": "SELECT DISTINCT site::VARCHAR FROM geometry_shares",
    "layer_loss": "SELECT DISTINCT site::VARCHAR FROM layer_loss WHERE site IS NOT NULL",
    "unit_stats": "SELECT DISTINCT site::VARCHAR FROM unit_stats WHERE site != ''",
    "dictionaries": "SELECT DISTINCT unnest(reads) FROM dictionaries",
}
"""Where the sites of a table are."""


def overview(view: View) -> Overview:
    """The stack of layers; a table that cannot be read is named and left out."""
    return view.once("overview", _overview)


def _overview(view: View) -> Overview:
    indexed(view)
    gathered = Gathered(view, *_SITES, "units", "unit_labels", "explanations")
    model = view.manifest.model if view.manifest else None
    shape = {key: value for key, value in (model.shape if model else {}).items() if key in ModelShape.model_fields}
    tables: dict[str, list[str]] = {}
    for table, query in _SITES.items():
        for (site,) in gathered.rows(table, query):
            tables.setdefault(site, []).append(table)
    return Overview(
        name=model.name if model else "",
        family=model.family if model else "",
        architecture=model.architecture if model else "",
        shape=ModelShape.model_validate(shape),
        sites=[SiteAt(site=site, layer=layer_of(site), tables=tables[site]) for site in sorted(tables, key=by_depth)],
        units=_units(view),
        labels=_labels(view),
        problems=gathered.problems,
    )


def _units(view: View) -> list[LayerUnits]:
    order = {card.basis: n for n, card in enumerate(bases(view))}
    rows = view.sql(
        "SELECT layer, basis, count(*), count(l.place) FROM mt_rows r LEFT JOIN (SELECT DISTINCT place FROM mt_labels) l USING (place) GROUP BY 1, 2"
    )
    found = [LayerUnits(layer=layer, basis=basis, label=basis_label(basis), units=n, labelled=m) for layer, basis, n, m in rows]
    return sorted(found, key=lambda each: (-1 if each.layer is None else each.layer, order[each.basis]))


def _labels(view: View) -> list[LayerLabels]:
    """Units by kind of label; by text too where a kind has few."""
    rows = view.sql(
        "WITH few AS (SELECT kind FROM mt_label_texts GROUP BY 1 HAVING count(*) <= ?), "
        "told AS (SELECT r.layer, r.basis, t.kind, t.text, l.place FROM mt_labels l JOIN mt_label_texts t USING (code) JOIN mt_rows r USING (place)) "
        "SELECT layer, basis, kind, NULL AS text, count(DISTINCT place) FROM told GROUP BY ALL UNION ALL "
        "SELECT layer, basis, kind, text, count(*) FROM told SEMI JOIN few USING (kind) GROUP BY ALL "
        "ORDER BY 1 NULLS FIRST, 2, 3, 4 NULLS FIRST",
        CLASSES,
    )
    return [LayerLabels(**dict(zip(LayerLabels.model_fields, row, strict=True))) for row in rows]
