"""Windows of a run by their numbers, and a memory of those read lately.

The contexts of a unit are scattered over a whole corpus, and Parquet is read by row groups: what a unit's page costs is the
row groups it touches. So only those that hold a wanted window are read, and they are kept up to a bound. Spelling tokens
belongs in `contexts`.
"""

import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from microtome.core import Refusal
from microtome.web.reader import AGAIN, View

__all__ = ["Window", "preload", "windows"]

KEPT_BYTES: Final = 128 << 20
"""Of row groups in memory: about ten million tokens."""
READERS: Final = 8
"""Row groups read at the same time."""
_COLUMNS: Final = ("run", "window", "document", "ids", "char_start", "char_end")


class Window:
    """A window's tokens and where they are in the document."""

    def __init__(self, row: Sequence[Any]) -> None:
        self.document, self.ids, self.starts, self.ends, self.name, self.label = row

    def begin(self, places: Iterable[int]) -> int | None:
        """The first character that the tokens at `places` cover."""
        return min((self.starts[place] for place in places if self.starts[place] >= 0), default=None)

    def finish(self, places: Iterable[int]) -> int | None:
        """One past the last character that the tokens at `places` cover."""
        return max((self.ends[place] for place in places if self.ends[place] >= 0), default=None)


def windows(view: View, wanted: set[int]) -> dict[int, Window]:
    """The windows of the given numbers, with the names and labels of their documents.

    Cost: the row groups that hold them and are not in memory yet; one of 1024 windows takes about 5 ms.
    """
    if not wanted:
        return {}
    rows = view.once("windows", _Groups).rows(wanted)
    named = {
        document: (name, label)
        for document, name, label in view.sql(
            "SELECT document, name, label FROM documents WHERE document IN (SELECT unnest(?::BIGINT[]))",
            sorted({row[0] for row in rows.values()}),
        )
    }
    return {number: Window([*row, *named.get(row[0], (None, None))]) for number, row in rows.items()}


def preload(view: View) -> None:
    """Read windows before they are asked for, as many as are kept: all of them where a text is not long."""
    view.once("windows", _Groups).preload()


@dataclass(frozen=True)
class _Group:
    """A row group of a file: its place there, the numbers of its windows, and whether other runs may be in it."""

    file: int
    place: int
    first: int
    last: int
    mixed: bool


@dataclass(frozen=True)
class _Rows:
    """The windows of a row group, decoded: that of row `n` is at `bounds[n]` to `bounds[n + 1]` of each of `parts`."""

    numbers: NDArray[np.int64]
    documents: NDArray[np.int64]
    bounds: NDArray[np.int32]
    parts: tuple[NDArray[np.int32], ...]

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        return sum(each.nbytes for each in (self.numbers, self.documents, self.bounds, *self.parts))

    def row(self, n: int) -> list[Any]:
        """Document, tokens, first and last characters of a window."""
        begin, end = self.bounds[n], self.bounds[n + 1]
        return [int(self.documents[n]), *(part[begin:end].tolist() for part in self.parts)]


class _Groups:
    """The row groups of a run's windows; those used last are kept in memory."""

    def __init__(self, view: View) -> None:
        self._run = view.run
        self._paths = view.files["windows"]
        self._footers = [pq.read_metadata(path) for path in self._paths]
        self._groups = [group for n, footer in enumerate(self._footers) for group in _groups(n, footer, view.run)]
        self._kept: dict[_Group, _Rows] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def rows(self, wanted: set[int]) -> dict[int, list[Any]]:
        """Document, tokens, first and last characters of each window that is there."""
        numbers = np.array(sorted(wanted))
        spans = [np.searchsorted(numbers, (group.first, group.last + 1)) for group in self._groups]
        groups = [(group, numbers[a:b]) for group, (a, b) in zip(self._groups, spans, strict=True) if b > a]
        found: dict[int, list[Any]] = {}
        for rows, (_, mine) in zip(self._read([group for group, _ in groups]), groups, strict=True):
            for n in np.flatnonzero(np.isin(rows.numbers, mine)).tolist():
                found[int(rows.numbers[n])] = rows.row(n)
        return found

    def preload(self) -> None:
        """Read row groups from the first on, while there is room."""
        for group in self._groups:
            if self._bytes > 0.9 * KEPT_BYTES:
                return
            self._read([group])

    def _read(self, groups: Sequence[_Group]) -> list[_Rows]:
        with self._lock:
            there = {group: self._kept.pop(group) for group in groups if group in self._kept}
            self._kept.update(there)
        missing = [group for group in groups if group not in there]
        if not missing:
            return [there[group] for group in groups]
        with ThreadPoolExecutor(READERS) as pool:
            there.update(zip(missing, pool.map(self._decoded, missing), strict=True))
        with self._lock:
            for group in missing:
                self._bytes += there[group].nbytes - (self._kept.pop(group).nbytes if group in self._kept else 0)
                self._kept[group] = there[group]
            while self._bytes > KEPT_BYTES:
                self._bytes -= self._kept.pop(next(iter(self._kept))).nbytes
        return [there[group] for group in groups]

    def _decoded(self, group: _Group) -> _Rows:
        path = self._paths[group.file]
        try:
            with pq.ParquetFile(path, metadata=self._footers[group.file]) as file:
                table = file.read_row_group(group.place, columns=list(_COLUMNS), use_threads=False)
        except (OSError, pa.ArrowException) as error:
            why = f"it cannot be read ({str(error).splitlines()[0].replace(path, Path(path).name)[:160]})"
            raise Refusal("table windows", why=why, instead=AGAIN) from error
        if group.mixed:
            table = table.filter(pc.field("run") == self._run)
        batches = table.combine_chunks().to_batches()
        whole = batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)
        lists = [whole[name] for name in _COLUMNS[3:]]
        return _Rows(
            whole["window"].to_numpy(),
            whole["document"].to_numpy(),
            lists[0].offsets.to_numpy(),
            tuple(each.values.to_numpy() for each in lists),
        )


def _groups(number: int, footer: pq.FileMetaData, run: str) -> list[_Group]:
    """The row groups of a file that may hold windows of a run."""
    columns = {footer.schema.column(place).path: place for place in range(footer.num_columns)}
    found = []
    for place in range(footer.num_row_groups):
        row_group = footer.row_group(place)
        runs, windows = (_bounds(row_group.column(columns[name]).statistics) for name in ("run", "window"))
        if runs is None or runs[0] <= run <= runs[1]:
            first, last = windows or (0, (1 << 62))
            found.append(_Group(number, place, first, last, runs != (run, run)))
    return found


def _bounds(statistics: pq.Statistics | None) -> tuple[Any, Any] | None:
    """The least and largest value of a column, where its writer noted them."""
    return (statistics.min, statistics.max) if statistics is not None and statistics.has_min_max else None
