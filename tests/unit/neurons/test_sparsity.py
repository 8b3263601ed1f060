"""Sparsity: counts by hand, the Gaussian control in closed form, and what rescaling a unit may change."""

import math

import pytest
import torch
from torch import Tensor

from microtome.core import Batch, ExpertRows, Refusal, Role
from microtome.neurons.sparsity import SparseActivity, Sparsity, gaussian_share, units_needed


def seen_of(fold: SparseActivity, x: Tensor) -> Sparsity:
    windows, tokens = x.shape[:2]
    roles = torch.full((windows, tokens), int(Role.CONTENT), dtype=torch.uint8)
    roles[:, 0] = int(Role.FIRST)
    index = torch.arange(windows)
    batch = Batch(torch.zeros(windows, tokens).long(), roles, index, index, index * 0, index.to(torch.uint8) * 0, index * 0, {})
    state = fold.init()
    fold.update(state, {fold.sites[0]: x}, batch)
    return fold.result(state)


def test_counts_by_hand() -> None:
    x = torch.tensor([[[9.0, 9, 9, 9], [0, 0, 0, 5], [1, -1, 1, -1], [0, 0, 0, 0], [-96, 2, 1, 1]]])
    found = seen_of(SparseActivity(0, torch.ones(4), tau=1.5), x)
    assert found.tokens == 4
    assert found.zero == 7 / 16
    assert found.large == 3 / 16
    assert found.needed.tolist() == [1, 2, 0, 0, 1]
    assert found.share == pytest.approx((1 + 4 + 0 + 1) / 16)
    assert found.size[3].item() == pytest.approx(math.sqrt((25 + 1 + 0 + 1) / 4))


def test_lengths_weigh_what_is_written() -> None:
    x = torch.tensor([[[0.0, 0, 0], [1, 1, 1]]])
    assert seen_of(SparseActivity(0, torch.tensor([100.0, 1, 1])), x).needed.tolist() == [0, 1, 0, 0]
    scale = torch.tensor([4.0, 0.5, 2.0])
    x = torch.randn(3, 50, 3, generator=torch.Generator().manual_seed(1))
    one, other = seen_of(SparseActivity(0, torch.ones(3)), x), seen_of(SparseActivity(0, 1 / scale), x * scale)
    assert torch.equal(one.needed, other.needed)


def test_the_whole_mass_needs_every_unit_that_writes() -> None:
    rows = torch.tensor([[3.0, 0, 1], [0, 0, 0]], dtype=torch.float64)
    assert units_needed(rows, 1.0).tolist() == [2, 0]


def test_gaussian_activations_are_their_own_control() -> None:
    x = torch.randn(4, 200, 400, generator=torch.Generator().manual_seed(2))
    found = seen_of(SparseActivity(0, torch.ones(400)), x)
    threshold = math.sqrt(-2 * math.log(0.95))
    expected = math.erfc(threshold / math.sqrt(2))
    assert expected == pytest.approx(0.7488, abs=1e-4)
    assert found.share == pytest.approx(expected, abs=0.01)
    assert gaussian_share(found) == pytest.approx(found.share, abs=0.01)


def test_planted_sparsity_is_below_its_control() -> None:
    """Every unit is used by a tenth of the tokens, so all are of one size."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(4, 200, 400, generator=generator) * (torch.rand(4, 200, 400, generator=generator) < 0.1)
    found = seen_of(SparseActivity(0, torch.ones(400)), x)
    assert found.zero == pytest.approx(0.9, abs=0.01)
    assert found.large == pytest.approx(0.1, abs=0.01)
    assert found.share < 0.09
    assert gaussian_share(found) > 0.7


def test_refusals() -> None:
    fold = SparseActivity(0, torch.ones(2))
    one = torch.zeros(1, dtype=torch.int64)
    rows = ExpertRows(torch.ones(1, 2), one, one, torch.ones(1), 1, 1)
    batch = Batch(one[None], one[None].to(torch.uint8), one, one, one, one.to(torch.uint8), one, {})
    with pytest.raises(Refusal, match="the router's choice"):
        fold.update(fold.init(), {fold.sites[0]: rows}, batch)
    nothing = fold.result(fold.init())
    assert math.isnan(nothing.zero)
    with pytest.raises(Refusal, match="no unit has a size"):
        gaussian_share(nothing)
