"""Related units on a unit's page: those it has, those that lead to it, once where both do, the largest first whatever their sign."""

from pathlib import Path

import pyarrow as pa
import pytest
from fastapi.testclient import TestClient

from microtome.store import write_table
from microtome.web import create_app
from tests.unit.web.planted import plant

ROWS = [
    ("neurons.1/7", "neurons.0/3", "writes alike", 0.5),
    ("neurons.0/3", "neurons.1/7", "writes alike", 0.5),
    ("neurons.1/7", "neurons.2/4", "gate reads what is written", -0.9),
    ("neurons.3/1", "neurons.1/7", "gate reads what is written", 0.7),
    ("neurons.3/1", "neurons.0/3", "writes alike", 0.99),
]


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    atlas = plant(tmp_path / "atlas")
    columns = list(zip(*ROWS, strict=True))
    names = ("unit", "other", "kind", "score")
    write_table(
        atlas, "links", "neurons", pa.table(dict(zip(names, map(list, columns), strict=True)) | {"control": [0.1] * len(ROWS)})
    )
    return TestClient(create_app(atlas), base_url="http://127.0.0.1")


def test_links_are_told_from_both_sides_and_mutual_ones_once(client: TestClient) -> None:
    found = client.get("/api/unit", params={"address": "neurons.1/7"}).json()["links"]
    assert [(each["other"], each["kind"], round(each["score"], 3)) for each in found] == [
        ("neurons.2/4", "gate reads what is written", -0.9),
        ("neurons.3/1", "gate reads what is written, seen from there", 0.7),
        ("neurons.0/3", "writes alike", 0.5),
    ]
