"""Sums by group: hand-computed, against a loop, under any split."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from microtome.numerics import grouped
from tests.unit.numerics.kernel_sets import kernel_set

pytestmark = pytest.mark.usefixtures(kernel_set.__name__)


def test_hand_computed():
    state = grouped.init(3, 2)
    grouped.update(state, torch.tensor([[1.0, 2.0], [3.0, 4.0], [9.0, 9.0], [5.0, 0.0]]), torch.tensor([0, 2, -1, 0]))
    found = grouped.result(state)
    assert found.count.tolist() == [2, 0, 1]
    assert found.mean[[0, 2]].tolist() == [[3.0, 1.0], [3.0, 4.0]]
    assert found.mean[1].isnan().all()


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=4), seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)  # fmt: skip
def test_any_split_is_a_loop(sizes: list[int], seed: int, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(sizes), 300, generator=generator).to(dtype)
    groups = torch.randint(-1, 5, (sum(sizes),), generator=generator)
    state = grouped.init(5, 300)
    for part, labels in zip(x.split(sizes), groups.split(sizes), strict=True):
        single = grouped.init(5, 300)
        grouped.update(single, part, labels)
        state = grouped.merge(state, single)
    for group in range(5):
        members = x[groups == group].float().double()
        assert int(state["counts"][group]) == len(members)
        torch.testing.assert_close(state["sums"][group], members.sum(0), rtol=1e-12, atol=1e-12)


def test_positions_of_windows():
    x = torch.randn(6, 50, 20, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(50).expand(6, 50)
    state = grouped.init(50, 20)
    grouped.update(state, x, positions, slice(1, 49))
    found = grouped.result(state)
    assert found.count.tolist() == [0] + [6] * 48 + [0]
    torch.testing.assert_close(found.mean[1:49], x.double().mean(0)[1:49])
    mask = torch.arange(50) < torch.tensor([50, 3, 0, 20, 50, 1])[:, None]
    masked = grouped.init(50, 20)
    grouped.update(masked, x, positions, mask)
    torch.testing.assert_close(masked["sums"], (x.double() * mask[..., None]).sum(0))


def test_a_group_out_of_range_is_an_error():
    with pytest.raises((AssertionError, IndexError, RuntimeError)):
        grouped.update(grouped.init(2, 3), torch.ones(1, 3), torch.tensor([2]))
