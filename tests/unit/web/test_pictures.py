"""Pages of a model that reads images: every answer has a meaning for patches, or says in a line that it has none."""

import base64
import gzip
import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from microtome.atlas import Settings, build
from microtome.web import create_app, export
from microtome.web.reader import Reader
from microtome.web.resources import RESOURCES
from tests.contract.tiny_inputs import processor_for, write_pictures
from tests.unit.model.tiny import opened

NUMBERED = re.compile(r'"\[-?\d+\]"')
"""A token that has no text, by its number."""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An atlas of a tiny ViT, whose pictures are 2 x 2 patches of 4 x 4 pixels, with two runs."""
    pictures = write_pictures(tmp_path_factory.mktemp("pictures") / "all")
    (pictures / "noise" / "00.png").write_bytes(b"no picture")
    model = replace(opened("vit"), processor=processor_for("vit"))
    output = tmp_path_factory.mktemp("seen") / "atlas"
    build(model, pictures, output=output)
    build(model, pictures / "ramp", output=output, settings=Settings(run="ramps"))
    return output


@pytest.fixture(scope="module")
def earlier(seen: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as an earlier microtome wrote it."""
    copy = shutil.copytree(seen, tmp_path_factory.mktemp("earlier") / "atlas")
    shutil.rmtree(copy / "tables" / "pictures")
    return copy


def _client(atlas: Path) -> TestClient:
    return TestClient(create_app(atlas), base_url="http://127.0.0.1")


def _read(path: Path) -> Any:
    return json.loads(gzip.decompress(path.read_bytes()))


def _everything(client: TestClient, atlas: Path) -> Iterator[tuple[str, Any]]:
    """Every answer about every run that an export would have, and those about a unit."""
    for run in ("main", "ramps"):
        view = Reader(atlas).view(run)
        for resource in RESOURCES:
            for asked in resource.keys(view) if callable(resource.keys) else ():
                given = {name: value for name, value in dict(asked).items() if value is not None}
                yield resource.path, client.get(f"/api/{resource.path}", params={**given, "run": run})
        for unit in _units(client):
            yield "unit", client.get("/api/unit", params={"address": unit, "run": run})
            yield "related", client.get("/api/related", params={"unit": unit, "run": run})
        for word in ({}, {"token": "sky"}, {"phrase": "blue sky"}, {"pattern": "s.y"}, {"sort": "match", "exact": 1}):
            for path in ("units", "places"):
                yield path, client.get(f"/api/{path}", params={"basis": "neurons", "run": run, **word})
        yield "tokens", client.get("/api/tokens", params={"word": "sky", "run": run})


def _units(client: TestClient) -> list[str]:
    """A unit of each basis."""
    bases = [each["basis"] for each in client.get("/api/summary").json()["bases"]]
    assert bases
    return [client.get("/api/units", params={"basis": basis, "limit": 1}).json()["rows"][0]["unit"] for basis in bases]


def test_no_answer_fails_or_shows_a_patch_as_a_token(seen: Path, earlier: Path) -> None:
    for atlas in (seen, earlier):
        told = list(_everything(_client(atlas), atlas))
        assert {path for path, answer in told if answer.status_code != 200} == set()
        assert {path for path, answer in told if NUMBERED.search(answer.text)} == set()
        assert {"summary", "findings", "geometry_site", "compared_words", "scatter", "unit", "related"} <= {
            path for path, _ in told
        }


def test_contexts_name_their_patches_by_row_and_column(seen: Path) -> None:
    client = _client(seen)
    assert client.get("/api/summary").json()["grid"] == {"rows": 2, "columns": 2}
    contexts = client.get("/api/unit", params={"address": "neurons.1/3", "run": "main"}).json()["contexts"]
    assert contexts
    names = {None: "class token", 0: "row 1, column 1", 1: "row 1, column 2", 2: "row 2, column 1", 3: "row 2, column 2"}
    for context in contexts:
        assert context["pieces"] == [names[patch] for patch in context["patches"]]
        assert context["patches"][context["centre"]] == context["position"] - 1, "the class token is the first of the window"
        assert {0, 1, 2, 3} <= set(context["patches"])


def test_contexts_of_texts_have_no_patches(client: TestClient) -> None:
    assert client.get("/api/summary").json()["grid"] is None
    unit = client.get("/api/unit", params={"address": "neurons.0/0"}).json()
    assert {context["patches"] for context in unit["contexts"]} == {None}


