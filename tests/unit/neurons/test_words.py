"""Spellings of a word, and how tokens are named."""

import torch

from microtome.neurons.words import named, spellings, texts_of


def test_spellings_are_equal_but_for_case_and_spaces() -> None:
    texts = [" his", "His", "his", "history", " ", "\n", "", "\ufffd", "\ufffd"]
    counts = torch.tensor([[1, 5, 0, 2, 1, 1, 0, 1, 1], [3, 0, 0, 1, 1, 1, 0, 1, 1]])
    assert spellings(texts, counts).tolist() == [1, 1, 1, 3, 4, 5, 6, 7, 8]


def test_of_equally_common_spellings_the_lowest_id_stands_for_all() -> None:
    assert spellings(["Up", " up", "up"], torch.zeros(2, 3, dtype=torch.int64)).tolist() == [0, 0, 0]


def test_tokens_are_named_visibly() -> None:
    assert [named(" his"), named("\n"), named(" ")] == ["‘his’", "‘\\n’", "‘ ’"]


def test_without_a_tokenizer_tokens_are_numbers() -> None:
    assert texts_of(None, 2) == ["token 0", "token 1"]
