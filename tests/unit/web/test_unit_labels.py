"""Labels on a unit's page: its own, of both ends, each with its control; a unit without any has none."""

from pathlib import Path

from fastapi.testclient import TestClient

from microtome.core import UnitAddress
from microtome.examples.labels import UnitLabel, labels_table
from microtome.neurons.explaining import ExplainedEnd, explanation_rows
from microtome.store import write_table
from microtome.web import create_app
from tests.unit.web.planted import plant


def test_labels_are_on_the_page_of_their_unit(tmp_path: Path) -> None:
    atlas = plant(tmp_path / "atlas")
    labels = [
        UnitLabel("neurons.1/7", "top", "token", "‘his’", 0.9, 0.1, "unigram draws", 1e-9),
        UnitLabel("neurons.1/7", "", "role", "writes about few tokens", 40.0, 0.2, "random directions of the layer", 1e-3),
        UnitLabel("neurons.0/3", "bottom", "bigram", "‘New York’", 0.8, 0.2, "what the end of the run alone explains", 1e-4),
    ]
    write_table(atlas, "unit_labels", "neurons.main", labels_table(labels, "main"))
    said = ExplainedEnd(
        UnitAddress("neurons", 7, layer=1),
        "bottom",
        "tokens",
        "‘old’ (3.0)",
        9,
        0.5,
        0.0,
        0.01,
        0.01,
        0.4,
        0.45,
        0.7,
        0.5,
        0.6,
        0.5,
    )
    write_table(atlas, "explanations", "neurons.main", explanation_rows([said], "main"))
    client = TestClient(create_app(atlas), base_url="http://127.0.0.1")
    found = client.get("/api/unit", params={"address": "neurons.1/7"}).json()["labels"]
    assert [(each["end"], each["text"], each["value"], each["control"]) for each in found] == [
        ("top", "‘his’", 0.9, 0.1),
        ("bottom", "‘old’ (3.0)", 0.5, 0.0),
        ("", "writes about few tokens", 40.0, 0.2),
    ]
    assert client.get("/api/unit", params={"address": "neurons.2/4"}).json()["labels"] == []
