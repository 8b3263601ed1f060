"""What a run of `microtome diff` says: the block that was changed and its vectors; layers that are alike."""

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from microtome.atlas import Settings, build
from microtome.atlas.diff import diff
from microtome.store import read_manifest, write_manifest
from microtome.web import compare_changes, create_app, export
from tests.unit.web.planted_pairs import asking, tuned_models


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model, and the same with unit 3 of layer 1 writing twice as much."""
    return tuned_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def atlas(models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the second: what changed, which layers are alike, and a run of its own."""
    path = tmp_path_factory.mktemp("changes") / "atlas"
    diff(*models, output=path)
    build(models[1], output=path, settings=Settings(run="main"))
    return path


def test_the_changed_block_and_its_vector_are_found(atlas: Path) -> None:
    ask = asking(atlas)
    sides = ask("sides", run="main")
    assert [(each["side"], each["kind"], each["says"]) for each in sides["others"]] == [
        ("since-base", "changes", "what changed since base")
    ]
    found = ask("changes", run="main", side="since-base")
    moved = {(each["group"], each["layer"]): each["value"] for each in found["blocks"] if each["stat"] == "moved"}
    assert {block for block, value in moved.items() if value} == {("W_out", 1)}
    assert (found["base"], found["of"], len(found["vectors"])) == ("base", 1, 1)
    first = found["vectors"][0]
    assert (first["vector"], first["unit"]) == ("W_out.1/3", "neurons.1/3")
    assert (first["moved"], first["cosine"]) == (pytest.approx(1.0, rel=1e-4), pytest.approx(1.0, rel=1e-4))
    assert first["promoted"]
    assert any(each["subject"] == "W_out of layer 1" for each in found["findings"])
    block = ask("changed_block", run="main", side="since-base", group="W_out", layer=1)
    assert (block["of"], [each["vector"] for each in block["vectors"]]) == (1, ["W_out.1/3"])


@pytest.mark.parametrize(
    ("vector", "unit"),
    [
        ("W_out.1/3", "neurons.1/3"), ("W_gate.0/e2.5", "neurons.0/e2.5"), ("W_Q.5.1/17", "heads.5/1"), ("W_E/9", None), ("W_out.1/999", None),
    ],
)  # fmt: skip
def test_a_vector_leads_to_its_unit(vector: str, unit: str | None) -> None:
    assert compare_changes._unit(vector, frozenset({"neurons.1/3", "neurons.0/e2.5", "heads.5/1"})) == unit


def test_a_run_that_compares_models_tells_of_itself(atlas: Path) -> None:
    ask = asking(atlas)
    assert ask("changes", run="since-base", side="since-base") == ask("changes", run="main", side="since-base")
    assert ask("sides", run="since-base")["own"]["kind"] == "changes"


@pytest.mark.parametrize(
    ("path", "asked", "why"),
    [
        ("changes", {"side": "main", "run": "since-base"}, "it does not say how two models differ"),
        ("changed_block", {"side": "since-base", "group": "W_V", "layer": 0}, "none of its vectors moved"),
        ("compared", {"side": "since-base", "run": "main"}, "says how two models differ"),
        ("compared", {"side": "main", "run": "since-base"}, "this run says how two models differ"),
    ],
)
def test_what_is_no_comparison_of_models_is_refused(atlas: Path, path: str, asked: dict[str, str], why: str) -> None:
    answer = TestClient(create_app(atlas), base_url="http://127.0.0.1").get(f"/api/{path}", params=asked)
    assert answer.status_code == 404
    assert why in answer.json()["why"]


def test_vectors_of_another_model_lead_to_no_page(atlas: Path, models: tuple[Path, Path], tmp_path: Path) -> None:
    own = build(models[0], output=tmp_path / "own", settings=Settings(lenses=("vocabulary",))).path
    ask = asking(own, atlas)
    found = ask("changes", side="atlas:since-base")
    assert found["vectors"][0]["vector"]
    assert {each["unit"] for each in found["vectors"]} == {None}


def test_aligned_layers_and_units_are_told(models: tuple[Path, Path], tmp_path: Path) -> None:
    from microtome.atlas.differences import Comparison

    path = tmp_path / "atlas"
    diff(*models, output=path, comparison=Comparison("alignment", groups=("W_V", "W_out")))
    build(models[1], output=path, settings=Settings(run="main"))
    found = asking(path)("changes", run="main", side="beside-base")
    assert (found["side"]["kind"], found["base"], found["vectors"], found["blocks"]) == ("alignment", "base", [], [])
    assert [(each["group"], each["layer"], each["other"], each["depth"]) for each in found["layers"]] == [
        (group, layer, layer, layer) for group in ("W_V", "W_out") for layer in range(3)
    ]  # fmt: skip
    assert all(each["alike"] > each["control_hi"] for each in found["layers"])
    units = {each["vector"]: each for each in found["units"]}
    assert units["W_out.0/0"]["other"] == "W_out.0/0"
    assert units["W_out.0/0"]["mutual"]
    assert units["W_out.0/0"]["unit"] == "neurons.0/0"
    assert found["units_of"] >= len(found["units"])


def test_an_export_has_the_changes_and_their_blocks(atlas: Path, tmp_path: Path) -> None:
    folder = export(atlas, tmp_path / "site") / "data"
    runs = [path for path in folder.iterdir() if path.is_dir() and (path / "sides.json.gz").is_file()]
    files = sorted(str(path.relative_to(folder)) for run in runs for path in run.glob("change*/*"))
    written = ["changed_block/since-base_W-out_1.json.gz", "changes/since-base.json.gz"]
    assert [file.partition("/")[2] for file in files] == written * 2


def test_a_comparison_that_is_still_written_has_no_changes_yet(atlas: Path, tmp_path: Path) -> None:
    import shutil

    path = shutil.copytree(atlas, tmp_path / "atlas")
    manifest = read_manifest(path)
    manifest.runs["since-base"] = manifest.runs["since-base"].model_copy(update={"status": "building"})
    write_manifest(path, manifest)
    assert asking(path)("sides", run="main")["others"][0]["why"] == "it is still being built"
