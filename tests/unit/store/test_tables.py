"""Tables: one schema, one order, the same bytes for the same rows."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from microtome.core import Refusal
from microtome.store import TABLES, digest, empty_table, stream_table, write_table


@pytest.mark.parametrize("name", TABLES)
def test_every_table_can_be_written_empty_and_its_key_is_made_of_columns(tmp_path: Path, name: str) -> None:
    read = pq.read_table(write_table(tmp_path, name, "w", empty_table(name)))
    assert read.schema.names == TABLES[name].schema.names
    assert set(TABLES[name].key) <= set(read.schema.names)


def _tokens(order: np.ndarray) -> pa.Table:
    units = np.array(["neurons.2/0", "neurons.10/0", "neurons.2/0", "neurons.2/0"])[order]
    return pa.table(
        {
            "unit": pa.array(units).dictionary_encode(),
            "end": np.array(["+", "+", "-", "+"])[order],
            "rank": np.array([1, 0, 0, 0])[order],
            "token": np.array([5, 6, 7, 8])[order],
            "score": np.array([0.5, 0.25, 0.125, 1.0])[order],
            "control": pa.nulls(4, pa.float32()),
        }
    )


def test_rows_are_sorted_by_text_and_bytes_do_not_depend_on_their_order(tmp_path: Path) -> None:
    digests = set()
    for seed in range(5):
        path = write_table(tmp_path, "tokens", f"w{seed}", _tokens(np.random.default_rng(seed).permutation(4)))
        digests.add(digest(path))
        assert pq.read_table(path).column("token").to_pylist() == [6, 8, 5, 7]
    assert len(digests) == 1


def test_wrong_columns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="table tokens: columns are unit; write exactly unit, end, rank"):
        write_table(tmp_path, "tokens", "w", pa.table({"unit": ["a"]}))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def _shuffled(table: pa.Table, seed: int) -> pa.Table:
    return table.take(np.random.default_rng(seed).permutation(table.num_rows))


def test_pieces_are_the_rows_of_the_whole_in_its_order(tmp_path: Path) -> None:
    whole = pa.table({"run": ["main"] * 60, "token": np.arange(60), "count": np.arange(60) % 7})
    pieces = (_shuffled(whole.slice(begin, 20), begin) for begin in (0, 20, 40))
    cut = write_table(tmp_path, "token_counts", "cut", pieces)
    assert pq.read_table(cut).equals(pq.read_table(write_table(tmp_path, "token_counts", "whole", _shuffled(whole, 1))))
    assert pq.ParquetFile(cut).num_row_groups == 3
    empty = write_table(tmp_path, "token_counts", "none", iter([empty_table("token_counts")]))
    assert pq.read_table(empty).equals(empty_table("token_counts"))


def test_pieces_that_overlap_leave_no_file(tmp_path: Path) -> None:
    whole = pa.table({"run": ["main"] * 60, "token": np.arange(60), "count": np.arange(60) % 7})
    with pytest.raises(ValueError, match="pieces of table token_counts overlap"):
        write_table(tmp_path, "token_counts", "cut", (whole.slice(begin, 20) for begin in (0, 19)))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_streamed_rows_come_back_and_a_failing_stream_leaves_nothing(tmp_path: Path) -> None:
    def batch(first: int) -> pa.RecordBatch:
        columns = {"run": ["main"] * 2, "token": [first, first + 1], "count": [3, 4]}
        return pa.RecordBatch.from_pydict(columns)

    path = stream_table(tmp_path, "token_counts", "w", iter([batch(0), batch(2)]))
    assert pq.read_table(path).column("token").to_pylist() == [0, 1, 2, 3]
    assert pq.ParquetFile(path).num_row_groups == 2

    def failing() -> "object":
        yield batch(0)
        raise Refusal("document 3", why="it is binary", instead="leave it out")

    with pytest.raises(Refusal):
        stream_table(tmp_path, "token_counts", "v", failing())  # pyright: ignore[reportArgumentType]
    assert sorted(file.name for file in (tmp_path / "tables" / "token_counts").iterdir()) == ["w.parquet"]