def test_a_picture_is_what_the_processor_makes_of_the_file(seen: Path) -> None:
    told = _client(seen).get("/api/picture", params={"document": 11, "run": "main"}).json()
    assert {key: told[key] for key in ("name", "rows", "columns", "width", "height")} == {
        "name": "ramp/08.png", "rows": 2, "columns": 2, "width": 8, "height": 8,
    }  # fmt: skip
    found = np.asarray(Image.open(io.BytesIO(base64.b64decode(told["jpeg"]))), np.int64)
    ramp = np.add.outer(np.arange(28) * 8, np.arange(30) * 3).astype(np.uint8)
    small = np.asarray(Image.fromarray(ramp).resize((8, 8), Image.Resampling.BILINEAR), np.int64)
    assert np.abs(found - small[..., None]).mean() < 12


@pytest.mark.parametrize(
    ("document", "why", "instead"),
    [
        (0, "run main of this atlas has none: there is no such document, or it was skipped", "choose another document"),
        (999, "run main of this atlas has none: there is no such document, or it was skipped", "choose another document"),
    ],
)
def test_a_picture_that_is_not_there_is_refused(document: int, why: str, instead: str, seen: Path) -> None:
    answer = _client(seen).get("/api/picture", params={"document": document, "run": "main"})
    assert answer.status_code == 404
    assert answer.json() == {"what": f"picture of document {document}", "why": why, "instead": instead}


def test_an_earlier_atlas_and_a_text_say_why_they_have_none(earlier: Path, client: TestClient) -> None:
    early = _client(earlier)
    assert early.get("/api/summary").json()["grid"] == {"rows": 2, "columns": 2}, "the windows and the model tell"
    answer = early.get("/api/picture", params={"document": 1})
    assert (answer.status_code, answer.json()["why"]) == (404, "run main of this atlas has none: an earlier microtome built it")
    answer = client.get("/api/picture", params={"document": 1})
    assert answer.json()["why"].endswith("its model reads text")


def test_what_needs_words_says_so(seen: Path) -> None:
    client = _client(seen)
    compared = client.get("/api/compared_words", params={"side": "ramps", "run": "main"}).json()
    assert (compared["overlaps"], compared["why"]) == ([], "images have no vocabulary")
    meaning = client.get("/api/units", params={"basis": "neurons", "meaning": "sky"})
    assert (meaning.status_code, meaning.json()["why"]) == (400, "the model reads images, which have no vocabulary")
    document = client.get("/api/document", params={"document": 3, "run": "main"})
    assert (document.status_code, document.json()["why"]) == (404, "it is an image")
    (corpus,) = (
        each
        for each in client.get("/api/summary", params={"run": "main"}).json()["sections"]
        if each["title"].startswith("Corpus")
    )
    facts = {each["name"]: each["value"] for each in corpus["facts"]}
    assert facts["windows"] == "12 pictures of 2 x 2 patches"
    assert "skipped first" not in facts


def test_an_export_has_the_pictures_that_contexts_are_in(seen: Path, tmp_path: Path) -> None:
    data = export(seen, tmp_path / "site") / "data"
    number = _read(data / "runs.json.gz").index("main")
    client = _client(seen)
    written = {int(path.name.removesuffix(".json.gz")): _read(path) for path in (data / str(number) / "picture").iterdir()}
    units = [client.get("/api/unit", params={"address": f"neurons.1/{n}", "run": "main"}).json() for n in range(4)]
    assert {context["document"] for unit in units for context in unit["contexts"]} <= set(written)
    for document, told in written.items():
        assert told == client.get("/api/picture", params={"document": document, "run": "main"}).json()
    window = next(iter(_read(data / str(number) / "windows" / "0.json.gz").values()))
    assert window[1] == ["class token", "row 1, column 1", "row 1, column 2", "row 2, column 1", "row 2, column 2"]
    assert window[4] == [None, 0, 1, 2, 3]


def test_an_export_without_its_text_has_no_picture(seen: Path, tmp_path: Path) -> None:
    site = export(seen, tmp_path / "site", text="left out")
    assert list(site.rglob("picture")) == []
    assert list(site.rglob("windows")) == []
