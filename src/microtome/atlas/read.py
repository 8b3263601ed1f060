"""Read an atlas: its manifest, and SQL over its tables.

Nothing here computes; an atlas is Parquet and one JSON file, and any other reader may be used instead. Writing belongs in
`build`, pages in `web`.
"""

import functools
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from microtome.core import Refusal
from microtome.store import TABLES, Manifest, digest, folder_of, is_address, manifest_path, read_manifest

if TYPE_CHECKING:
    import duckdb

__all__ = ["Atlas", "damaged"]

_WIDE: Final = ("units", "unit_stats")
"""The tables that the view `units_wide` is made of."""

_QUERY: Final = f"query the tables {', '.join(TABLES)}"
_READING: Final = frozenset({"SELECT", "MULTI"})
"""Kinds of statement that change nothing; MULTI is a pivot. Not EXPLAIN, which runs what it analyses."""

_Mark = tuple[int, int]
"""Size and time of change of a file whose bytes were found to be right."""


class Atlas:
    """An atlas on disk, open for reading; one at an address is read from a copy in the cache, of what was there when it was opened.

    >>> Atlas("no/such/folder")
    Traceback (most recent call last):
    microtome.core.errors.Refusal: no/such/folder: there is no atlas.json in it; name a folder that `microtome build` has made
    """

    def __init__(self, path: str | Path) -> None:
        """Open the atlas in folder, or at address, `path`.

        Cost: as of `store.folder_of`. Errors: `Refusal` where it is not an atlas, or one of a newer schema, or cannot be reached.
        """
        self.path = folder_of(path)
        self.address = str(path if is_address(path) else self.path)
        self._sound: dict[str, _Mark] = {}
        read_manifest(self.path)

    @property
    def manifest(self) -> Manifest:
        """What atlas.json says now (a build may be changing it)."""
        return read_manifest(self.path)

    def files(self, table: str) -> list[Path]:
        """The Parquet files of a table, one per writer."""
        return sorted((self.path / "tables" / table).glob("*.parquet"))

    def connect(self) -> "duckdb.DuckDBPyConnection":
        """A new in-memory DuckDB connection with a view per table, and `units_wide`: a row per unit, a column per statistic.

        Tables of the schema that this atlas lacks are empty views. Errors: `Refusal` where a table of a complete run is missing
        or does not open; whether the bytes are right is `damaged`'s business, and `sql` asks it.
        Not: protected from its user; do not hand it to strangers.
        """
        import duckdb

        missing = [file for file in sorted(self.manifest.digests()) if not (self.path / file).is_file()]
        if missing:
            raise _refusal(self.address, missing)
        connection = duckdb.connect()
        try:
            self._add_views(connection)
        except duckdb.Error as error:
            connection.close()
            if found := self.damaged():
                raise _refusal(self.address, found) from error
            instead = (
                "remove the file it names, which no run of this atlas has recorded, or run the same `microtome build` again"
            )
            raise Refusal(self.address, why=str(error), instead=instead) from error
        return connection

    def _add_views(self, connection: "duckdb.DuckDBPyConnection") -> None:
        for name, spec in TABLES.items():
            files = self.files(name)
            if files:
                source = ", ".join(_text(file) for file in files)
                connection.execute(f"create view {name} as select * from read_parquet([{source}], union_by_name = true)")
            else:
                connection.register(f"{name}_empty", spec.schema.empty_table())
                connection.execute(f"create view {name} as select * from {name}_empty")
        connection.execute(_wide(connection))

    def sql(self, query: str, parameters: Sequence[Any] = ()) -> pa.Table:
        """The rows of a DuckDB query over the tables.

        The bytes of the tables that the query names are compared with what the manifest records, once per file and `Atlas`, and
        again where a file has changed. Cost of that: one read of these files, 60 ms per 100 MB.
        Errors: `Refusal` for what is not one query that reads, where such a table is missing or damaged, and with DuckDB's own words where
        the query fails.
        """
        import duckdb

        named = [name for name in (*TABLES, "units_wide") if re.search(rf"\b{name}\b", query, re.IGNORECASE)]
        found = _mismatched(self.path, {*named, *(_WIDE if "units_wide" in named else ())}, self._sound)
        if found:
            raise _refusal(self.address, found)
        with self.connect() as connection:
            try:
                _require_one_reading(connection.extract_statements(query))
                rows = connection.sql(query, params=list(parameters))
                table = None if rows is None else rows.to_arrow_table()
            except duckdb.Error as error:
                unread = isinstance(error, duckdb.IOException)
                instead = "run the same `microtome build` again, or check the files it names" if unread else _QUERY
                raise Refusal("the query", why=str(error), instead=instead) from error
        if table is None:
            raise Refusal("the query", why="it is empty", instead="write for example: select * from findings")
        return table

    @functools.cached_property
    def tables(self) -> tuple[str, ...]:
        """Names of the tables that have rows here."""
        return tuple(name for name in TABLES if self.files(name))

    def damaged(self) -> list[str]:
        """As the function `damaged`."""
        return damaged(self.path)


