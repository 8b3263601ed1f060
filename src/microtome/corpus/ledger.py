"""The list of documents while a corpus is being prepared: what became of each, which half it is in, when to refuse.

Rows of the table `documents` come from here, those of `windows` from `windows`.
"""

import contextlib
import errno
import functools
import hashlib
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import IO, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from microtome.core import Refusal
from microtome.corpus.corpus import BOTH
from microtome.corpus.documents import Document, problem_of, readable
from microtome.corpus.tokenising import Piece, pieces
from microtome.corpus.windows import Tally

__all__ = ["NAMED", "Ledger", "document_rows", "require_usable", "spooled"]

NAMED: Final = 5
"""Unusable documents that a refusal names."""
RANKED: Final = 64
"""Below so many distinct texts the halves are made by rank of hash, which balances them."""
_WAYS: Final = {
    "--encoding": "name the text's encoding with --encoding",
    "--text-column": "name the column of the text with --text-column",
    "--label-column": "name the column of the label with --label-column",
    "not an image": "name images, or a folder of them",
}
"""What to do instead, by the option that the reason of an unusable document names."""
_ROWS: Final = 1024
_CHARACTERS: Final = 1 << 24


@contextlib.contextmanager
def spooled() -> Iterator[IO[bytes]]:
    """A temporary file for a `Ledger`."""
    spool = tempfile.TemporaryFile()  # noqa: SIM115 - closing it must not raise again what a full disk has raised
    try:
        yield spool
    finally:
        with contextlib.suppress(OSError):
            spool.close()


@contextlib.contextmanager
def _spooling() -> Iterator[None]:
    """Say which disk is full: that of temporary files is another than the atlas's."""
    try:
        yield
    except OSError as error:
        folder = tempfile.gettempdir()
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise Refusal(
            "the list of documents",
            why=f"no space is left in {folder}" if full else f"the temporary file in {folder} cannot be written",
            instead="free some space there, or name a larger folder in the environment variable TMPDIR",
        ) from error


def require_usable(source: str, count: int, bad: int, named: Sequence[str], bad_share: float) -> None:
    """Refuse a source of which nothing, or too much, is no text: `bad` of `count` documents, the first of them `named`."""
    if bad < count and (bad <= 1 or bad <= bad_share * count):
        return
    if not count:
        raise Refusal(source, why="there are no documents in it", instead="name a text that is not empty")
    listed = ", ".join(named) + (f" and {bad - len(named)} more" if bad > len(named) else "")
    way = next((way for option, way in _WAYS.items() if option in listed), "name a source of plain text")
    if bad == count:
        raise Refusal(source, why=f"none of its documents is usable: {listed}", instead=way)
    raise Refusal(
        source,
        why=f"{bad} of its {count} documents are unusable, more than {bad_share:.0%}: {listed}",
        instead=f"{way}, remove these documents, or allow more of them with Reading(bad_share=...)",
    )


def document_rows(rows: Sequence[Mapping[str, object]]) -> pa.RecordBatch:
    """Rows of the table `documents` from their columns by name; a column that is not there is null."""
    return pa.RecordBatch.from_pylist([*rows], schema=_WHOLE)


@dataclass(eq=False)
class _Entry:
    number: int
    document: Document
    reason: str | None
    finished: bool


