"""Geometry over depth, at a site and in attention: planted numbers come back where they belong, and no answer grows without bound."""

import base64
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from tests.unit.web.planted_lenses import LARGE, SITES


def _get(client: TestClient, path: str, **parameters: str) -> Any:
    answer = client.get(f"/api/{path}", params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


def _floats(packed: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed), "<f4")


def test_sites_come_by_depth_with_what_there_is_of_them(lensed: TestClient) -> None:
    found = _get(lensed, "geometry")
    assert [each["site"] for each in found["sites"]] == list(SITES)
    assert (found["of"], found["heads"], found["problems"]) == (13, True, [])
    assert found["sites"][1] == {
        "site": "resid_post.0",
        "layer": 0,
        "tables": ["shares", "stats", "positions", "spectra", "frequencies", "windows", "cosines"],
    }
    assert found["sites"][12]["tables"] == ["stats"]


def test_a_measure_is_a_row_of_numbers_over_sites_beside_its_control(lensed: TestClient) -> None:
    leak, trusted, clusters = _get(lensed, "geometry")["series"]
    assert (leak["subject"], leak["stat"], leak["label"], leak["headline"]) == ("pos and ctx", "leak", "Leak", True)
    assert leak["value"] == [n / 100 for n in range(13)]
    assert (leak["control"], leak["control_lo"], leak["control_kind"]) == ([0.5] * 13, [0.4] * 13, "rotated")
    assert leak["lo"][3] == pytest.approx(0.029)
    assert trusted["value"] == [None, 0.9, *[None] * 11]
    assert (clusters["stat"], clusters["headline"], clusters["value"]) == ("clusters", False, [3.0, *[None] * 12])
    assert clusters["control"] == []


def test_alignment_names_the_two_sites_of_each_number(lensed: TestClient) -> None:
    ctx, pos = _get(lensed, "geometry")["alignment"]
    assert (ctx["subject"], ctx["sites"], ctx["value"]) == ("ctx", [SITES[0], SITES[1]], [1.0])
    assert pos["sites"] == [SITES[0], SITES[3], SITES[11], SITES[12]]
    pairs = list(zip(pos["site"], pos["other"], pos["value"], pos["control"], strict=True))
    assert sorted(pairs) == [(0, 3, 0.25, 0.1), (1, 2, 0.75, 0.1)]


def test_a_site_has_its_curve_spectra_frequencies_cosines_and_map(lensed: TestClient) -> None:
    site = _get(lensed, "geometry_site", site=SITES[1])
    assert (site["layer"], site["previous"], site["next"]) == (0, SITES[0], SITES[2])
    assert [(each["stat"], each["value"], each["undefined"]) for each in site["stats"]] == [
        ("clusters", None, "no cluster is stable"), ("map_trustworthiness", 0.9, None), ("leak", 0.01, None),
    ]  # fmt: skip
    assert site["positions"]["of"] == 3
    assert site["positions"]["rows"][2] == {
        "position": 2, "windows": 7, "norm": 2.5, "state_norm": 10.0, "x": 2.0, "y": -2.0, "z": None,
    }  # fmt: skip
    assert site["spectra"] == [{"subject": "pos", "of": 3, "rank": [0, 1, 2], "value": [8.0, 4.0, 2.66667]}]
    [block] = site["frequencies"]
    assert (block["matrix"]["rows"], block["matrix"]["columns"]) == (2, 3)
    assert _floats(block["matrix"]["values"]).tolist() == [0, 1, 2, 10, 11, 12]
    cosines = site["cosines"]
    assert [(each["subject"], each["index"]) for each in cosines["rows"]] == [("pos", 0), ("pos", 10), ("ctx", 20), ("ctx", 30)]
    assert _floats(cosines["matrix"]["values"]).reshape(4, 4)[1] == pytest.approx([0.1, 1.0, 0.3, 0.4])


def test_a_map_of_contexts_has_documents_labels_and_how_far_it_is_to_be_trusted(lensed: TestClient) -> None:
    found = _get(lensed, "geometry_site", site=SITES[1])["map"]
    assert found["documents"] == ["speech-1790.txt", "speech-1791.txt", "speech-1792.txt"]
    assert found["document"] == [0, 0, 1, 1, 2]
    assert (found["labels"], found["label"]) == (["early", "late"], [1, 0, -1, 1, 0])
    assert (found["cluster"], found["x"]) == ([0, 1, 0, 1, None], [0.0, 0.5, 1.0, 1.5, 2.0])
    trusted = found["trustworthiness"]
    assert (trusted["value"], trusted["control"], trusted["control_kind"]) == (0.9, 0.5, "a random arrangement")


def test_a_large_site_is_thinned_out_and_says_so(lensed: TestClient) -> None:
    answer = lensed.get("/api/geometry_site", params={"site": LARGE}, headers={"Accept-Encoding": "identity"})
    assert len(answer.content) < 1_000_000
    site = answer.json()
    positions = site["positions"]
    assert (positions["of"], len(positions["rows"])) == (4000, 512)
    assert [positions["rows"][n]["position"] for n in (0, -1)] == [0, 3999]
    assert [(each["of"], len(each["rank"])) for each in site["spectra"]] == [(3000, 128)] * 6
    assert site["spectra"][0]["rank"][:65] == list(range(65))
    assert site["spectra"][0]["rank"][-1] == 2999
    assert site["frequencies"][0]["matrix"]["rows"] == 64
    assert _floats(site["frequencies"][0]["matrix"]["values"])[65] == pytest.approx(1.01)
    assert (site["cosines"]["of"], site["cosines"]["matrix"]["rows"]) == (900, 160)
    assert (site["map"]["of"], len(site["map"]["x"]), site["map"]["window"][-1]) == (9000, 2000, 8999)
    assert max(map(len, site["map"]["labels"])) == 80


def test_a_site_without_geometry_is_refused(lensed: TestClient) -> None:
    answer = lensed.get("/api/geometry_site", params={"site": "../../atlas.json"})
    assert answer.status_code == 404
    assert (answer.json()["what"], answer.json()["instead"]) == ("site ../../atlas.json", "choose one of the list of sites")


def test_attention_is_split_head_by_head(lensed: TestClient) -> None:
    found = _get(lensed, "geometry_heads")
    assert (found["query_parts"], found["key_parts"]) == (["mu", "pos", "ctx"], ["mu", "pos", "ctx"])
    assert (found["layer"], found["head"], found["control_kind"]) == ([0, 0, 1, 1], [0, 1, 0, 1], "rotated parts")
    energy = _floats(found["energy"]).reshape(4, 3, 3)
    assert energy[2, 1].tolist() == [1010, 1011, 1012]
    assert np.isnan(energy[3, 2, 2])
    assert _floats(found["share"])[0] == 0.5
    assert np.isnan(_floats(found["share_control"])).all()


def test_without_geometry_there_is_nothing_and_no_problem(client: TestClient) -> None:
    found = _get(client, "geometry")
    assert ([each["tables"] for each in found["sites"]], found["series"], found["alignment"]) == ([["shares"]] * 5, [], [])
    assert (found["heads"], found["problems"]) == (False, [])
    site = _get(client, "geometry_site", site="resid_post.1")
    assert (site["positions"], site["cosines"], site["map"]) == ({"of": 0, "rows": []}, None, None)
    assert _get(client, "geometry_heads")["layer"] == []
