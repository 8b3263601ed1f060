"""Histograms against numpy, both kernel sets bit by bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from microtome.numerics import histogram
from tests.unit.numerics.kernel_sets import kernel_set

pytestmark = pytest.mark.usefixtures(kernel_set.__name__)


def test_hand_computed():
    state = histogram.init(torch.tensor([0.0, -1.0]), torch.tensor([1.0, 0.5]), 4)
    rows = torch.tensor([[-0.5, 9.0], [0.0, -1.0], [3.99, 0.99], [4.0, 1.0], [torch.nan, torch.inf], [2.5, -torch.inf]])
    histogram.update(state, rows)
    assert state["counts"].tolist() == [[1, 1, 0, 1, 1, 1], [1, 1, 0, 0, 1, 3]]


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=4), seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)  # fmt: skip
def test_any_split_is_numpy(sizes: list[int], seed: int, dtype: torch.dtype):
    x = torch.randn(sum(sizes), 300, generator=torch.Generator().manual_seed(seed)).to(dtype)
    low, width = torch.linspace(-2, 0, 300), torch.linspace(0.1, 0.3, 300)
    state = histogram.init(low, width, 7)
    for part in x.split(sizes):
        single = histogram.init(low, width, 7)
        histogram.update(single, part)
        state = histogram.merge(state, single)
    place = np.floor((x.float().numpy() - low.numpy()) / width.numpy()).clip(-1, 7).astype(int) + 1
    expected = np.stack([np.bincount(column, minlength=9) for column in place.T])
    np.testing.assert_array_equal(state["counts"], expected)


def test_windows_and_masks():
    x = torch.randn(4, 30, 5, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(4, 30, generator=torch.Generator().manual_seed(1)) < 0.5
    counts = []
    for rows, counted in ((x, mask), (x[mask], None)):
        state = histogram.init(torch.full((5,), -1.0), torch.full((5,), 0.25), 8)
        histogram.update(state, rows, counted)
        counts.append(state["counts"])
    assert torch.equal(*counts)
    assert int(counts[0].sum()) == 5 * int(mask.sum())


def test_different_edges_do_not_merge():
    with pytest.raises(AssertionError, match="different edges"):
        histogram.merge(histogram.init(torch.zeros(1), torch.ones(1), 3), histogram.init(torch.ones(1), torch.ones(1), 3))


def test_more_rows_than_sixteen_bits_count():
    state = histogram.init(torch.zeros(2), torch.ones(2), 1)
    histogram.update(state, torch.tensor([0.5, 3.0]).expand(70_000, 2))
    assert state["counts"].tolist() == [[0, 70_000, 0], [0, 0, 70_000]]
