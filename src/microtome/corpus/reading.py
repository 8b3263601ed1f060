"""Windows back from their Parquet file, a row group at a time, in any order.

What a window means belongs in `windows`, batches in `corpus`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from microtome.core import Refusal

__all__ = ["Rows", "WindowFile", "damaged"]

_COLUMNS = ["window", "document", "start", "ids", "roles"]


@dataclass(frozen=True, eq=False)
class Rows:
    """Windows as flat arrays: tokens of window i are `ids[ends[i] - lengths[i] : ends[i]]`."""

    window: NDArray[np.int64]
    document: NDArray[np.int64]
    start: NDArray[np.int64]
    lengths: NDArray[np.int64]
    ids: NDArray[np.int32]
    roles: NDArray[np.uint8]

    def take(self, places: NDArray[np.int64]) -> "Rows":
        """Some of these windows, in the order of `places`."""
        lengths = self.lengths[places]
        begins = (np.cumsum(self.lengths) - self.lengths)[places]
        source = np.repeat(begins - (np.cumsum(lengths) - lengths), lengths) + np.arange(int(lengths.sum()))
        return Rows(
            self.window[places], self.document[places], self.start[places], lengths, self.ids[source], self.roles[source]
        )


@dataclass(eq=False)
class WindowFile:
    """The table `windows` of a run. Travels between processes as its path; the file is opened when it is first read."""

    path: Path
    _file: pq.ParquetFile | None = field(default=None, repr=False)
    _firsts: NDArray[np.int64] | None = field(default=None, repr=False)
    _last: tuple[int, Rows] | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_file": None, "_firsts": None, "_last": None}

    def read(self, windows: Sequence[int]) -> Rows:
        """Windows by index, in the order given.

        Errors: `Refusal` for an index that does not exist, and for a damaged file.
        """
        wanted = np.asarray(windows, np.int64)
        firsts = self._groups()
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= firsts[-1]):
            raise Refusal(
                f"window {int(wanted.max())}", why=f"the run has {int(firsts[-1])} windows", instead="use a smaller index"
            )
        order = np.argsort(wanted, kind="stable")
        group = np.searchsorted(firsts, wanted[order], side="right") - 1
        parts = [self._group(int(number)).take(wanted[order][group == number] - firsts[number]) for number in np.unique(group)]
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return _joined(parts) if np.array_equal(back, np.arange(len(back))) else _joined(parts).take(back)

    def groups(self) -> Iterator[Rows]:
        """All windows, a row group at a time."""
        for number in range(len(self._groups()) - 1):
            yield self._group(number)

    def _groups(self) -> NDArray[np.int64]:
        """The first window of each row group, and the number of windows."""
        if self._firsts is None:
            metadata = self._opened().metadata
            counts = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
            self._firsts = np.cumsum([0, *counts])
        return self._firsts

    def _opened(self) -> pq.ParquetFile:
        if self._file is None:
            try:
                self._file = pq.ParquetFile(self.path, pre_buffer=False)
            except (OSError, pa.ArrowException) as error:
                raise damaged(self.path, error) from error
        return self._file

    def _group(self, number: int) -> Rows:
        """One row group; the last one read is kept, since neighbouring windows are mostly asked for in turn."""
        if self._last is not None and self._last[0] == number:
            return self._last[1]
        try:
            table = self._opened().read_row_group(number, columns=_COLUMNS, use_threads=False).combine_chunks()
        except (OSError, pa.ArrowException) as error:
            raise damaged(self.path, error) from error
        columns = [table.column(name).combine_chunks() for name in _COLUMNS]
        window, document, start, ids, roles = (
            column.chunk(0) if isinstance(column, pa.ChunkedArray) else column for column in columns
        )
        rows = Rows(
            window=window.to_numpy(),
            document=document.to_numpy(),
            start=start.to_numpy(),
            lengths=np.diff(ids.offsets.to_numpy()).astype(np.int64),
            ids=ids.flatten().to_numpy(),
            roles=roles.flatten().to_numpy(),
        )
        self._last = number, rows
        return rows


def damaged(path: Path, error: Exception) -> Refusal:
    """The refusal for a table that cannot be read."""
    return Refusal(
        str(path), why=f"it cannot be read ({str(error).splitlines()[0]})", instead="run the build again: it is made anew"
    )


def _joined(parts: list[Rows]) -> Rows:
    if len(parts) == 1:
        return parts[0]
    return Rows(
        window=_end_to_end([part.window for part in parts], np.int64),
        document=_end_to_end([part.document for part in parts], np.int64),
        start=_end_to_end([part.start for part in parts], np.int64),
        lengths=_end_to_end([part.lengths for part in parts], np.int64),
        ids=_end_to_end([part.ids for part in parts], np.int32),
        roles=_end_to_end([part.roles for part in parts], np.uint8),
    )


def _end_to_end(arrays: list[NDArray[Any]], kind: type[np.generic]) -> NDArray[Any]:
    return np.concatenate(arrays) if arrays else np.empty(0, kind)
