"""Resources: an export answers each as the server does, a table that is damaged costs no other, and no address breaks the server."""

import gzip
import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from microtome.core import Refusal
from microtome.web import create_app, export
from microtome.web.reader import Reader
from microtome.web.resource import Resource, file_of
from microtome.web.resources import RESOURCES
from tests.unit.web.planted import corrupt
from tests.unit.web.planted_lenses import HEADS, SITES

READ = {
    "overview": ("geometry_shares", "layer_loss", "unit_labels"),
    "geometry": ("geometry_stats", "geometry_positions", "geometry_alignment"),
    "geometry_site": ("geometry_positions", "geometry_spectra", "geometry_cosines", "geometry_windows", "documents"),
    "geometry_heads": ("geometry_attention",),
    "maps": ("dictionary_stats", "unit_places", "unit_labels"),
    "heads": ("pairs",),
    "head": ("pairs", "vocabulary"),
    "related": ("links", "coactivations", "tokens", "vocabulary"),
}
"""Tables that an answer is made of and can do without."""
ASKED = {
    "geometry_site": {"site": SITES[1]}, "head": {"unit": HEADS[1]}, "related": {"unit": "neurons.1/7"}, "map": {"layout": "factors@toy/t-SNE"},
}  # fmt: skip


class Asked(BaseModel):
    """Parameters with signs that no file may have in its name."""

    stat: str
    site: str | None = None
    layer: int = 3


def test_an_export_has_every_answer_that_has_a_key(lensed_atlas: Path, lensed: TestClient, tmp_path: Path) -> None:
    folder = export(lensed_atlas, tmp_path / "site") / "data" / "0"
    view = Reader(lensed_atlas).view()
    counts = {}
    for resource in RESOURCES:
        for asked in resource.keys(view) if callable(resource.keys) else ():
            written = json.loads(gzip.decompress((folder / file_of(resource.path, asked)).read_bytes()))
            answer = lensed.get(f"/api/{resource.path}", params=asked.model_dump())
            assert written == answer.json(), (resource.path, asked)
            counts[resource.path] = counts.get(resource.path, 0) + 1
    once = dict.fromkeys(
        ("summary", "findings", "layers", "overview", "geometry", "geometry_heads", "maps", "heads", "sides"), 1
    )
    assert counts == once | {"geometry_site": 13, "map": 1, "column": 13, "label_column": 3, "head": 3}


def test_a_file_is_named_by_the_parameters_in_order() -> None:
    assert file_of("column", Asked(stat="a b/../c_d.e", site="resid_post.3")) == "column/a-b-..-c-d.e_resid-post.3_3.json.gz"
    assert file_of("column", Asked(stat="")) == "column/__3.json.gz"


