"""Places of own entries against counting in dense products."""

import pytest
import torch

from microtome.core import Refusal
from microtome.numerics import diagonal_places, places
from tests.unit.numerics.kernel_sets import kernel_set


@pytest.mark.usefixtures(kernel_set.__name__)
@pytest.mark.parametrize("tile", [1, 40, 1 << 18])
def test_places_are_those_counted_in_the_dense_product(monkeypatch, tile: int) -> None:
    monkeypatch.setattr(places, "_TILE", tile)
    generator = torch.Generator().manual_seed(0)
    a, b = (
        torch.randint(-2, 3, (count, 3), generator=generator).float() for count in (42, 14)
    )  # whole numbers: many are equal
    expected = []
    for row in range(42):
        entries = [float(a[row] @ b[column]) for column in range(14)]
        own = entries.pop(row % 14)
        expected.append((sum(each < own for each in entries) + sum(each == own for each in entries) / 2) / 13)
    torch.testing.assert_close(diagonal_places(a, b), torch.tensor(expected))


@pytest.mark.usefixtures(kernel_set.__name__)
def test_a_row_whose_own_entry_is_largest_has_place_1_and_one_alone_has_none() -> None:
    assert diagonal_places(torch.eye(5), torch.eye(5)).tolist() == [1.0] * 5
    assert diagonal_places(-torch.eye(5), torch.eye(5)).tolist() == [0.0] * 5
    assert bool(diagonal_places(torch.ones(3, 2), torch.ones(1, 2)).isnan().all())


@pytest.mark.usefixtures(kernel_set.__name__)
def test_a_row_that_meets_nan_has_no_place() -> None:
    left = torch.eye(5)
    left[2, 0] = torch.nan
    assert diagonal_places(left, torch.eye(5)).isnan().tolist() == [False, False, True, False, False]


def test_rows_without_a_column_of_their_own_are_refused() -> None:
    with pytest.raises(Refusal, match="places of 5 rows among 3 columns: rows have no own column"):
        diagonal_places(torch.ones(5, 2), torch.ones(3, 2))
