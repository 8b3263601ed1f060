import math

import pytest
import torch

from microtome.core import Refusal
from microtome.corpus import prompt_batch
from microtome.intervene import GREEDY, Written, generate
from microtome.intervene.texts import distinct, perplexities, self_bleu, share_with
from tests.toys import toy_decoder


def test_published_self_bleu() -> None:
    # numbers of apple/ml-selfcond's test: 3/5 words, 2/4 pairs, 1/3 triples
    assert self_bleu(["Hello, I am John\n", "Bye, I am Jane"], 3) == pytest.approx(0.4641588833612779)
    assert self_bleu(["Hello, I am John\n", "Want to play football?"], 3) == 0


def test_self_bleu_at_its_ends_and_with_short_texts() -> None:
    assert self_bleu(["a b c d"] * 3) == pytest.approx(1.0)
    # the shorter text is all in the longer one, and pays for its length: exp(1 - 5/3)
    both = self_bleu(["a b c", "a b c d e"])
    assert both == pytest.approx((math.exp(1 - 5 / 3) + (3 / 5 * 2 / 4 * 1 / 3) ** (1 / 3)) / 2)
    assert math.isnan(self_bleu(["a b c", "a b"]))


def test_distinct_by_hand() -> None:
    assert distinct(["a b a b", "a b"], 2) == pytest.approx(2 / 4)
    assert distinct(["a b c"], 1) == 1
    assert math.isnan(distinct(["a"], 2))


def test_words_are_whole_and_of_any_case() -> None:
    texts = ["The River, wide", "riverside", "a stone"]
    assert share_with(texts, ["river"]) == pytest.approx(1 / 3)
    assert share_with(texts, ["river", "STONE"]) == pytest.approx(2 / 3)
    with pytest.raises(Refusal, match="there is no text or no word"):
        share_with(texts, [])


def test_perplexity_is_that_of_what_was_written() -> None:
    model = toy_decoder()
    batch = prompt_batch(model.tokenizer, ["The river holds", "The garden finds the letter."])
    out = generate(model, batch, most=6, sampling=GREEDY, stop=())
    expected = torch.stack([(-each.double().mean()).exp() for each in out.log_probability])
    torch.testing.assert_close(perplexities(model, batch, out).double(), expected, rtol=1e-4, atol=1e-4)
    empty = Written((out.ids[0], out.ids[1][:0]), ("", ""), (out.log_probability[0], out.log_probability[1][:0]))
    assert perplexities(model, batch, empty).isnan().tolist() == [False, True]
