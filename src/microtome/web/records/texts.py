"""What the page is told of text: contexts of units, and stretches of documents."""

from pydantic import BaseModel

from microtome.web.records.values import Number

__all__ = ["Context", "Document", "Piece"]


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
