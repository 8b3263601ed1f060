"""What the page is told of many units: a page of the unit browser, tokens near to what was typed."""

from pydantic import BaseModel

from microtome.web.records.values import Column, Number, Packed

__all__ = ["Match", "Meaning", "Pattern", "Phrase", "Suggestion", "Suggestions", "UnitPlaces", "UnitRow", "Units"]


class Match(BaseModel):
    """How a unit has to do with what is searched: best rank of the token among those it writes, and how many of its `of` top contexts are at it.

    `phrase` is how many of them are inside the phrase; `reads` and `writes` are cosines of the meaning of its contexts, and of the tokens it
    promotes, with what is searched.
    """

    promotes: int | None
    suppresses: int | None
    fires: int | None
    of: int | None
    phrase: int | None = None
    reads: Number = None
    writes: Number = None


class UnitRow(BaseModel):
    """A line of the unit browser; `control` is that of the statistic it is sorted by."""

    unit: str
    layer: int | None
    promotes: list[str]
    fires: list[str]
    values: list[Number]
    control: Number = None
    match: Match | None = None


class Suggestion(BaseModel):
    """A token near to what was typed."""

    token: int
    text: str


class Suggestions(BaseModel):
    """What a typed word is in this vocabulary: tokens equal to it but for spaces and case, and tokens that contain it."""

    tokens: list[Suggestion]
    near: list[Suggestion]


class Pattern(BaseModel):
    """What a regular expression is found in: how many tokens of the vocabulary, and the first of them."""

    tokens: int
    some: list[Suggestion]


class Phrase(BaseModel):
    """A phrase, in how many places the run's text has it, and whether no more were looked for."""

    text: str
    places: int
    cut: bool


class Meaning(BaseModel):
    """What is searched by meaning: its words that are tokens and those that are not, and the tokens nearest to it.

    `controls` are the cosines that one in a hundred reaches by chance, of the contexts that units fire on and the tokens that they promote.
    """

    words: list[str]
    unknown: list[str]
    near: list[Suggestion]
    controls: dict[str, Number]


class Units(BaseModel):
    """A page of the unit browser."""

    total: int
    offset: int
    columns: list[Column]
    rows: list[UnitRow]
    search: Suggestions | None = None
    pattern: Pattern | None = None
    phrase: Phrase | None = None
    meaning: Meaning | None = None


class UnitPlaces(BaseModel):
    """The places of units, in address order: whole numbers of 32 bits."""

    total: int
    places: Packed
