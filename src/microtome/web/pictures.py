"""Pictures of a run over images: what the model saw of a document, and how its patches are called.

Which patches a context covers is said in `contexts`; how pictures are made, in `corpus.pictures`.
"""

import base64
import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Final

from pydantic import BaseModel, Field

from microtome.core import NotFound, Refusal
from microtome.web.reader import View
from microtome.web.records import PatchGrid, Picture

__all__ = ["PictureAsked", "kept_pictures", "patch_grid", "patches_of", "picture", "spelt_patches"]

_ALONE: Final = "class token"
_OTHERS: Final = "special token"


class PictureAsked(BaseModel):
    """A document that is an image."""

    document: Annotated[int, Field(ge=0, le=1 << 40)]


def patch_grid(view: View) -> PatchGrid | None:
    """Rows and columns of patches in the pictures that this model reads; None where it reads text.

    The table `pictures` tells. Where there is none, the shape of the model, if that fits the windows; else a square, or one row.
    """
    return view.once("patch grid", _patch_grid)


def _patch_grid(view: View) -> PatchGrid | None:
    patches = view.manifest.model.shape.get("patches") if view.manifest else None
    if not patches:
        return None
    rows, columns = patches["rows"], patches["columns"]
    try:
        told = view.sql('SELECT "rows", "columns" FROM pictures LIMIT 1')
        count = None if told else view.sql("SELECT tokens FROM documents WHERE windows = 1 LIMIT 1")
    except Refusal:  # a damaged table is named where it is read
        told, count = [], []
    if told:
        rows, columns = told[0]
    elif count and count[0][0] != rows * columns:
        side = math.isqrt(count[0][0])
        rows, columns = (side, side) if side * side == count[0][0] else (1, count[0][0])
    return PatchGrid(rows=rows, columns=columns)


def patches_of(ids: Sequence[int]) -> list[int | None]:
    """The numbers of patches, row by row; None for the special tokens ahead of them."""
    return [token if token >= 0 else None for token in ids]


def spelt_patches(grid: PatchGrid, ids: Sequence[int], places: Sequence[int]) -> list[str]:
    """What the tokens at `places` of an image are called.

    >>> spelt_patches(PatchGrid(rows=2, columns=4), [-1, 0, 6], [0, 2])
    ['class token', 'row 2, column 3']
    """
    return [_called(grid, ids[place], place) for place in places]


def _called(grid: PatchGrid, token: int, place: int) -> str:
    if token < 0:
        return _OTHERS if place else _ALONE
    return f"row {token // grid.columns + 1}, column {token % grid.columns + 1}"


def picture(view: View, document: int) -> Picture:
    """What the model saw of a document.

    Errors: `Refusal` where the atlas has no picture of it.
    """
    rows = view.sql(
        'SELECT d.name, p."rows", p."columns", p.width, p.height, p.jpeg FROM pictures p LEFT JOIN documents d USING (document) '
        "WHERE p.document = ?",
        document,
    )
    if not rows:
        raise NotFound(
            f"picture of document {document}",
            why=f"run {view.run[:40]} of this atlas has none: {_why(view)}",
            instead="choose another document" if _has(view) else "build it again into a new folder to see pictures",
        )
    name, count, columns, width, height, jpeg = rows[0]
    return Picture(
        document=document, name=name, rows=count, columns=columns, width=width, height=height,
        jpeg=base64.b64encode(jpeg).decode(),
    )  # fmt: skip


def _has(view: View) -> bool:
    return patch_grid(view) is None or bool(view.sql("SELECT 1 FROM pictures LIMIT 1"))


def _why(view: View) -> str:
    if patch_grid(view) is None:
        return "its model reads text"
    return "there is no such document, or it was skipped" if _has(view) else "an earlier microtome built it"


def kept_pictures(view: View) -> Iterator[PictureAsked]:
    """The documents that contexts are in, as far as there are pictures of them."""
    rows = view.sql(
        'SELECT DISTINCT w.document FROM windows w JOIN pictures p USING (document) WHERE w."window" IN '
        '(SELECT "window" FROM contexts UNION SELECT "window" FROM saliencies) ORDER BY 1'
    )
    return (PictureAsked(document=document) for (document,) in rows)
