"""What readers yield and how they are told to read: a document with its text or with the reason why it has none.

Where documents come from belongs in the readers (`plain`, `tabular`, `hub`), what becomes of them in `preparation`.
"""

from dataclasses import dataclass
from typing import Final

from microtome.core import Refusal

__all__ = [
    "EMPTY",
    "TEXT_COLUMNS",
    "Document",
    "Reading",
    "Unusable",
    "choose_column",
    "choose_label",
    "decoded",
    "problem_of",
    "readable",
    "undecodable",
]

TEXT_COLUMNS: Final = ("text", "content", "sentence", "document", "body", "review", "article", "passage")
"""Names under which the text of a table is looked for, in this order, where the caller names none."""

EMPTY: Final = "empty"
"""The problem of a document without text."""


@dataclass(frozen=True)
class Document:
    """One text of a corpus. `problem` says why there is none; then `text` is empty.

    `digest` stands for the contents of a document that is no text (an image).
    """

    name: str
    text: str = ""
    label: str | None = None
    problem: str | None = None
    digest: str | None = None


@dataclass(frozen=True)
class Reading:
    """How a source is read: the encoding of its bytes, the columns of text and label in tables.

    `bad_share` is the share of documents that may be unusable before the corpus is refused.
    """

    encoding: str = "utf-8"
    text_column: str | None = None
    label_column: str | None = None
    bad_share: float = 0.05

    def __post_init__(self) -> None:
        try:
            "".encode(self.encoding)
        except LookupError as error:
            raise Refusal(
                f"encoding {self.encoding!r}",
                why="Python knows no encoding of this name",
                instead="use for example utf-8 or latin-1",
            ) from error
        if not 0 <= self.bad_share <= 1:
            raise Refusal(f"bad_share {self.bad_share}", why="it is a share of documents", instead="use a number from 0 to 1")


class Unusable(Exception):
    """Inside a reader: this document cannot be used, and why. Becomes `Document.problem`; users never see it."""


def decoded(raw: bytes, encoding: str) -> str:
    """The text of `raw`, without a byte order mark.

    Errors: `Unusable` where the bytes are no text of this encoding.
    """
    try:
        text = raw.decode(encoding)
    except UnicodeError as error:
        raise Unusable(undecodable(raw, encoding, error)) from error
    return text.removeprefix("\ufeff")


def undecodable(raw: bytes, encoding: str, error: UnicodeError) -> str:
    """Why bytes are no text: binary, another Unicode encoding, or the first byte that does not fit."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return f"not {encoding}: it begins like UTF-16 (--encoding utf-16)"
    if b"\0" in raw:
        return "binary (it contains NUL bytes)"
    place = f"byte 0x{raw[error.start]:02x} at {error.start}" if isinstance(error, UnicodeDecodeError) else str(error)
    return f"not valid {encoding} ({place}; --encoding names another)"


def readable(name: str) -> str:
    """A name as text that can be written: file names may hold bytes that are no text, and become question marks."""
    return name.encode(errors="replace").decode()


def problem_of(document: Document) -> str | None:
    """Why a document that has been read cannot be tokenised, or None."""
    if document.problem is not None or document.digest is not None:
        return document.problem
    if not document.text or document.text.isspace():
        return EMPTY
    if "\0" in document.text:
        return "binary (it contains NUL bytes)"
    try:
        document.text.encode()
    except UnicodeEncodeError:
        return "not valid Unicode (it contains half of a surrogate pair)"
    return None


def choose_column(columns: list[str], wanted: str | None, where: str) -> str:
    """The column that holds the text: the one asked for, the first of `TEXT_COLUMNS`, or the only one there is.

    Errors: `Refusal` naming the columns.
    """
    if wanted is not None:
        if wanted in columns:
            return wanted
        raise Refusal(
            where,
            why=f"it has no column {wanted!r}; its columns are {', '.join(columns)}",
            instead="name one of them with --text-column",
        )
    lower = {column.lower(): column for column in reversed(columns)}
    for guess in TEXT_COLUMNS:
        if guess in lower:
            return lower[guess]
    if len(columns) == 1:
        return columns[0]
    raise Refusal(
        where,
        why=f"none of its columns is known to hold text; they are {', '.join(columns) or 'none'}",
        instead="name the column of the text with --text-column",
    )


def choose_label(columns: list[str], wanted: str | None, where: str) -> str | None:
    """The column that holds the label: the one asked for, or `label` where there is one.

    Errors: `Refusal` naming the columns.
    """
    if wanted is None:
        return next((column for column in columns if column.lower() == "label"), None)
    if wanted in columns:
        return wanted
    raise Refusal(
        where,
        why=f"it has no column {wanted!r}; its columns are {', '.join(columns)}",
        instead="name one of them with --label-column",
    )
