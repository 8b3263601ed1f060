"""What the page is told of hidden states by their parts: over depth, at a site, and in attention."""

from pydantic import BaseModel

from microtome.web.records.values import Matrix, Number, Packed, Problem

__all__ = [
    "Alignment", "Block", "ContextMap", "CosineRow", "Cosines", "Geometry", "GeometryHeads", "GeometrySite", "GeometryStat", "Position", "Positions", "Series",
    "SiteTables", "Spectrum",
]  # fmt: skip


class SiteTables(BaseModel):
    """A site, and which tables of geometry have rows of it."""

    site: str
    layer: int | None
    tables: list[str]


class GeometryStat(BaseModel):
    """A measure of a part at a site beside its control, 95 % of whose draws lie between control_lo and control_hi."""

    subject: str
    stat: str
    label: str
    meaning: str
    headline: bool
    value: Number
    control: Number
    control_kind: str | None
    control_lo: Number
    control_hi: Number
    lo: Number
    hi: Number
    q: Number
    undefined: str | None


class Series(BaseModel):
    """A measure over depth: a number for each of the page's sites in order; empty where none of them has one."""

    subject: str
    stat: str
    label: str
    meaning: str
    headline: bool
    control_kind: str | None
    value: list[Number]
    control: list[Number]
    control_lo: list[Number]
    control_hi: list[Number]
    lo: list[Number]
    hi: list[Number]
    q: list[Number]


class Alignment(BaseModel):
    """How alike a part is at two sites: entry n is of the sites `site[n]` and `other[n]`, places in `sites`."""

    subject: str
    stat: str
    control_kind: str | None
    sites: list[str]
    site: list[int]
    other: list[int]
    value: list[Number]
    control: list[Number]
    q: list[Number]


class Geometry(BaseModel):
    """Sites in order of depth, of which `of` there are, and everything that is measured at each of them."""

    of: int
    sites: list[SiteTables]
    series: list[Series]
    alignment: list[Alignment]
    heads: bool
    problems: list[Problem]


class Position(BaseModel):
    """A place in the window: how many windows have it, the length of its position vector, the length of states there, coordinates."""

    position: int
    windows: int
    norm: Number
    state_norm: Number
    x: Number
    y: Number
    z: Number


class Positions(BaseModel):
    """Places of windows, evenly taken of all `of`."""

    of: int
    rows: list[Position]


class Spectrum(BaseModel):
    """Singular values of a part: the value at each rank of `rank`, of all `of`."""

    subject: str
    of: int
    rank: list[int]
    value: list[Number]


class Block(BaseModel):
    """The lowest frequencies of a Gram matrix's two-dimensional cosine transform."""

    subject: str
    matrix: Matrix


class CosineRow(BaseModel):
    """What a row (and column) of the cosines is: a position, or the context part of a window."""

    subject: str
    index: int


class Cosines(BaseModel):
    """Cosines of position vectors and context parts with each other, evenly taken of all `of` rows."""

    of: int
    rows: list[CosineRow]
    matrix: Matrix


class ContextMap(BaseModel):
    """Windows on the map of their context parts, evenly taken of all `of`; documents and labels by their places in a list (-1: none)."""

    of: int
    documents: list[str]
    labels: list[str]
    window: list[int]
    document: list[int]
    label: list[int]
    cluster: list[int | None]
    norm: list[Number]
    x: list[Number]
    y: list[Number]
    trustworthiness: GeometryStat | None


class GeometrySite(BaseModel):
    """Everything about the states of a site; `previous` and `next` are its neighbours in depth."""

    run: str
    site: str
    layer: int | None
    previous: str | None
    next: str | None
    stats: list[GeometryStat]
    positions: Positions
    spectra: list[Spectrum]
    frequencies: list[Block]
    cosines: Cosines | None
    map: ContextMap | None
    problems: list[Problem]


class GeometryHeads(BaseModel):
    """What each part of queries with each part of keys brings to the scores of each head.

    The packed columns hold a number for each head, query part and key part, in this order: energy is the share of the sum of all
    terms' squares, share that of the variance of the scores.
    """

    query_parts: list[str]
    key_parts: list[str]
    layer: list[int]
    head: list[int]
    control_kind: str | None
    energy: Packed
    energy_control: Packed
    share: Packed
    share_control: Packed
    problems: list[Problem]
