"""What a page in a cell asks is answered as the server answers it; nothing else can be asked."""

import gzip
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from microtome.core import Refusal
from microtome.notebook.answers import Answer, Answers, opened
from microtome.web import create_app
from tests import toys


@pytest.fixture(scope="module")
def answers(atlas: Path) -> Answers:
    return Answers(atlas)


@pytest.fixture(scope="module")
def client(atlas: Path) -> TestClient:
    return TestClient(create_app(atlas), base_url="http://127.0.0.1")


def asked(answers: Answers, path: str, body: str | None = None) -> Answer:
    found: list[Answer] = []
    answers.ask(path, body, found.append).result(60)
    [answer] = found
    return answer


def record(answer: Answer) -> Any:
    return json.loads(gzip.decompress(answer.body) if answer.zipped else answer.body)


@pytest.mark.parametrize(
    "path", ["summary", "findings", "unit?address=neurons.1/7", "units?basis=neurons&layer=2&sort=density", "progress"]
)
def test_it_is_answered_as_over_the_network(answers: Answers, client: TestClient, path: str) -> None:
    answer = asked(answers, path)
    assert answer.status == 200
    assert record(answer) == client.get(f"/api/{path}").json()


def test_long_answers_are_zipped(answers: Answers) -> None:
    long, short = asked(answers, "unit?address=neurons.1/7"), asked(answers, "progress")
    assert (long.zipped, short.zipped) == (True, False)
    assert len(long.body) < len(gzip.decompress(long.body)) / 2


def test_a_text_that_is_posted_is_read(runs: Path) -> None:
    answer = asked(Answers(runs, toys.toy_decoder()), "text?run=rivers", json.dumps({"text": "The river holds the stone."}))
    assert answer.status == 200
    assert "".join(record(answer)["pieces"]) == "The river holds the stone."
    answer = asked(Answers(runs), "text", json.dumps({"text": "The river"}))
    assert answer.status >= 400
    assert "model" in record(answer)["what"]


@pytest.mark.parametrize(
    ("path", "status", "what"),
    [
        ("unit?address=neurons.99/9", 404, "unit neurons.99/9"),
        ("unit?address=%00%22", 400, "unit"),
        ("summary?run=nowhere", 404, "run nowhere"),
        ("", 404, "This address"),
        ("nothing", 404, "This address"),
        ("../index.html", 404, "This address"),
        ("summary/../../app.js", 404, "This address"),
        ("openapi.json", 404, "This address"),
        ("http://elsewhere/api/summary", 404, "This address"),
        ("text", 404, "This address"),  # a POST alone
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(answers: Answers, path: str, status: int, what: str) -> None:
    answer = asked(answers, path)
    assert answer.status in (status, 404)
    assert record(answer)["what"].startswith(what)


def test_what_only_answers_a_get_takes_no_post(answers: Answers) -> None:
    assert asked(answers, "summary", "{}").status == 404


def test_a_post_that_is_no_json_is_a_problem(answers: Answers) -> None:
    for body in ("{", "", "\ud800", "[1]"):
        answer = asked(answers, "text", body)
        assert 400 <= answer.status < 500
        assert {"what", "why", "instead"} <= record(answer).keys()


def slow(monkeypatch: pytest.MonkeyPatch, answers: Answers, path: str) -> threading.Event:
    """Let what is asked at `path` wait for the event that is returned."""
    let = threading.Event()
    app = answers._app

    async def waiting(scope: Any, receive: Any, send: Any) -> None:
        import asyncio

        if scope["path"] == f"/api/{path}":
            await asyncio.to_thread(let.wait, 60)
        await app(scope, receive, send)

    monkeypatch.setattr(answers, "_app", waiting)
    return let


def test_several_are_answered_as_they_are_done(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    let = slow(monkeypatch, answers, "findings")
    order: list[str] = []
    late = answers.ask("findings", None, lambda _: order.append("findings"))
    soon = [answers.ask(path, None, lambda _, path=path: order.append(path)) for path in ("summary", "progress")]
    for each in soon:
        each.result(60)
    assert sorted(order) == ["progress", "summary"]
    let.set()
    late.result(60)
    assert order[2:] == ["findings"]


def test_what_is_dropped_is_not_told(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    let = slow(monkeypatch, answers, "findings")
    told: list[Answer] = []
    late = answers.ask("findings", None, told.append)
    assert late.cancel()
    let.set()
    assert asked(answers, "findings").status == 200
    assert told == []


def test_a_failure_of_ours_is_named_and_logged(
    answers: Answers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def failing(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(answers, "_app", failing)
    answer = asked(answers, "summary")
    assert (answer.status, record(answer)["what"]) == (500, "This page")
    assert "ZeroDivisionError" in caplog.text


def test_a_record_comes_at_once_or_is_refused(answers: Answers) -> None:
    assert answers.record("unit", address="neurons.1/7")["unit"] == "neurons.1/7"
    with pytest.raises(Refusal, match=r"unit neurons\.99/9"):
        answers.record("unit", address="neurons.99/9")
    with pytest.raises(Refusal, match="address of the request: Field required"):
        answers.record("unit")


def test_panels_of_one_atlas_share_its_application(atlas: Path) -> None:
    first = opened(atlas)
    assert opened(atlas / ".." / atlas.name) is first
    assert opened(atlas, "a-model") is not first
    assert opened(atlas, None, [atlas]) is not first
    model = toys.toy_decoder()
    second = opened(atlas, model)
    assert opened(atlas, model) is second
