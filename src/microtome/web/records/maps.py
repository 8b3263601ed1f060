"""What the page is told of all units at once: their places on maps, and columns to colour them by."""

from pydantic import BaseModel

from microtome.web.records.values import Column, Number, Packed, Problem

__all__ = ["ColumnSites", "Kept", "LabelColumn", "LabelKind", "Layout", "MapPage", "Maps", "UnitColumn"]


class Kept(BaseModel):
    """How far a map keeps neighbourhoods (1 is all), beside what `control_kind` names."""

    stat: str
    value: Number
    control: Number
    control_kind: str | None


class Layout(BaseModel):
    """A map of the units of a basis: `layout` is what to ask for."""

    layout: str
    basis: str
    name: str | None
    method: str
    units: int
    kept: list[Kept]


class ColumnSites(BaseModel):
    """A statistic that maps can be coloured by, and the sites at which it is measured where a unit has several."""

    column: Column
    sites: list[str]


class LabelKind(BaseModel):
    """A kind of label that maps can be coloured by, and how many units have one."""

    kind: str
    units: int


class Maps(BaseModel):
    """The maps that there are, and what they can be coloured by. `units` is how many entries a column has."""

    units: int
    layouts: list[Layout]
    columns: list[ColumnSites]
    labels: list[LabelKind]
    problems: list[Problem]


class MapPage(BaseModel):
    """A map: `place` (int32) is a unit's place in address order, by which columns are ordered, beside its coordinates."""

    layout: Layout
    count: int
    place: Packed
    x: Packed
    y: Packed
    problems: list[Problem]


class UnitColumn(BaseModel):
    """A statistic of all units by place; NaN where a unit has none. Without a site the largest over its sites."""

    column: Column
    site: str
    count: int
    least: Number
    most: Number
    values: Packed
    problems: list[Problem]


class LabelColumn(BaseModel):
    """The best label of a kind of all units by place: `codes` (int8) are places in `texts`, -1 where a unit has none."""

    kind: str
    count: int
    texts: list[str]
    units: list[int]
    codes: Packed
    problems: list[Problem]
