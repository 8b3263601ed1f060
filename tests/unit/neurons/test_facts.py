"""Facts: the shipped file, prompts for decoders and encoders, where the subject is, and what is refused."""

from pathlib import Path

import pytest
import torch

from microtome.core import Refusal
from microtome.model import forward, wrap
from microtome.neurons.facts import Fact, ask, askable, known, read_facts, subject_tokens
from tests.toys import toy_decoder, toy_encoder
from tests.unit.corpus.toy_tokenizers import byte_level
from tests.unit.model.tiny import built, opened
from tests.unit.neurons.planted_models import KINDS, Kind, dictionary_model, following, planted_facts, shared_fact_model

RIVER = Fact(
    "holds",
    "The river",
    "stone",
    ("{subject} holds the", "we say {subject} holds the", "{subject} {mask} it", "{subject} holds the [MASK]."),
)


def test_the_shipped_facts_have_prompts_for_decoders_and_encoders() -> None:
    facts = read_facts()
    assert {fact.relation for fact in facts} == {"capital", "currency", "language"}
    assert len(facts) == len({(fact.relation, fact.subject) for fact in facts}) >= 48
    for fact in facts:
        assert len(fact.texts(None)) >= 4
        assert len(fact.texts("[M]")) >= 4
        assert all(
            fact.subject in text and fact.answer not in text.split() and not text.endswith(" ") for text in fact.texts(None)
        )
        assert all(text.count("[M]") == 1 for text in fact.texts("[M]"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_planted_models_know_what_was_planted(kind: Kind, dtype: torch.dtype) -> None:
    model = dictionary_model(kind, dtype=dtype)
    text = "w3 w9 w11 w5"
    found = forward(model, ask(model, Fact("next", "w5", "w6", (text.replace("w5", "{subject}"),))).batch)["logits"]
    assert found[0].argmax(1).tolist() == [following(word) for word in (3, 9, 11, 5)]
    for tail in ("", " is"):
        planted = shared_fact_model(kind, dtype=dtype)
        facts, refused = askable(planted.model, planted_facts(tail))
        assert not refused
        assert all(bool(known(planted.model, fact).all()) for fact in facts)


def test_known_is_of_each_prompt() -> None:
    model = shared_fact_model("relu").model
    asked = ask(model, Fact("capital", "norland", "aro", ("the capital of {subject}", "the language of {subject}")))
    assert known(model, asked).tolist() == [True, False]


def test_a_decoder_is_asked_behind_its_prompts_and_an_encoder_at_its_mask() -> None:
    decoder, encoder = toy_decoder(), toy_encoder()
    asked = ask(decoder, RIVER)
    assert asked.texts == ("The river holds the", "we say The river holds the")
    assert torch.equal(asked.question.place, (asked.batch.roles != 0).sum(1) - 1)
    asked = ask(encoder, RIVER)
    assert asked.texts == ("The river [MASK] it", "The river holds the [MASK].")
    places = asked.batch.ids[torch.arange(2), asked.question.place]
    assert (places == encoder.tokenizer.mask_token_id).all()


def test_tokens_of_the_subject_are_those_that_spell_it() -> None:
    tokenizer = byte_level()
    model = wrap(built("gpt2"), tokenizer, name="bytes")
    texts = ["the cat and The cat sat", "cat", "über The catfish"]
    mask = subject_tokens(model, texts, "cat")
    for text, row in zip(texts, mask, strict=True):
        tokens = tokenizer.backend_tokenizer.encode(text).tokens
        inside = "".join(token for token, mine in zip(tokens, row.tolist(), strict=False) if mine)
        before = "".join(token for token, mine in zip(tokens[: int(row.nonzero()[0])], row.tolist(), strict=False) if not mine)
        assert "cat" in inside.replace("Ġ", "")
        assert len(before) <= text.rfind("cat")
    with pytest.raises(Refusal, match="'dog' is not in it"):
        subject_tokens(model, texts, "dog")


def test_facts_that_cannot_be_asked_are_refused_and_say_why() -> None:
    planted = shared_fact_model("gelu").model
    several = Fact("capital", "norland", "aro bem", ("the capital of {subject}",))
    with pytest.raises(Refusal, match="it is 2 tokens of planted-gelu: aro bem; ask for a word that is a single token"):
        ask(planted, several)
    masked = Fact("capital", "norland", "aro", ("the capital of {subject} is {mask}",))
    with pytest.raises(Refusal, match="writes what comes next, and no prompt is without a mask"):
        ask(planted, masked)
    bare = Fact("holds", "river", "stone", ("the {subject} holds the",))
    with pytest.raises(
        Refusal, match="the fact holds of river: toy-bert fills in masks, and no prompt is with a mask; add prompts"
    ):
        ask(toy_encoder(), bare)
    with pytest.raises(Refusal, match="its tokenizer has no mask"):
        ask(opened("bert"), masked)
    found, refused = askable(planted, [several, masked, *planted_facts()])
    assert (len(found), [error.what for error in refused]) == (12, ["the answer 'aro bem'", "the fact capital of norland"])


@pytest.mark.parametrize(
    ("prompts", "why"),
    [
        ((), "it has no prompt"),
        (("the capital of norland",), "it has 0 slots for the subject and 0 masks"),
        (("{subject} and {subject}",), "it has 2 slots"),
        (("{subject} {mask} [MASK]",), "and 2 masks"),
    ],
)
def test_prompts_have_one_slot_and_one_mask_at_most(prompts: tuple[str, ...], why: str) -> None:
    with pytest.raises(Refusal, match=why):
        Fact("capital", "norland", "aro", prompts)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it has no line"),
        (b"\xff\xfe\x00", "it is not UTF-8 text"),
        (b"not json", "line 1 of .*: it is no JSON"),
        (b'{"relation": "r", "subject": "s", "answer": "a", "prompts": ["{subject}"]}\n\n[1]', "line 3 of .*: it is no object"),
        (b'{"relation": "r", "subject": "s", "answer": " ", "prompts": ["{subject}"]}', "it is no object with texts"),
        (b'{"relation": "r", "subject": "s", "answer": "a", "prompts": "{subject}"}', "a list of texts prompts"),
        (b'{"relation": "r", "subject": "s", "answer": "a", "prompts": ["x"]}', "it has 0 slots"),
    ],
)
def test_bad_files_of_facts_are_refused(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "facts.jsonl"
    with pytest.raises(Refusal, match="there is no such file"):
        read_facts(path)
    path.write_bytes(content)
    with pytest.raises(Refusal, match=why):
        read_facts(path)


def test_a_file_is_read_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_text('{"relation": "r", "subject": "Łódź", "answer": "a", "prompts": ["in {subject}"]}\n', "utf-8")
    assert read_facts(path) == [Fact("r", "Łódź", "a", ("in {subject}",))]
