"""What the page is told of many units: a page of the unit browser, tokens near to what was typed."""

from pydantic import BaseModel

from microtome.web.records.values import Column, Number

__all__ = ["Match", "Pattern", "Suggestion", "Suggestions", "UnitRow", "Units"]


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


class Pattern(BaseModel):
    """What a regular expression is found in: how many tokens of the vocabulary, and the first of them."""

    tokens: int
    some: list[Suggestion]


class Units(BaseModel):
    """A page of the unit browser."""

    total: int
    offset: int
    columns: list[Column]
    rows: list[UnitRow]
    search: Suggestions | None = None
    pattern: Pattern | None = None
