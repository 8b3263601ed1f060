"""Bounds of rounded products hold, and are not wasteful; exact entries are the float32 nearest to the exact sum."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from microtome.numerics import rounding
from microtome.numerics.rounding import Precision
from tests.unit.numerics.kernel_sets import kernel_set


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("scale", [1.0, 1e-15, 1e15])
@pytest.mark.parametrize("inner", [1, 64, 700])
def test_products_are_within_their_bounds(precision: Precision, scale: float, inner: int):
    generator = torch.Generator().manual_seed(inner)
    a, b = torch.randn(50, inner, generator=generator) * scale, torch.rand(300, inner, generator=generator)
    left, right = rounding.factors(a, b, precision)
    got = rounding.multiplied(left, right, torch.empty(50 * 300, dtype=left.rounded.dtype)).double()
    far = (got - a.double() @ b.double().T).abs() - got.abs() * rounding.step(left)
    bound = rounding.error(left, float(right.length.max()), float(right.lost.max()))
    assert bool((far <= bound[:, None]).all())
    share = bound / (left.length * right.length.max())
    assert bool((share < (2 * 2.0**-8 if precision == "bfloat16" else (inner + 9) * 2.0**-22)).all())


def test_what_could_overflow_is_multiplied_in_float64():
    a, b = torch.tensor([[1e30, 1.0]]), torch.tensor([[1e30, 1.0]])
    left, right = rounding.factors(a, b, "bfloat16")
    assert left.certain
    assert right.certain
    assert rounding.factors(a * 1e-20, torch.tensor([[torch.nan, 0.0]]), "bfloat16")[0].certain
    assert not rounding.factors(a * 1e-20, b * 1e-20, "bfloat16")[0].certain
    assert rounding.error(left, 1.0, 1.0).tolist() == [0.0]


@pytest.mark.usefixtures(kernel_set.__name__)
@pytest.mark.parametrize("inner", [1, 15, 16, 47])
def test_entries_are_the_nearest_float32(inner: int):
    generator = torch.Generator().manual_seed(inner)
    a, b = torch.randn(5, inner, generator=generator), torch.randn(4, inner, generator=generator)
    a[0], b[0] = 1e8 * a[1], a[2]
    row, column = torch.tensor([0, 4, 0, 3]), torch.tensor([3, 0, 0, 3])
    exact = [
        sum(Fraction(x) * Fraction(y) for x, y in zip(a[r].tolist(), b[c].tolist(), strict=True))
        for r, c in zip(row.tolist(), column.tolist(), strict=True)
    ]
    assert rounding.entries(a, b, row, column).tolist() == [float(np.float32(float(value))) for value in exact]
