"""Tables of texts: JSON Lines, CSV, TSV, Parquet. One row is one document.

Files of running text belong in `plain`, data sets of the hub in `hub`.
"""

import codecs
import csv
import io
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from microtome.core import Refusal
from microtome.corpus.documents import Document, Reading, Unusable, choose_column, choose_label, decoded
from microtome.corpus.plain import DAMAGED, bare_suffix, opened

__all__ = ["from_records", "separated", "json_lines", "parquet"]

_FIELD_LIMIT = 1 << 30


def from_records(
    records: Iterator[tuple[str, Mapping[str, Any] | Unusable]], where: str, reading: Reading
) -> Iterator[Document]:
    """Documents of named records; the first good one decides which fields hold the text and the label.

    Errors: `Refusal` where no field holds text.
    """
    text = label = None
    for name, record in records:
        if isinstance(record, Unusable):
            yield Document(name, problem=str(record))
            continue
        if text is None:
            columns = [column for column, value in record.items() if value is None or isinstance(value, str)]
            wanted = reading.text_column if reading.text_column in record else None
            text = wanted or choose_column(columns if reading.text_column is None else list(record), reading.text_column, where)
            label = choose_label(list(record), reading.label_column, where)
        value = record.get(text)
        tag = None if label is None or record.get(label) is None else str(record[label])
        if isinstance(value, str):
            yield Document(name, value, tag)
        else:
            yield Document(name, label=tag, problem=f"field {text!r} is {'missing' if value is None else 'not text'}")


def json_lines(path: Path, name: str, reading: Reading) -> Iterator[Document]:
    """One JSON object a line; blank lines are passed over."""
    yield from from_records(_guarded(path, name, _json_records(path, name, reading.encoding)), name, reading)


def _json_records(path: Path, name: str, encoding: str) -> Iterator[tuple[str, Mapping[str, Any] | Unusable]]:
    with opened(path) as stream:
        for number, raw in enumerate(_lines(stream, encoding), start=1):
            if not raw.strip():
                continue
            try:
                record = json.loads(decoded(raw, encoding))
            except json.JSONDecodeError as error:
                yield f"{name}:{number}", Unusable(f"not JSON ({error.msg} in column {error.colno})")
                continue
            except (Unusable, ValueError, RecursionError) as error:
                yield f"{name}:{number}", Unusable(str(error))
                continue
            if isinstance(record, list) and number == 1:
                raise Refusal(
                    name, why="it holds one JSON list", instead="write one object a line (JSON Lines), or a folder of texts"
                )
            if isinstance(record, dict):
                yield f"{name}:{number}", record
            else:
                yield f"{name}:{number}", Unusable("not a JSON object")


def _lines(stream: io.BufferedIOBase, encoding: str) -> Iterator[bytes]:
    """Lines as bytes, so that one bad line spoils no other; encodings in which a line's end is not a byte are recoded."""
    if "\n".encode(encoding) == b"\n":
        yield from stream
        return
    for line in codecs.getreader(encoding)(stream):
        yield line.encode(encoding)


def separated(path: Path, name: str, reading: Reading) -> Iterator[Document]:
    """Comma or tab separated values under a header; quoted fields may hold line ends."""
    yield from from_records(_guarded(path, name, _csv_records(path, name, reading.encoding)), name, reading)


def _csv_records(path: Path, name: str, encoding: str) -> Iterator[tuple[str, Mapping[str, Any] | Unusable]]:
    delimiter = "\t" if bare_suffix(path) == ".tsv" else ","
    limit = csv.field_size_limit(min(_FIELD_LIMIT, sys.maxsize))
    try:
        with (
            opened(path) as stream,
            io.TextIOWrapper(cast(BinaryIO, stream), encoding, errors="surrogateescape", newline="") as text,
        ):
            rows = csv.reader(text, delimiter=delimiter)
            header = [column.removeprefix("\ufeff") for column in next(rows, [])]
            if any(_escaped(column) for column in header):
                yield name, Unusable(f"not valid {encoding} (--encoding names another)")
                return
            for number, row in enumerate(rows, start=1):
                if not row:
                    continue
                if len(row) != len(header):
                    yield f"{name}:{number}", Unusable(f"{len(row)} fields under {len(header)} columns")
                elif any(_escaped(field) for field in row):
                    yield f"{name}:{number}", Unusable(f"not valid {encoding} (--encoding names another)")
                else:
                    yield f"{name}:{number}", dict(zip(header, row, strict=True))
    finally:
        csv.field_size_limit(limit)


def _escaped(field: str) -> bool:
    try:
        field.encode()
    except UnicodeEncodeError:
        return True
    return False


def _guarded(
    path: Path, name: str, records: Iterator[tuple[str, Mapping[str, Any] | Unusable]]
) -> Iterator[tuple[str, Mapping[str, Any] | Unusable]]:
    """Turn what decompressors and parsers raise into one last unusable record."""
    try:
        yield from records
    except PermissionError:
        yield name, Unusable("it may not be read (permission denied)")
    except (*DAMAGED, csv.Error, UnicodeError) as error:
        yield name, Unusable(f"damaged {''.join(path.suffixes)} file ({error})")


def parquet(path: Path, name: str, reading: Reading) -> Iterator[Document]:
    """Rows of a Parquet file, read a row group at a time and only the columns needed.

    Errors: `Refusal` where no column holds text. What cannot be read of a file is an unusable document.
    """
    number = 0
    try:
        for number, (value, tag) in enumerate(_parquet_rows(path, name, reading), start=1):
            if isinstance(value, str):
                yield Document(f"{name}:{number}", value, tag)
            else:
                yield Document(f"{name}:{number}", label=tag, problem=value.args[0])
    except (OSError, pa.ArrowException) as error:
        kind = "damaged" if number else "not a"
        yield Document(name, problem=f"{kind} Parquet file ({str(error).splitlines()[0]})")


def _parquet_rows(path: Path, name: str, reading: Reading) -> Iterator[tuple[str | Unusable, str | None]]:
    """Text and label of each row."""
    with pq.ParquetFile(path, pre_buffer=False) as file:
        columns = list(file.schema_arrow.names)
        textual = [field.name for field in file.schema_arrow if _is_text(field.type)]
        text = choose_column(
            textual if reading.text_column is None else columns, reading.text_column, f"{name} (columns {', '.join(columns)})"
        )
        label = choose_label(columns, reading.label_column, name)
        for batch in file.iter_batches(batch_size=256, columns=[text] if label in (None, text) else [text, label]):
            for row in range(batch.num_rows):
                value = _value(batch.column(text)[row], text)
                tag = None if label is None else _value(batch.column(label)[row], label)
                yield (
                    value
                    if isinstance(value, str | Unusable)
                    else Unusable(f"column {text!r} is {'empty' if value is None else 'not text'}"),
                    None if tag is None or isinstance(tag, Unusable) else str(tag),
                )


def _value(cell: Any, column: str) -> Any:
    """What a cell holds; nobody has looked yet whether the bytes of a text are one."""
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return Unusable(f"column {column!r} is not valid utf-8")


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
