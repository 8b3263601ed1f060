"""Maps, the columns that colour them, and the stack of layers: every number at the place of its unit."""

import base64
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from tests.unit.web.planted_lenses import FACTORS, ROLES

UNITS = 4 * 64 + 3 + FACTORS


def _get(client: TestClient, path: str, **parameters: str) -> Any:
    answer = client.get(f"/api/{path}", params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


def _places(client: TestClient, *units: str) -> list[int]:
    return [_get(client, "unit", address=unit)["place"] for unit in units]


def _unpacked(packed: str, kind: str = "<f4") -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed), kind)


def test_maps_are_listed_with_how_far_they_can_be_believed(lensed: TestClient) -> None:
    found = _get(lensed, "maps")
    assert found["units"] == UNITS
    [layout] = found["layouts"]
    assert (layout["layout"], layout["basis"], layout["name"], layout["units"]) == ("factors@toy/t-SNE", "factors", "toy", 6)
    assert [(each["stat"], each["value"], each["control"], each["control_kind"]) for each in layout["kept"]] == [
        ("trustworthiness", 0.8, 0.6, "two principal components"), ("continuity", 0.8, 0.5, "places dealt out anew"),
    ]  # fmt: skip
    columns = {each["column"]["name"]: each["sites"] for each in found["columns"]}
    assert columns["importance"] == ["resid_post.0", "resid_post.1"]
    assert columns["density"] == columns["copying_score"] == []
    assert found["labels"] == [
        {"kind": "token", "units": 41}, {"kind": "role", "units": 9}, {"kind": "explanation", "units": 1},
    ]  # fmt: skip


def test_a_map_has_the_places_of_its_units(lensed: TestClient) -> None:
    found = _get(lensed, "map", layout="factors@toy/t-SNE")
    assert found["count"] == FACTORS
    assert _unpacked(found["place"], "<i4").tolist() == _places(lensed, *(f"factors@toy/{n}" for n in range(FACTORS)))
    assert _unpacked(found["x"]).tolist() == [0, 1, 2, 3, 4, 5]
    assert _unpacked(found["y"]).tolist() == [0, -0.5, -1, -1.5, -2, -2.5]


def test_a_column_is_a_statistic_by_place(lensed: TestClient) -> None:
    places = _places(lensed, *(f"factors@toy/{n}" for n in range(FACTORS)))
    largest, second = (_get(lensed, "column", stat="importance", site=site) for site in ("", "resid_post.1"))
    assert _unpacked(largest["values"])[places[:5]].tolist() == [10, 9, 8, 7, 6]
    assert _unpacked(_get(lensed, "column", stat="importance", site="resid_post.0")["values"])[places[:5]].tolist() == [
        0,
        1,
        2,
        3,
        4,
    ]
    assert np.isnan(_unpacked(largest["values"])[places[5]])
    assert (largest["count"], largest["least"], largest["most"]) == (UNITS, 6, 10)
    assert np.isfinite(_unpacked(second["values"])).sum() == 5


def test_a_label_is_a_category_by_place_and_the_rest_is_one(lensed: TestClient) -> None:
    roles = _get(lensed, "label_column", kind="role")
    codes = _unpacked(roles["codes"], "i1")
    assert (roles["texts"], roles["units"], len(codes)) == (list(ROLES), [5, 4], UNITS)
    assert codes[_places(lensed, "neurons.0/4", "neurons.0/10", "neurons.1/11", "neurons.1/12")].tolist() == [0, 1, 1, -1]
    tokens = _get(lensed, "label_column", kind="token")
    assert (tokens["texts"][0], tokens["units"][0]) == ("‘t39’", 2), "the surer of two labels of neurons.3/0"
    assert (len(tokens["texts"]), tokens["texts"][30], tokens["units"][30]) == (31, "other", 10)
    codes = _unpacked(tokens["codes"], "i1")
    assert codes[_places(lensed, "neurons.3/0", "neurons.2/39", "neurons.2/0", "neurons.2/38")].tolist() == [0, 0, 1, 30]


@pytest.mark.parametrize(
    ("path", "parameters", "what"),
    [
        ("map", {"layout": "neurons/plane"}, "map neurons/plane"),
        ("column", {"stat": "nothing"}, "statistic nothing"),
        ("column", {"stat": "importance", "site": "mlp_act.9"}, "statistic importance at mlp_act.9"),
        ("label_column", {"kind": "mood"}, "label mood"),
    ],
)
def test_what_there_is_not_is_refused(lensed: TestClient, path: str, parameters: dict[str, str], what: str) -> None:
    answer = lensed.get(f"/api/{path}", params=parameters)
    assert (answer.status_code, answer.json()["what"]) == (404, what)


def test_the_stack_has_the_shape_of_the_model_and_its_units_by_layer(lensed: TestClient) -> None:
    found = _get(lensed, "overview")
    assert (found["name"], found["family"]) == ("planted/toy-4L", "llama")
    assert {key: found["shape"][key] for key in ("layers", "d_mlp", "heads", "norm", "gated")} == {
        "layers": 4, "d_mlp": 64, "heads": 4, "norm": None, "gated": True,
    }  # fmt: skip
    units = [(each["layer"], each["basis"], each["units"], each["labelled"]) for each in found["units"]]
    assert units == [
        (None, "factors", 6, 0), (0, "neurons", 64, 7), (0, "heads", 2, 0), (1, "neurons", 64, 2), (1, "heads", 1, 0), (2, "neurons", 64, 40),
        (3, "neurons", 64, 2),
    ]  # fmt: skip
    labels = [(each["layer"], each["kind"], each["text"], each["units"]) for each in found["labels"]]
    assert labels == [
        (0, "role", None, 7), (0, "role", ROLES[1], 2), (0, "role", ROLES[0], 5), (1, "role", None, 2), (1, "role", ROLES[1], 2),
        (2, "token", None, 40), (3, "explanation", None, 1), (3, "explanation", "‘Liberty’ (9.0)", 1), (3, "token", None, 1),
    ]  # fmt: skip
    sites = {each["site"]: each["tables"] for each in found["sites"]}
    assert sites["resid_post.0"] == ["geometry_shares", "layer_loss", "unit_stats"]
    assert sites["mlp_act.2"] == ["unit_stats"]
    assert list(sites)[:3] == ["resid_pre.0", "mlp_act.0", "resid_post.0"]


def test_an_atlas_without_maps_says_so_by_an_empty_list(client: TestClient) -> None:
    found = _get(client, "maps")
    assert (found["layouts"], found["labels"], found["problems"]) == ([], [], [])
