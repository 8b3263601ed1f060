"""An atlas as files that may still be growing: which tables are there, which are damaged, and a connection over the rest.

A `View` is the atlas at one moment. Its signature changes with the files, and everything derived from it is computed once.
Queries belong in `summary`, `browse`, `unit`; what a manifest says in `store.manifest`.
"""

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from microtome.core import Refusal
from microtome.store import TABLES, Manifest, empty_table, manifest_path, read_manifest
from microtome.web.records import Problem, Progress

__all__ = ["Reader", "View", "problem_of"]

T = TypeVar("T")


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """Tell a damaged file from a mistake of ours."""
    try:
        yield
    except (duckdb.ParserException, duckdb.BinderException, duckdb.CatalogException):
        raise
    except duckdb.Error as error:
        raise Refusal(
            "a table of this atlas",
            why=f"it cannot be read ({str(error).splitlines()[0][:160]})",
            instead="run the same build again: damaged tables are found and rebuilt",
        ) from error


class View:
    """An atlas at one moment: manifest, tables, what is wrong with it, and a DuckDB connection with a view per table."""

    def __init__(self, atlas: Path, signature: str) -> None:
        self.signature = signature
        self.problems: list[Problem] = []
        self.manifest: Manifest | None = None
        self.rows: dict[str, int] = {}
        self._memo: dict[object, Any] = {}
        self._lock = threading.RLock()
        try:
            self.manifest = read_manifest(atlas)
        except Refusal as refusal:
            self.problems.append(problem_of(refusal))
        self._connection = duckdb.connect(
            config={"allow_community_extensions": "false", "autoinstall_known_extensions": "false"}
        )
        for name in TABLES:
            self._add(atlas, name)

    def _add(self, atlas: Path, name: str) -> None:
        """Make the view `name` over its readable files; an empty table where there is none."""
        sound = []
        for path in sorted((atlas / "tables" / name).glob("*.parquet")):
            problem, rows = _checked(path, name)
            if problem is None:
                sound.append(str(path))
                self.rows[name] = self.rows.get(name, 0) + rows
            else:
                self.problems.append(problem)
        if not sound:
            self._connection.register("nothing", empty_table(name))
            self._connection.execute(f'CREATE TABLE "{name}" AS SELECT * FROM nothing')
            self._connection.unregister("nothing")
            return
        listed = ", ".join("'" + path.replace("'", "''") + "'" for path in sound)
        self._connection.execute(f'CREATE VIEW "{name}" AS SELECT * FROM read_parquet([{listed}], union_by_name = true)')

    def sql(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """The rows of a prepared statement; safe from several threads.

        Errors: `Refusal` where a file turns out to be damaged inside.
        """
        with _readable(), self._connection.cursor() as cursor:
            return cursor.execute(query, parameters).fetchall()

    def arrow(self, query: str, *parameters: Any) -> pa.Table:
        """The same as an Arrow table, for many rows at once."""
        with _readable(), self._connection.cursor() as cursor:
            return cursor.sql(query, params=list(parameters)).to_arrow_table()

    def once(self, key: object, make: "Callable[[View], T]") -> T:
        """The value of `make(self)`, computed when first asked for and kept as long as the files do not change."""
        with self._lock:
            if key not in self._memo:
                self._memo[key] = make(self)
            return self._memo[key]


class Reader:
    """The current `View` of an atlas folder, replaced when files come, go or change."""

    def __init__(self, atlas: Path) -> None:
        self.atlas = atlas
        self._lock = threading.Lock()
        self._view: View | None = None

    def view(self) -> View:
        """The atlas as its files are now. Cost: a stat of every file; opening the tables only when one changed."""
        signature = self._signature()
        with self._lock:
            if self._view is None or self._view.signature != signature:
                self._view = View(self.atlas, signature)
            return self._view

    def progress(self) -> Progress | None:
        """How far the build is that is writing here, if one says so."""
        try:
            return Progress.model_validate(json.loads((self.atlas / "progress.json").read_text()))
        except (OSError, json.JSONDecodeError, ValidationError):
            return None

    def _signature(self) -> str:
        digest = hashlib.sha256()
        for path in [manifest_path(self.atlas), *sorted((self.atlas / "tables").glob("*/*.parquet"))]:
            try:
                status = path.stat()
            except OSError:
                continue
            digest.update(f"{path.relative_to(self.atlas)}|{status.st_size}|{status.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:16]


def _checked(path: Path, table: str) -> tuple[Problem | None, int]:
    """What is wrong with a table's file, judged by its footer and columns, and how many rows it has."""
    what = f"tables/{table}/{path.name}"
    try:
        footer = pq.read_metadata(path)
        missing = sorted(set(TABLES[table].schema.names) - set(footer.schema.to_arrow_schema().names))
    except (OSError, ValueError) as error:
        why = f"it is damaged ({str(error).splitlines()[0][:120]})"
    else:
        if not missing:
            return None, footer.num_rows
        why = f"it lacks the columns {', '.join(missing)}"
    return Problem(what=what, why=why, instead="run the same build again: damaged tables are found and rebuilt"), 0


def problem_of(refusal: Refusal) -> Problem:
    """A refusal as the page shows it."""
    return Problem(what=refusal.what, why=refusal.why, instead=refusal.instead)
