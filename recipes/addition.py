"""Sums as training material: problems with and without carry, none of them twice, and whether a model solves them.

A problem reads `a+b=c` and a line's end, the digits of c reversed. Both variants draw the lengths of a and b from the same
distribution, so that they differ by their carries alone; in the code published with the paper only problems without carry may
begin with zeros, and those with carry lose the lengths whose sums are too long.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import GPT2LMHeadModel

from recipes.training import IGNORED, Examples

__all__ = [
    "ALPHABET",
    "Lengths",
    "Problems",
    "Variant",
    "accuracy",
    "around",
    "encoded",
    "equal_lengths",
    "lengths_between",
    "problems",
]

ALPHABET = "0123456789=+\n"
Variant = Literal["carry-free", "carry"]
Lengths = Sequence[tuple[int, int]]
"""Numbers of digits of both operands, all equally likely."""

_PAIRS = np.array([(a, b) for a in range(10) for b in range(10 - a)])
_ROUNDS = 64
_BATCH = 250


@dataclass(frozen=True, eq=False)
class Problems:
    """Both operands of each problem, and with how many digits numbers are written at least, zeros in front."""

    first: Int[np.ndarray, " row"]
    second: Int[np.ndarray, " row"]
    digits: int = 0

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, rows: slice) -> "Problems":
        return Problems(self.first[rows], self.second[rows], self.digits)

    def lines(self) -> list[str]:
        """The problems as they are read, solved."""
        pairs = zip(self.first.tolist(), self.second.tolist(), strict=True)
        return [f"{self._written(a)}+{self._written(b)}={self._written(a + b)[::-1]}\n" for a, b in pairs]

    def _written(self, number: int) -> str:
        return str(number).zfill(self.digits)


def equal_lengths(shortest: int, longest: int) -> Lengths:
    """Both operands as long as each other."""
    return tuple((length, length) for length in range(shortest, longest + 1))


def lengths_between(shortest: int, longest: int) -> Lengths:
    """All pairs of lengths."""
    sizes = range(shortest, longest + 1)
    return tuple((first, second) for first in sizes for second in sizes)


def problems(count: int, variant: Variant, lengths: Lengths, seed: int, *, longest_sum: int) -> Problems:
    """`count` problems without zeros in front in random order, no two alike, or all that were found where there are hardly as many.

    Lengths come first and digits are drawn for them, again and again where the sum has more than `longest_sum` digits: that way
    lengths keep their distribution, but for the very short ones, of which there are few problems. Carry-free digits are uniform over
    the pairs with a sum of at most 9.
    """
    generator = np.random.default_rng(seed)
    found = np.zeros((0, 2), dtype=np.int64)
    for _ in range(_ROUNDS):
        missing = count - len(found)
        if missing <= 0:
            break
        sizes = np.array(lengths)[generator.integers(len(lengths), size=missing + missing // 8 + 8)]
        draw = _without_carries if variant == "carry-free" else _with_carries
        found = np.concatenate([found, draw(sizes, longest_sum, generator)])
        found = found[_first_of_each(found)]
    return Problems(found[:count, 0], found[:count, 1])


def _first_of_each(pairs: Int[np.ndarray, "row 2"]) -> Int[np.ndarray, " row"]:
    """Rows without those that came before, in order."""
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    new = np.ones(len(order), dtype=bool)
    new[1:] = (pairs[order][1:] != pairs[order][:-1]).any(1)
    return np.sort(order[new])


def _with_carries(
    sizes: Int[np.ndarray, "row 2"], longest_sum: int, generator: np.random.Generator
) -> Int[np.ndarray, "row 2"]:
    """Operands uniform over the numbers of these lengths whose sum is not too long; few of them happen to have no carry."""
    operands = np.zeros_like(sizes)
    waiting = np.arange(len(sizes))
    while len(waiting):
        low = 10 ** (sizes[waiting] - 1)
        operands[waiting] = generator.integers(np.where(sizes[waiting] == 1, 0, low), 10 * low)
        waiting = waiting[operands[waiting].sum(1) >= 10**longest_sum]
    return operands


def _without_carries(
    sizes: Int[np.ndarray, "row 2"], longest_sum: int, generator: np.random.Generator
) -> Int[np.ndarray, "row 2"]:
    """Operands uniform over the pairs of numbers of these lengths in which no column adds up to more than 9."""
    assert sizes.max() <= longest_sum, "a sum without carries is as long as its longer operand"
    operands = np.zeros_like(sizes)
    for column in range(int(sizes.max())):
        digits = _PAIRS[generator.integers(len(_PAIRS), size=len(sizes))]
        wrong = _misplaced(digits, sizes, column)
        while wrong.any():
            digits[wrong] = _PAIRS[generator.integers(len(_PAIRS), size=int(wrong.sum()))]
            wrong = _misplaced(digits, sizes, column)
        operands += digits * 10**column
    return operands


def _misplaced(digits: Int[np.ndarray, "row 2"], sizes: Int[np.ndarray, "row 2"], column: int) -> Bool[np.ndarray, " row"]:
    """Where a number has a digit beyond its length, or begins with zero; the number 0 itself has one digit."""
    beyond = (sizes <= column) & (digits > 0)
    leading = (sizes == column + 1) & (digits == 0) & (sizes > 1)
    return (beyond | leading).any(1)


def encoded(found: Problems, window: int) -> Examples:
    """The problems as ids, filled up with line ends to `window` tokens; targets are the sum's digits and the first line's end."""
    lines = found.lines()
    assert max(map(len, lines)) <= window + 1, "a problem is longer than the window"
    table = np.full(256, -1, dtype=np.int32)
    table[np.frombuffer(ALPHABET.encode(), dtype=np.uint8)] = range(len(ALPHABET))
    text = "".join(line.ljust(window + 1, "\n") for line in lines).encode()
    ids = torch.from_numpy(table[np.frombuffer(text, dtype=np.uint8)].reshape(len(lines), window + 1))
    equals = (ids == ALPHABET.index("=")).int().argmax(1, keepdim=True)
    end = torch.tensor([[len(line) - 1] for line in lines])
    place = torch.arange(window + 1)
    targets = torch.where((place > equals) & (place <= end), ids, IGNORED)
    return Examples(ids[:, :-1], targets[:, 1:])


def around(ids: Int[Tensor, "window token"], before: int, after: int) -> Bool[Tensor, "window token"]:
    """Positions from `before` before "=" to `after` after it: the place among them is a digit's role, whatever its position."""
    anchor = (ids == ALPHABET.index("=")).int().argmax(1, keepdim=True)
    place = torch.arange(ids.shape[1]) - anchor
    return (place >= -before) & (place <= after)


@torch.inference_mode()
def accuracy(module: GPT2LMHeadModel, found: Problems, window: int) -> float:
    """The share of problems that greedy decoding solves: every digit of the sum and its end.

    All problems are read once with their sums. Greedy decoding writes the right token at each place if and only if that is the
    likeliest after the right ones before it, hence a whole sum if and only if that holds at every place.
    """
    right = 0
    for ids, targets in encoded(found, window).batches(_BATCH):
        said = module(input_ids=ids).logits.argmax(-1)
        right += int(((said == targets) | (targets == IGNORED)).all(1).sum())
    return right / len(found)
