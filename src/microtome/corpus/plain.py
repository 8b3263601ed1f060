"""Plain text: files, their compressed forms, folders, standard input.

Tables of texts belong in `tabular`.
"""

import bz2
import codecs
import gzip
import io
import lzma
import os
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final, cast

from microtome.core import Refusal
from microtome.corpus.documents import Document, Reading, Unusable, undecodable

__all__ = ["DAMAGED", "bare_suffix", "files_below", "labels_below", "opened", "standard_input", "text_file"]

PART: Final = 1 << 24
"""Bytes of plain text that make one document at most: longer files come in parts, so that memory does not grow with them."""

DAMAGED: Final = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)
"""What the decompressors raise for damaged files."""

_COMPRESSED: Final = (".gz", ".bz2", ".xz")


def bare_suffix(path: Path) -> str:
    """The suffix that tells the kind of a file, in lower case and without that of its compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def opened(path: Path) -> io.BufferedIOBase:
    """A file's bytes, decompressed where its suffix says .gz, .bz2 or .xz."""
    match path.suffix.lower():
        case ".gz":
            return gzip.open(path, "rb")
        case ".bz2":
            return bz2.open(path, "rb")
        case ".xz":
            return lzma.open(path, "rb")
        case _:
            return path.open("rb")


def text_file(path: Path, name: str, label: str | None, reading: Reading) -> Iterator[Document]:
    """A file as one document, or as numbered parts where it is larger than `PART`."""
    try:
        with opened(path) as stream:
            yield from _documents(stream, name, label, reading)
    except PermissionError:
        yield Document(name, label=label, problem="it may not be read (permission denied)")
    except DAMAGED as error:
        yield Document(name, label=label, problem=f"damaged {path.suffix} file ({error})")


def standard_input(reading: Reading) -> Iterator[Document]:
    """What comes in on standard input, as one document called stdin (or as parts of it)."""
    if sys.stdin is None or sys.stdin.closed:
        raise Refusal("-", why="standard input is closed", instead="pipe a text into it, or name a file")
    stream = sys.stdin.buffer if isinstance(sys.stdin, io.TextIOWrapper) else io.BytesIO(sys.stdin.read().encode())
    yield from _documents(cast(io.BufferedIOBase, stream), "stdin", None, reading)


def _documents(stream: io.BufferedIOBase, name: str, label: str | None, reading: Reading) -> Iterator[Document]:
    parts = enumerate(_parts(stream, reading.encoding), start=1)
    count = 0
    try:
        for count, text in parts:
            yield Document(name if count == 1 else f"{name}#{count}", text, label)
    except Unusable as error:
        yield Document(f"{name}#{count + 1}" if count else name, label=label, problem=str(error))
    else:
        if not count:
            yield Document(name, label=label, problem="empty")


def _parts(stream: io.BufferedIOBase, encoding: str) -> Iterator[str]:
    """The text of a stream in parts of about `PART` bytes that end at a line's end, or else at a space."""
    decoder = codecs.getincrementaldecoder(encoding)()
    rest, first = "", True
    while True:
        raw = _read(stream)
        try:
            text = rest + decoder.decode(raw, final=len(raw) < PART)
        except UnicodeError as error:
            raise Unusable(undecodable(raw, encoding, error)) from error
        if first:
            text, first = text.removeprefix("\ufeff"), False
        if len(raw) < PART:
            if text:
                yield text
            return
        cut = max(text.rfind("\n"), 0) or max(text.rfind(" "), 0) or len(text)
        rest, text = text[cut:], text[:cut]
        yield text


def _read(stream: io.BufferedIOBase) -> bytes:
    """`PART` bytes, or all that are left: pipes return less at a time."""
    pieces, missing = [], PART
    while missing and (piece := stream.read(missing)):
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def files_below(folder: Path) -> list[Path]:
    """Files in a folder and its sub-folders in the order of their paths, hidden ones left out.

    Errors: `Refusal` where there are none, or where a folder may not be read.
    """

    def refuse(error: OSError) -> None:
        raise Refusal(
            str(error.filename), why=f"the folder cannot be read: {error.strerror}", instead="make it readable, or leave it out"
        ) from error

    files: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [path for path in (Path(place, name) for name in names if not name.startswith(".")) if path.is_file()]
    if not files:
        raise Refusal(str(folder), why="there are no files in this folder", instead="name a folder with text files, or a file")
    return sorted(files)


def labels_below(folder: Path, files: list[Path]) -> list[str | None]:
    """The sub-folder of each file where all files lie exactly one level down; no labels otherwise."""
    parts = [path.relative_to(folder).parts for path in files]
    return [part[0] for part in parts] if all(len(part) == 2 for part in parts) else [None] * len(parts)
