"""Windows by number: the right ones from any row group and file, and no more in memory than the bound."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from microtome.core import Refusal
from microtome.store import TABLES
from microtome.web import windows as module
from microtome.web.reader import Reader
from microtome.web.windows import preload, windows
from tests.unit.web.planted import plant

COUNT = 40


def _rows(run: str, numbers: range, shift: int) -> pa.Table:
    """Window `n` of run `run` has n % 5 + 1 tokens: shift + n, shift + n + 1, ..."""
    return pa.Table.from_pylist(
        [
            {
                "run": run, "window": n, "document": n // 4, "start": 0, "ids": [shift + n + j for j in range(n % 5 + 1)],
                "roles": [3] * (n % 5 + 1), "char_start": [10 * j for j in range(n % 5 + 1)],
                "char_end": [10 * j + 9 for j in range(n % 5 + 1)],
            }
            for n in numbers
        ]
    ).cast(pa.schema([field.with_type(pa.string()) if field.name == "run" else field for field in TABLES["windows"].schema]))  # fmt: skip


@pytest.fixture
def atlas(tmp_path: Path) -> Path:
    """Forty windows of run `main` in two files, in row groups of seven that run `other` is in as well."""
    path = plant(tmp_path / "atlas", layers=2, width=8)
    folder = path / "tables" / "windows"
    (folder / "corpus.main.parquet").unlink()
    for name, numbers in (("a", range(25)), ("b", range(25, COUNT))):
        table = pa.concat_tables([_rows("main", numbers, 0), _rows("other", numbers, 1000)])
        pq.write_table(table.sort_by("window"), folder / f"{name}.parquet", row_group_size=7)
    return path


def test_windows_are_those_of_the_run_wherever_they_are(atlas: Path) -> None:
    view = Reader(atlas).view("main")
    for wanted in ({0}, {39}, {3, 4, 24, 25, 26}, set(range(COUNT))):
        found = windows(view, wanted)
        assert found.keys() == wanted
        for n, window in found.items():
            assert window.ids == [n + j for j in range(n % 5 + 1)]
            assert window.starts == [10 * j for j in range(n % 5 + 1)]
            assert window.ends == [10 * j + 9 for j in range(n % 5 + 1)]
            assert window.document == n // 4
    assert windows(view, {3})[3].name == "speech-1790.txt"


def test_numbers_that_are_not_there_are_left_out(atlas: Path) -> None:
    view = Reader(atlas).view("main")
    assert windows(view, set()) == {}
    assert windows(view, {COUNT, 10_000}) == {}
    assert windows(view, {5, COUNT}).keys() == {5}


def test_only_what_is_wanted_is_read_and_only_so_much_is_kept(atlas: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    decoded = module._Groups._decoded

    def counted(self: module._Groups, group: module._Group) -> module._Rows:
        read.append(group.first)
        return decoded(self, group)

    monkeypatch.setattr(module._Groups, "_decoded", counted)
    view = Reader(atlas).view("main")
    windows(view, {0})
    assert read == [0]
    windows(view, {0, 1})
    assert read == [0]
    windows(view, {39})
    assert len(read) == 2
    monkeypatch.setattr(module, "KEPT_BYTES", 100)
    windows(view, set(range(COUNT)))
    groups = view.once("windows", module._Groups)
    assert groups._bytes == sum(rows.nbytes for rows in groups._kept.values()) <= 100
    before = len(read)
    assert windows(view, {0})[0].ids == [0]
    assert len(read) == before + 1


def test_a_text_that_is_not_long_is_read_before_it_is_asked_for(atlas: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view = Reader(atlas).view("main")
    preload(view)
    groups = view.once("windows", module._Groups)
    assert len(groups._kept) == len(groups._groups) == 12
    monkeypatch.setattr(module._Groups, "_decoded", None)
    assert len(windows(view, set(range(COUNT)))) == COUNT
    monkeypatch.undo()
    monkeypatch.setattr(module, "KEPT_BYTES", groups._bytes // 2)
    fresh = Reader(atlas).view("main")
    preload(fresh)
    some = fresh.once("windows", module._Groups)
    assert 0 < len(some._kept) < 12
    assert some._bytes <= groups._bytes // 2


def test_a_damaged_row_group_is_refused_in_words(atlas: Path) -> None:
    path = atlas / "tables" / "windows" / "a.parquet"
    raw = bytearray(path.read_bytes())
    raw[4 : len(raw) // 3] = bytes(len(raw) // 3 - 4)
    path.write_bytes(raw)
    with pytest.raises(Refusal, match=r"table windows: it cannot be read .*; run the same `microtome build` again"):
        windows(Reader(atlas).view("main"), set(range(COUNT)))
