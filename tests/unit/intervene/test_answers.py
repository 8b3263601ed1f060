"""Questions and prompts: the number asked for, against the model's own logits."""

import pytest
import torch

from microtome.core import Refusal, Role
from microtome.corpus import prompt_batch
from microtome.intervene import Question, answers, asked, single_token
from microtome.intervene.answers import Scale
from microtome.model import forward
from tests.unit.model.tiny import batch_for, opened

PLACE, TOKEN, OTHER = torch.tensor([6, 3]), torch.tensor([8, 9]), torch.tensor([10, 11])


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "gemma2"])
def test_answers_are_those_of_the_model_s_own_logits(name: str) -> None:
    model = opened(name)
    batch = batch_for(model, (7, 5))
    logits = forward(model, batch)["logits"].float()[torch.arange(2), PLACE]
    pick = torch.arange(2)
    scaled: dict[Scale, torch.Tensor] = {
        "logit": logits,
        "probability": logits.softmax(1),
        "log_probability": logits.log_softmax(1),
    }
    for scale, table in scaled.items():
        found = answers(model, batch, Question(PLACE, TOKEN, scale=scale))
        torch.testing.assert_close(found, table[pick, TOKEN])
        found = answers(model, batch, Question(PLACE, TOKEN, OTHER, scale))
        torch.testing.assert_close(found, table[pick, TOKEN] - table[pick, OTHER])


def test_a_decoder_is_asked_behind_the_last_token() -> None:
    model = opened("llama")
    question = asked(model, batch_for(model, (7, 5)), 8, [9, 10])
    assert (question.place.tolist(), question.token.tolist()) == ([6, 4], [8, 8])
    assert question.other is not None
    assert question.other.tolist() == [9, 10]
    with pytest.raises(Refusal, match="there are 2 windows and 3 answers"):
        asked(model, batch_for(model), [1, 2, 3])


def test_a_question_has_as_many_tokens_as_places() -> None:
    with pytest.raises(Refusal, match="name one place and one token"):
        Question(torch.tensor([1, 2]), torch.tensor([3]))


def test_without_a_tokenizer_words_and_masks_are_refused() -> None:
    model = opened("bert")
    with pytest.raises(Refusal, match="bert has no tokenizer"):
        single_token(model, "Paris")
    with pytest.raises(Refusal, match="it has no letter"):
        single_token(model, " ")
    with pytest.raises(Refusal, match="fills in masks, and there are 0 in it"):
        asked(model, batch_for(model), 8)
    with pytest.raises(Refusal, match="the model has no tokenizer"):
        prompt_batch(None, ["The"])


def test_prompts_have_roles_and_padding(gpt, bert) -> None:
    batch = prompt_batch(gpt, ["a b c", "a"])
    length = int((batch.roles[1] != Role.PAD).sum())
    assert batch.roles[0, 0] == Role.FIRST
    assert bool((batch.roles[0, 1:] == Role.CONTENT).all())
    assert batch.ids[1, :length].tolist() == gpt("a").input_ids
    wrapped = prompt_batch(bert, ["a b c"])
    assert wrapped.roles[0].tolist()[:: len(wrapped.roles[0]) - 1] == [Role.SPECIAL, Role.SPECIAL]
    for texts, why in (([], "no list of texts"), ("abc", "no list of texts"), ([""], "it has no token")):
        with pytest.raises(Refusal, match=why):
            prompt_batch(gpt, texts)
    with pytest.raises(Refusal, match="no text that can be written"):
        prompt_batch(gpt, ["a\ud800"])
    with pytest.raises(Refusal, match="tokens, and the model reads 2"):
        prompt_batch(gpt, ["a b c d e f"], context=2)
