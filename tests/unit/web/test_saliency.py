"""Contexts that are coloured by what a code is owed to, and units that are active together, on a unit's page and in an export."""

import base64
import gzip
import json
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from microtome.store import rows_of, write_table
from microtome.web import create_app
from microtome.web.export import export
from tests.unit.web.planted import plant

UNIT = "neurons.1/7"


@pytest.fixture
def atlas(tmp_path: Path) -> Path:
    planted = plant(tmp_path / "atlas")
    row = {
        "run": "main", "unit": UNIT, "site": "mlp_act.1", "window": 2, "position": 9, "half": "confirm", "method": "occlusion of 4 tokens",
        "tokens": [3, 4, 8], "weights": [2.0, -1.0, 0.5], "whole": 3.0, "nothing": 0.1, "deletion": 0.2, "insertion": 0.8, "deletion_control": 0.5,
        "insertion_control": 0.4,
    }  # fmt: skip
    write_table(planted, "saliencies", "factors.main", rows_of("saliencies", [row]))
    pair = {"run": "main", "unit": UNIT, "other": "neurons.0/3", "score": 0.6, "shifted": 0.1, "expected": 0.05, "control": 0.2}
    write_table(planted, "cofirings", "factors.main", rows_of("cofirings", [pair]))
    return planted


def test_a_context_is_coloured_by_what_the_code_is_owed_to(atlas: Path) -> None:
    page = TestClient(create_app(atlas), base_url="http://127.0.0.1").get("/api/unit", params={"address": UNIT}).json()
    (found,) = (each for each in page["contexts"] if each["end"] == "saliency")
    assert (found["value"], found["half"], found["position"], found["site"]) == (3.0, "confirm", 9, "mlp_act.1")
    weights = [code * found["scale"] for code in found["codes"]]
    assert weights == pytest.approx([2.0, -1.0, 0, 0, 0, 0.5, 0], abs=2 / 127)
    assert len(found["pieces"]) == 7, "from the first of the tokens to the context's own"
    assert found["centre"] == 6
    assert [each["end"] for each in page["contexts"]][-1] == "saliency"
    together = [each for each in page["links"] if each["kind"] == "active together"]
    assert [(each["other"], each["score"], each["control"]) for each in together] == [("neurons.0/3", 0.6, 0.2)]


def test_an_export_has_it_too(atlas: Path, tmp_path: Path) -> None:
    export(atlas, tmp_path / "site")
    for shard in (tmp_path / "site").rglob("*.json.gz"):
        for record in _records(json.loads(gzip.decompress(shard.read_bytes()))):
            if record.get("unit") == UNIT and "contexts" in record:
                (row,) = (each for each in record["contexts"] if each[0] == "saliency")
                codes = base64.b64decode(row[-1])
                assert len(codes) == 7
                assert codes[0] == 127
                assert row[1] == "confirm"
                return
    pytest.fail("the unit is in no shard")


def _records(found: object) -> list[dict]:
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
