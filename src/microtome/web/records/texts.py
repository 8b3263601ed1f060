"""What the page is told of what was read: contexts of units, stretches of documents, pictures."""

from typing import Annotated

from pydantic import BaseModel, Field

from microtome.web.records.values import Number

__all__ = ["Context", "Document", "PatchGrid", "Picture", "Piece"]


class Piece(BaseModel):
    """Part of a document's text."""

    text: str
    hit: bool


class Context(BaseModel):
    """A token at which a unit is extreme or typical, and its surroundings: `pieces[j]` has activation `codes[j]` * scale.

    Of an image `patches[j]` is the number of the patch, row by row, and null for a special token; of a text `patches` is null.
    """

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
    patches: list[int | None] | None = None


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


class PatchGrid(BaseModel):
    """How many rows and columns of patches tile the pictures that a model reads."""

    rows: int
    columns: int


class Picture(BaseModel):
    """What the model saw of a document that is an image: a JPEG of width x height pixels, which rows x columns patches tile."""

    document: int
    name: str | None
    rows: int
    columns: int
    width: int
    height: int
    jpeg: Annotated[str, Field(description="base64 of a JPEG file")]