def test_two_answers_of_one_name_are_refused(lensed_atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twice = Resource("column", Asked, Asked, lambda _, asked: asked, lambda _: [Asked(stat="a b"), Asked(stat="a-b")])
    monkeypatch.setattr(importlib.import_module("microtome.web.export"), "RESOURCES", (twice,))
    with pytest.raises(Refusal, match=r"column/a-b__3\.json\.gz: two answers would have this name"):
        export(lensed_atlas, tmp_path / "site")


def test_the_server_describes_every_resource(lensed: TestClient) -> None:
    paths = lensed.get("/api/openapi.json").json()["paths"]
    asked = {path for path, methods in paths.items() if "get" in methods}
    assert asked == {f"/api/{resource.path}" for resource in RESOURCES} | {"/api/progress", "/api/model"}
    for resource in RESOURCES:
        operation = paths[f"/api/{resource.path}"]["get"]
        assert operation["operationId"] == resource.path
        names = [each["name"] for each in operation.get("parameters", [])]
        assert sorted(names) == sorted([*resource.parameters.model_fields, "run"])
        for each in operation.get("parameters", []):
            assert _bounded(each["schema"]), (resource.path, each["name"])


def _bounded(schema: dict[str, Any]) -> bool:
    """Whether a parameter is a word of a list, a number, or a string of a length that is said."""
    if "anyOf" in schema:
        return all(_bounded(each) for each in schema["anyOf"])
    if schema.get("type") == "integer":
        return "maximum" in schema and "minimum" in schema
    return schema.get("type") in ("null", "number") or "enum" in schema or "maxLength" in schema


@pytest.mark.parametrize(("path", "table"), [(path, table) for path, tables in READ.items() for table in tables])
def test_a_damaged_table_is_named_and_the_rest_is_told(path: str, table: str, lensed_atlas: Path, tmp_path: Path) -> None:
    atlas = shutil.copytree(lensed_atlas, tmp_path / "atlas")
    file = sorted((atlas / "tables" / table).glob("*.parquet"))[0]
    corrupt(atlas, table, file.stem)
    answer = _client(atlas).get(f"/api/{path}", params=ASKED.get(path, {}))
    assert answer.status_code == 200, answer.text
    assert [problem["what"] for problem in answer.json()["problems"]] == [f"tables/{table}/{file.name}"]
    assert answer.json().keys() == next(each.record.model_fields.keys() for each in RESOURCES if each.path == path)


@pytest.mark.parametrize(("path", "table"), [(path, tables[0]) for path, tables in READ.items()])
def test_a_table_that_is_damaged_inside_is_named_too(path: str, table: str, lensed_atlas: Path, tmp_path: Path) -> None:
    atlas = shutil.copytree(lensed_atlas, tmp_path / "atlas")
    for file in (atlas / "tables" / table).glob("*.parquet"):
        raw = bytearray(file.read_bytes())
        footer = int.from_bytes(raw[-8:-4], "little") + 8
        raw[4:-footer] = bytes(len(raw) - footer - 4)
        file.write_bytes(raw)
    answer = _client(atlas).get(f"/api/{path}", params=ASKED.get(path, {}))
    assert answer.status_code == 200, answer.text
    assert [problem["what"] for problem in answer.json()["problems"]] == [f"table {table}"]


def _client(atlas: Path) -> TestClient:
    return TestClient(create_app(atlas), base_url="http://127.0.0.1")


WORDS = st.sampled_from(
    [
        "", "main", "neurons.1/7", "heads.0/1", "factors@toy/1", "resid_post.0", "factors@toy/t-SNE", "importance", "density", "role", "the",
        "../../etc/passwd", "/", "%00", "'; DROP TABLE mt_rows; --", '"', "$1", "?", "((", "(a*)*b", "\\C", "[[:alpha:]]", ".{1000}", "nan", "1e400", "-1",
        "\x00", "\u202e", "😀" * 30, "9" * 40,
    ]
)  # fmt: skip
ANYTHING = st.one_of(WORDS, st.text(st.characters(codec="utf-8"), max_size=250), st.integers().map(str), st.floats().map(str))


def _value(schema: dict[str, Any]) -> st.SearchStrategy[str]:
    """Mostly what the schema allows, and anything else."""
    for each in schema.get("anyOf", [schema]):
        if "enum" in each:
            return st.one_of(st.sampled_from(each["enum"]), WORDS)
        if each.get("type") == "integer":
            return st.one_of(st.integers(each["minimum"], each["maximum"]).map(str), st.integers(0, 9).map(str), ANYTHING)
        if each.get("type") == "number":
            return st.one_of(st.floats(allow_nan=False).map(str), ANYTHING)
    return ANYTHING


@pytest.mark.parametrize("path", ["progress", *(resource.path for resource in RESOURCES)])
def test_no_address_breaks_the_server(path: str, lensed: TestClient) -> None:
    described = lensed.get("/api/openapi.json").json()["paths"][f"/api/{path}"]["get"].get("parameters", [])
    needed = {each["name"]: _value(each["schema"]) for each in described if each["required"]}
    optional = {each["name"]: _value(each["schema"]) for each in described if not each["required"]}

    @settings(max_examples=60, deadline=None, database=None)
    @given(parameters=st.fixed_dictionaries(needed, optional=optional))
    def ask(parameters: dict[str, str]) -> None:
        answer = lensed.get(f"/api/{path}", params=parameters)
        assert answer.status_code in (200, 400, 404, 422), answer.text
        if answer.status_code in (400, 404):
            assert set(answer.json()) == {"what", "why", "instead"}

    ask()
