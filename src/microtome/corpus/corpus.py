"""A prepared corpus: its size and identity, and its windows as batches in any order.

Reads the tables `documents` and `windows` and nothing else. How they come to be belongs in `preparation`.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from microtome.core import Batch, Half, Refusal, Role
from microtome.corpus.reading import Rows, WindowFile, damaged
from microtome.numerics.hashing import hash_parts, uniform

__all__ = ["BOTH", "MASKED_SHARE", "Corpus", "Extras", "Skipped", "open_corpus"]

BOTH: Final = "both"
"""The half of a document whose windows are dealt to both halves."""
MASKED_SHARE: Final = 0.15
"""Share of the content tokens that masked language modelling hides."""
BLOCK: Final = 8192
"""Windows that are sorted by length together: more would have to be held in memory."""
DEAL: Final = 16
"""Consecutive windows of one document that go to the same half, where a document is in both."""
_MASK_SALT: Final = 0x6D61736B
_KEPT_NAMES: Final = 20
_CODES: Final = {"discover": Half.DISCOVER, "confirm": Half.CONFIRM}


@dataclass(frozen=True)
class Skipped:
    """Documents that were not usable: how many, and the name and reason of the first twenty."""

    count: int
    first: tuple[tuple[str, str], ...]


@runtime_checkable
class Extras(Protocol):
    """Further model inputs for windows of some documents, such as the pixels of images."""

    def __call__(self, documents: Sequence[int]) -> dict[str, Tensor]:
        """Tensors whose first axis runs over `documents`."""
        ...

    def identity(self) -> str:
        """A digest of all of them: part of the fingerprint."""
        ...


@dataclass(frozen=True, eq=False)
class _Documents:
    """Per document: first window, number of windows, rank among the usable ones, half (2: both), label (-1: none), first of the same text."""

    first: NDArray[np.int64]
    windows: NDArray[np.int64]
    rank: NDArray[np.int64]
    half: NDArray[np.uint8]
    label: NDArray[np.int64]
    same: NDArray[np.int64]

    def halves(self, window: NDArray[np.int64], document: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The half of each window: its document's, or turn and turn about in blocks of at most `DEAL` windows."""
        block = np.clip(self.windows[document] // 4, 1, DEAL)
        dealt = ((window - self.first[document]) // block + self.rank[document]) % 2
        half = self.half[document]
        return np.where(half > 1, dealt, half).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class Corpus:
    """Windows of a run.

    `documents` counts the usable ones, `copies` those of them that repeat an earlier one, `tokens` their
    ordinary tokens; `labels` are in order of name.

    Halves: usually a document is in one. Of a corpus with fewer than four distinct texts each document is in both: blocks of up
    to sixteen consecutive windows go to them by turns. Then the halves share authors, topics and phrases, and scores on the
    confirm half are less independent than they are with many documents. Documents of the same text and label are one in batches: the
    first of them.

    `fingerprint` is a hash of all ids, roles, halves and labels. Memory: 41 bytes a document, and a row group when read.
    """

    run: str
    name: str
    window: int
    documents: int
    copies: int
    windows: int
    tokens: int
    labels: tuple[str, ...]
    skipped: Skipped
    fingerprint: str
    paths: tuple[Path, Path]
    _index: _Documents = field(repr=False)
    _file: WindowFile = field(repr=False)
    _extras: Extras | None = field(default=None, repr=False)

    @property
    def extras(self) -> Extras | None:
        """Further model inputs, where there are any."""
        return self._extras

    @property
    def shared_halves(self) -> bool:
        """Whether the halves are parts of the same documents."""
        return bool((self._index.half[self._index.windows > 0] > 1).any())

    def documents_of_windows(self) -> Int64[Tensor, " window"]:
        """The document of each window; documents of the same text are one."""
        return torch.from_numpy(np.repeat(self._index.same, self._index.windows))

    def batches(self, windows: Sequence[int], tokens_per_batch: int, device: torch.device | str = "cpu") -> Iterator[Batch]:
        """`windows` in batches of at most `tokens_per_batch` tokens, padding included (one window at least).

        Longest first, equal lengths by index; more than `BLOCK` windows are taken `BLOCK` at a time. Ids under padding are 0.
        """
        for begin in range(0, len(windows), BLOCK):
            rows = self._file.read(windows[begin : begin + BLOCK])
            order = np.lexsort((rows.window, -rows.lengths))
            place = 0
            while place < len(order):
                size = max(1, tokens_per_batch // int(rows.lengths[order[place]]))
                yield self._batch(rows.take(order[place : place + size]), device)
                place += size

    def sample(self, n: int, seed: int) -> list[int]:
        """The `n` windows with the lowest hash of (seed, window), in order of index; all where there are no more.

        Cost: one hash per window of the corpus.
        """
        if n >= self.windows:
            return list(range(self.windows))
        lowest = torch.argsort(hash_parts(seed, torch.arange(self.windows)), stable=True)[:n]
        return sorted(lowest.tolist())

    def mask(self, batch: Batch, mask_id: int | None, seed: int) -> Batch:
        """Hide 15 % of the content tokens behind the token `mask_id` and keep them as `targets` (-100 elsewhere).

        Which tokens is decided by a hash of (seed, window, token), so it does not depend on the batch. Not: BERT's training
        recipe, which leaves a tenth of them unchanged and replaces a tenth by random tokens.
        Source: Devlin et al. 2018, arXiv:1810.04805, section 3.1.
        Errors: `Refusal` where the tokenizer has no mask token.
        """
        if mask_id is None:
            raise Refusal(
                "masked tokens", why="the tokenizer has no mask token", instead="use a masked language model's tokenizer"
            )
        token = torch.arange(batch.ids.shape[1], device=batch.ids.device)
        chance = uniform(hash_parts(seed, _MASK_SALT, batch.window[:, None], token[None]))
        hidden = (batch.roles == Role.CONTENT) & (chance < MASKED_SHARE)
        return replace(
            batch,
            ids=batch.ids.masked_fill(hidden, mask_id),
            targets=batch.ids.masked_fill(~hidden, -100),
        )

    def _batch(self, rows: Rows, device: torch.device | str) -> Batch:
        shape = len(rows.lengths), int(rows.lengths.max())
        ids, roles = np.zeros(shape, np.int64), np.full(shape, Role.PAD, np.uint8)
        there = np.arange(shape[1]) < rows.lengths[:, None]
        ids[there], roles[there] = rows.ids, rows.roles
        columns = (ids, roles, rows.window, self._index.same[rows.document], rows.start)
        half = self._index.halves(rows.window, rows.document)
        label = self._index.label[rows.document]
        extra = {} if self._extras is None else self._extras(rows.document.tolist())
        tensors = [torch.tensor(column).to(device) for column in (*columns, half, label)]
        return Batch(*tensors, extra={name: value.to(device) for name, value in extra.items()})


def open_corpus(
    documents: Path, windows: Path, *, name: str, window: int | None = None, extras: Extras | None = None
) -> Corpus:
    """Open the two tables of a run that has been prepared. `window` is the size asked for, the longest window if None.

    Cost: one read of both tables without texts, far quicker than tokenising. Errors: `Refusal` for a damaged file.
    """
    file = WindowFile(windows)
    digest = hashlib.blake2b(digest_size=16)
    longest = count = tokens = 0
    ordinary = np.array([role >= Role.FIRST for role in Role])
    for rows in file.groups():
        for column in (rows.window, rows.document, rows.start, rows.lengths, rows.ids, rows.roles):
            digest.update(np.ascontiguousarray(column).data)
        longest = max(longest, int(rows.lengths.max(initial=0)))
        count += len(rows.window)
        tokens += int(ordinary[rows.roles].sum())
    table = _table(documents)
    labels = table.column("label").to_pylist()
    names = tuple(sorted({label for label in labels if label is not None}))
    codes = {label: code for code, label in enumerate(names)}
    sizes = table.column("windows").to_numpy()
    half = np.array([_CODES.get(value, 2) for value in table.column("half").to_pylist()], np.uint8)
    index = _Documents(
        first=np.cumsum(sizes) - sizes,
        windows=sizes,
        rank=np.cumsum(sizes > 0) - (sizes > 0),
        half=half,
        label=np.array([codes.get(label, -1) for label in labels], np.int64),
        same=np.array(
            [own if first is None else first for own, first in enumerate(table.column("same_as").to_pylist())], np.int64
        ),
    )
    for column in (index.windows, index.half, index.label, index.same):
        digest.update(np.ascontiguousarray(column).data)
    digest.update("\0".join(names).encode())
    digest.update(b"" if extras is None else extras.identity().encode())
    reasons = table.column("reason")
    bad = np.flatnonzero(reasons.is_valid().to_numpy())
    return Corpus(
        run=str(table.column("run")[0]) if table.num_rows else "",
        name=name,
        window=longest if window is None else window,
        documents=int((sizes > 0).sum()),
        copies=int(((index.same != np.arange(len(sizes))) & (sizes > 0)).sum()),
        windows=count,
        tokens=tokens,
        labels=names,
        skipped=Skipped(len(bad), tuple((str(table.column("name")[i]), str(reasons[i])) for i in bad[:_KEPT_NAMES].tolist())),
        fingerprint=digest.hexdigest(),
        paths=(documents, windows),
        _index=index,
        _file=file,
        _extras=extras,
    )


def _table(path: Path) -> pa.Table:
    """Without the texts. Tables of before there was `same_as` have no copies."""
    try:
        with pq.ParquetFile(path) as file:
            table = file.read(columns=["run", "name", "label", "half", "same_as", "windows", "reason"])
    except (OSError, pa.ArrowException) as error:
        raise damaged(path, error) from error
    return table if "same_as" in table.column_names else table.append_column("same_as", pa.nulls(table.num_rows, pa.int64()))
