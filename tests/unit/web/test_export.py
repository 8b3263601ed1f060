import base64
import gzip
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from microtome.core import Refusal
from microtome.web import export
from microtome.web.assets import assets
from tests.unit.web.planted import plant


def _read(path: Path) -> Any:
    return json.loads(gzip.decompress(path.read_bytes()))


@pytest.fixture(scope="session")
def site(atlas: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(atlas, tmp_path_factory.mktemp("export") / "site")


def test_the_page_is_the_servers_but_for_its_source(site: Path) -> None:
    for path, asset in assets().items():
        written = (site / path).read_bytes()
        if path == "index.html":
            assert b'name="microtome-source" content="static"' in written
            written = written.replace(b'content="static"', b'content="server"')
        assert written == asset.content


def test_whole_answers_are_the_servers(site: Path, client: TestClient) -> None:
    for name in ("summary", "findings", "layers"):
        assert _read(site / "data" / "0" / f"{name}.json.gz") == client.get(f"/api/{name}").json()


def test_units_are_found_by_arithmetic_and_are_the_servers(site: Path, client: TestClient) -> None:
    places = _read(site / "data" / "places.json.gz")
    assert [(group["prefix"], group["place"], group["number"], group["count"]) for group in places["groups"]] == [
        (f"neurons.{layer}/", 64 * layer, 0, 64) for layer in range(4)
    ]
    for layer, index in ((0, 0), (1, 7), (3, 63)):
        place = 64 * layer + index
        mine = _read(site / "data" / "0" / "units" / f"{place // places['per']}.json.gz")[place % places["per"]]
        served = client.get("/api/unit", params={"address": f"neurons.{layer}/{index}"}).json()
        rows, contexts = mine.pop("contexts"), served.pop("contexts")
        assert mine == served
        assert [row[:9] for row in rows] == [
            [
                context["end"], context["half"], context["rank"], context["site"], context["value"], context["scale"],
                context["window"], context["position"], row[8],
            ]
            for row, context in zip(rows, contexts, strict=True)
        ]  # fmt: skip
        for row, context in zip(rows, contexts, strict=True):
            _, pieces, _, _ = _read(site / "data" / "0" / "windows" / f"{row[6] // places['windows']}.json.gz")[str(row[6])]
            activations = np.frombuffer(base64.b64decode(row[9]), np.int8).tolist()
            codes = [(row[8] + j, code) for j, code in enumerate(activations) if code != -128 and row[8] + j < len(pieces)]
            assert [code for _, code in codes] == context["codes"]
            assert pieces[row[7]] == context["pieces"][context["centre"]]


def test_search_shards_hold_what_the_server_finds(site: Path, client: TestClient) -> None:
    token = client.get("/api/tokens", params={"word": "liberty"}).json()["tokens"][0]["token"]
    entries = _read(site / "data" / "0" / "search" / f"{token % 256}.json.gz")[str(token)]
    for kind, match in enumerate(("promotes", "suppresses", "fires")):
        served = client.get("/api/units", params={"token": "liberty", "match": match, "limit": 200, "sort": "unit"}).json()
        assert sorted({place for place, each, _ in entries if each == kind}) == [
            64 * int(row["unit"][8]) + int(row["unit"].split("/")[1]) for row in served["rows"]
        ]


def test_documents_are_whole(site: Path, client: TestClient) -> None:
    cards = _read(site / "data" / "0" / "documents.json.gz")
    for number, (document, name, _, _, _, length) in enumerate(cards):
        text = _read(site / "data" / "0" / "documents" / str(number) / "0.json.gz")
        assert len(text) == length
        served = client.get("/api/document", params={"document": document}).json()
        assert served["name"] == name
        assert "".join(piece["text"] for piece in served["text"]) == text


def test_exporting_again_replaces_and_gives_the_same_bytes(atlas: Path, site: Path) -> None:
    def contents() -> dict[str, bytes]:
        return {str(path.relative_to(site)): path.read_bytes() for path in sorted(site.rglob("*")) if path.is_file()}

    before = contents()
    (site / "data" / "stray.json.gz").write_bytes(b"")
    export(atlas, site)
    assert contents() == before
    assert sorted(path.name for path in site.parent.iterdir()) == [site.name]


def test_a_folder_with_something_else_in_it_is_refused_and_left_alone(atlas: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(Refusal, match="it holds something that is not an earlier export; name a new or empty folder"):
        export(atlas, tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    (tmp_path / "export.json").write_text("[1]")
    with pytest.raises(Refusal, match="not an earlier export"):
        export(atlas, tmp_path)


def test_what_is_no_atlas_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"there is no atlas\.json in it"):
        export(tmp_path, tmp_path / "site")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_earlier_export(atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = export(atlas, tmp_path / "site")
    before = (out / "export.json").read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(importlib.import_module("microtome.web.export"), "_write_search", fail)
    with pytest.raises(OSError, match="No space left"):
        export(atlas, out)
    assert (out / "export.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_weights_alone_can_be_exported(tmp_path: Path) -> None:
    out = export(plant(tmp_path / "atlas", layers=2, width=16, contexts=False), tmp_path / "site")
    assert _read(out / "data" / "0" / "units" / "0.json.gz")[0]["contexts"] == []
    assert _read(out / "data" / "0" / "documents.json.gz") == []


def test_a_copy_without_text_has_none_of_it_and_says_so(atlas: Path, tmp_path: Path) -> None:
    """No two words of the text that follow each other are anywhere in it; single tokens, statistics and what units write are as ever."""
    data = export(atlas, tmp_path / "site", text="left out") / "data" / "0"
    written = {path: gzip.decompress(path.read_bytes()).decode() for path in data.rglob("*.json.gz")}
    assert not [path for path, content in written.items() if "the state of the union" in content or "honest labor" in content]
    assert {path.parent.name for path in written} & {"windows", "documents"} == set()
    summary = _read(data / "summary.json.gz")
    assert summary["tables"]["contexts"] == 0
    assert summary["absent"][0] == {"what": "contexts", "why": "this copy was written without its text"}
    whole = export(atlas, tmp_path / "whole") / "data" / "0"
    for mine, theirs in zip(_read(data / "units" / "3.json.gz"), _read(whole / "units" / "3.json.gz"), strict=True):
        assert (mine.pop("contexts"), bool(theirs.pop("contexts"))) == ([], True)
        assert mine == theirs
