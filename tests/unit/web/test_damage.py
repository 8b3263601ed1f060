"""What is wrong with an atlas is told: before serving where nothing can be shown, else on the pages of the runs it concerns."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from microtome.core import Refusal
from microtome.store import digest, read_manifest, table_path, write_manifest
from microtome.web import create_app, serve
from tests.unit.web.planted import RUN, plant

AGAIN = "run the same `microtome build` again: damaged tables are found and rebuilt"


@pytest.fixture
def atlas(tmp_path: Path) -> Path:
    """A planted atlas whose manifest lists its files, for two runs: `main` has all of them, `other` those that hold for any run."""
    path = plant(tmp_path / "atlas", layers=2, width=16)
    manifest = read_manifest(path)
    files = {str(file.relative_to(path)): digest(file) for file in sorted(path.glob("tables/*/*.parquet"))}
    shared = {name: value for name, value in files.items() if name.split("/")[1] in ("units", "tokens", "vocabulary")}
    card = manifest.runs[RUN]
    manifest.runs[RUN] = card.model_copy(update={"files": files})
    manifest.runs["other"] = card.model_copy(update={"files": shared, "corpus": None})
    write_manifest(path, manifest)
    return path


def _client(atlas: Path) -> TestClient:
    return TestClient(create_app(atlas), base_url="http://127.0.0.1")


def _problems(client: TestClient, run: str = RUN) -> list[dict[str, str]]:
    return client.get("/api/summary", params={"run": run}).json()["problems"]


def _rewrite(path: Path) -> bytes:
    """Write the same rows with other bytes; gives the bytes that were there."""
    before = path.read_bytes()
    pq.write_table(pq.read_table(path), path, compression="none")
    return before


def _until(client: TestClient, damaged: int) -> Any:
    end = time.monotonic() + 30
    while (told := client.get("/api/progress").json())["damaged"] != damaged:
        assert time.monotonic() < end, told
        time.sleep(0.02)
    return told


def test_a_missing_table_is_named_on_the_pages_of_its_run(atlas: Path) -> None:
    table_path(atlas, "contexts", "neurons").unlink()
    client = _client(atlas)
    assert _problems(client) == [
        {"what": "tables/contexts/neurons.parquet", "why": "it is missing, so what it held is not shown", "instead": AGAIN}
    ]
    assert _problems(client, "other") == []
    unit = client.get("/api/unit", params={"address": "neurons.1/7"}).json()
    assert (unit["contexts"], len(unit["promotes"])) == ([], 8)


def test_a_missing_table_that_holds_for_any_run_is_named_on_all_pages(atlas: Path) -> None:
    table_path(atlas, "tokens", "neurons").unlink()
    client = _client(atlas)
    for run in (RUN, "other"):
        assert [problem["what"] for problem in _problems(client, run)] == ["tables/tokens/neurons.parquet"]


def test_a_file_that_cannot_be_opened_is_named_once(atlas: Path) -> None:
    table_path(atlas, "contexts", "neurons").write_bytes(b"")
    client = _client(atlas)
    client.app.state.reader.damage.watch()  # type: ignore[attr-defined]
    _until(client, 1)
    [problem] = _problems(client)
    assert problem["what"] == "tables/contexts/neurons.parquet"
    assert problem["why"].startswith("it is damaged")


def test_other_bytes_are_found_in_the_background_and_named(atlas: Path) -> None:
    before = _rewrite(table_path(atlas, "contexts", "neurons"))
    client = _client(atlas)
    assert client.get("/api/progress").json()["damaged"] == 0
    assert _problems(client) == []
    client.app.state.reader.damage.watch()  # type: ignore[attr-defined]
    told = _until(client, 1)
    summary = client.get("/api/summary").json()
    assert (summary["signature"], summary["damaged"]) == (told["signature"], 1)
    assert summary["problems"] == [
        {
            "what": "tables/contexts/neurons.parquet",
            "why": "its bytes are not those that were written, so what is shown of it may be wrong",
            "instead": AGAIN,
        }
    ]
    assert _problems(client, "other") == []
    assert client.get("/api/unit", params={"address": "neurons.1/7"}).json()["contexts"]
    table_path(atlas, "contexts", "neurons").write_bytes(before)
    _until(client, 0)
    assert _problems(client) == []


def test_an_atlas_as_it_was_written_has_no_problem(atlas: Path) -> None:
    client = _client(atlas)
    damage = client.app.state.reader.damage  # type: ignore[attr-defined]
    damage.watch()
    files = client.get("/api/progress").json()["signature"]
    end = time.monotonic() + 30
    while not damage.compared(files):
        assert time.monotonic() < end
        time.sleep(0.02)
    assert client.get("/api/progress").json()["damaged"] == 0
    assert (_problems(client), _problems(client, "other")) == ([], [])


NO_ATLAS = {
    "a folder without a manifest": (None, r"there is no atlas\.json in it; name a folder that `microtome build` has made"),
    "half a manifest": ('{"format": "microtome atlas", "ru', "it is damaged, or not the manifest of a microtome atlas; name"),
    "another manifest": ("[1, 2]", "it is damaged, or not the manifest of a microtome atlas; name a folder"),
    "a newer schema": ('{"schema_version": 99}', "it has schema version 99, newer than 1, .*; upgrade microtome"),
}


@pytest.mark.parametrize("case", NO_ATLAS)
@pytest.mark.parametrize("building", ["", "{}"])
def test_what_cannot_be_shown_is_refused_before_serving(tmp_path: Path, case: str, building: str) -> None:
    manifest, message = NO_ATLAS[case]
    if manifest is not None:
        (tmp_path / "atlas.json").write_text(manifest)
        (tmp_path / "progress.json").write_text(building)
    with pytest.raises(Refusal, match=message):
        serve(tmp_path, port=0)


def test_open_ends_with_a_status_where_there_is_no_atlas(tmp_path: Path) -> None:
    (tmp_path / "atlas.json").write_text(json.dumps({"schema_version": 99}))
    command = [sys.executable, "-c", "from microtome.cli.main import main; main()", "open", str(tmp_path), "--port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert [line.split()[0] for line in ended.stderr.splitlines()] == ["Refused:", "because", "instead"]
    assert "upgrade microtome" in ended.stderr
