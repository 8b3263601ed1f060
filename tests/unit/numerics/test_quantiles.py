"""Quantiles against numpy, and the distribution function as their inverse."""

import numpy as np
import pytest
import torch

from microtome.core import Refusal
from microtome.numerics import cdf, quantiles


@pytest.mark.parametrize("rows", [1, 2, 7, 500])
def test_against_numpy(rows: int):
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(rows))
    q = torch.tensor([0.0, 0.1, 0.33, 0.5, 0.9, 1.0], dtype=torch.float64)
    np.testing.assert_allclose(quantiles(x, q), np.quantile(x.double().numpy(), q.numpy(), axis=0), rtol=1e-12)


def test_distribution_function_inverts_quantiles():
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    q = torch.linspace(0, 1, 23, dtype=torch.float64)
    shares = cdf(x, quantiles(x, q))
    np.testing.assert_allclose(shares, q.unsqueeze(1).expand(-1, 3), atol=1e-9)


def test_hand_computed_with_ties_and_outside():
    sample = torch.tensor([[0.0], [1.0], [1.0], [1.0], [3.0]])
    points = torch.tensor([[-1.0], [0.0], [0.5], [1.0], [2.0], [3.0], [4.0]])
    assert cdf(sample, points)[:, 0].tolist() == [0.0, 0.0, 0.125, 0.5, 0.875, 1.0, 1.0]
    assert cdf(torch.tensor([[2.0]]), torch.tensor([[1.0], [2.0], [3.0]]))[:, 0].tolist() == [0.0, 0.5, 1.0]


def test_an_empty_sample_is_refused():
    with pytest.raises(Refusal, match="quantiles: the sample has no rows; count at least one token"):
        quantiles(torch.empty(0, 2), torch.tensor([0.5]))
    with pytest.raises(Refusal, match="distribution function: the sample has no rows"):
        cdf(torch.empty(0, 2), torch.zeros(1, 2))
