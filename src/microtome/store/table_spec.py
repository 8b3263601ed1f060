"""What a table of an atlas is said to be: what a row means, its columns, and what orders and identifies its rows.

Which tables there are is said in `schemas`.
"""

from dataclasses import dataclass
from typing import Final

import pyarrow as pa

__all__ = ["ADDRESS", "WORD", "TableSpec", "table_spec"]

ADDRESS: Final = pa.dictionary(pa.int32(), pa.string())
WORD: Final = pa.dictionary(pa.int16(), pa.string())


@dataclass(frozen=True)
class TableSpec:
    """One table: what a row is, its columns, and the columns that order (and identify) its rows."""

    name: str
    row: str
    schema: pa.Schema
    key: tuple[str, ...]


def table_spec(name: str, row: str, key: str, /, **columns: pa.DataType) -> TableSpec:
    """A table whose key is the columns named in `key`, with a space between."""
    return TableSpec(name, row, pa.schema([pa.field(k, v) for k, v in columns.items()]), tuple(key.split()))
