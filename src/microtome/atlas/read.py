"""Read an atlas: its manifest, and SQL over its tables.

Nothing here computes; an atlas is Parquet and one JSON file, and any other reader may be used instead. Writing belongs in
`build`, pages in `web`.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from microtome.core import Refusal
from microtome.store import TABLES, Manifest, digest, read_manifest

if TYPE_CHECKING:
    import duckdb

__all__ = ["Atlas"]


class Atlas:
    """An atlas on disk, open for reading.

    >>> Atlas("no/such/folder")
    Traceback (most recent call last):
    microtome.core.errors.Refusal: no/such/folder: there is no atlas.json in it; name a folder that `microtome build` has made
    """

    def __init__(self, path: str | Path) -> None:
        """Open the atlas in folder `path`.

        Errors: `Refusal` where it is not an atlas, or one of a newer schema.
        """
        self.path = Path(path)
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

        Tables of the schema that this atlas lacks are empty views. Not: protected from its user; do not hand it to strangers.
        """
        import duckdb

        connection = duckdb.connect()
        for name, spec in TABLES.items():
            files = self.files(name)
            if files:
                source = ", ".join(_quoted(file) for file in files)
                connection.execute(f"create view {name} as select * from read_parquet([{source}], union_by_name = true)")
            else:
                connection.register(f"{name}_empty", spec.schema.empty_table())
                connection.execute(f"create view {name} as select * from {name}_empty")
        connection.execute(_wide(connection))
        return connection

    def sql(self, query: str, parameters: Sequence[Any] = ()) -> pa.Table:
        """The rows of a DuckDB query over the tables.

        Errors: `Refusal` with DuckDB's own words where the query fails.
        """
        import duckdb

        try:
            with self.connect() as connection:
                rows = connection.sql(query, params=list(parameters))
                if rows is None:
                    raise Refusal("the query", why="it is empty", instead="write for example: select * from findings")
                return rows.to_arrow_table()
        except duckdb.Error as error:
            mistaken = isinstance(error, duckdb.ParserException | duckdb.CatalogException | duckdb.BinderException)
            if not mistaken and (damaged := self.damaged()):
                raise Refusal(
                    str(self.path),
                    why=f"tables are damaged: {', '.join(str(file.relative_to(self.path)) for file in damaged)}",
                    instead="run the build again: they are made anew",
                ) from error
            raise Refusal("the query", why=str(error), instead=f"query the tables {', '.join(TABLES)}") from error

    @functools.cached_property
    def tables(self) -> tuple[str, ...]:
        """Names of the tables that have rows here."""
        return tuple(name for name in TABLES if self.files(name))

    def damaged(self) -> list[Path]:
        """Table files whose bytes are not those that the manifest records, or that are missing. Cost: one read of all."""
        recorded = {self.path / file: digests for file, digests in self.manifest.digests().items()}
        return sorted(file for file, digests in recorded.items() if not file.is_file() or digest(file) not in digests)


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def _wide(connection: "duckdb.DuckDBPyConnection") -> str:
    """The view `units_wide` over the statistics that this atlas has; where runs differ, rows differ."""
    stats = [
        row[0]
        for row in connection.execute("select distinct stat from unit_stats where stat is not null order by stat").fetchall()
    ]
    columns = "".join(f", max(value) filter (stat = '{s}') as \"{s}\"" for s in stats)
    return (
        "create view units_wide as select units.*, s.run, s.site"
        + "".join(f', s."{stat}"' for stat in stats)
        + " from units left join "
        f"(select unit, site, run{columns} from unit_stats group by unit, site, run) s on units.unit = s.unit"
    )
