"""Pictures in an atlas: written with the run that reads them, checked like its other tables, and counted by an estimate."""

from dataclasses import replace
from pathlib import Path

import pytest

from microtome.atlas import Settings, build, estimate
from microtome.atlas.read import damaged
from microtome.model import Model
from microtome.store import table_path
from tests.contract.tiny_inputs import processor_for, write_pictures
from tests.unit.model.tiny import opened


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "pictures")


@pytest.fixture
def model() -> Model:
    return replace(opened("vit"), processor=processor_for("vit"))


def test_each_run_has_its_pictures_and_damaged_ones_are_made_anew(model: Model, pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "atlas"
    atlas = build(model, pictures, output=output)
    build(model, pictures / "ramp", output=output, settings=Settings(run="ramps"))
    counts = atlas.sql("select run, count(*) as pictures from pictures group by run order by run").to_pylist()
    assert counts == [{"run": "main", "pictures": 12}, {"run": "ramps", "pictures": 6}]
    assert atlas.sql('select distinct "rows", "columns", width, height from pictures').to_pylist() == [
        {"rows": 2, "columns": 2, "width": 8, "height": 8}
    ]
    path = table_path(output, "pictures", "corpus.main")
    whole = path.read_bytes()
    path.write_bytes(whole[:-9] + b"x" + whole[-8:])
    assert damaged(output) == ["tables/pictures/corpus.main.parquet"]
    build(model, pictures, output=output)
    assert path.read_bytes() == whole
    assert damaged(output) == []


def test_an_estimate_counts_the_bytes_of_pictures(model: Model, pictures: Path, tmp_path: Path) -> None:
    few = estimate(model, pictures).atlas_bytes
    write_pictures(pictures, count=200)
    build(model, pictures, output=tmp_path / "atlas", settings=Settings(lenses=("neurons",)))
    kept = table_path(tmp_path / "atlas", "pictures", "corpus.main").stat().st_size
    assert kept > 10_000
    assert estimate(model, pictures).atlas_bytes - few > kept / 2, "twelve of them have their share of the file already"
