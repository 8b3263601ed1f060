"""Contexts of units with their text, and documents around a place.

Contexts are rows of numbers; their words come from the windows' tokens and the vocabulary, and from the document only where
a token is a part of a character. What else is known of a unit is in `unit`.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Final

from pydantic import BaseModel, Field

from microtome.core import NotFound
from microtome.examples import NO_TOKEN
from microtome.web.index import spelt_token, vocabulary
from microtome.web.pictures import patch_grid, patches_of, spelt_patches
from microtome.web.reader import View
from microtome.web.records import Context, Document, Piece
from microtome.web.windows import Window, windows

__all__ = ["SALIENCY", "Place", "context_rows", "contexts", "document", "owed", "spelt"]

STRETCH: Final = 3000
MOST: Final = 100_000
SALIENCY: Final = "saliency"
"""The end of a context that is coloured by what the code at its token is owed to."""
_BROKEN: Final = re.compile(r"\ufffd|\\x[0-9a-f]{2}|<0x[0-9A-Fa-f]{2}>")
"""How the table `vocabulary` spells bytes that are not a whole character."""

_Rows = list[tuple[Any, ...]]


class Place(BaseModel):
    """A place in a document, in characters."""

    document: Annotated[int, Field(ge=0, le=1 << 40)]
    begin: Annotated[int, Field(ge=0, le=1 << 31)] = 0
    finish: Annotated[int, Field(ge=0, le=1 << 31)] = 0


def context_rows(view: View, units: Sequence[str]) -> dict[str, _Rows]:
    """Rows (end, half, rank, site, value, scale, window, position, first, codes) of each unit, in order."""
    rows = view.sql(
        'SELECT unit::VARCHAR, "end"::VARCHAR, half::VARCHAR, rank, site::VARCHAR, value, scale, "window", position, '
        "first, activations FROM contexts WHERE unit IN (SELECT unnest(?::VARCHAR[])) ORDER BY 1, 2, 4, 3",
        list(units),
    )
    found: dict[str, _Rows] = {}
    for unit, *row in rows:
        found.setdefault(unit, []).append(tuple(row))
    return found


def contexts(view: View, unit: str) -> list[Context]:
    """Contexts of a unit at all its sites with the tokens around them spelt out; order: end, rank; then those that are coloured by what the code is owed to."""
    rows = [*context_rows(view, [unit]).get(unit, []), *owed(view, [unit]).get(unit, [])]
    there = windows(view, {row[6] for row in rows})
    return [_context(view, row, there.get(row[6])) for row in rows]


def owed(view: View, units: Sequence[str]) -> dict[str, _Rows]:
    """What units' codes at a token are owed to, as contexts whose activations are weights; tokens that were not taken away have 0."""
    rows = view.sql(
        'SELECT unit::VARCHAR, site::VARCHAR, half::VARCHAR, "window", position, tokens, weights, whole FROM saliencies '
        "WHERE unit IN (SELECT unnest(?::VARCHAR[])) ORDER BY 1, 2, 4, 5",
        list(units),
    )
    found: dict[str, _Rows] = {}
    for unit, site, half, window, position, tokens, weights, whole in rows:
        scale = max((abs(weight) for weight in weights), default=0.0) / 127 or 1.0
        first, last = min([position, *tokens]), max([position, *tokens])
        codes = [0] * (last + 1 - first)
        for token, weight in zip(tokens, weights, strict=True):
            codes[token - first] = round(weight / scale)
        own = found.setdefault(unit, [])
        own.append((SALIENCY, half, len(own), site, whole, scale, window, position, first, codes))
    return found


def _context(view: View, row: tuple[Any, ...], window: Window | None) -> Context:
    end, half, rank, site, value, scale, number, position, first, activations = row
    codes = [(first + j, code) for j, code in enumerate(activations) if code != NO_TOKEN]
    if window is not None:
        codes = [(place, code) for place, code in codes if place < len(window.ids)]
    covered = [place for place, _ in codes]
    return Context(
        end=end, half=half, rank=rank, site=site, value=value, scale=scale, window=number, position=position,
        centre=covered.index(position) if position in covered else 0,
        pieces=spelt(view, window, covered) if window else ["?"] * len(codes),
        codes=[code for _, code in codes],
        document=window.document if window else None,
        name=window.name if window else None,
        label=window.label if window else None,
        begin=window.begin(covered) if window else None,
        finish=window.finish(covered) if window else None,
        patches=patches_of([window.ids[place] for place in covered]) if window and patch_grid(view) else None,
    )  # fmt: skip


def spelt(view: View, window: Window, places: Sequence[int]) -> list[str]:
    """Texts of the tokens at `places`: from the vocabulary, and from the document where bytes of one character are split; of an image what its patches are called."""
    grid = patch_grid(view)
    if grid is not None:
        return spelt_patches(grid, window.ids, places)
    texts = vocabulary(view)
    pieces = []
    for place in places:
        piece = spelt_token(texts, window.ids[place])
        gap = place > 0 and window.starts[place] > window.ends[place - 1] >= 0
        if piece.startswith("##") and len(piece) > 2:
            piece = piece[2:]
        elif gap and piece[:1].strip():
            piece = " " + piece
        pieces.append(piece)
    if any(_BROKEN.search(piece) for piece in pieces):
        _mend(view, window, places, pieces)
    return pieces


def _mend(view: View, window: Window, places: Sequence[int], pieces: list[str]) -> None:
    """Take broken pieces from the document: the first token of a split character shows it, the others show nothing."""
    begin, finish = window.begin(places), window.finish(places)
    if begin is None or finish is None:
        return
    rows = view.sql(
        "SELECT substring(text, ?, ?) FROM documents WHERE document = ?", begin + 1, finish - begin, window.document
    )
    text = rows[0][0] if rows else None
    if text is None:
        return
    shown = begin
    for j, place in enumerate(places):
        start, end = window.starts[place], window.ends[place]
        if start < 0:
            continue
        if _BROKEN.search(pieces[j]):
            pieces[j] = text[max(start, shown) - begin : max(end, shown) - begin]
        shown = max(shown, end)


def document(view: View, number: int, begin: int, finish: int) -> Document:
    """A document's text around the characters `begin` to `finish`, a hundred thousand of them at most.

    Errors: `NotFound` where the run has no such document or its text was not kept.
    """
    finish = min(finish, begin + MOST)
    left, right = max(0, begin - STRETCH), max(begin, finish) + STRETCH
    rows = view.sql(
        "SELECT name, label, half::VARCHAR, tokens, length(text), substring(text, ?, ?) FROM documents WHERE document = ?",
        left + 1, right - left, number,
    )  # fmt: skip
    if not rows or rows[0][5] is None:
        image = bool(rows) and patch_grid(view) is not None
        raise NotFound(
            f"document {number} of run {view.run[:40]}",
            why="it is an image" if image else "its text is not in this atlas",
            instead=f"ask for the picture of document {number}" if image else "open another context, or build again",
        )
    name, label, half, tokens, length, text = rows[0]
    cuts = [0, min(max(begin - left, 0), len(text)), min(max(finish - left, 0), len(text)), len(text)]
    return Document(
        run=view.run, document=number, name=name, label=label, half=half, tokens=tokens, length=length, begin=left,
        finish=left + len(text),
        text=[Piece(text=text[a:b], hit=n == 1) for n, (a, b) in enumerate(zip(cuts, cuts[1:], strict=False)) if b > a],
    )  # fmt: skip
