"""Shifts within windows: by a loop, the same under any split, and never by nothing where that is asked for."""

from typing import Literal

import pytest
import torch
from torch import Tensor

from microtome.numerics import hash_parts, window_shifts

LENGTHS = torch.tensor([5, 1, 2, 9, 30, 1, 4])
NUMBERS = torch.tensor([7, 8, 9, 1000, 11, 3, 0])


def windows() -> Tensor:
    return NUMBERS.repeat_interleave(LENGTHS)


@pytest.mark.parametrize("least", [0, 1])
@pytest.mark.parametrize("seed", [0, 5])
def test_each_window_goes_round_by_the_hash_of_its_number(least: Literal[0, 1], seed: int) -> None:
    for draw, found in enumerate(window_shifts(windows(), 3, seed, least=least)):
        wanted, first = [], 0
        for number, length in zip(NUMBERS.tolist(), LENGTHS.tolist(), strict=True):
            hashed = int(hash_parts(seed, draw, torch.tensor(number))) % 2**31
            offset = least + hashed % max(length - least, 1)
            wanted += [first + (place + offset) % length for place in range(length)]
            first += length
        assert found.tolist() == wanted


def test_rows_of_a_window_stay_in_it_in_their_runs() -> None:
    window = windows()
    for order in window_shifts(window, 4, 1):
        assert order.sort().values.tolist() == list(range(len(window)))
        assert torch.equal(window[order], window)
        for number in NUMBERS:  # a run is broken where its window ends, and nowhere else
            assert int((order[window == number].diff() != 1).sum()) <= 1


def test_no_split_of_the_stream_changes_a_shift() -> None:
    window = windows()
    whole = window_shifts(window, 2, 3, least=1)
    cut = int(LENGTHS[:4].sum())
    parts = zip(window_shifts(window[:cut], 2, 3, least=1), window_shifts(window[cut:], 2, 3, least=1), strict=True)
    assert all(torch.equal(torch.cat([one, cut + other]), each) for (one, other), each in zip(parts, whole, strict=True))


def test_no_row_keeps_its_place_where_that_is_asked_for() -> None:
    window = torch.arange(300).repeat_interleave(3)
    kept = [
        float((order == torch.arange(900)).double().mean())
        for least in (0, 1)
        for order in window_shifts(window, 2, 0, least=least)
    ]
    assert kept[:2] == pytest.approx([1 / 3, 1 / 3], abs=0.1)
    assert kept[2:] == [0, 0]


def test_of_no_row_there_is_nothing_to_shift() -> None:
    assert [each.tolist() for each in window_shifts(torch.empty(0, dtype=torch.int64), 2, 0, least=1)] == [[], []]
