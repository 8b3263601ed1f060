"""Quantised rows: the stated error bound, extremes, and refusal."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from microtome.core import Refusal
from microtome.numerics import quantise


def test_hand_computed():
    codes, scale = quantise(torch.tensor([[127.0, -63.5, 1.0], [0.0, 0.0, 0.0]]))
    assert codes.tolist() == [[127, -64, 1], [0, 0, 0]]
    assert scale.tolist() == [1.0, 0.0]


@given(st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1, max_size=33))
def test_error_is_at_most_half_a_scale(row: list[float]):
    x = torch.tensor([row])
    codes, scale = quantise(x)
    error = (x.double() - codes.double() * scale.double().unsqueeze(-1)).abs().max()
    assert codes.dtype == torch.int8
    assert int(codes.min()) >= -127
    assert float(error) <= float(scale) * (0.5 + 1e-4)


def test_bfloat16_and_leading_axes():
    codes, scale = quantise(torch.randn(2, 3, 5, dtype=torch.bfloat16))
    assert codes.shape == (2, 3, 5)
    assert scale.shape == (2, 3)
    assert scale.dtype == torch.float32


def test_what_is_no_number_is_refused():
    with pytest.raises(Refusal, match="quantising rows: a row holds NaN or infinities; leave such rows out"):
        quantise(torch.tensor([[1.0, torch.inf]]))
