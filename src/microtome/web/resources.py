"""All that the page is told, as resources: a row each, with what makes it and what an export has of it.

Units, contexts and tokens are asked for by so many parameters that there can be no file for each answer: only a server answers
these, and an export has what they are made of in shards (`export`). How far a build is (`app`) is told of the files, not of a run.
"""

from typing import Any, Final

from microtome.web import browse, compare_pages, contexts, heads, maps, matching, pictures, related, unit
from microtome.web.compare import compared
from microtome.web.compare_changes import BlockAsked, block_keys, changed_block, changes
from microtome.web.compare_sides import SideAsked, diff_keys, pair_of, pairs, sides
from microtome.web.compare_units import compared_units
from microtome.web.compare_words import compared_words
from microtome.web.geometry import SiteAsked, every_site, geometry
from microtome.web.geometry_heads import geometry_heads
from microtome.web.geometry_site import geometry_site
from microtome.web.overview import overview
from microtome.web.records import (
    ChangedBlock,
    Changes,
    ComparedRuns,
    ComparedUnits,
    ComparedWords,
    Differences,
    Document,
    Finding,
    Geometry,
    GeometryHeads,
    GeometrySite,
    HeadPage,
    Heads,
    LabelColumn,
    Layers,
    MapPage,
    Maps,
    Overview,
    Pairs,
    Picture,
    Related,
    Sides,
    Suggestions,
    Summary,
    UnitColumn,
    UnitPage,
    UnitPlaces,
    Units,
)
from microtome.web.resource import Nothing, Resource, once
from microtome.web.summary import layers, summary

__all__ = ["RESOURCES"]

RESOURCES: Final[tuple[Resource[Any], ...]] = (
    Resource("summary", Nothing, Summary, lambda view, _: summary(view), once),
    Resource("findings", Nothing, list[Finding], lambda view, _: unit.findings(view), once),
    Resource("layers", Nothing, Layers, lambda view, _: layers(view), once),
    Resource("overview", Nothing, Overview, lambda view, _: overview(view), once),
    Resource("geometry", Nothing, Geometry, lambda view, _: geometry(view), once),
    Resource("geometry_site", SiteAsked, GeometrySite, lambda view, asked: geometry_site(view, asked.site), every_site),
    Resource("geometry_heads", Nothing, GeometryHeads, lambda view, _: geometry_heads(view), once),
    Resource("maps", Nothing, Maps, lambda view, _: maps.maps(view), once),
    Resource("map", maps.LayoutAsked, MapPage, lambda view, asked: maps.map_page(view, asked.layout), maps.layout_keys),
    Resource("column", maps.StatAsked, UnitColumn, maps.unit_column, maps.column_keys),
    Resource(
        "label_column", maps.KindAsked, LabelColumn, lambda view, asked: maps.label_column(view, asked.kind), maps.kind_keys
    ),
    Resource("heads", Nothing, Heads, lambda view, _: heads.heads(view), once),
    Resource("head", heads.HeadAsked, HeadPage, lambda view, asked: heads.head(view, asked.unit), heads.known_heads),
    Resource("sides", Nothing, Sides, lambda view, _: sides(view), once),
    Resource("compared", SideAsked, ComparedRuns, lambda view, asked: compared(pair_of(view, asked.side)), pairs),
    Resource("compared_units", SideAsked, ComparedUnits, lambda view, asked: compared_units(pair_of(view, asked.side)), pairs),
    Resource("compared_words", SideAsked, ComparedWords, lambda view, asked: compared_words(pair_of(view, asked.side)), pairs),
    Resource("scatter", compare_pages.StatSideAsked, Pairs, compare_pages.scatter, compare_pages.scatter_keys),
    Resource("differences", compare_pages.DifferencesAsked, Differences, compare_pages.differences),
    Resource("changes", SideAsked, Changes, changes, diff_keys),
    Resource("changed_block", BlockAsked, ChangedBlock, changed_block, block_keys),
    Resource("tokens", browse.Word, Suggestions, lambda view, asked: matching.find_tokens(view, asked.word), "shards"),
    Resource("units", browse.Query, Units, browse.units, "shards"),
    Resource("places", browse.Query, UnitPlaces, browse.places),
    Resource("unit", unit.Address, UnitPage, lambda view, asked: unit.page(view, asked.address), "shards"),
    Resource("related", related.RelatedAsked, Related, lambda view, asked: related.related(view, asked.unit)),
    Resource(
        "picture",
        pictures.PictureAsked,
        Picture,
        lambda view, asked: pictures.picture(view, asked.document),
        pictures.kept_pictures,
        "text",
    ),
    Resource(
        "document",
        contexts.Place,
        Document,
        lambda view, asked: contexts.document(view, asked.document, asked.begin, asked.finish),
        "shards",
    ),
)
