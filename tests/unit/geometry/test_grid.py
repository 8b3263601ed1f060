"""Positions on a grid: planted rows, columns and interactions are told apart, noise is told from all of them."""

import math

import pytest
import torch

from microtome.core import Refusal
from microtome.geometry.grid import grid_position
from microtome.geometry.halves import Halves, effect

SIDES = (6, 8)
WIDTH = 40


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planted(row: float, column: float, interaction: float) -> torch.Tensor:
    """Parts of these energies, each centred so that they do not leak into each other."""
    rows, columns, rest = drawn(SIDES[0], 1, WIDTH, seed=1), drawn(1, SIDES[1], WIDTH, seed=2), drawn(*SIDES, WIDTH, seed=3)
    rest = rest - rest.mean(0, keepdim=True) - rest.mean(1, keepdim=True) + rest.mean((0, 1))
    parts = [(rows - rows.mean(0)).expand(*SIDES, WIDTH), (columns - columns.mean(1)).expand(*SIDES, WIDTH), rest]
    scaled = [part * math.sqrt(size) / part.norm() for part, size in zip(parts, (row, column, interaction), strict=True)]
    return sum(scaled, torch.zeros(*SIDES, WIDTH, dtype=torch.float64)).flatten(0, 1)


def test_planted_shares_are_found_exactly() -> None:
    found = grid_position(planted(5, 3, 2), None, SIDES)
    assert found.row.value == pytest.approx(0.5, abs=1e-12)
    assert found.column.value == pytest.approx(0.3, abs=1e-12)
    assert found.interaction.value == pytest.approx(0.2, abs=1e-12)
    assert found.separable.value == pytest.approx(0.8, abs=1e-12)
    assert found.row.control == 5 / 47
    assert found.column.control == 7 / 47
    assert found.row.p < 0.02
    assert found.separable.p < 0.02
    assert float(found.block[0, 0]) == pytest.approx(0, abs=1e-20)
    assert float(found.block.sum()) == pytest.approx(1, abs=1e-12), "a grid of 6 x 8 has no more frequencies than the block"


def test_a_random_layout_is_its_control() -> None:
    found = grid_position(drawn(48, WIDTH, seed=5), None, SIDES, draws=400)
    assert found.row.value == pytest.approx(found.row.control, abs=0.03)
    assert found.row.p > 0.02
    assert found.interaction.p > 0.02


def test_noise_does_not_pass_for_interaction() -> None:
    """Half as much noise as signal: its share is seen in the naive interaction and not in that of two halves."""
    signal = planted(1, 1, 0)
    first, second = (signal + 0.5 * drawn(48, WIDTH, seed=seed) / math.sqrt(48 * WIDTH) * math.sqrt(2) for seed in (6, 7))
    halves = Halves(first, second)
    naive, corrected = (grid_position(first, each, SIDES) for each in (None, halves))
    assert naive.interaction.value > 0.1
    assert abs(corrected.interaction.value) < 0.05
    assert corrected.row.value == pytest.approx(0.5, abs=0.05)


def test_one_slow_wave_down_the_rows_sits_in_one_frequency() -> None:
    wave = torch.cos(math.pi * (torch.arange(SIDES[0], dtype=torch.float64) + 0.5) / SIDES[0])
    pos = torch.outer(wave.repeat_interleave(SIDES[1]), drawn(WIDTH, seed=8))
    found = grid_position(pos, None, SIDES)
    assert float(found.block[1, 0]) == pytest.approx(1, abs=1e-12)


def test_what_has_no_layout_says_why() -> None:
    line = grid_position(drawn(8, WIDTH), None, (1, 8))
    assert line.row.undefined == "a side of the grid is 1"
    assert grid_position(torch.ones(48, WIDTH), None, SIDES).row.undefined == "positions have no energy"
    halves = Halves(drawn(48, WIDTH, seed=1), drawn(48, WIDTH, seed=2))
    unrelated = grid_position(halves.first, halves, SIDES, effect=effect(halves))
    assert "not distinguishable from 0" in unrelated.row.undefined
    with pytest.raises(Refusal, match="a grid of 5 x 8: there are 48 positions; pass the sides of the grid"):
        grid_position(drawn(48, WIDTH), None, (5, 8))
