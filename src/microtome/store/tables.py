"""The tables of an atlas: their columns, their row order, and how they are written.

A row of `TABLES` is the contract between the lenses, which write, and the readers: the page, the notebook, DuckDB. Files are
`tables/<table>/<writer>.parquet`; each writer owns its files. The same rows give the same bytes: rows are sorted by the
table's key, writer options are fixed, and no time or path enters a file. What the numbers mean belongs to the lenses.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from microtome.core import Refusal
from microtome.store.files import committed

__all__ = ["NEIGHBOURS", "TABLES", "TableSpec", "empty_table", "stream_table", "table_path", "write_table"]

NEIGHBOURS: Final = 16
"""Tokens on each side of a context's token whose activations are kept."""

_ADDRESS: Final = pa.dictionary(pa.int32(), pa.string())
_WORD: Final = pa.dictionary(pa.int16(), pa.string())


@dataclass(frozen=True)
class TableSpec:
    """One table: what a row is, its columns, and the columns that order (and identify) its rows."""

    name: str
    row: str
    schema: pa.Schema
    key: tuple[str, ...]


def _spec(name: str, row: str, key: str, /, **columns: pa.DataType) -> TableSpec:
    return TableSpec(name, row, pa.schema([pa.field(k, v) for k, v in columns.items()]), tuple(key.split()))


_ROWS: Final = (
    _spec(
        "units",
        "a unit of a basis",
        "basis name layer expert index",
        unit=pa.string(),
        basis=_WORD,
        name=_WORD,
        layer=pa.int16(),
        expert=pa.int16(),
        index=pa.int32(),
    ),
    _spec(
        "unit_stats",
        "a statistic of a unit at a site, beside its control: what it would be by chance; lo to hi is a 95 % interval of the value "
        "itself, empty where the value has no sampling error",
        "stat unit site run",
        unit=_ADDRESS,
        site=_WORD,
        stat=_WORD,
        value=pa.float64(),
        control=pa.float64(),
        control_kind=_WORD,
        lo=pa.float64(),
        hi=pa.float64(),
        q=pa.float64(),
        run=_WORD,
    ),
    _spec(
        "contexts",
        "a token at which a unit is extreme (end: top, bottom) or typical (decile0 .. decile9), with the "
        "activations around it: activations[j] * scale is that at token `first` + j of the window; -128 is no token",
        "unit site end half rank run",
        unit=_ADDRESS,
        site=_WORD,
        end=_WORD,
        half=_WORD,
        rank=pa.int16(),
        value=pa.float32(),
        window=pa.int64(),
        position=pa.int32(),
        first=pa.int32(),
        scale=pa.float32(),
        activations=pa.list_(pa.int8(), 2 * NEIGHBOURS + 1),
        run=_WORD,
    ),
    _spec(
        "tokens",
        "a token of the vocabulary that a unit's written direction promotes (end +) or demotes (end -); "
        "control is the mean score at the same rank of random mixtures of the units of its layer, of the same norm",
        "unit end rank",
        unit=_ADDRESS,
        end=_WORD,
        rank=pa.int16(),
        token=pa.int32(),
        score=pa.float32(),
        control=pa.float32(),
    ),
    _spec(
        "vocabulary",
        "a token of the tokenizer, its text with a space shown as a space",
        "token",
        token=pa.int32(),
        text=pa.string(),
    ),
    _spec(
        "token_counts",
        "how often a token occurs among a run's counted tokens",
        "run token",
        run=_WORD,
        token=pa.int32(),
        count=pa.int64(),
    ),
    _spec(
        "documents",
        "a document of a run's corpus, and if it was skipped, why",
        "run document",
        run=_WORD,
        document=pa.int64(),
        name=pa.string(),
        label=pa.string(),
        half=_WORD,
        tokens=pa.int64(),
        windows=pa.int64(),
        status=_WORD,
        reason=pa.string(),
        text=pa.large_string(),
    ),
    _spec(
        "windows",
        "a window: its tokens, their roles, and the characters of the document they cover (-1: none)",
        "run window",
        run=_WORD,
        window=pa.int64(),
        document=pa.int64(),
        start=pa.int64(),
        ids=pa.list_(pa.int32()),
        roles=pa.list_(pa.uint8()),
        char_start=pa.list_(pa.int32()),
        char_end=pa.list_(pa.int32()),
    ),
    _spec(
        "links",
        "two units that have to do with each other",
        "kind unit other",
        unit=_ADDRESS,
        other=_ADDRESS,
        kind=_WORD,
        score=pa.float32(),
        control=pa.float32(),
    ),
    _spec(
        "geometry_shares",
        "the share of the variance of hidden states at a site that a part explains; norm is the root mean "
        "square length of the part (of mu: its length)",
        "run site part",
        run=_WORD,
        site=_WORD,
        layer=pa.int16(),
        part=_WORD,
        share=pa.float64(),
        control=pa.float64(),
        control_kind=_WORD,
        lo=pa.float64(),
        hi=pa.float64(),
        norm=pa.float64(),
        windows=pa.int64(),
        tokens=pa.int64(),
    ),
    _spec(
        "layer_loss",
        "loss in nats per token when a site is read through the model's own final norm and head",
        "run objective site",
        run=_WORD,
        objective=_WORD,
        site=_WORD,
        layer=pa.int16(),
        loss=pa.float64(),
        control=pa.float64(),
        control_kind=_WORD,
        lo=pa.float64(),
        hi=pa.float64(),
        tokens=pa.int64(),
    ),
    _spec(
        "findings",
        "a result that survives its control, most telling first: a sentence, and what it is about",
        "run lens rank subject",
        run=_WORD,
        rank=pa.int32(),
        lens=_WORD,
        kind=_WORD,
        subject=pa.string(),
        sentence=pa.string(),
        value=pa.float64(),
        control=pa.float64(),
        control_kind=_WORD,
        q=pa.float64(),
    ),
)

TABLES: Final[dict[str, TableSpec]] = {row.name: row for row in _ROWS}


def empty_table(name: str) -> pa.Table:
    """A table of the right schema without rows."""
    return TABLES[name].schema.empty_table()


def table_path(atlas: Path, table: str, writer: str) -> Path:
    """Where `writer` keeps its rows of `table`."""
    return atlas / "tables" / table / f"{writer}.parquet"


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
    """How the columns of a streamed table are encoded: rising numbers by differences, the rest by dictionary."""
    leaves = {f.name: f"{f.name}.list.element" if pa.types.is_list(f.type) else f.name for f in schema}
    rising = [leaves[name] for name in _RISING if name in leaves]
    return {
        "column_encoding": dict.fromkeys(rising, "DELTA_BINARY_PACKED"),
        "use_dictionary": [leaf for leaf in leaves.values() if leaf not in rising],
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
