import numpy as np
import pytest
import torch

from microtome.core import Refusal, Site
from microtome.corpus import prompt_batch
from microtome.model import capture
from microtome.probes import LabelledText, aligned, pooled, word_vectors
from microtome.probes.words import token_runs
from tests.toys import toy_decoder, toy_encoder


def labelled(text: str, labels: str, document: str) -> LabelledText:
    words = tuple(text.split())
    at, spans = 0, []
    for word in words:
        begin = text.index(word, at)
        spans.append((begin, begin + len(word)))
        at = spans[-1][1]
    return LabelledText(document, text, words, tuple(labels.split()), tuple(spans))


TEXTS = [
    labelled("The river holds the stone .", "D N V D N P", "a"),
    labelled("The garden finds the letter .", "D N V D N P", "b"),
    labelled("The engine harbours unwinters .", "D N V N P", "c"),
]


def test_tokens_belong_to_words_by_characters() -> None:
    # "ab cd  e": special, "ab", " c", "d", a blank of its own, " e", special; then a token over two words
    offsets = np.array([[0, 0], [0, 2], [2, 4], [4, 5], [5, 6], [6, 8], [0, 0]])
    first, last, alone = token_runs(offsets, np.array([[0, 2], [3, 5], [7, 8]]))
    assert first.tolist() == [1, 2, 5]
    assert last.tolist() == [1, 3, 5]
    assert alone.tolist() == [True, True, True]
    _, _, alone = token_runs(np.array([[0, 2], [2, 5], [5, 6]]), np.array([[0, 3], [3, 5], [5, 6], [6, 7]]))
    assert alone.tolist() == [False, False, True, False]


def test_bytes_of_one_character_are_one_word() -> None:
    first, last, alone = token_runs(np.array([[0, 1], [0, 1], [0, 1], [1, 3]]), np.array([[0, 1], [2, 3]]))
    assert (first.tolist(), last.tolist(), alone.tolist()) == ([0, 3], [2, 3], [True, True])


def test_pooling_by_hand() -> None:
    values = torch.tensor([[[1.0], [2.0], [6.0]], [[5.0], [7.0], [0.0]]])
    places = torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor([2, 0])
    assert pooled(values, *places, "last").tolist() == [[6], [5]]
    assert pooled(values, *places, "first").tolist() == [[2], [5]]
    assert pooled(values, *places, "average").tolist() == [[4], [5]]


@pytest.mark.parametrize("pooling", ["last", "average"])
def test_vectors_are_those_of_the_words_tokens(pooling: str) -> None:
    model = toy_encoder()
    words = aligned(model.tokenizer, TEXTS)
    assert len(words.y) == sum(len(text.words) for text in TEXTS)
    assert (words.missed, words.leading) == (0, 0)
    site = Site("mlp_act", 1)
    found = word_vectors(model, TEXTS, words, [site], pooling=pooling)[site]  # pyright: ignore[reportArgumentType]
    for row in (1, 8, 15):
        text = TEXTS[int(words.text[row])]
        value = capture(model, prompt_batch(model.tokenizer, [text.text]), [site])[site][0]
        mine = value[int(words.first[row]) : int(words.last[row]) + 1]
        expected = mine[-1] if pooling == "last" else mine.mean(0)
        torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=1e-5)
    spelled = model.tokenizer.decode(  # pyright: ignore[reportOptionalMemberAccess]
        prompt_batch(model.tokenizer, [TEXTS[2].text]).ids[0, int(words.first[15]) : int(words.last[15]) + 1]
    )
    assert spelled.replace(" ", "") == words.words[15] == "unwinters"


def test_a_decoders_first_token_is_no_word() -> None:
    words = aligned(toy_decoder().tokenizer, TEXTS)
    assert words.leading == 3
    assert "The" not in words.words


def test_rare_classes_are_left_out_and_named() -> None:
    words = aligned(toy_encoder().tokenizer, TEXTS, fewest=4)
    assert words.classes == ("D", "N")
    assert words.rare == {"P": 3, "V": 3}
    assert words.words.count("The") == 3
    assert len(words.kind.unique()) < len(words.y)  # the, river, ...


def test_halves_are_of_documents_and_balanced() -> None:
    words = aligned(toy_encoder().tokenizer, TEXTS)
    for document in range(3):
        assert len(words.half[words.document == document].unique()) == 1
    assert sorted(int(words.half[words.document == document][0]) for document in range(3)) == [0, 0, 1]
    alone = aligned(toy_encoder().tokenizer, [labelled(text.text, " ".join(text.labels), "one") for text in TEXTS])
    assert len(alone.half.unique()) == 2


def test_labels_that_do_not_fit_are_refused() -> None:
    tokenizer = toy_encoder().tokenizer
    text = LabelledText("a", "one two", ("one", "too"), ("X", "Y"), ((0, 3), (4, 7)))
    with pytest.raises(Refusal, match="its text has 'two' where the label's word is 'too'"):
        aligned(tokenizer, [text])
    single = labelled("river stone garden", "N N V", "a")
    with pytest.raises(Refusal, match="class 'V': it has 1 examples in all, and 2 are needed"):
        aligned(tokenizer, [single])
    with pytest.raises(Refusal, match="no tokenizer"):
        aligned(None, [single])
    halved = LabelledText("a", "river", ("riv", "er"), ("X", "Y"), ((0, 3), (3, 5)))
    if len(tokenizer.backend_tokenizer.encode("river", add_special_tokens=False).ids) == 1:  # pyright: ignore[reportOptionalMemberAccess]
        with pytest.raises(Refusal, match="2 of 2 words have no token of their own: 'riv', 'er'"):
            aligned(tokenizer, [halved])


def test_words_give_cases() -> None:
    model = toy_encoder()
    words = aligned(model.tokenizer, TEXTS * 2)
    site = Site("mlp_act", 0)
    cases = words.cases(word_vectors(model, TEXTS * 2, words, [site])[site])
    assert cases.classes == ("D", "N", "P", "V")
    assert len(cases.x) == len(words.words)
