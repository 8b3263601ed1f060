"""Filters of the unit browser: by label, by bounds, by surviving the control, by a pattern in the tokens that units fire on."""

from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from microtome.web.columns import page_of
from tests.unit.web.built import ask
from tests.unit.web.planted import PLANTED


def test_the_statistic_that_units_are_sorted_by_stands_beside_its_control(lensed: TestClient) -> None:
    page = lensed.get("/api/units", params={"sort": "token_share_top", "basis": "neurons"}).json()
    for row in page["rows"]:
        unit = lensed.get("/api/unit", params={"address": row["unit"]}).json()
        own = max((each for each in unit["stats"] if each["stat"] == "token_share_top"), key=lambda each: each["value"])
        assert row["control"] == own["control"] == 0.033
    for sort in ("density", "unit"):
        rows = lensed.get("/api/units", params={"sort": sort, "basis": "neurons"}).json()["rows"]
        assert {row["control"] for row in rows} == {None}


def _units(client: TestClient, **parameters: Any) -> Any:
    answer = client.get("/api/units", params={"limit": 200} | parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


def _names(page: Any) -> list[str]:
    return [row["unit"] for row in page["rows"]]


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("role", [*(f"neurons.0/{n}" for n in (0, 1, 2, 3, 4, 10, 11)), "neurons.1/10", "neurons.1/11"]),
        ("FEW TOKENS", [f"neurons.0/{n}" for n in range(5)]),
        ("‘t39’", ["neurons.2/39", "neurons.3/0"]),
        ("liberty", ["neurons.3/9"]),
        ("explanation", ["neurons.3/9"]),
        ("rol", []),
        ("%", []),
    ],
)
def test_units_by_label_are_those_with_the_kind_or_the_words(lensed: TestClient, label: str, expected: list[str]) -> None:
    page = _units(lensed, label=label)
    assert (page["total"], _names(page)) == (len(expected), expected)


def test_bounds_are_of_the_statistic_that_is_sorted_by(lensed: TestClient) -> None:
    every = _units(lensed, sort="max", basis="neurons")
    place = [column["name"] for column in every["columns"]].index("max")
    values = [row["values"][place] for row in every["rows"]]
    page = _units(lensed, sort="max", basis="neurons", least=values[40], most=values[10])
    assert (page["total"], _names(page)) == (31, _names(every)[10:41])
    assert _units(lensed, sort="max", least=1e9)["total"] == 0
    answer = lensed.get("/api/units", params={"least": 1})
    assert (answer.status_code, answer.json()) == (
        400, {"what": "bounds", "why": "units are sorted by nothing that has a value", "instead": "sort by a statistic"},
    )  # fmt: skip
    assert lensed.get("/api/units", params={"sort": "max", "least": "nan"}).status_code == 422


def test_what_survives_its_control_is_told_from_what_does_not(lensed: TestClient, lensed_atlas: Any) -> None:
    query = "SELECT unit FROM {unit_stats} WHERE stat = 'token_share_top' AND q %s 0.05"
    for clear, sign in (("yes", "<="), ("no", ">")):
        page = _units(lensed, sort="token_share_top", clear=clear)
        expected = {unit for (unit,) in ask(lensed_atlas, query % sign)}
        assert page["total"] == len(expected) > 50
        assert set(_names(page)) <= expected
    assert _names(_units(lensed, sort="copying_score", clear="yes")) == ["heads.0/1"]
    assert _names(_units(lensed, sort="copying_score", clear="no")) == ["heads.0/0"]
    assert _units(lensed, sort="density", clear="no")["total"] == 0, "nothing says whether a density survives"
    assert "heads.0/1" in _names(_units(lensed, clear="yes", basis="heads")), "any statistic, where units are not sorted by one"


def test_a_pattern_finds_units_by_the_tokens_they_fire_on(lensed: TestClient, lensed_atlas: Any) -> None:
    page = _units(lensed, pattern="^ lib.*y$", sort="match")
    assert page["pattern"] == {"tokens": 1, "some": [{"token": page["pattern"]["some"][0]["token"], "text": PLANTED}]}
    assert page["rows"][0]["unit"] == "neurons.1/7"
    assert page["rows"][0]["match"] == dict.fromkeys(("promotes", "suppresses", "phrase", "reads", "writes")) | {
        "fires": 6,
        "of": 6,
    }
    assert page == _units(lensed, token="liberty", match="fires", sort="match") | {"search": None, "pattern": page["pattern"]}
    fires = (
        'SELECT DISTINCT c.unit FROM {contexts} c JOIN {windows} w USING ("window") JOIN {vocabulary} v ON v.token = w.ids[c.position + 1] '
        "WHERE c.\"end\" = 'top' AND regexp_matches(v.text, ?)"
    )
    for pattern in ("^ [A-Z]", "(?i)^ ?the$", "[^\\x00-\\x7f]|\\\\x", "."):
        assert _units(lensed, pattern=pattern)["total"] == len(ask(lensed_atlas, fires, pattern)), pattern
    assert _units(lensed, pattern="zzz")["total"] == 0


def test_a_pattern_narrows_a_search_by_token(lensed: TestClient) -> None:
    narrowed = _units(lensed, token="liberty", match="promotes", pattern="^ [a-c]")
    promotes = set(_names(_units(lensed, token="liberty", match="promotes")))
    fires = set(_names(_units(lensed, pattern="^ [a-c]"))) | set(_names(_units(lensed, pattern="^ [a-c]", offset=200)))
    assert set(_names(narrowed)) == promotes & fires


@pytest.mark.parametrize("pattern", ["((", "[", "a{2000}", "\\", "(?<=a)b"])
def test_what_is_no_pattern_is_refused_in_words(lensed: TestClient, pattern: str) -> None:
    answer = lensed.get("/api/units", params={"pattern": pattern})
    assert answer.status_code == 400
    assert answer.json()["what"] == f"pattern {pattern}"
    assert answer.json()["why"].startswith("it is no regular expression (")


def test_filters_go_together(lensed: TestClient) -> None:
    page = _units(lensed, label="role", layer=0, sort="token_share_top", clear="yes", least=0.3)
    parts = [
        set(_names(_units(lensed, **each)))
        for each in ({"label": "role"}, {"layer": 0}, {"sort": "token_share_top", "clear": "yes", "least": 0.3, "layer": 0})
    ]
    assert set(_names(page)) == set.intersection(*parts)


def test_a_page_is_that_of_a_full_sort_ties_and_gaps_included() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        count = int(generator.integers(1, 40))
        places = np.sort(generator.choice(100, count, replace=False))
        keys = [generator.choice([0.0, 1.0, 2.0, np.nan], count) for _ in range(int(generator.integers(1, 3)))]
        order = sorted(
            range(count), key=lambda n: [(np.isnan(key[n]), 0.0 if np.isnan(key[n]) else key[n]) for key in keys] + [(False, n)]
        )
        offset, limit = int(generator.integers(0, 45)), int(generator.integers(1, 20))
        assert page_of(places, keys, offset, limit).tolist() == places[order].tolist()[offset : offset + limit]
