"""A value beside its null: counts that a pencil can check."""

import math
from typing import Literal

import pytest
import torch

from microtome.core import Refusal
from microtome.geometry.measured import Measured, against, finite, undefined


def test_a_value_beside_its_draws() -> None:
    null = torch.arange(1.0, 101.0)
    found = against(95.0, null)
    assert found.p == pytest.approx(7 / 101)  # 95 .. 100 and itself
    assert (found.control, found.control_lo, found.control_hi) == pytest.approx((50.5, 3.475, 97.525))
    assert math.isnan(found.lo)
    assert against(95.0, null, "less").p == pytest.approx(96 / 101)
    assert against(95.0, null, "both").p == pytest.approx(14 / 101)
    assert against(95.0, null, control=50.0).control == 50.0


@pytest.mark.parametrize("tail", ["greater", "less"])
def test_draws_that_equal_the_value_up_to_rounding_are_equal(tail: Literal["greater", "less"]) -> None:
    null = 0.3 * torch.ones(99, dtype=torch.float64) + 1e-15 * torch.randn(99, generator=torch.Generator().manual_seed(0))
    assert against(0.1 + 0.2, null, tail).p == 1


def test_undefined_says_why_and_nothing_else() -> None:
    assert undefined("one label").undefined == "one label"
    assert math.isnan(undefined("one label").value)
    assert Measured(1.0).undefined == ""


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    finite("cosines", torch.ones(2))
    with pytest.raises(Refusal, match="cosines: the numbers contain NaN or infinity; leave those rows out"):
        finite("cosines", torch.ones(2), torch.tensor([1.0, bad]))


def test_small_numbers_are_not_rounding() -> None:
    assert against(95e-15, 1e-15 * torch.arange(1.0, 101.0, dtype=torch.float64)).p == pytest.approx(7 / 101)
