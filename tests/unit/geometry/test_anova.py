"""The analysis of variance on four numbers that a pencil can check."""

import pytest
import torch

from microtome.geometry.anova import Moments, fit

# h = [[1, 3], [5, 11]], windows in rows: mu 5, pos -2 2, ctx -3 3, resid 1 -1 -1 1; squares 16 + 36 + 4 = 56.
MOMENTS = Moments(
    lengths=torch.tensor([2]),
    windows=torch.tensor([2]),
    sums=torch.tensor([[6.0], [14.0]], dtype=torch.float64),
    means=torch.tensor([[10.0]], dtype=torch.float64),
    squares=torch.tensor([156.0], dtype=torch.float64),
    mean_squares=torch.tensor([136.0], dtype=torch.float64),
)


def test_shares_of_four_numbers() -> None:
    found = fit(MOMENTS)
    assert found.mu.tolist() == pytest.approx([5])
    assert found.pos.flatten().tolist() == pytest.approx([-2, 2])
    assert found.total == pytest.approx(56)
    assert found.share == pytest.approx({"pos": 16 / 56, "ctx": 36 / 56, "resid": 4 / 56})
    assert found.norm == pytest.approx({"pos": 2, "ctx": 3, "resid": 1})
    assert (found.windows, found.tokens, found.counts.tolist()) == (2, 4, [2, 2])


def test_controls_of_four_numbers() -> None:
    """Each window keeps or swaps its two numbers: position sums of squares 16, 4, 4, 16, mean 10. Three splits into pairs: 36, 16, 4."""
    found = fit(MOMENTS)
    assert found.control == pytest.approx({"pos": 10 / 56, "ctx": (36 + 16 + 4) / 3 / 56, "resid": 1 / 3})
