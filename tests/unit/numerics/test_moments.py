"""Moments of a stream: hand-computed, against scipy, under any split, and for both kernel sets."""

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from microtome.core import Refusal
from microtome.numerics import moments
from tests.unit.numerics.kernel_sets import kernel_set

pytestmark = pytest.mark.usefixtures(kernel_set.__name__)


def moments_of(x: Tensor, **options) -> moments.Moments:
    state = moments.init(x.shape[-1])
    moments.update(state, x, **options)
    return moments.result(state)


def test_hand_computed():
    found = moments_of(torch.tensor([[1.0, 2.0], [3.0, 2.0], [-1.0, 2.0], [1.0, 2.0]]))
    assert found.count.tolist() == [4, 4]
    assert found.positive.tolist() == [3, 4]
    assert found.density.tolist() == [0.75, 1.0]
    assert found.mean.tolist() == [1.0, 2.0]
    assert found.variance.tolist() == [2.0, 0.0]
    assert found.standard_deviation[0] == pytest.approx(2**0.5)
    assert found.skewness[0] == 0.0
    assert found.kurtosis[0] == pytest.approx(4 * 32 / 8**2 - 3)
    assert found.skewness[1].isnan()
    assert found.kurtosis[1].isnan()
    assert found.minimum.tolist() == [-1.0, 2.0]
    assert found.maximum.tolist() == [3.0, 2.0]


def test_against_scipy_with_a_large_mean_beside_a_small_deviation():
    rng = np.random.default_rng(0)
    x = rng.gamma(2.0, size=(1000, 300))
    x[:, 0] = 1000 + 0.1 * x[:, 0]
    x = x.astype(np.float32)
    found = moments_of(torch.from_numpy(x))
    exact = x.astype(np.float64)
    np.testing.assert_allclose(found.mean, exact.mean(0), rtol=1e-7)
    np.testing.assert_allclose(found.variance, exact.var(0), rtol=1e-5)
    np.testing.assert_allclose(found.skewness, scipy.stats.skew(exact), rtol=1e-4)
    np.testing.assert_allclose(found.kurtosis, scipy.stats.kurtosis(exact), rtol=1e-4)
    np.testing.assert_array_equal(found.minimum, exact.min(0))
    np.testing.assert_array_equal(found.maximum, exact.max(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_every_dtype_and_strided_views(dtype: torch.dtype):
    x = torch.randn(3, 50, 2 * 70, generator=torch.Generator().manual_seed(1)).to(dtype)
    view = x[:, 1:, ::2]
    exact = view.to(torch.float32).double().reshape(-1, 70)
    assert float(exact.std(0).min()) > 0.5
    found = moments_of(view)
    torch.testing.assert_close(found.mean, exact.mean(0), rtol=0, atol=1e-7)
    torch.testing.assert_close(found.variance, exact.var(0, correction=0), rtol=1e-6, atol=0)
    assert torch.equal(found.positive, (exact > 0).sum(0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_powers_beyond_the_range_of_float16_do_not_overflow(dtype: torch.dtype):
    """Squares of 1000 randn are beyond 65504, fourth powers beyond float16 by eight orders; sums are of 6000 of them."""
    x = (1000 * torch.randn(20, 300, 40, generator=torch.Generator().manual_seed(3))).to(dtype)
    assert bool(x.half().square().isinf().any())
    exact = x.double().reshape(-1, 40)
    found = moments_of(x)
    torch.testing.assert_close(found.mean, exact.mean(0), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.variance, exact.var(0, correction=0), rtol=1e-5, atol=0)
    torch.testing.assert_close(found.skewness, torch.from_numpy(scipy.stats.skew(exact.numpy())), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.kurtosis, torch.from_numpy(scipy.stats.kurtosis(exact.numpy())), rtol=0, atol=1e-4)
    assert torch.equal(found.maximum, exact.amax(0))


def test_a_mask_and_a_slice_count_only_their_tokens():
    x = torch.randn(4, 40, 30, generator=torch.Generator().manual_seed(2))
    lengths = torch.tensor([40, 1, 0, 23])
    mask = torch.arange(40) < lengths[:, None]
    torch.testing.assert_close(moments_of(x, counted=mask).kurtosis, moments_of(x[mask]).kurtosis, rtol=1e-5, atol=1e-6)
    assert int(moments_of(x, counted=mask).count[0]) == 64
    torch.testing.assert_close(
        moments_of(x, counted=slice(3, 20)).skewness, moments_of(x[:, 3:20]).skewness, rtol=1e-5, atol=1e-6
    )


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6), seed=st.integers(0, 1000), offset=st.sampled_from([0.0, 1e3])
)
def test_any_split_is_one_pass(sizes: list[int], seed: int, offset: float):
    x = torch.randn(sum(sizes), 5, generator=torch.Generator().manual_seed(seed)) + offset
    whole = moments.init(5)
    moments.update(whole, x)
    merged = moments.init(5)
    for part in x.split(sizes):
        state = moments.init(5)
        moments.update(state, part)
        merged = moments.merge(merged, state)
    for name in ("count", "positive", "minimum", "maximum"):
        assert torch.equal(whole[name], merged[name])
    rounding = 2e-7  # of float32, within a tile
    for power, name in enumerate(("mean", "m2", "m3", "m4"), 1):
        scale = (whole["m2"] / whole["count"].clamp(min=1)).sqrt() ** power * (1 if power == 1 else whole["count"])
        assert bool(((whole[name] - merged[name]).abs() <= 40 * rounding * scale + 1e-13 * abs(offset)).all())


def test_merging_states_is_exact_to_float64():
    x = torch.randn(8, 100, 6, generator=torch.Generator().manual_seed(3)).exp()
    states = [moments.init(6) for _ in range(8)]
    single = moments.init(6)
    for state, window in zip(states, x, strict=True):
        moments.update(state, window)
        moments.update(single, window)
    while len(states) > 1:
        states = [moments.merge(a, b) for a, b in zip(states[::2], states[1::2], strict=True)]
    for name, value in single.items():
        torch.testing.assert_close(states[0][name], value, rtol=1e-12, atol=0)


def test_slices_of_a_state_update_in_place():
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(4))
    state = moments.init(8)
    moments.update({name: value[4:] for name, value in state.items()}, x)
    assert state["count"].tolist() == [0] * 4 + [9] * 4
    torch.testing.assert_close(state["mean"][4:], x.double().mean(0))
    found = moments.result(state)
    assert found.mean[:4].isnan().all()
    assert found.maximum[:4].isnan().all()


def test_values_that_are_no_numbers_are_refused_at_the_end():
    x = torch.ones(10, 3)
    x[4, 1] = torch.nan
    state = moments.init(3)
    moments.update(state, x)
    with pytest.raises(
        Refusal, match=r"moments of 1 of 3 units \(the first is unit 1\): values that are NaN or infinite came in"
    ):
        moments.result(state)


def test_a_constant_unit_has_no_shape_however_its_batches_are_cut() -> None:
    constants = torch.linspace(-3, 3, 301)
    state = moments.init(301)
    for rows in (49, 64, 33, 57):
        moments.update(state, constants.expand(rows, 301))
    found = moments.result(state)
    assert bool(found.kurtosis.isnan().all())
    assert bool(found.skewness.isnan().all())
    torch.testing.assert_close(found.mean, constants.double(), rtol=1e-12, atol=1e-15)


def test_fourth_powers_out_of_range_are_no_kurtosis() -> None:
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor([1e-12, 1.0, 1e10])
    found = moments_of(x)
    assert found.kurtosis.isnan().tolist() == [True, False, True]
    assert bool((found.variance > 0).all())
