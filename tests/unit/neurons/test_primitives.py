import pytest
import torch

from microtome.core import Refusal
from microtome.corpus import prompt_batch
from microtome.neurons.primitives import (
    Primitives,
    embedding_neighbours,
    joined,
    token_primitives,
    with_neighbours,
    word_primitives,
)
from microtome.probes import LabelledText, aligned
from microtome.readout import texts_of
from tests.toys import toy_decoder, toy_encoder


def labelled(text: str, labels: str, document: str) -> LabelledText:
    at, spans, words = 0, [], text.split()
    for word in words:
        begin = text.index(word, at)
        at = begin + len(word)
        spans.append((begin, at))
    return LabelledText(document, text, tuple(words), tuple(labels.split()), tuple(spans))


SENTENCE = ("The river holds the winter .", "D N V D N P")


def of(found: Primitives, name: str) -> list[int]:
    return found.mask[found.names.index(name)].nonzero()[:, 0].tolist()


def test_concepts_of_words() -> None:
    texts = [labelled(*SENTENCE, "a"), labelled(*SENTENCE, "b"), labelled("The mirror breaks .", "D N V P", "c")]
    words = aligned(toy_encoder().tokenizer, texts)
    found = word_primitives(words, fewest=0)
    assert of(found, "[D]") == of(found, "‘the’") == [0, 3, 6, 9, 12]
    assert of(found, "after [D]") == [1, 4, 7, 10, 13]
    assert of(found, "after ‘river’") == [2, 8]
    assert of(found, "starts with a capital") == [0, 6, 12]
    assert of(found, "ends in -er") == [1, 4, 7, 10], "and mirror does not"
    assert of(found, "ends a sentence") == of(found, "[P]") == [5, 11, 15]
    assert 0 in of(found, "before place 4")
    assert 5 not in of(found, "before place 4")
    assert of(found, "‘mirror’") == [13]
    assert "after [P]" not in found.names, "nothing follows the end of a text"
    assert "‘mirror’" not in word_primitives(words, fewest=1).names, "one document alone has it"
    few = word_primitives(words, most=1, fewest=1)
    assert [name for name in few.names if name.startswith("‘")] == ["‘the’"]


def test_a_word_that_is_left_out_is_not_skipped_over() -> None:
    texts = [labelled("The river X holds .", "D N Z V P", name) for name in "ab"]
    texts.append(labelled("The river holds .", "D N V P", "c"))
    words = aligned(toy_encoder().tokenizer, texts, fewest=3)
    assert dict(words.rare) == {"Z": 2}
    found = word_primitives(words, fewest=0)
    assert of(found, "after ‘river’") == [10], "only in the text without X is the verb right behind it"


def test_concepts_of_tokens() -> None:
    model = toy_decoder()
    texts = texts_of(model.tokenizer, model.shape.vocab)
    batches = [
        prompt_batch(model.tokenizer, ["The river holds the stone.", "The stone"]),
        prompt_batch(model.tokenizer, ["river"]),
    ]
    rows = [
        (texts[batch.ids[row, place]], place, texts[batch.ids[row, place - 1]])
        for batch in batches
        for row in range(len(batch.ids))
        for place in range(1, int((batch.roles[row] > 0).sum()))
    ]
    found = token_primitives(batches, texts, fewest=0)
    assert found.mask.shape[1] == len(rows)
    spelled = [text.strip().casefold() for text, _, _ in rows]
    assert of(found, "‘stone’") == [row for row, text in enumerate(spelled) if text == "stone"]
    assert of(found, "starts with a space") == [row for row, (text, _, _) in enumerate(rows) if text[:1] == " "]
    assert of(found, "before place 4") == [row for row, (_, place, _) in enumerate(rows) if place < 4]
    assert of(found, "after ‘the’") == [row for row, (_, _, last) in enumerate(rows) if last.strip().casefold() == "the"]
    assert len(of(found, "after ‘the’")) > 1


def test_neighbours_are_unions() -> None:
    masks = torch.eye(4, dtype=torch.bool)
    found = with_neighbours(
        Primitives(("‘a’", "‘b’", "‘c’", "[D]"), masks), {"‘a’": ("‘c’", "‘x’"), "‘b’": ("‘y’",), "‘z’": ("‘a’", "‘b’")}
    )
    assert found.names == ("‘a’", "‘b’", "‘c’", "[D]", "near ‘a’")
    assert of(found, "near ‘a’") == [0, 2]
    assert with_neighbours(found, {}) is found


def test_nearest_words_by_the_models_embeddings() -> None:
    model = toy_decoder()
    words = Primitives(("‘river’", "[N]", "‘stone’", "‘garden’", "‘letter’"), torch.zeros(5, 3, dtype=torch.bool))
    found = embedding_neighbours(model, words, 2)
    backend, table = model.tokenizer.backend_tokenizer, model.weights.get("W_E")
    vectors = torch.stack(
        [
            table[backend.encode(f" {name}", add_special_tokens=False).ids].mean(0)
            for name in ("river", "stone", "garden", "letter")
        ]
    )
    vectors = vectors - vectors.mean(0)
    near = torch.cosine_similarity(vectors[:1], vectors[1:]).sort(descending=True).indices[:2]
    assert found["‘river’"] == tuple(("‘stone’", "‘garden’", "‘letter’")[each] for each in near)
    assert set(found) == {"‘river’", "‘stone’", "‘garden’", "‘letter’"}
    with pytest.raises(Refusal, match="there are 4 words"):
        embedding_neighbours(model, words, 4)


def test_names_and_masks_fit() -> None:
    one = Primitives(("a",), torch.ones(1, 3, dtype=torch.bool))
    assert joined(one, one).names == ("a", "a")
    with pytest.raises(Refusal, match="1 names and 2 masks"):
        Primitives(("a",), torch.ones(2, 3, dtype=torch.bool))
    rows = torch.tensor([0, 0, 1, 1])
    some = Primitives(("all", "both", "one"), torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.bool))
    assert some.with_rows(rows, 1).names == ("both",)
