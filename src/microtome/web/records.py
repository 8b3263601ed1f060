"""What the page is told: the typed answers of the server, and, written out, the files of a static export.

Numbers that are not finite become null: JSON has no NaN. Making the records belongs in `summary`, `browse` and `unit`.
"""

import math
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator

__all__ = [
    "Absent",
    "BasisCard",
    "Certificate",
    "Check",
    "Column",
    "Context",
    "Document",
    "Fact",
    "Finding",
    "Layers",
    "LayerStat",
    "Link",
    "Loss",
    "Match",
    "Number",
    "Piece",
    "Problem",
    "Progress",
    "Progressed",
    "RunChoice",
    "Section",
    "Share",
    "Stat",
    "Suggestion",
    "Suggestions",
    "Summary",
    "Token",
    "UnitPage",
    "UnitRow",
    "Units",
]


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_finite)]


class Problem(BaseModel):
    """Something that is not as it should be: what, why, and what to do."""

    what: str
    why: str
    instead: str


class Progress(BaseModel):
    """How far a build is."""

    stage: str
    done: int | None = None
    total: int | None = None
    tokens_per_second: Number = None
    eta_seconds: Number = None


class Progressed(BaseModel):
    """What a waiting page asks for: the state of the files, how many are known to be damaged, and how far a build is."""

    signature: str
    damaged: int
    progress: Progress | None


class Fact(BaseModel):
    """A named value of the model card; `mono` where it is an identifier."""

    name: str
    value: str
    mono: bool = False


class Section(BaseModel):
    """A titled list of facts."""

    title: str
    note: str = ""
    facts: list[Fact]


class Check(BaseModel):
    """An identity that was checked: its relative error beside the tolerance."""

    identity: str
    place: str
    error: Number
    tolerance: Number
    passed: bool | None


class Certificate(BaseModel):
    """Identities checked on the model at load."""

    checks: list[Check]
    facts: list[Fact]


class Column(BaseModel):
    """A statistic: its name in the table, a label, and what it says."""

    name: str
    label: str
    meaning: str


class BasisCard(BaseModel):
    """A basis of the atlas: how many units, in which layers, with which statistics."""

    basis: str
    label: str
    units: int
    layers: list[int]
    columns: list[Column]


class Absent(BaseModel):
    """What the run did not compute, and why."""

    what: str
    why: str


class RunChoice(BaseModel):
    """A run of the atlas: the name of its text (none: the weights alone), and whether it is complete."""

    name: str
    text: str | None
    complete: bool


class Summary(BaseModel):
    """The first thing the page asks for. Everything but `name`, `runs` and `damaged` is of the run `run`."""

    signature: str
    name: str
    run: str
    runs: list[RunChoice]
    damaged: int
    complete: bool
    sections: list[Section]
    certificate: Certificate | None
    skipped: list[Fact]
    bases: list[BasisCard]
    tables: dict[str, int]
    absent: list[Absent]
    problems: list[Problem]


class Finding(BaseModel):
    """A result that survives its control."""

    lens: str
    rank: int
    kind: str
    subject: str
    unit: str | None
    sentence: str
    value: Number
    control: Number
    control_kind: str | None
    q: Number


class Share(BaseModel):
    """The share of a part of hidden states at a site."""

    site: str
    layer: int | None
    part: str
    share: Number
    control: Number
    control_kind: str | None
    lo: Number
    hi: Number
    norm: Number


class Loss(BaseModel):
    """Loss read at a site through the model's own head."""

    objective: str
    site: str | None
    layer: int | None
    loss: Number
    control: Number
    control_kind: str | None
    lo: Number
    hi: Number
    tokens: int | None


class LayerStat(BaseModel):
    """Quartiles of a statistic over the units of a layer."""

    basis: str
    stat: str
    layer: int | None
    low: Number
    middle: Number
    high: Number
    units: int


class Layers(BaseModel):
    """All that the page plots by layer."""

    shares: list[Share]
    losses: list[Loss]
    stats: list[LayerStat]


class Match(BaseModel):
    """Where a searched token occurs at a unit: best rank among the tokens it writes, and how many of its top contexts."""

    promotes: int | None
    suppresses: int | None
    fires: int | None
    of: int | None


class UnitRow(BaseModel):
    """A line of the unit browser."""

    unit: str
    layer: int | None
    promotes: list[str]
    fires: list[str]
    values: list[Number]
    match: Match | None = None


class Suggestion(BaseModel):
    """A token near to what was typed."""

    token: int
    text: str


class Suggestions(BaseModel):
    """What a typed word is in this vocabulary: tokens equal to it but for spaces and case, and tokens that contain it."""

    tokens: list[Suggestion]
    near: list[Suggestion]


class Units(BaseModel):
    """A page of the unit browser."""

    total: int
    offset: int
    columns: list[Column]
    rows: list[UnitRow]
    search: Suggestions | None = None


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


class Piece(BaseModel):
    """Part of a document's text."""

    text: str
    hit: bool


class Context(BaseModel):
    """A token at which a unit is extreme or typical, and its surroundings: `pieces[j]` has activation `codes[j]` * scale."""

    end: str
    half: str | None
    rank: int
    site: str | None
    value: Number
    scale: Number
    window: int
    position: int
    centre: int
    pieces: list[str]
    codes: list[int]
    document: int | None
    name: str | None
    label: str | None
    begin: int | None
    finish: int | None


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
    promotes: list[Token]
    suppresses: list[Token]
    contexts: list[Context]
    links: list[Link]
    labels: list[UnitLabel]
    findings: list[Finding]
    problems: list[Problem]


class Document(BaseModel):
    """A stretch of a document around a place, in characters."""

    run: str
    document: int
    name: str | None
    label: str | None
    half: str | None
    tokens: int | None
    length: int
    begin: int
    finish: int
    text: list[Piece]
