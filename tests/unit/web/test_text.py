"""A text over the network: what the page is told is what `live` finds, what is asked wrongly is named, and no other page can make the model run."""

import base64
import json
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from microtome.core import Refusal
from microtome.factors.stored import save_dictionary
from microtome.live import Clock, Loaded, decompose, look, read_text
from microtome.model import forward, wrap
from microtome.store import rows_of, write_table
from microtome.web import create_app
from microtome.web.turns import Later, Turns
from tests import toys
from tests.unit.factors.test_steering import dictionary
from tests.unit.web.built import ask
from tests.unit.web.planted import corrupt

MODEL = toys.toy_decoder()
SENTENCE = "The river holds the stone. The <b>bridge</b> finds 😀 the garden."
POSTS = ("text", "text/attention", "text/parts", "text/edited")
BODIES: dict[str, dict[str, Any]] = {
    "text": {"text": SENTENCE},
    "text/attention": {"text": SENTENCE, "layer": 1},
    "text/parts": {"text": SENTENCE, "place": 3, "inside": 1},
    "text/edited": {"text": SENTENCE, "edits": [{"unit": "neurons.1/7", "change": "off"}], "write": {"tokens": 5}},
}


@pytest.fixture(scope="module")
def atlas(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy's atlas with a dictionary of its model in the first run, one of another model, and one whose file is not there."""
    found = shutil.copytree(runs, tmp_path_factory.mktemp("text") / "atlas")
    toy = dictionary(MODEL.shape.d_model)
    save_dictionary(replace(toy, model=MODEL.fingerprint), found / "dictionaries" / "toy.safetensors")
    save_dictionary(replace(toy, name="other", model="another"), found / "dictionaries" / "other.safetensors")
    rows = [{"run": "rivers", "name": name, "file": f"dictionaries/{name}.safetensors"} for name in ("toy", "other", "gone")]
    write_table(found, "dictionaries", "factors.planted", rows_of("dictionaries", rows))
    return found


@pytest.fixture(autouse=True)
def _no_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests ask more often than a person does."""
    monkeypatch.setattr("microtome.web.app.Turns", lambda: Turns(per_minute=1 << 30))


@pytest.fixture
def client(atlas: Path) -> TestClient:
    return TestClient(create_app(atlas, model=MODEL), base_url="http://127.0.0.1")


def numbers(text: str, kind: str = "<f4") -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), kind)


def test_a_text_is_told_as_it_was_found(client: TestClient) -> None:
    answer = client.post("/api/text?run=rivers", json={"text": SENTENCE})
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    page = answer.json()
    batch = read_text(MODEL, SENTENCE)
    found = look(Loaded(MODEL), batch, [dictionary(MODEL.shape.d_model)])
    assert "".join(page["pieces"]) == SENTENCE
    assert page["ids"] == batch.ids[0].tolist()
    lens = page["lens"]
    assert found.lens is not None
    assert lens["sites"] == ["resid_pre.0", "resid_post.0", "resid_post.1", "resid_post.2"]
    top = np.array(page["word_ids"])[numbers(lens["top"], "<i4")]
    assert top.tolist() == found.lens.top.flatten().tolist()
    assert [page["words"][row] for row in numbers(lens["top"], "<i4")[:5]] == [Loaded(MODEL).texts[token] for token in top[:5]]
    for name in ("probability", "entropy", "target"):
        np.testing.assert_array_equal(numbers(lens[name]), getattr(found.lens, name).flatten().float().numpy())
    assert numbers(lens["rank"], "<i4").tolist() == found.lens.rank.flatten().tolist()
    for name, own in (("neurons", found.neurons), ("heads_active", found.heads), ("factors", found.factors)):
        told = page[name]
        addresses = [unit["unit"] + (f"@{unit['site']}" if unit["site"] else "") for unit in told["units"]]
        assert addresses == list(own.units)
        assert numbers(told["index"], "<i4").tolist() == own.index.flatten().tolist()
        np.testing.assert_array_equal(numbers(told["values"]), own.value.flatten().numpy())
        np.testing.assert_array_equal(numbers(told["sizes"]), own.size.flatten().numpy())
    assert [problem["what"] for problem in page["problems"]] == [
        "dictionaries/gone.safetensors",
        "dictionaries/other.safetensors",
    ]


def test_units_stand_beside_what_the_atlas_knows_of_them(client: TestClient, atlas: Path) -> None:
    page = client.post("/api/text?run=rivers", json={"text": SENTENCE}).json()
    known = {
        (unit, stat): value
        for unit, stat, value in ask(
            atlas, "SELECT unit, stat, value FROM {unit_stats} WHERE run = 'rivers' AND stat IN ('max', 'min')"
        )
    }
    for unit in page["neurons"]["units"]:
        assert unit["largest"] == pytest.approx(known[unit["unit"], "max"])
        assert unit["smallest"] == pytest.approx(known[unit["unit"], "min"])
        assert client.get("/api/unit", params={"address": unit["unit"], "run": "rivers"}).status_code == 200
    near = page["near"]
    sizes, values, index = (numbers(near[name], kind) for name, kind in (("sizes", "<f4"), ("values", "<f4"), ("index", "<i4")))
    for size, value, row in zip(sizes, values, index, strict=True):
        unit = near["units"][row]
        largest = unit["largest"] if value >= 0 else -unit["smallest"]
        assert size == pytest.approx(min(2.0, abs(value) / largest), rel=1e-4)


def test_attention_parts_and_edits_are_told(client: TestClient) -> None:
    attention = client.post("/api/text/attention", json=BODIES["text/attention"]).json()
    shares = numbers(attention["shares"], "<u2").reshape(attention["heads"], attention["tokens"], attention["tokens"]) / 65535
    np.testing.assert_allclose(shares.sum(2), 1, atol=1e-3)
    parts = client.post("/api/text/parts", json=BODIES["text/parts"]).json()
    found = decompose(Loaded(MODEL), read_text(MODEL, SENTENCE), 3, inside=1)
    assert parts["word"] == Loaded(MODEL).texts[parts["token"]]
    assert [part["logit"] for part in parts["parts"]] == pytest.approx([part.logit for part in found.parts])
    assert parts["sum"] == pytest.approx(parts["logit"], rel=1e-4)
    edited = client.post("/api/text/edited", json=BODIES["text/edited"]).json()
    chances = forward(MODEL, read_text(MODEL, SENTENCE)).logits[0].softmax(1)
    ids = np.array(edited["word_ids"])[numbers(edited["clean"], "<i4")].reshape(edited["tokens"], 10)
    own = chances.gather(1, torch.from_numpy(ids)).numpy()
    np.testing.assert_allclose(numbers(edited["clean_by_clean"]).reshape(ids.shape), own, rtol=1e-4)
    assert numbers(edited["kl"]).max() > 0
    assert len(edited["written_clean"]["pieces"]) <= 5


def test_factors_of_the_run_can_be_edited_and_those_of_another_model_cannot(client: TestClient) -> None:
    def change(unit: str, run: str) -> Any:
        edit = {"unit": unit, "change": "set", "value": 4.0}
        return client.post(f"/api/text/edited?run={run}", json={"text": SENTENCE, "edits": [edit]})

    assert numbers(change("factors@toy/3@resid_pre.1", "rivers").json()["kl"]).min() > 0
    assert change("factors@other/3@resid_pre.1", "rivers").status_code == 400
    assert change("factors@toy/3@resid_pre.1", "markets").json()["why"] == "the run has the dictionaries none"


def test_the_model_is_opened_by_the_first_text(atlas: Path) -> None:
    client = TestClient(create_app(atlas, model=MODEL), base_url="http://127.0.0.1")
    before = client.get("/api/model").json()
    assert (before["state"], before["tokens"], before["edits"], before["written"]) == ("closed", 64, 32, 64)
    client.post("/api/text", json={"text": "river"})
    assert client.get("/api/model").json()["state"] == "open"


def test_without_the_model_it_is_said_how_to_name_it(atlas: Path) -> None:
    client = TestClient(create_app(atlas), base_url="http://127.0.0.1")
    told = client.get("/api/model").json()
    assert told["state"] == "absent"
    for path in POSTS:
        answer = client.post(f"/api/{path}", json=BODIES[path])
        assert answer.status_code == 424
        assert answer.json() == told["problem"]
        assert "`microtome open ATLAS --model PATH`" in answer.json()["instead"]
    other = wrap(toys.llama(layers=2), toys.decoder_tokenizer(), name="small")
    refused = TestClient(create_app(atlas, model=other), base_url="http://127.0.0.1").post("/api/text", json=BODIES["text"])
    assert refused.status_code == 424
    assert "layers 2 and 3" in refused.json()["why"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("text", {"text": ""}, 422),
        ("text", {"text": "x" * 20_001}, 422),
        ("text", {"text": "river " * 300}, 400),
        ("text", {"text": "river", "more": 1}, 422),
        ("text", {}, 422),
        ("text", [], 422),
        ("text/attention", {"text": "river", "layer": 3}, 400),
        ("text/attention", {"text": "river", "layer": -1}, 422),
        ("text/parts", {"text": "river", "place": 250}, 400),
        ("text/parts", {"text": "river", "place": 256}, 422),
        ("text/parts", {"text": "river", "place": 0, "token": 1 << 30}, 400),
        ("text/edited", {"text": "river", "edits": [{"unit": "neurons.0/99999", "change": "off"}]}, 400),
        ("text/edited", {"text": "river", "edits": [{"unit": "x", "change": "off"}]}, 400),
        ("text/edited", {"text": "river", "edits": [{"unit": "neurons.0/1", "change": "off"}] * 33}, 422),
        ("text/edited", {"text": "river", "edits": [], "write": {"tokens": 65}}, 422),
        ("text?run=none", {"text": "river"}, 404),
    ],
)
def test_what_is_asked_wrongly_is_named(client: TestClient, path: str, body: Any, status: int) -> None:
    answer = client.post(f"/api/{path}", json=body)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"what", "why", "instead"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b'{"text":"\\ud800"}',
        b'{"text":NaN}',
        b"[" * 60_000,
        b'{"text":' + b"9" * 5000 + b"}",
        b"\xff\xfe",
        b'{"text":1e999}',
    ],
)
def test_a_body_that_is_no_question_is_refused(client: TestClient, body: bytes) -> None:
    for path in POSTS:
        answer = client.post(f"/api/{path}", content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (400, 422), (path, answer.text)
        assert set(answer.json()) == {"what", "why", "instead"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": ""}, 415),
        ({"origin": "http://example.org"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:81"}, 403),
        ({"origin": "http://["}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"host": "example.org"}, 421),
        ({"origin": "http://127.0.0.1", "sec-fetch-site": "same-origin"}, 200),
        ({"content-type": "application/json; charset=utf-8"}, 200),
    ],
)
def test_no_other_page_can_make_the_model_run(client: TestClient, headers: dict[str, str], status: int) -> None:
    sent = {"content-type": "application/json", **headers}
    answer = client.post("/api/text", content=b'{"text": "river"}', headers=sent)
    assert answer.status_code == status, answer.text
    if status != 200:
        assert client.get("/api/model").json()["state"] == "closed"


def test_a_token_is_asked_for_here_too(atlas: Path) -> None:
    client = TestClient(create_app(atlas, token="secret", model=MODEL), base_url="http://127.0.0.1")
    assert client.post("/api/text", json={"text": "river"}).status_code == 401
    assert client.post("/api/text", json={"text": "river"}, headers={"authorization": "Bearer secret"}).status_code == 200


def test_a_body_that_is_too_long_is_refused_however_it_comes(client: TestClient) -> None:
    def pieces() -> Any:
        for _ in range(40):
            yield b"x" * (1 << 12)

    for content in (b"x" * ((1 << 17) + 1), pieces()):
        answer = client.post("/api/text", content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 413
        assert answer.json()["why"] == "its body is longer than 128 kB"


def test_a_run_that_takes_too_long_is_ended(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("microtome.web.text_routes.Clock", lambda: Clock(0.0))
    for path in POSTS:
        answer = client.post(f"/api/{path}", json=BODIES[path])
        assert answer.status_code == 503
        assert "longer than" in answer.json()["why"]


def test_a_damaged_table_is_named_and_the_text_is_read(atlas: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(atlas, tmp_path / "atlas")
    for table in ("unit_stats", "unit_labels", "dictionaries"):
        for file in (damaged / "tables" / table).glob("*.parquet"):
            corrupt(damaged, table, file.stem)
    client = TestClient(create_app(damaged, model=MODEL), base_url="http://127.0.0.1")
    answer = client.post("/api/text?run=rivers", json={"text": SENTENCE})
    assert answer.status_code == 200
    assert len(answer.json()["neurons"]["units"]) > 10


def test_turns_are_taken_one_by_one_and_late_ones_are_told_when_to_come_again() -> None:
    turns, inside, order = Turns(wait=0.2, waiting=1), threading.Event(), []
    leave = threading.Event()

    def hold() -> None:
        with turns.taken():
            inside.set()
            leave.wait(5)
            order.append("first")

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(5)
    began = time.monotonic()
    with pytest.raises(Later, match="at work on another text") as refused, turns.taken():
        pass
    assert time.monotonic() - began >= 0.2
    assert (refused.value.status, refused.value.seconds) == (503, 5)
    leave.set()
    thread.join()
    with turns.taken():
        order.append("second")
    assert order == ["first", "second"]


def test_a_turn_is_given_back_after_an_error_and_a_minute_has_so_many() -> None:
    turns = Turns(per_minute=2)
    for _ in range(2):
        with pytest.raises(Refusal, match="mine"), turns.taken():
            raise Refusal("mine", why="x", instead="y")
    with pytest.raises(Later) as refused, turns.taken():
        pass
    assert refused.value.status == 429
    assert 1 <= refused.value.seconds <= 61


def test_a_busy_model_answers_with_when_to_come_again(atlas: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("microtome.web.app.Turns", lambda: Turns(per_minute=1))
    client = TestClient(create_app(atlas, model=MODEL), base_url="http://127.0.0.1")
    assert client.post("/api/text", json={"text": "river"}).status_code == 200
    answer = client.post("/api/text", json={"text": "river"})
    assert answer.status_code == 429
    assert 1 <= int(answer.headers["retry-after"]) <= 61


WORDS = st.sampled_from(
    ["river", SENTENCE, "", "\x00", "\u202e", "x" * 3000, "neurons.1/7", "heads.0/1", "factors@toy/1@resid_pre.0", "off", "set"]
)
ANY = st.recursive(
    st.one_of(
        WORDS, st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=40)
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=6,
)


def _value(schema: dict[str, Any], known: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Mostly what the schema allows, and anything else."""
    return st.one_of(_right(schema, known), _right(schema, known), _right(schema, known), ANY)


def _right(schema: dict[str, Any], known: dict[str, Any]) -> st.SearchStrategy[Any]:
    if "$ref" in schema:
        return _right(known[schema["$ref"].rpartition("/")[2]], known)
    if "anyOf" in schema:
        return st.one_of(*(_right(each, known) for each in schema["anyOf"]))
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kind = schema.get("type")
    if kind == "object":
        fields = {name: _value(each, known) for name, each in schema["properties"].items()}
        needed = {name: fields[name] for name in schema.get("required", ())}
        return st.fixed_dictionaries(needed, optional={name: each for name, each in fields.items() if name not in needed})
    if kind == "array":
        return st.lists(_value(schema["items"], known), max_size=3)
    if kind == "integer":
        return st.one_of(st.integers(0, 6), st.integers())
    return {"number": st.floats(-5, 5), "null": st.none()}.get(str(kind), WORDS)


@pytest.mark.parametrize("path", POSTS)
def test_no_body_breaks_the_server(path: str, client: TestClient) -> None:
    described = client.get("/api/openapi.json").json()
    body = described["paths"][f"/api/{path}"]["post"]["requestBody"]["content"]["application/json"]["schema"]

    @settings(max_examples=60, deadline=None, database=None)
    @given(asked=_value(body, described["components"]["schemas"]))
    def post(asked: Any) -> None:
        sent = {"content": json.dumps(asked), "headers": {"content-type": "application/json"}}
        answer = client.post(f"/api/{path}?run=rivers", **sent)
        assert answer.status_code in (200, 400, 422), answer.text
        if answer.status_code != 200:
            assert set(answer.json()) == {"what", "why", "instead"}

    post()
