"""The ablation score on a model whose output is a known function of the unit."""

import pytest
import torch
from torch import Tensor

from microtome.explain import ByRule, Excerpts, Explanation, ablation_score
from tests.unit.explain.planted import examples_of, token_unit

EXAMPLES = examples_of(token_unit)


class Scaled:
    """Predicts the planted unit, times a factor."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def predict(self, ids: Tensor) -> Tensor:
        return self.factor * 10.0 * (ids == 3)


class Mean:
    """Predicts the mean."""

    def predict(self, ids: Tensor) -> Tensor:
        part = EXAMPLES.valid
        return EXAMPLES.scaled(part)[part.counted].mean().expand(ids.shape)


def run(part: Excerpts, activation: Tensor) -> Tensor:
    """Two tokens, whose odds the unit decides."""
    return torch.stack([activation, torch.zeros_like(activation)], 2).log_softmax(2)


def test_true_predictions_score_one_and_the_mean_none() -> None:
    true = ablation_score(Explanation("", Scaled(1.0)), ByRule(), EXAMPLES, run)
    assert true.score == pytest.approx(1)
    assert true.mean > 0
    assert true.simulated == pytest.approx(0, abs=1e-12)
    mean = ablation_score(Explanation("", Mean()), ByRule(), EXAMPLES, run)
    assert mean.score == pytest.approx(0, abs=1e-6)
    assert 0 < ablation_score(Explanation("", Scaled(0.7)), ByRule(), EXAMPLES, run).score < 1
    assert ablation_score(Explanation("", Scaled(-3.0)), ByRule(), EXAMPLES, run).score < 0


def test_divergences_by_hand() -> None:
    """Predicting 0: at the share of tokens that are 3, P = sigmoid(2) becomes 1/2."""
    found = ablation_score(Explanation("", Scaled(0.0)), ByRule(), EXAMPLES, run)
    p = torch.tensor([2.0, 0.0]).double().softmax(0)
    q = torch.tensor([0.5, 0.5]).double()
    middle = (p + q) / 2
    divergence = ((p * (p / middle).log()).sum() + (q * (q / middle).log()).sum()) / 2
    part = EXAMPLES.valid
    share = ((part.ids == 3) & part.counted).sum() / part.counted.sum()
    assert found.simulated == pytest.approx(float(share * divergence))


def test_a_unit_that_nothing_reads_has_no_score() -> None:
    def deaf(part: Excerpts, activation: Tensor) -> Tensor:
        return torch.tensor([0.0, -torch.inf]).expand(*activation.shape, 2)

    found = ablation_score(Explanation("", Scaled(0.5)), ByRule(), EXAMPLES, deaf)
    assert found.score != found.score
    assert found.simulated == found.mean == 0
