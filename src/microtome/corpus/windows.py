"""Tokens of documents to windows: where to cut, which special tokens and roles, rows of the table `windows`.

What a window is, in short: at most `Cutting.window` tokens of one document, special tokens included, consecutive and without
overlap. Tokenising belongs in `tokenising`, windows that overlap in `joined`; reading windows back in `reading`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from microtome.core import Refusal, Role
from microtome.corpus.tokenising import Tokens, Wrapping

__all__ = ["ROWS", "Cutting", "Tally", "cut", "window_batch", "window_rows", "windows_of"]

ROWS: Final = 1024
"""Windows in a row group: what is read at a time."""

Integers = NDArray[np.int64]


def windows_of(tokens: int) -> str:
    """How windows of so many tokens are called in a message."""
    return f"windows of {tokens} token{'' if tokens == 1 else 's'}"


@dataclass(frozen=True)
class Cutting:
    """How documents are cut. `window` counts all tokens, special ones included.

    A document's last, ragged window is kept where it has `shortest` ordinary tokens. A document that is shorter than that is
    one window, unless it has fewer than `fewest` tokens: then it is unusable.
    """

    window: int = 256
    shortest: int = 32
    fewest: int = 2

    def __post_init__(self) -> None:
        if self.fewest < 2:
            raise Refusal(f"fewest {self.fewest}", why="a document of one token has no context", instead="use 2 or more")
        if self.shortest < 1:
            raise Refusal(
                f"shortest {self.shortest}", why="a window has at least one token", instead="use 1 or more, usually 32"
            )
        if self.window < 4:
            raise Refusal(windows_of(self.window), why="there is no context in them", instead="use 4 or more, usually 256")

    def content(self, wrapping: Wrapping) -> int:
        """Ordinary tokens in a full window.

        Errors: `Refusal` where special tokens leave no room for two.
        """
        room = self.window - len(wrapping.before) - len(wrapping.after)
        if room < 2:
            raise Refusal(
                windows_of(self.window),
                why=f"the tokenizer puts {self.window - room} special tokens into each",
                instead="use longer windows, usually 256",
            )
        if self.fewest > room:
            raise Refusal(
                f"fewest {self.fewest}",
                why=f"windows of {self.window} tokens hold {room} ordinary ones",
                instead=f"use at most {room}, or longer windows",
            )
        return room


@dataclass(frozen=True, eq=False)
class Cut:
    """Windows cut from consecutive stretches: which stretch, where it begins there, how many tokens; `rest` is left over."""

    stretch: Integers
    begin: Integers
    length: Integers
    rest: Integers


def cut(tokens: Integers, done: Integers, closed: NDArray[np.bool_], room: int, cutting: Cutting) -> Cut:
    """Cut stretches of documents into windows of `room` ordinary tokens.

    `tokens` are the lengths of the stretches, `done` the tokens of the same documents that are in windows already, `closed` is
    false for a document that goes on: its rest is not yet a tail.
    """
    full = tokens // room
    rest = tokens - full * room
    only = (full == 0) & (done == 0)
    tail = closed & (rest >= np.where(only, cutting.fewest, min(cutting.shortest, room)))
    count = full + tail
    stretch = np.repeat(np.arange(len(tokens)), count)
    turn = np.arange(len(stretch)) - np.repeat(np.cumsum(count) - count, count)
    begin = turn * room
    length = np.minimum(room, tokens[stretch] - begin)
    return Cut(stretch, begin, length, np.where(closed, 0, rest))


class Tally:
    """Windows and tokens that each document has got so far, by number; documents without any are not in it."""

    def __init__(self) -> None:
        self._counts: dict[int, tuple[int, int]] = {}

    def add(self, document: int, windows: int, tokens: int) -> None:
        """Count `windows` with `tokens` ordinary tokens to a document."""
        before = self._counts.get(document, (0, 0))
        self._counts[document] = before[0] + windows, before[1] + tokens

    def take(self, document: int) -> tuple[int, int]:
        """Windows and tokens of a finished document, which is forgotten."""
        return self._counts.pop(document, (0, 0))


class _Cutter:
    """Cuts a stream of `Tokens`, keeping the uncut rest of the document that is still open."""

    def __init__(self, wrapping: Wrapping, cutting: Cutting, run: str, tally: Tally) -> None:
        self._wrapping = wrapping
        self._cutting = cutting
        self._room = cutting.content(wrapping)
        self._run = run
        self._tally = tally
        self._special = np.array(sorted(wrapping.special), np.int32)
        self._rest: tuple[NDArray[np.int32], ...] = tuple(np.empty(0, np.int32) for _ in range(3))
        self._open: int | None = None
        self._done = 0
        self._windows = 0

    def rows(self, tokens: Tokens) -> pa.RecordBatch:
        """The windows that `tokens` complete."""
        columns = tuple(
            np.concatenate([rest, new])
            for rest, new in zip(self._rest, (tokens.ids, tokens.char_start, tokens.char_end), strict=True)
        )
        documents, lengths, closed = self._stretches(tokens)
        done = np.zeros(len(documents), np.int64)
        if len(documents) and documents[0] == self._open:
            lengths[0] += len(self._rest[0])
            done[0] = self._done
        found = cut(lengths, done, closed, self._room, self._cutting)
        self._keep(documents, done, closed, found, columns)
        origin = np.cumsum(lengths) - lengths
        start = done[found.stretch] + found.begin
        batch = self._batch(documents[found.stretch], start, origin[found.stretch] + found.begin, found.length, columns)
        windows = np.bincount(found.stretch, minlength=len(documents)).tolist()
        ordinary = np.bincount(found.stretch, found.length, minlength=len(documents)).astype(np.int64).tolist()
        for document, count, size in zip(documents.tolist(), windows, ordinary, strict=True):
            self._tally.add(document, count, size)
        return batch

    def _stretches(self, tokens: Tokens) -> tuple[Integers, Integers, NDArray[np.bool_]]:
        """Documents in `tokens`, how many tokens each has there, and whether it ends there."""
        owner = np.array([piece.document for piece in tokens.pieces], np.int64)
        first = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]])
        last = np.r_[first[1:], len(owner)] - 1
        closed = np.array([tokens.pieces[place].last for place in last], bool)
        return owner[first], np.add.reduceat(tokens.counts, first), closed

    def _keep(
        self, documents: Integers, done: Integers, closed: NDArray[np.bool_], found: Cut, columns: tuple[NDArray[np.int32], ...]
    ) -> None:
        if closed[-1]:
            self._open, self._done = None, 0
            self._rest = tuple(column[:0] for column in columns)
            return
        self._open = int(documents[-1])
        self._done = int(done[-1] + found.length[found.stretch == len(documents) - 1].sum())
        left = int(found.rest[-1])
        self._rest = tuple(column[len(column) - left :].copy() for column in columns)

    def _batch(
        self, document: Integers, start: Integers, source: Integers, length: Integers, columns: tuple[NDArray[np.int32], ...]
    ) -> pa.RecordBatch:
        before, after = self._wrapping.before, self._wrapping.after
        total = length + len(before) + len(after)
        ends = np.cumsum(total)
        begins = ends - total
        inside = np.arange(int(length.sum())) - np.repeat(np.cumsum(length) - length, length)
        target = np.repeat(begins + len(before), length) + inside
        origin = np.repeat(source, length) + inside
        size = int(ends[-1]) if len(ends) else 0
        ids, char_start, char_end = (np.full(size, -1, np.int32) for _ in range(3))
        roles = np.full(size, Role.SPECIAL, np.uint8)
        for values, column in zip((ids, char_start, char_end), columns, strict=True):
            values[target] = column[origin]
        roles[target] = np.where(np.isin(ids[target], self._special), Role.SPECIAL, Role.CONTENT)
        for place, token in enumerate(before):
            ids[begins + place] = token
        for place, token in enumerate(after):
            ids[ends - len(after) + place] = token
        if not before:
            roles[begins] = Role.FIRST
        window = np.arange(self._windows, self._windows + len(document))
        self._windows += len(document)
        return window_batch(self._run, window, document, start, ends, [ids, roles, char_start, char_end])


def window_batch(
    run: str, window: Integers, document: Integers, start: Integers, ends: Integers, columns: Sequence[NDArray[np.generic]]
) -> pa.RecordBatch:
    """Rows of the table `windows`: `columns` are ids, roles and first and last characters of all of them, which end at `ends`."""
    offsets = pa.array(np.r_[0, ends], pa.int32())
    kinds = (np.int32, np.uint8, np.int32, np.int32)
    lists = [
        pa.ListArray.from_arrays(offsets, pa.array(values.astype(kind, copy=False)))
        for values, kind in zip(columns, kinds, strict=True)
    ]
    runs = pa.array([run] * len(document), pa.string())
    return pa.RecordBatch.from_arrays(
        [runs, pa.array(window, pa.int64()), pa.array(document, pa.int64()), pa.array(start, pa.int64()), *lists],
        ["run", "window", "document", "start", "ids", "roles", "char_start", "char_end"],
    )


def window_rows(
    stream: Iterable[Tokens], wrapping: Wrapping, cutting: Cutting, run: str, tally: Tally
) -> Iterator[pa.RecordBatch]:
    """Rows of the table `windows`, `ROWS` of them a batch; `tally` learns what each document got before its rows come out.

    Cost: a few copies of the tokens. Memory: one call of the tokenizer and one batch of rows.
    """
    cutter = _Cutter(wrapping, cutting, run, tally)
    held: list[pa.RecordBatch] = []
    for tokens in stream:
        held.append(cutter.rows(tokens))
        if sum(batch.num_rows for batch in held) >= ROWS:
            table = pa.Table.from_batches(held).combine_chunks()
            whole = table.num_rows // ROWS * ROWS
            yield from table.slice(0, whole).to_batches(max_chunksize=ROWS)
            held = table.slice(whole).to_batches()
    if held:
        yield from pa.Table.from_batches(held).combine_chunks().to_batches(max_chunksize=ROWS)
