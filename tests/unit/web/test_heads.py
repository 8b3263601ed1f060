"""Heads by layer with their scores, and the pairs of tokens of one."""

from typing import Any

from fastapi.testclient import TestClient

from tests.unit.web.planted_lenses import HEADS


def _get(client: TestClient, path: str, **parameters: str) -> Any:
    answer = client.get(f"/api/{path}", params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_heads_are_listed_with_their_scores_beside_controls(lensed: TestClient) -> None:
    found = _get(lensed, "heads")
    assert [(each["unit"], each["layer"], each["index"], each["pairs"]) for each in found["heads"]] == [
        (HEADS[0], 0, 0, 0), (HEADS[1], 0, 1, 304), (HEADS[2], 1, 0, 0),
    ]  # fmt: skip
    [score] = found["scores"]
    assert (score["column"]["label"], score["control_kind"]) == ("Copying", "rotated inside")
    assert (score["value"], score["control"], score["q"]) == ([0, 0.25, 0.5], [0.1] * 3, [0.2, 0.05, None])


def test_a_head_has_the_pairs_of_both_circuits_and_ends(lensed: TestClient) -> None:
    head = _get(lensed, "head", unit=HEADS[1])
    assert (head["layer"], head["index"], head["previous"], head["next"]) == (0, 1, HEADS[0], HEADS[2])
    assert [(each["stat"], each["value"], each["q"]) for each in head["stats"]] == [("copying_score", 0.25, 0.05)]
    writes, looks = head["circuits"]
    assert (writes["circuit"], writes["first"], writes["second"]) == ("ov", "token attended to", "token promoted")
    assert (looks["circuit"], looks["first"], looks["second"]) == ("qk", "token that asks", "token attended to")
    assert [(end["end"], end["of"], len(end["pairs"])) for end in writes["ends"]] == [("+", 150, 100), ("-", 2, 2)]
    texts = {each["token"]: each["text"] for each in _get(lensed, "tokens", word="citizens")["tokens"]}
    first = writes["ends"][0]["pairs"][0]
    assert (first["token"], first["other"], first["score"], first["z"], first["control"]) == (1, 2, 9.0, 5.0, 2.0)
    [(token, text)] = texts.items()
    assert writes["ends"][0]["pairs"][token - 1]["text"] == text == " citizens"
    assert writes["ends"][0]["pairs"][token - 2]["other_text"] == text


def test_what_is_no_head_is_refused(lensed: TestClient, client: TestClient) -> None:
    for unit in ("heads.9/9", "neurons.0/0"):
        answer = lensed.get("/api/head", params={"unit": unit})
        assert (answer.status_code, answer.json()["what"]) == (404, f"head {unit}")
    assert _get(client, "heads") == {"heads": [], "scores": [], "problems": []}
