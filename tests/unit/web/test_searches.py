"""Units found by meaning and by phrase, and by one of the tokens that spell a word."""

import base64
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from microtome.web.app import create_app
from tests.unit.web.built import ask
from tests.unit.web.planted import PLANTED, plant
from tests.unit.web.planted_meanings import plant_meanings


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant_meanings(plant(tmp_path_factory.mktemp("searches") / "atlas"))


@pytest.fixture(scope="module")
def client(atlas: Path) -> TestClient:
    return TestClient(create_app(atlas), base_url="http://127.0.0.1")


def _units(client: TestClient, **parameters: Any) -> Any:
    answer = client.get("/api/units", params={"limit": 200, "sort": "match"} | parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


def _found(page: Any) -> list[str]:
    return [row["unit"] for row in page["rows"]]


def test_units_about_words_are_those_nearer_than_by_chance_the_nearest_first(client: TestClient) -> None:
    page = _units(client, meaning="navy ships")
    assert _found(page) == ["neurons.0/1", "neurons.0/3", "neurons.0/2"]
    match = {row["unit"]: (row["match"]["reads"], row["match"]["writes"]) for row in page["rows"]}
    assert match["neurons.0/1"] == (pytest.approx(1), None)
    assert match["neurons.0/3"] == (pytest.approx(0), pytest.approx(1))
    assert match["neurons.0/2"][0] == pytest.approx(2**-0.5, abs=1e-6)
    assert page["meaning"]["words"] == ["navy", "ships"]
    assert page["meaning"]["controls"] == {"fires": pytest.approx(0.5), "promotes": pytest.approx(0.5)}
    assert {each["text"] for each in page["meaning"]["near"][:2]} == {" navy", " ships"}
    assert client.get("/api/units", params={"meaning": "navy", "basis": "heads"}).json()["total"] == 0


def test_what_units_write_is_asked_for_apart_from_what_they_read(client: TestClient) -> None:
    assert _found(_units(client, meaning="navy", match="promotes")) == ["neurons.0/3"]
    assert _found(_units(client, meaning="navy", match="fires")) == ["neurons.0/1", "neurons.0/2"]
    assert _found(_units(client, meaning="navy", match="suppresses")) == []


def test_a_direction_that_nothing_but_chance_has_finds_nothing(client: TestClient) -> None:
    page = _units(client, meaning="Spain")
    assert (page["total"], page["meaning"]["controls"]["fires"]) == (0, pytest.approx(0))


def test_words_that_are_no_tokens_are_named_and_left_out(client: TestClient) -> None:
    page = _units(client, meaning="navy xyzzy")
    assert (page["meaning"]["words"], page["meaning"]["unknown"]) == (["navy"], ["xyzzy"])
    assert page["total"] == 3
    for words, why in (("xyzzy", "none of its words is a token"), ("senate", "none of its words")):
        answer = client.get("/api/units", params={"meaning": words})
        assert answer.status_code == 400
        assert why in answer.json()["why"]


def test_an_atlas_without_vectors_says_so(client: TestClient, atlas: Path, tmp_path: Path) -> None:
    older = tmp_path / "older"
    shutil.copytree(atlas, older)
    shutil.rmtree(older / "tables" / "token_meanings")
    answer = TestClient(create_app(older), base_url="http://127.0.0.1").get("/api/units", params={"meaning": "navy"})
    assert answer.status_code == 400
    assert "this atlas has no vectors of its tokens" in answer.json()["why"]


@pytest.mark.parametrize("phrase", ["the public money", "THE  Public\nmoney", "public money. In"])
def test_units_inside_a_phrase_are_those_whose_top_contexts_are_at_its_tokens(
    client: TestClient, atlas: Path, phrase: str
) -> None:
    page = _units(client, phrase=phrase)
    expected: dict[str, int] = {}
    rows = ask(
        atlas,
        'SELECT c.unit::VARCHAR, w.ids, c.position, w.char_start[c.position + 1], d.text FROM {contexts} c JOIN {windows} w ON w."window" = c."window" '
        "JOIN {documents} d ON d.document = w.document WHERE c.\"end\" = 'top'",
    )
    wanted = " ".join(phrase.lower().split())
    for unit, _, _, start, text in rows:
        low = text.lower()
        at = low.find(wanted)
        while at >= 0:
            end = low.find(" ", start + 1) if start >= 0 else -1
            if start >= 0 and start < at + len(wanted) and (end < 0 or end > at):
                expected[unit] = expected.get(unit, 0) + 1
                break
            at = low.find(wanted, at + 1)
    assert {row["unit"]: row["match"]["phrase"] for row in page["rows"]} == expected
    assert page["total"] == len(expected) > 0
    shares = [row["match"]["phrase"] / row["match"]["of"] for row in page["rows"]]
    assert shares == sorted(shares, reverse=True)


def test_a_phrase_that_the_text_does_not_have_and_one_too_short(client: TestClient) -> None:
    page = _units(client, phrase="the purple money")
    assert (page["total"], page["phrase"]) == (0, {"text": "the purple money", "places": 0, "cut": False})
    answer = client.get("/api/units", params={"phrase": "a"})
    assert (answer.status_code, answer.json()["why"]) == (400, "it is a single letter or sign")


def test_one_of_the_tokens_that_spell_a_word(client: TestClient) -> None:
    every = _units(client, token="liberty")
    spelt = {each["text"]: each["token"] for each in every["search"]["tokens"]}
    assert PLANTED in spelt
    alone = _units(client, token="liberty", exact=spelt[PLANTED])
    assert 0 < alone["total"] <= every["total"]
    assert "neurons.1/7" in _found(alone)
    assert _units(client, token="liberty", exact=0)["total"] == 0


def test_the_places_of_a_map_are_those_of_the_list(client: TestClient) -> None:
    asked = {"token": "liberty", "layer": 1, "sort": "unit"}
    page = _units(client, **asked)
    found = client.get("/api/places", params=asked).json()
    places = np.frombuffer(base64.b64decode(found["places"]), "<i4")
    every = _found(_units(client, sort="unit", limit=200)) + _found(_units(client, sort="unit", limit=200, offset=200))
    assert [every[place] for place in places] == _found(page)
    assert found["total"] == page["total"] > 0
