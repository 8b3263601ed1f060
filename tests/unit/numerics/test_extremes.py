"""Window extremes and moments of groups of windows: against numpy, ties, masks, bfloat16, and equal for both kernel sets."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from microtome.numerics import Extremes, kernels, moments
from tests.unit.numerics.kernel_sets import kernel_set as kernel_set


def equal(a: Extremes, b: Extremes) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("maximum", "argmax", "minimum", "argmin"))


def swept(x: Tensor, counted: kernels.Counted = None) -> Extremes:
    return moments.sweep(moments.init(1, x.shape[2]), x, torch.zeros(len(x), dtype=torch.int64), counted)


def both(x: Tensor, counted: kernels.Counted = None) -> Extremes:
    """The extremes, asserted to be the same, to the bit, with and without compiled kernels."""
    found = swept(x, counted)
    with kernels.reference():
        assert equal(found, swept(x, counted))
    return found


def test_hand_computed():
    x = torch.tensor([[[1.0, -1.0], [3.0, -2.0], [3.0, -2.0]], [[0.0, 5.0], [-4.0, 5.0], [2.0, 6.0]]])
    found = both(x)
    assert found.maximum.tolist() == [[3.0, -1.0], [2.0, 6.0]]
    assert found.argmax.tolist() == [[1, 0], [2, 2]], "the first of equals"
    assert found.minimum.tolist() == [[1.0, -2.0], [-4.0, 5.0]]
    assert found.argmin.tolist() == [[0, 1], [1, 0]]


@settings(max_examples=40, deadline=None)
@given(
    windows=st.integers(1, 3), tokens=st.integers(1, 80), units=st.sampled_from([1, 7, 256, 300]),
    levels=st.integers(1, 50), seed=st.integers(0, 99), dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_against_numpy_with_many_ties(windows: int, tokens: int, units: int, levels: int, seed: int, dtype: torch.dtype):
    x = torch.randint(-levels, levels + 1, (windows, tokens, units), generator=torch.Generator().manual_seed(seed)).to(dtype)
    found, plain = both(x), x.float().numpy()
    np.testing.assert_array_equal(found.maximum, plain.max(1))
    np.testing.assert_array_equal(found.argmax, plain.argmax(1))
    np.testing.assert_array_equal(found.minimum, plain.min(1))
    np.testing.assert_array_equal(found.argmin, plain.argmin(1))


def test_uncounted_tokens_are_never_chosen_and_tokens_stay_absolute():
    x = torch.randn(4, 300, 20, generator=torch.Generator().manual_seed(1))
    x[:, 0] = 1000.0
    x[:, -1] = -1000.0
    sliced = both(x, slice(1, 299))
    assert torch.equal(sliced.argmax, x[:, 1:299].argmax(1) + 1)
    mask = torch.zeros(4, 300, dtype=torch.bool)
    mask[:, 1:299] = True
    assert equal(both(x, mask), sliced)
    mask[2] = False
    empty = both(x, mask)
    assert empty.argmax[2].tolist() == [-1] * 20
    assert empty.argmin[2].tolist() == [-1] * 20
    assert (empty.maximum[2] == -torch.inf).all()
    assert (empty.minimum[2] == torch.inf).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_a_sweep_keeps_each_group_as_if_it_were_alone(kernel_set: str, dtype: torch.dtype, masked: bool):
    x = torch.randn(9, 70, 513, generator=torch.Generator().manual_seed(2)).to(dtype)
    group = torch.tensor([0, 2, 2, 0, 2, 0, 0, 2, 0], dtype=torch.uint8)
    mask = torch.rand(9, 70, generator=torch.Generator().manual_seed(7)) < 0.6
    mask[4] = False
    state = moments.init(3, 513)
    found = moments.sweep(state, x, group, mask if masked else slice(2, 60))
    for each in range(3):
        alone = moments.init(513)
        mine = x[group == each]
        moments.update(alone, mine, mask[group == each] if masked else slice(2, 60))
        for name, value in alone.items():
            torch.testing.assert_close(state[name][each], value, rtol=1e-12, atol=1e-12)
    assert state["count"][1].tolist() == [0] * 513
    assert torch.equal(state["maximum"][2], found.maximum[group == 2].amax(0).double())


def test_what_is_no_number_stays_in_its_group(kernel_set: str):
    x = torch.ones(2, 5, 3)
    x[0, 2, 1] = torch.nan
    state = moments.init(2, 3)
    moments.sweep(state, x, torch.tensor([0, 1]))
    assert state["mean"].isnan().tolist() == [[False, True, False], [False] * 3]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_do_not_change_a_bit(threads: int):
    x = torch.randn(3, 64, 1111, generator=torch.Generator().manual_seed(3))
    group = torch.tensor([1, 0, 1])
    before = torch.get_num_threads()
    one, many = moments.init(2, 1111), moments.init(2, 1111)
    try:
        torch.set_num_threads(1)
        first = moments.sweep(one, x, group)
        torch.set_num_threads(threads)
        second = moments.sweep(many, x, group)
    finally:
        torch.set_num_threads(before)
    assert equal(first, second)
    assert all(torch.equal(one[name], many[name]) for name in one)
