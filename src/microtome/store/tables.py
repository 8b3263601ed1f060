"""How tables of an atlas are written.

Files are `tables/<table>/<writer>.parquet`; each writer owns its files. The same rows give the same bytes: rows are sorted by the
table's key, writer options are fixed, and no time or path enters a file. Which tables there are is said in `schemas`.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from microtome.core import Refusal
from microtome.store.files import committed
from microtome.store.schemas import TABLES
from microtome.store.table_spec import TableSpec

__all__ = ["rows_of", "stream_table", "table_path", "write_table"]


def table_path(atlas: Path, table: str, writer: str) -> Path:
    """Where `writer` keeps its rows of `table`."""
    return atlas / "tables" / table / f"{writer}.parquet"


def rows_of(name: str, rows: Iterable[Mapping[str, object]]) -> pa.Table:
    """Records as rows of a table; what a record lacks is null. For tables of few rows."""
    schema, listed = TABLES[name].schema, list(rows)
    columns = {field.name: pa.array([row.get(field.name) for row in listed], _plain(field.type)) for field in schema}
    return pa.table(columns).cast(schema)


def write_table(atlas: Path, name: str, writer: str, rows: pa.Table | Iterable[pa.Table]) -> Path:
    """Sort rows by the table's key, cast them to its schema and commit them as `tables/<name>/<writer>.parquet`.

    `rows` is one table, or pieces of one of which only one is held at a time: every row of a piece comes before those of the next.
    Errors: `Refusal` where a column is missing, unknown or not castable; `ValueError` where pieces overlap; then no file is left.
    """
    spec = TABLES[name]
    path = table_path(atlas, name, writer)
    path.parent.mkdir(parents=True, exist_ok=True)
    last: list[Any] | None = None
    with committed(path) as temporary, pq.ParquetWriter(temporary, spec.schema, **_OPTIONS) as file:
        for piece in (rows,) if isinstance(rows, pa.Table) else rows:
            ordered = _ordered(spec, piece)
            if not ordered.num_rows:
                continue
            first = _key(spec, ordered, 0)
            if last is not None and _comparable(first) <= _comparable(last):
                raise ValueError(f"pieces of table {name} overlap: {first} comes after {last}")
            last = _key(spec, ordered, ordered.num_rows - 1)
            file.write_table(ordered, row_group_size=1 << 16)
    return path


def _ordered(spec: TableSpec, table: pa.Table) -> pa.Table:
    """The rows sorted by the key, in the columns and types of the schema."""
    if set(table.column_names) != set(spec.schema.names):
        raise Refusal(
            f"table {spec.name}",
            why=f"columns are {', '.join(table.column_names)}",
            instead=f"write exactly {', '.join(spec.schema.names)}",
        )
    plain = table.select(spec.schema.names)
    indices = np.lexsort([_rank(plain[key]) for key in reversed(spec.key)])
    return plain.take(indices).cast(spec.schema).unify_dictionaries().combine_chunks()


def _key(spec: TableSpec, table: pa.Table, row: int) -> list[Any]:
    return [table[column][row].as_py() for column in spec.key]


def _comparable(key: list[Any]) -> list[tuple[bool, Any]]:
    """Missing values first."""
    return [(value is not None, value if value is not None else 0) for value in key]


def stream_table(atlas: Path, name: str, writer: str, batches: Iterable[pa.RecordBatch]) -> Path:
    """Commit rows that come in the order of the table's key, one row group per batch, without holding them.

    Text columns may come as plain strings. Errors: whatever `batches` raises; then no file is left.
    """
    schema = _without_dictionaries(TABLES[name].schema)
    path = table_path(atlas, name, writer)
    path.parent.mkdir(parents=True, exist_ok=True)
    with committed(path) as temporary, pq.ParquetWriter(temporary, schema, **_OPTIONS | _encodings(schema)) as file:
        for batch in batches:
            file.write_table(
                pa.Table.from_batches([batch]).select(schema.names).cast(schema), row_group_size=batch.num_rows or 1
            )
    return path


_OPTIONS: Final[dict[str, Any]] = {
    "compression": "zstd",
    "compression_level": 3,
    "version": "2.6",
    "use_dictionary": True,
    "write_statistics": True,
    "store_schema": True,
    "data_page_version": "1.0",
}


_RISING: Final = ("window", "document", "start", "char_start", "char_end")
"""Columns of streamed tables that rise from row to row: their differences are a third of the size."""


def _encodings(schema: pa.Schema) -> dict[str, Any]:
    """How the columns of a streamed table are encoded: rising numbers by differences, bytes as they are, the rest by dictionary."""
    leaves = {f.name: f"{f.name}.list.element" if pa.types.is_list(f.type) else f.name for f in schema}
    rising = [leaves[name] for name in _RISING if name in leaves]
    plain = [f.name for f in schema if pa.types.is_binary(f.type)]
    return {
        "column_encoding": dict.fromkeys(rising, "DELTA_BINARY_PACKED"),
        "use_dictionary": [leaf for leaf in leaves.values() if leaf not in (*rising, *plain)],
    }


def _without_dictionaries(schema: pa.Schema) -> pa.Schema:
    """Dictionaries would have to be known before the first row; Parquet encodes plain strings by dictionary anyway."""
    return pa.schema([f.with_type(f.type.value_type) if pa.types.is_dictionary(f.type) else f for f in schema])


def _rank(column: pa.ChunkedArray) -> np.ndarray:
    """Integers in the order of the column's values, text by text and not by code; missing values first."""
    if pa.types.is_integer(column.type):
        return column.to_numpy() if column.null_count == 0 else column.cast(pa.float64()).fill_null(-np.inf).to_numpy()
    coded = column.unify_dictionaries() if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    whole = coded.combine_chunks()
    encoded = whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole
    if len(encoded.dictionary) == 0:
        return np.full(len(encoded), -1)
    words = encoded.dictionary.to_numpy(zero_copy_only=False)
    rank = np.empty(len(words), dtype=np.int64)
    rank[np.argsort(words.astype(object), kind="stable")] = np.arange(len(words))
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return np.where(codes < 0, -1, rank[codes])


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind
