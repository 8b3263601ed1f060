"""Spellings of a word."""

import torch

from microtome.readout.spellings import spellings


def test_spellings_are_equal_but_for_case_and_spaces() -> None:
    texts = [" his", "His", "his", "history", " ", "\n", "", "\\xe2\\x80", " \\xe2\\x80"]
    counts = torch.tensor([[1, 5, 0, 2, 1, 1, 0, 1, 1], [3, 0, 0, 1, 1, 1, 0, 1, 1]])
    assert spellings(texts, counts).tolist() == [1, 1, 1, 3, 4, 5, 6, 7, 8]


def test_of_equally_common_spellings_the_lowest_id_stands_for_all() -> None:
    assert spellings(["Up", " up", "up"], torch.zeros(2, 3, dtype=torch.int64)).tolist() == [0, 0, 0]