class Ledger:
    """What became of each document, in order. Rows wait in a temporary file until the halves can be decided.

    Halves: a document is in the half that a hash of its text and the seed says, so that copies are in the same half. With fewer
    than `RANKED` distinct texts the hashes are ranked and taken in turn; with fewer than four, every document is in both halves
    and its windows are dealt to them in blocks (see `corpus.Corpus`).
    """

    def __init__(self, source: str, run: str, fewest: int, seed: int, spool: IO[bytes]) -> None:
        self.tally = Tally()
        self._source = source
        self._run = run
        self._fewest = fewest
        self._key = seed.to_bytes(8, "little", signed=True)
        self._waiting: deque[_Entry] = deque()
        self._spool = spool
        self._schema = pa.schema(
            [(field.name, field.type) for field in _SCHEMA] + [("hash", pa.uint64()), ("twin", pa.uint64())]
        )
        self._file = pa.ipc.new_stream(spool, self._schema, options=pa.ipc.IpcWriteOptions(compression="zstd"))
        self._rows: list[dict[str, object]] = []
        self._characters = 0
        self._hashes: set[int] = set()
        self._count = 0
        self._bad = 0
        self._named: list[str] = []

    def pieces(self, stream: Iterator[Document], gap: int) -> Iterator[Piece]:
        """Number the documents, note the unusable ones, and cut the others for the tokenizer."""
        for document in stream:
            number = self.note(document)
            if number is not None:
                yield from pieces(number, document.text, gap)

    def note(self, document: Document) -> int | None:
        """The number of a new document, or None where it is unusable."""
        label = document.label
        document = replace(document, name=readable(document.name), label=None if label is None else readable(label))
        reason = problem_of(document)
        number = self._count
        self._count += 1
        self._waiting.append(_Entry(number, document, reason, reason is not None))
        return number if reason is None else None

    def name_of(self, number: int) -> str:
        """The name of a document that is not finished yet."""
        return next(entry.document.name for entry in self._waiting if entry.number == number)

    def finish(self, ended: set[int]) -> None:
        """Note that all windows of these documents have been cut."""
        for entry in self._waiting:
            entry.finished |= entry.number in ended
        while self._waiting and self._waiting[0].finished:
            self._write(self._waiting.popleft())

    def close(self) -> None:
        """End the list of documents."""
        while self._waiting:
            self._write(self._waiting.popleft())
        self._flush()
        with _spooling():
            self._file.close()
            self._spool.flush()

    def check(self, bad_share: float) -> None:
        """Refuse a source that is unusable as a whole."""
        require_usable(self._source, self._count, self._bad, self._named, bad_share)

    def rows(self) -> Iterator[pa.RecordBatch]:
        """Rows of the table `documents`, halves included; to be called when the list is closed."""
        self._spool.seek(0)
        ranks = {value: rank for rank, value in enumerate(sorted(self._hashes))}
        first = self._first()
        self._spool.seek(0)
        for batch in pa.ipc.open_stream(self._spool):
            hashes, own = batch.column("hash").to_pylist(), batch.column("document").to_numpy()
            made = {
                "half": pa.array([None if value is None else self._half(value, ranks) for value in hashes], pa.string()),
                "same_as": pa.array(first[own], mask=first[own] == own),
            }
            yield pa.RecordBatch.from_arrays(
                [made[name] if name in made else batch.column(name) for name in _WHOLE.names], schema=_WHOLE
            )

    def _first(self) -> NDArray[np.int64]:
        """For each document the first of the same text and label. Memory: 32 bytes a document."""
        twins = [batch.column("twin") for batch in pa.ipc.open_stream(self._spool)]
        twin = pa.chunked_array(twins, pa.uint64())
        first, used = np.arange(len(twin)), np.flatnonzero(twin.is_valid().to_numpy())
        _, begin, which = np.unique(twin.drop_null().to_numpy(), return_index=True, return_inverse=True)
        first[used] = used[begin[which]]
        return first

    def _half(self, value: int, ranks: dict[int, int]) -> str:
        if len(ranks) < 4:
            return BOTH
        return ("discover", "confirm")[(ranks[value] if len(ranks) < RANKED else value) % 2]

    def _write(self, entry: _Entry) -> None:
        windows, tokens = self.tally.take(entry.number)
        reason = entry.reason or (None if windows else f"fewer than {self._fewest} tokens")
        value = twin = None
        if reason is None:
            value = self._hash(entry.document.digest or entry.document.text)
            twin = self._hash(f"{value} {entry.document.label!r}")
            if len(self._hashes) < RANKED:
                self._hashes.add(value)
        else:
            self._bad += 1
            if len(self._named) < NAMED:
                self._named.append(f"{entry.document.name} ({reason})")
        self._rows.append({
            "run": self._run, "document": entry.number, "name": entry.document.name, "label": entry.document.label,
            "tokens": tokens, "windows": windows, "status": "used" if reason is None else "skipped", "reason": reason,
            "text": entry.document.text if reason is None and entry.document.digest is None else None, "hash": value,
            "twin": twin,
        })  # fmt: skip
        self._characters += len(entry.document.text)
        if len(self._rows) >= _ROWS or self._characters >= _CHARACTERS:
            self._flush()

    def _hash(self, content: str) -> int:
        return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8, key=self._key).digest(), "little")

    def _flush(self) -> None:
        if self._rows:
            batch = pa.RecordBatch.from_pylist(self._rows, schema=self._schema)
            with _spooling():
                self._file.write_batch(batch)
        self._rows, self._characters = [], 0


_SCHEMA: Final = pa.schema({
    "run": pa.string(), "document": pa.int64(), "name": pa.string(), "label": pa.string(), "tokens": pa.int64(),
    "windows": pa.int64(), "status": pa.string(), "reason": pa.string(), "text": pa.large_string(),
})  # fmt: skip
_WHOLE: Final = functools.reduce(
    lambda schema, field: schema.insert(schema.get_field_index("tokens"), field),
    (pa.field("half", pa.string()), pa.field("same_as", pa.int64())),
    _SCHEMA,
)
"""With what can be said when all documents are known."""
