"""Second moments against numpy, with a massive coordinate, under any split."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from microtome.numerics import gram


def test_against_numpy_beside_a_massive_coordinate():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 6, generator=generator) @ torch.randn(6, 6, generator=generator)
    x[:, 2] = 1000 + 0.1 * x[:, 2]
    state = gram.init(6, shift=x[:50].mean(0))
    gram.update(state, x)
    found, exact = gram.result(state), x.double().numpy()
    assert found.count == 3000
    np.testing.assert_allclose(found.mean, exact.mean(0), rtol=0, atol=1e-6)
    covariance = np.cov(exact.T, bias=True)
    scale = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    assert np.abs((found.covariance.numpy() - covariance) / scale).max() < 1e-5
    np.testing.assert_allclose(found.second, exact.T @ exact / 3000, rtol=1e-6, atol=1e-5 * scale.max())
    assert torch.equal(found.second, found.second.T)


def _covariance(x: torch.Tensor, shift: torch.Tensor) -> np.ndarray:
    state = gram.init(x.shape[1], shift)
    for part in x.split(2000):
        gram.update(state, part)
    return gram.result(state).covariance.numpy()


def test_a_few_massive_rows_cost_no_digits():
    """One row of 256 is 20,000 long: beside its square, float32 has no room for what the others add."""
    x = torch.randn(8000, 6, generator=torch.Generator().manual_seed(0)) + 20
    x[::256, 2] += 20_000
    y, exact = x - x.mean(0), np.cov(x.double().numpy().T, bias=True)
    plain = sum(float((part.T @ part)[2, 2]) for part in y.split(1000)) / len(x)
    assert abs(plain / exact[2, 2] - 1) > 1e-8
    assert _covariance(x, x.mean(0))[2, 2] == pytest.approx(exact[2, 2], rel=1e-10)


@pytest.mark.parametrize("away", [0.0, 30.0, 1000.0])
def test_the_shift_may_be_anywhere(away: float):
    """A pilot's text may be nothing like the rest: standard deviations of 1, and a shift 1,000 away."""
    x = torch.randn(8000, 6, generator=torch.Generator().manual_seed(0)) + 5
    exact = np.cov(x.double().numpy().T, bias=True)
    np.testing.assert_allclose(_covariance(x, torch.full((6,), 5 + away)), exact, rtol=0, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(0, 50), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_any_split_is_one_pass(sizes: list[int], seed: int):
    """Small integers, so that every product is exact and the parts must agree to the bit."""
    x = torch.randint(-9, 10, (sum(sizes), 4), generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)
    whole, merged = gram.init(4, shift=torch.ones(4)), gram.init(4, shift=torch.ones(4))
    gram.update(whole, x)
    for part in x.split(sizes):
        single = gram.init(4, shift=torch.ones(4))
        gram.update(single, part)
        merged = gram.merge(merged, single)
    whole = gram.merge(whole, gram.init(4, shift=torch.ones(4)))
    assert all(torch.equal(whole[name], merged[name]) for name in whole)
    assert torch.equal(whole["gram"], (x.double() - 1).T @ (x.double() - 1))


def test_tiles_windows_and_masks():
    x = torch.randn(12, 256, 3, generator=torch.Generator().manual_seed(1))
    mask = torch.rand(12, 256, generator=torch.Generator().manual_seed(2)) < 0.7
    state = gram.init(3)
    gram.update(state, x, mask)
    exact = x[mask].double()
    found = gram.result(state)
    assert found.count == int(mask.sum()) > 1024
    torch.testing.assert_close(found.second, exact.T @ exact / len(exact), rtol=1e-5, atol=1e-6)


def test_nothing_seen_is_not_a_number():
    assert gram.result(gram.init(2)).covariance.isnan().all()


def test_different_shifts_do_not_merge():
    with pytest.raises(AssertionError, match="different shifts"):
        gram.merge(gram.init(2), gram.init(2, shift=torch.ones(2)))
