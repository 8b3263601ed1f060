"""Quantiles against numpy."""

import numpy as np
import pytest
import torch

from microtome.core import Refusal
from microtome.numerics import quantiles


@pytest.mark.parametrize("rows", [1, 2, 7, 500])
def test_against_numpy(rows: int):
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(rows))
    q = torch.tensor([0.0, 0.1, 0.33, 0.5, 0.9, 1.0], dtype=torch.float64)
    np.testing.assert_allclose(quantiles(x, q), np.quantile(x.double().numpy(), q.numpy(), axis=0), rtol=1e-12)


def test_an_empty_sample_is_refused():
    with pytest.raises(Refusal, match="quantiles: the sample has no rows; count at least one token"):
        quantiles(torch.empty(0, 2), torch.tensor([0.5]))