def _require_one_reading(statements: Sequence[Any]) -> None:
    """Refuse several statements, of which only the last would be answered, and those that write or load something."""
    if len(statements) > 1:
        raise Refusal("the query", why=f"it is {len(statements)} queries", instead="ask one at a time")
    for each in statements:
        if (kind := each.type.name) not in _READING:
            raise Refusal("the query", why=f"{kind} is more than reading", instead=_QUERY)


def damaged(path: str | Path) -> list[str]:
    """Tables of complete runs, by their names in the manifest, that are missing or whose bytes are not those that were written.

    A table that holds for any run and that a build has just written again is not counted until that build is complete.
    Errors: `Refusal` where the folder is no atlas. Cost: one read of all tables, 60 ms per 100 MB.
    """
    return _mismatched(folder_of(path), TABLES, {})


def _mismatched(atlas: Path, tables: Collection[str], sound: dict[str, _Mark]) -> list[str]:
    """The damaged files of some tables; `sound` holds, and gets, the marks of those that need not be read again."""
    manifest = read_manifest(atlas)
    while True:
        found = [
            file
            for file, digests in sorted(manifest.digests().items())
            if _table_of(file) in tables and not _is_sound(atlas, file, digests, sound)
        ]
        before, manifest = manifest, read_manifest(atlas)
        if not found or manifest == before:  # else a build has replaced files and their digests in the meantime
            return [file for file in found if not _is_new(atlas, file, manifest)]
        sound.clear()


def _is_sound(atlas: Path, file: str, digests: set[str], sound: dict[str, _Mark]) -> bool:
    try:
        status = (atlas / file).stat()
        mark = status.st_size, status.st_mtime_ns
        if sound.get(file) != mark:
            if digest(atlas / file) not in digests:
                return False
            sound[file] = mark
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False
    return True


def _is_new(atlas: Path, file: str, manifest: Manifest) -> bool:
    """Whether a build that is not complete has replaced a table which holds for any run: the manifest does not know it yet."""
    table = _table_of(file)
    if all(run.status == "complete" for run in manifest.runs.values()) or table not in TABLES:
        return False
    path = atlas / file
    changed = path.is_file() and path.stat().st_mtime_ns >= manifest_path(atlas).stat().st_mtime_ns
    return changed and "run" not in TABLES[table].schema.names


def _table_of(file: str) -> str:
    """The table that a file of the manifest, tables/TABLE/WRITER.parquet, is part of."""
    return file.split("/")[1] if file.count("/") == 2 else ""


def _refusal(atlas: str, files: list[str]) -> Refusal:
    verb, them = ("is", "it is") if len(files) == 1 else ("are", "they are")
    return Refusal(
        atlas,
        why=f"{', '.join(files)} {verb} missing, or damaged: not the bytes that were written",
        instead=f"run the same `microtome build` again: {them} made anew",
    )


def _text(value: object) -> str:
    return "'" + str(value).replace("'", "''") + "'"


def _name(value: str) -> str:
    return '"' + value.replace('"', '""') + '"'


def _wide(connection: "duckdb.DuckDBPyConnection") -> str:
    """The view `units_wide` over the statistics that this atlas has; where runs differ, rows differ."""
    stats = [
        row[0]
        for row in connection.execute("select distinct stat from unit_stats where stat is not null order by stat").fetchall()
    ]
    columns = "".join(f", max(value) filter (stat = {_text(stat)}) as {_name(stat)}" for stat in stats)
    return (
        "create view units_wide as select units.*, s.run, s.site"
        + "".join(f", s.{_name(stat)}" for stat in stats)
        + " from units left join "
        f"(select unit, site, run{columns} from unit_stats group by unit, site, run) s on units.unit = s.unit"
    )
