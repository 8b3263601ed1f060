"""The recipe of Dai et al. where it is planted which units know what; and a head that is learnt on a frozen encoder."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from microtome.core import Refusal
from microtome.model import Model, wrap
from recipes.dai2022 import claims, describe, texts_of
from recipes.dai2022_measures import Found, Size, measure
from recipes.masked_head import HeadTraining, sentences, with_head
from tests import toys
from tests.unit.neurons.planted_models import fact_model, planted_facts

SIZE = Size(facts=2, prompts=None, draws=9, others=1)


@pytest.fixture(scope="module")
def found() -> Found:
    return measure(fact_model("silu").model, planted_facts(), SIZE)


def test_the_planted_units_are_found_and_their_answers_go_with_them(found: Found) -> None:
    planted = fact_model("silu").units
    for relation, settled in found.units["attributed"].items():
        for each in settled.facts:
            assert each.units == planted[relation, each.asked.fact.subject]
    assert len(found.tested) == 4
    for off, doubled in zip(found.effects["attributed", 0.0], found.effects["attributed", 2.0], strict=True):
        assert off.fact < -0.5
        assert abs(off.same_relation or 0.0) < 1e-3
        assert abs(float(off.random.mean())) < 0.05
        assert doubled.fact > -0.01
    assert found.shared("attributed") == (0, 0), "no two facts have a unit in common"
    assert found.counts("attributed").value == 1
    assert all(each.known == 1 and each.first for each in found.asked)


def test_edits_put_the_new_answer_and_random_ones_do_not(found: Found) -> None:
    assert len(found.edits["paper"]) == 4
    assert all(each.success == 1 for each in found.edits["paper"])
    assert all(each.success == 0 for each in found.edits["random"])
    for each in found.erased:
        assert each.units == 2
        assert each.own[1] > 5 * each.own[0]
        assert each.random_own == pytest.approx(each.own[0], rel=0.2)
        assert each.others[1] == pytest.approx(each.others[0], rel=0.01)


def test_claims_hold_where_planted_and_not_where_units_do_nothing(found: Found) -> None:
    said = {each.says: each.agrees for each in claims(found)}
    assert said["without its units a fact's answer is less probable"]
    assert said["an edit of 8 lengths changes a fact"]
    assert said["without its 2 commonest units capital is forgotten, and others are not"]
    idle = {
        key: tuple(dataclasses.replace(each, fact=float(each.random.mean())) for each in effects)
        for key, effects in found.effects.items()
    }
    unmoved = tuple(dataclasses.replace(each, own=(each.own[0], each.own[0])) for each in found.erased)
    edits = {**found.edits, "paper": found.edits["random"]}
    other = dataclasses.replace(found, effects=idle, edits=edits, erased=unmoved)
    said = {each.says: each.agrees for each in claims(other)}
    assert not said["without its units a fact's answer is less probable"]
    assert not said["with them doubled it is more probable"]
    assert not said["an edit of 8 lengths changes a fact"]
    assert not said["without its 2 commonest units capital is forgotten, and others are not"]


def test_erasing_that_spoils_other_relations_is_not_forgetting(found: Found) -> None:
    spoilt = tuple(dataclasses.replace(each, others=each.own) for each in found.erased)
    said = {each.says: each.agrees for each in claims(dataclasses.replace(found, erased=spoilt))}
    assert not said["without its 2 commonest units capital is forgotten, and others are not"]


def test_the_page_has_the_paper_beside_ours(found: Found) -> None:
    page = describe(found)
    assert "-29.03 %" in page
    assert "as remembered, to be verified" in page
    assert "norland: aro" in page
    assert "What differs from the paper:" in page


def headless() -> Model:
    module: Any = toys.bert()
    return wrap(module.bert, toys.encoder_tokenizer(), name="headless")


def repeated() -> list[str]:
    """Texts whose sentences say one word again and again, so that its neighbours tell a hidden one."""
    words = sorted({word.strip(".,") for text in toys.toy_texts() for word in text.split() if word.strip(".,").isalpha()})[:6]
    return [" ".join(f"{' '.join([word] * 8)}." for word in words) for _ in range(60)]


def test_a_head_learns_what_frequencies_do_not_tell_and_the_encoder_stays() -> None:
    encoder = headless()
    before = {name: value.clone() for name, value in encoder.module.named_parameters()}
    made = with_head(encoder, repeated(), HeadTraining(sentences=300, epochs=12, batch=64, rate=2e-2, held_out=36))
    assert made.loss.above(0.0)
    assert made.loss.high < made.frequencies_loss.low
    assert made.right.above(made.frequencies_right)
    inner = made.model.module.bert
    for name, value in inner.named_parameters():
        assert torch.equal(value, before[name]), name
    assert made.model.module.cls.predictions.decoder.weight is inner.embeddings.word_embeddings.weight
    assert made.model.head is not None
    assert made.model.head.kind == "masked"


def test_texts_that_are_judged_on_are_not_learnt_from(tmp_path: Path) -> None:
    texts = [f"Text {number} has a sentence that is long enough." for number in range(40)]
    learnt, apart = sentences(texts)
    assert len(learnt) == 36
    assert len(apart) == 4
    assert not set(learnt) & set(apart)
    assert sentences(texts) == (learnt, apart)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for number in range(2):
            (tmp_path / folder / f"{number}.txt").write_text(f"{folder} {number}")
    assert texts_of(tmp_path / "one", tmp_path / "two") == ["one 0", "two 0", "one 1", "two 1"]


def test_heads_are_for_encoders_without_one() -> None:
    with pytest.raises(Refusal, match="it is a LlamaForCausalLM"):
        with_head(toys.toy_decoder(), repeated())
    with pytest.raises(Refusal, match="sentences to learn from"):
        with_head(headless(), ["One sentence that is long enough, but alone."])
