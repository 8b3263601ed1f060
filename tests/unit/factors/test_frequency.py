"""Weights by frequency: known counts, and means of 1."""

import pytest
import torch

from microtome.core import Refusal
from microtome.factors.frequency import consistent_weights, counted, paper_weights, weights_of


def test_counts_are_those_of_all_batches() -> None:
    batches = [torch.tensor([[0, 2], [2, 2]]), torch.tensor([3, 0]), torch.zeros(0, dtype=torch.int64)]
    assert counted(batches, 5).tolist() == [2, 0, 3, 1, 0]


def test_the_paper_weighs_by_one_over_the_root_and_leaves_what_was_not_counted_alone() -> None:
    weights = paper_weights(torch.tensor([0, 1, 4, 100]))
    assert weights.tolist() == pytest.approx([1, 1, 0.5, 0.1])


def test_consistent_weights_are_one_on_average_over_the_text_however_long_it_is() -> None:
    counts = torch.tensor([0, 1, 4, 100])
    weights = consistent_weights(counts)
    assert float((weights * counts).sum() / counts.sum()) == pytest.approx(1)
    assert float(weights[2] / weights[3]) == pytest.approx(5)
    torch.testing.assert_close(consistent_weights(counts * 9)[1:], weights[1:])


def test_no_weighting_is_no_weights() -> None:
    assert weights_of("none", None) is None
    counts = torch.tensor([1, 4])
    for weighting, expected in (("paper", paper_weights(counts)), ("consistent", consistent_weights(counts))):
        found = weights_of(weighting, counts)  # type: ignore[arg-type]
        assert found is not None
        assert torch.equal(found, expected)


def test_bad_requests_are_refused() -> None:
    with pytest.raises(Refusal, match="ids from 1 to 9 are not all among its 5"):
        counted([torch.tensor([1, 9])], 5)
    with pytest.raises(Refusal, match="no counts of tokens are given"):
        weights_of("paper", None)
    with pytest.raises(Refusal, match="no token was counted"):
        consistent_weights(torch.zeros(3, dtype=torch.int64))
