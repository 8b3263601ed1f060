"""Reading an atlas: SQL over sound tables, and refusals where a table is not what the manifest says."""

import os
import shutil
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from microtome.atlas import Atlas, Settings, build, damaged
from microtome.core import Refusal
from microtome.store import digest, manifest_path, read_manifest, write_manifest, write_table
from tests import toys

_NEURONS = "tables/units/neurons.parquet"
_STATS = "tables/unit_stats/neurons.main.parquet"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("read") / "atlas"
    return build(toys.toy_decoder(), toys.toy_texts(), output=output, settings=Settings(window=24)).path


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(built, tmp_path / "atlas")


def _flip(path: Path) -> None:
    """Change a byte that no reader of Parquet minds: a letter of the name of the program that wrote it."""
    data = path.read_bytes()
    assert data.count(b"parquet-cpp") == 1
    path.write_bytes(data.replace(b"parquet-cpp", b"parquet-cqp"))


def test_a_sound_atlas_has_no_damage(built: Path) -> None:
    assert damaged(built) == Atlas(built).damaged() == []


def test_a_missing_table_is_refused_and_not_empty(folder: Path) -> None:
    (folder / _NEURONS).unlink()
    assert damaged(folder) == [_NEURONS]
    for query in ("select * from units", "from units_wide", "select 1"):
        with pytest.raises(Refusal, match=rf"{_NEURONS} is missing, or damaged.*run the same `microtome build` again"):
            Atlas(folder).sql(query)
    with pytest.raises(Refusal, match=f"{_NEURONS} is missing"):
        Atlas(folder).connect()


def test_a_changed_byte_that_leaves_a_table_readable_is_noticed_by_sql(folder: Path) -> None:
    for file in (_NEURONS, _STATS):
        _flip(folder / file)
    assert duckdb.execute(f"select count(*) from '{folder / _NEURONS}'").fetchall() == [(120,)], "DuckDB does not mind"
    assert damaged(folder) == [_STATS, _NEURONS]
    with pytest.raises(Refusal, match=f"{_NEURONS} is missing, or damaged: not the bytes that were written"):
        Atlas(folder).sql("SELECT count(*) FROM Units")
    with pytest.raises(Refusal, match=f"{_STATS}, {_NEURONS} are missing, or damaged"):
        Atlas(folder).sql("from units_wide")
    assert Atlas(folder).sql("select count(*) as n from tokens").num_rows == 1, "tables that it does not name are not looked at"


def test_the_bytes_of_a_table_are_looked_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def counting(path: Path) -> str:
        seen.append(path.relative_to(folder).as_posix())
        return digest(path)

    monkeypatch.setattr("microtome.atlas.read.digest", counting)
    atlas = Atlas(folder)
    for _ in range(2):
        atlas.sql("select * from layer_loss")
    assert seen == ["tables/layer_loss/vocabulary.main.parquet"]
    _flip(folder / seen[0])
    with pytest.raises(Refusal, match="layer_loss"):
        atlas.sql("select * from layer_loss")


def test_what_a_build_has_just_replaced_is_not_damage(folder: Path) -> None:
    """Tables that hold for any run are written before the manifest knows: until then only older changes are damage."""
    manifest = read_manifest(folder)
    manifest.runs["second"] = manifest.runs["main"].model_copy(update={"status": "building", "files": {}})
    write_manifest(folder, manifest)
    written = manifest_path(folder).stat().st_mtime_ns
    for file in (_NEURONS, _STATS):
        _flip(folder / file)
        os.utime(folder / file, ns=(written, written + 1))
    assert damaged(folder) == [_STATS], "no other run writes the tables of a run"
    os.utime(folder / _NEURONS, ns=(written, written - 1))
    assert damaged(folder) == [_STATS, _NEURONS]
    (folder / _NEURONS).unlink()
    assert damaged(folder) == [_STATS, _NEURONS]


def test_a_run_that_is_being_built_is_read_as_far_as_it_is(folder: Path) -> None:
    manifest = read_manifest(folder)
    manifest.runs["main"] = manifest.runs["main"].model_copy(update={"status": "building", "files": {}})
    write_manifest(folder, manifest)
    (folder / _NEURONS).unlink()
    assert damaged(folder) == []
    assert Atlas(folder).sql("select distinct basis from units").to_pylist() == [{"basis": "heads"}]
    (folder / "tables/units/vocabulary.parquet").write_bytes(b"PAR1")
    with pytest.raises(Refusal, match=r"vocabulary\.parquet"):
        Atlas(folder).sql("select * from units")


def test_a_query_that_fails_says_what_to_do(built: Path) -> None:
    for query, message in [
        ("select nothing from units", "nothing.*; query the tables units, unit_stats"),
        (
            "from read_parquet('nowhere.parquet')",
            "nowhere.*; run the same `microtome build` again, or check the files it names",
        ),
        ("select 1; select 2", "it is 2 queries; ask one at a time"),
        ("copy units to 'units.csv'", "COPY is more than reading"),
        ("create table other as select 1", "CREATE is more than reading"),
        ("explain analyze copy units to 'units.csv'", "EXPLAIN is more than reading"),
        ("import database 'other'", "is more than reading"),
        (" ", "it is empty; write for example: select"),
    ]:
        with pytest.raises(Refusal, match=f"(?s)the query: .*{message}"):
            Atlas(built).sql(query)


def test_statistics_may_have_any_name(folder: Path) -> None:
    name = 'it\'s "odd"; --'
    rows = {"unit": "neurons.0/0", "site": "mlp_act", "stat": name, "value": 2.5, "control": None, "control_kind": None}
    rows |= {"lo": None, "hi": None, "q": None, "run": "main"}
    write_table(folder, "unit_stats", "other.main", pa.Table.from_pylist([rows]))
    found = Atlas(folder).sql("select * from units_wide where unit = 'neurons.0/0' and site = 'mlp_act'").to_pylist()
    assert [row[name] for row in found] == [2.5]
