"""Units like a unit: every kind of evidence is ranked beside its control, and what does not beat it does not count."""

import math
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.unit.web.built import ask
from tests.unit.web.planted import PLANTED


def _related(client: TestClient, unit: str) -> Any:
    answer = client.get("/api/related", params={"unit": unit})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_links_and_activity_are_reasons_with_their_controls(lensed: TestClient) -> None:
    found = _related(lensed, "neurons.1/7")
    rows = {row["unit"]: row for row in found["rows"]}
    together = rows["factors@toy/1"]
    assert [(each["kind"], each["rank"], each["value"], each["control"], each["clear"]) for each in together["reasons"]] == [
        ("fires alike", 1, 0.5, pytest.approx(0.1), True), ("active together", 1, 0.5, 0.1, True),
    ]  # fmt: skip
    assert (together["score"], together["basis"], together["layer"]) == (pytest.approx(2 / 11), "factors", None)
    written = next(each for each in rows["neurons.0/3"]["reasons"] if each["kind"] == "writes alike")
    assert (written["rank"], written["value"], written["clear"]) == (1, pytest.approx(-0.9), True)
    assert "W_out.1/3" not in rows, "a weight vector is no unit"
    back = [each for each in rows.get("neurons.2/2", {"reasons": []})["reasons"] if each["kind"].startswith("writes alike")]
    assert all(not each["clear"] for each in back)


def test_related_units_are_bounded_and_the_best_come_first(lensed: TestClient) -> None:
    found = _related(lensed, "neurons.1/7")
    scores = [row["score"] for row in found["rows"]]
    assert len(scores) <= 50 <= found["of"]
    assert scores == sorted(scores, reverse=True)
    for row in found["rows"]:
        assert row["score"] == pytest.approx(sum(1 / (10 + each["rank"]) for each in row["reasons"] if each["clear"]))
        assert row["unit"] != "neurons.1/7"


def test_shared_tokens_are_named_and_beside_what_units_share_in_the_mean(lensed: TestClient) -> None:
    page = lensed.get("/api/unit", params={"address": "neurons.0/3"}).json()
    mine = {token["text"] for token in page["promotes"]}
    assert PLANTED in mine
    controls = set()
    for row in _related(lensed, "neurons.0/3")["rows"]:
        theirs = {token["text"] for token in lensed.get("/api/unit", params={"address": row["unit"]}).json()["promotes"]}
        for reason in row["reasons"]:
            if reason["kind"] == "promotes the same tokens":
                assert reason["value"] == len(mine & theirs)
                assert set(reason["tokens"]) == mine & theirs
                controls.add(reason["control"])
    [control] = controls
    assert 0 < control < 3


def test_an_unknown_unit_is_refused(lensed: TestClient) -> None:
    answer = lensed.get("/api/related", params={"unit": "neurons.9/9"})
    assert (answer.status_code, answer.json()["what"]) == (404, "unit neurons.9/9")


def test_a_token_counts_the_more_the_fewer_units_have_it(lensed: TestClient, lensed_atlas: Path) -> None:
    units = lensed.get("/api/units").json()["total"]
    having = dict(ask(lensed_atlas, "SELECT token, count(DISTINCT unit) FROM {tokens} WHERE \"end\" = '+' GROUP BY 1"))
    tokens = "SELECT DISTINCT token FROM {tokens} WHERE unit = ? AND \"end\" = '+'"
    mine = {token for (token,) in ask(lensed_atlas, tokens, "neurons.2/5")}
    weights = {}
    for row in _related(lensed, "neurons.2/5")["rows"]:
        for reason in row["reasons"]:
            if reason["kind"] == "promotes the same tokens":
                shared = mine & {token for (token,) in ask(lensed_atlas, tokens, row["unit"])}
                weights[reason["rank"]] = sum(math.log(units / having[token]) for token in shared)
    ranked = [weights[rank] for rank in sorted(weights)]
    assert len(ranked) > 10
    assert ranked == sorted(ranked, reverse=True)
    assert _control(lensed, "neurons.2/5") == pytest.approx(sum(having[token] for token in mine) / units)


def _control(client: TestClient, unit: str) -> float:
    reasons = [reason for row in _related(client, unit)["rows"] for reason in row["reasons"]]
    return next(reason["control"] for reason in reasons if reason["kind"] == "promotes the same tokens")
