"""Sums as training material: problems are what they are said to be, answers are counted right when every token is."""

import itertools

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

from recipes.addition import (
    ALPHABET,
    Problems,
    Variant,
    accuracy,
    around,
    encoded,
    lengths_between,
    problems,
)
from recipes.training import IGNORED, Size, decoder

WINDOW = 14
LENGTHS = lengths_between(2, 4)


def said(ids: torch.Tensor) -> str:
    return "".join(ALPHABET[token] for token in ids.tolist())


def carries(first: int, second: int) -> bool:
    columns = itertools.zip_longest(reversed(str(first)), reversed(str(second)), fillvalue="0")
    return any(int(a) + int(b) > 9 for a, b in columns)


def test_a_problem_as_the_model_reads_it() -> None:
    found = encoded(Problems(np.array([95, 1200]), np.array([17, 34])), 12)
    assert [said(row) for row in found.ids] == ["95+17=211\n\n\n", "1200+34=4321"], "112 and 1234, reversed"
    answers = ["".join("." if token == IGNORED else ALPHABET[token] for token in row) for row in found.targets.tolist()]
    assert answers == [".....211\n...", ".......4321\n"], "what is to be said after each token, from the equals sign on"
    assert [said(row[mask]) for row, mask in zip(found.ids, around(found.ids, 2, 2), strict=True)] == ["17=21", "34=43"]


def test_zeros_in_front_give_all_problems_one_layout() -> None:
    found = Problems(np.array([95, 1200]), np.array([17, 34]), digits=4)
    assert found.lines() == ["0095+0017=2110\n", "1200+0034=4321\n"]
    assert found[1:].lines() == ["1200+0034=4321\n"]
    assert [said(row) for row in encoded(found, WINDOW).ids] == ["0095+0017=2110", "1200+0034=4321"]


@pytest.mark.parametrize("variant", ["carry-free", "carry"])
def test_problems_are_different_and_their_lengths_even(variant: Variant) -> None:
    found = problems(9000, variant, LENGTHS, 0, longest_sum=4)
    pairs = list(zip(found.first.tolist(), found.second.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs) == 9000
    assert max(a + b for a, b in pairs) < 10**4
    counts = {size: sum((len(str(a)), len(str(b))) == size for a, b in pairs) for size in LENGTHS}
    assert sum(counts.values()) == 9000, "no other lengths"
    often = [count for size, count in counts.items() if size != (2, 2)]
    assert min(often) > 0.85 * max(often), "of two-digit problems there are too few"
    carried = sum(itertools.starmap(carries, pairs))
    assert carried == 0 if variant == "carry-free" else carried > 7000
    assert problems(50, variant, LENGTHS, 0, longest_sum=4).lines() == problems(50, variant, LENGTHS, 0, longest_sum=4).lines()


def test_all_problems_that_there_are() -> None:
    found = problems(1000, "carry-free", [(1, 1)], 0, longest_sum=2)
    assert sorted(found.first.tolist()) == sorted(a for a in range(10) for b in range(10 - a)), "55 of them"


def test_accuracy_is_that_of_writing_token_by_token() -> None:
    known = problems(40, "carry", [(1, 1), (2, 1)], 0, longest_sum=3)
    size = Size(layers=1, width=32, heads=2, window=WINDOW, vocabulary=len(ALPHABET), positions=1.0)
    module = decoder(size, 0).eval()
    optimiser = torch.optim.AdamW(module.parameters(), lr=3e-3)
    examples = encoded(known, WINDOW)
    for _ in range(50):
        logits = module(input_ids=examples.ids.long()).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), examples.targets.long().flatten(), ignore_index=IGNORED)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    right = sum(written(module, line) == line for line in known.lines()) / len(known)
    assert 0.1 < right < 0.95, "learned by heart, in part: or the comparison says nothing"
    assert accuracy(module, known, WINDOW) == pytest.approx(right)


@torch.inference_mode()
def written(module: GPT2LMHeadModel, line: str) -> str:
    """The problem with the sum that the model writes, one token after the other."""
    text = line[: line.index("=") + 1]
    while len(text) < WINDOW and not text.endswith("\n"):
        ids = torch.tensor([[ALPHABET.index(character) for character in text]])
        text += ALPHABET[int(module(input_ids=ids).logits[0, -1].argmax())]
    return text
