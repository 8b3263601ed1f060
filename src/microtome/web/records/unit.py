"""What the page is told of one unit, and of units that have to do with it."""

from pydantic import BaseModel

from microtome.web.records.findings import Finding
from microtome.web.records.texts import Context
from microtome.web.records.values import Number, Problem

__all__ = ["Histogram", "Link", "Stat", "Token", "UnitLabel", "UnitPage"]


class Stat(BaseModel):
    """A statistic of a unit beside its control."""

    stat: str
    label: str
    meaning: str
    site: str
    value: Number
    control: Number
    control_kind: str | None
    lo: Number
    hi: Number
    q: Number


class Token(BaseModel):
    """A token that a unit promotes or suppresses."""

    token: int
    text: str
    score: Number
    control: Number


class Link(BaseModel):
    """A unit that has to do with another."""

    other: str
    kind: str
    score: Number
    control: Number


class UnitLabel(BaseModel):
    """What a unit can be called, by a test that it passed; `end` is that of its contexts, empty for labels of the whole unit."""

    end: str
    kind: str
    text: str
    value: Number
    control: Number
    control_kind: str | None
    q: Number


class Histogram(BaseModel):
    """How often a unit is how active at a site: below `low`, in bins of one width from `low` to `high`, and above `high`."""

    site: str
    low: float
    high: float
    counts: list[int]


class UnitPage(BaseModel):
    """Everything that a run has about a unit."""

    run: str
    unit: str
    basis: str
    name: str | None
    layer: int | None
    expert: int | None
    index: int
    place: int
    of: int
    previous: str | None
    next: str | None
    stats: list[Stat]
    histograms: list[Histogram]
    promotes: list[Token]
    suppresses: list[Token]
    contexts: list[Context]
    links: list[Link]
    labels: list[UnitLabel]
    findings: list[Finding]
    problems: list[Problem]
