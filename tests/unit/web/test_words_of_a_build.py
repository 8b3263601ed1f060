"""Tokens and their texts on the pages of a real (toy) build: what the tokenizer itself says they are."""

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from transformers import PreTrainedTokenizerFast

from microtome.web import create_app
from tests import toys
from tests.unit.web.built import WORDS, ask


@pytest.fixture(scope="module")
def client(runs: Path) -> TestClient:
    return TestClient(create_app(runs), base_url="http://127.0.0.1")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return toys.decoder_tokenizer()


def _text(tokenizer: PreTrainedTokenizerFast, token: int) -> str:
    """The token in the tokenizer's own spelling, but for the mark of a space."""
    return str(tokenizer.convert_ids_to_tokens(token)).replace("\u0120", " ")


def _get(client: TestClient, path: str, **parameters: Any) -> Any:
    return client.get(f"/api/{path}", params=parameters).json()


@pytest.mark.parametrize("address", ["neurons.0/0", "neurons.2/39"])
def test_promoted_tokens_are_spelt_as_the_tokenizer_spells_them(
    client: TestClient, runs: Path, tokenizer: PreTrainedTokenizerFast, address: str
) -> None:
    unit = _get(client, "unit", address=address)
    for name, end in (("promotes", "+"), ("suppresses", "-")):
        rows = ask(runs, 'SELECT token, score, control FROM {tokens} WHERE unit = ? AND "end" = ? ORDER BY rank', address, end)
        assert len(rows) >= 10
        assert [(each["token"], each["score"], each["control"]) for each in unit[name]] == rows
        for each in unit[name]:
            text = _text(tokenizer, each["token"])
            assert each["text"] == text or not text.isascii()  # else it is a byte of a character
    assert [each["score"] for each in unit["promotes"]] == sorted((each["score"] for each in unit["promotes"]), reverse=True)


def test_a_word_is_found_as_the_tokens_that_spell_it(client: TestClient, tokenizer: PreTrainedTokenizerFast) -> None:
    for word in ("river", "RIVER ", " the"):
        found = _get(client, "tokens", word=word)["tokens"]
        bare = word.strip().lower()
        expected = [token for token in range(len(tokenizer)) if _text(tokenizer, token).strip().lower() == bare]
        assert [each["token"] for each in found] == expected
        assert expected


def test_a_search_finds_the_units_whose_tokens_have_the_word(client: TestClient, runs: Path) -> None:
    [token] = [each["token"] for each in _get(client, "tokens", word="river")["tokens"] if each["text"] == " river"]
    page = _get(client, "units", token="river", match="promotes", sort="match", limit=200)
    expected = ask(runs, "SELECT unit, min(rank) FROM {tokens} WHERE token = ? AND \"end\" = '+' GROUP BY 1", token)
    assert {row["unit"]: row["match"]["promotes"] for row in page["rows"]} == dict(expected)
    assert expected


@pytest.mark.parametrize("run", sorted(WORDS))
def test_a_unit_is_told_with_its_histogram(client: TestClient, runs: Path, run: str) -> None:
    [found] = _get(client, "unit", address="neurons.1/3", run=run)["histograms"]
    assert found["site"] == "mlp_act.1"
    [(tokens,)] = ask(runs, "SELECT sum(len(list_filter(roles, lambda r: r = 3))) FROM {windows} WHERE run = ?", run)
    assert sum(found["counts"]) == tokens, "all tokens of so short a text are looked at"
    values = ask(
        runs, "SELECT value FROM {contexts} WHERE unit = 'neurons.1/3' AND run = ? AND \"end\" IN ('top', 'bottom')", run
    )
    outside = sum(not found["low"] <= value <= found["high"] for (value,) in values)
    assert outside <= found["counts"][0] + found["counts"][-1]


@pytest.mark.parametrize("run", sorted(WORDS))
def test_contexts_read_as_the_text_did(client: TestClient, runs: Path, tokenizer: PreTrainedTokenizerFast, run: str) -> None:
    for context in _get(client, "unit", address="neurons.1/3", run=run)["contexts"]:
        [(ids,)] = ask(runs, 'SELECT ids FROM {windows} WHERE run = ? AND "window" = ?', run, context["window"])
        assert context["pieces"][context["centre"]] == _text(tokenizer, ids[context["position"]])
        document = _get(
            client, "document", run=run, document=context["document"], begin=context["begin"], finish=context["finish"]
        )
        hit = "".join(piece["text"] for piece in document["text"] if piece["hit"])
        assert "".join(context["pieces"]) == hit
        [(text,)] = ask(runs, "SELECT text FROM {documents} WHERE run = ? AND document = ?", run, context["document"])
        assert text[context["begin"] : context["finish"]] == hit
