"""Scores of predictions: against scipy, against hand-computed numbers, and pooled over excerpts."""

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from microtome.core import Refusal
from microtome.explain import ByRule, Explanation, TableExplainer, calibrated, controlled, firing, scores
from microtome.explain.scoring import scored
from tests.unit.explain.planted import examples_of, name, random_unit, surveyed, text, token_unit

NAN = float("nan")


def every(x: Tensor) -> Tensor:
    return torch.ones(x.shape, dtype=torch.bool)


def drawn(seed: int) -> Tensor:
    return torch.rand(12, 20, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 10


def pearsonr(a: object, s: object) -> float:
    return float(scipy.stats.pearsonr(a, s)[0])  # pyright: ignore[reportArgumentType]


class Given:
    """A rule that predicts what it was given."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def predict(self, ids: Tensor) -> Tensor:
        return self.values


def test_the_correlation_is_of_all_tokens_together_and_not_the_mean_of_excerpts() -> None:
    real = torch.tensor([[0.0, 1.0, 0.0], [9.0, 8.0, 9.0]])
    predicted = torch.tensor([[1.0, 0.0, 1.0], [8.0, 9.0, 8.0]])
    alone = [pearsonr(a, s) for a, s in zip(real.numpy(), predicted.numpy(), strict=True)]
    assert np.mean(alone) == pytest.approx(-1)
    found = scored(real, predicted, every(real))
    assert found.pearson == pytest.approx(pearsonr(real.flatten(), predicted.flatten()))
    assert found.pearson > 0.95


def test_scores_equal_their_formulas() -> None:
    real, predicted = drawn(0), drawn(0) + 0.3 * drawn(1)
    counted = drawn(2) > 4
    found = scored(real, predicted, counted)
    a, s = real[counted].numpy(), predicted[counted].numpy()
    assert found.pearson == pytest.approx(pearsonr(a, s))
    assert found.r2 == pytest.approx(1 - ((a - s) ** 2).mean() / (a**2).mean())
    assert found.deviation == pytest.approx(1 - np.abs(a - s).mean() / np.abs(a).mean())
    assert (found.tokens, found.excerpts, found.answered) == (len(a), 12, 1.0)
    assert found.low < found.pearson < found.high


def test_r2_is_not_centred() -> None:
    real = torch.tensor([[4.0, 6.0]])
    found = scored(real, torch.tensor([[5.0, 5.0]]), every(real))
    assert found.r2 == pytest.approx(1 - 1 / 26)  # a centred one would be 0
    assert found.deviation == pytest.approx(1 - 1 / 5)


def test_intervals_are_of_excerpts_and_not_of_tokens() -> None:
    """Twelve excerpts of one token each, repeated 20 times, say no more than the twelve."""
    one = torch.rand(12, 1, generator=torch.Generator().manual_seed(1)).double()
    noise = torch.rand(12, 1, generator=torch.Generator().manual_seed(2)).double()
    few, many = (scored(each, each + noise.expand(each.shape), every(each)) for each in (one, one.repeat(1, 20)))
    assert many.pearson == pytest.approx(few.pearson)
    assert (many.low, many.high) == pytest.approx((few.low, few.high))


def test_a_prediction_without_differences_explains_nothing_and_a_silent_unit_is_undefined() -> None:
    real = drawn(0)
    flat = scored(real, torch.full_like(real, 3.0), every(real))
    assert flat.pearson == 0
    assert flat.r2 < 1
    silent = scored(torch.zeros_like(real), real, every(real))
    assert all(value != value for value in (silent.pearson, silent.r2, silent.deviation, silent.low))
    with pytest.raises(Refusal, match="no token of its excerpts counts"):
        scored(real, real, ~every(real))


def test_tokens_without_an_answer_count_as_silent() -> None:
    real = torch.tensor([[0.0, 0.0, 8.0, 4.0]])
    found = scored(real, torch.tensor([[0.0, NAN, 8.0, NAN]]), every(real))
    same = scored(real, torch.tensor([[0.0, 0.0, 8.0, 0.0]]), every(real))
    assert (found.pearson, found.r2) == (same.pearson, same.r2)
    assert (found.answered, same.answered) == (0.5, 1.0)


def test_calibration_finds_the_line() -> None:
    examples = examples_of(token_unit)
    part = examples.calibration
    explanation = Explanation("", Given(examples.scaled(part) * 0.25 - 1))
    found = calibrated(explanation, ByRule(), examples)
    assert (found.calibration.slope, found.calibration.intercept) == pytest.approx((4.0, 4.0))
    assert torch.allclose(found.simulate(explanation, part.ids), examples.scaled(part))
    flat = calibrated(Explanation("", Given(torch.ones(part.ids.shape))), ByRule(), examples)
    assert flat.calibration.slope == 0
    assert flat.calibration.intercept == pytest.approx(float(examples.scaled(part)[part.counted].mean()))


def test_firing_counts_tokens() -> None:
    real = torch.tensor([[10.0, 6.0, 4.0, 0.0], [5.0, 9.0, 9.0, 9.0]])
    predicted = torch.tensor([[9.0, 1.0, 8.0, 0.0], [7.0, 2.0, 9.0, 9.0]])
    counted = torch.tensor([[True, True, True, True], [True, True, True, False]])
    found = firing(real, predicted, counted)
    assert (found.precision, found.recall, found.fires, found.predicted) == (0.75, 0.6, 5, 4)
    assert found.f1 == pytest.approx(2 * 0.75 * 0.6 / 1.35)
    none = firing(real, torch.zeros_like(real), counted)
    assert none.precision != none.precision
    assert none.recall == 0
    assert none.f1 == 0


def test_other_units_explanations_are_the_control() -> None:
    ids = text(60, 64, 12)
    x = torch.stack([1.0 * (ids == unit) for unit in range(8)] + [random_unit(ids)], 2)
    record = surveyed(ids, x)
    explainer = TableExplainer(1, name)
    every_unit = [record.examples(unit) for unit in range(9)]
    explained = [(explainer.explain(each), each) for each in every_unit]

    def score(explanation: Explanation, examples: object) -> float:
        return scores(explanation, ByRule(), examples, draws=0).pearson  # pyright: ignore[reportArgumentType]

    found = controlled(explained, score, draws=5)
    assert found.others.shape == (9, 5)
    assert found.own[:8].tolist() == pytest.approx([1.0] * 8)
    assert found.control.abs().max() < 0.3 > found.own[8].abs()
    assert found.p[:8].tolist() == pytest.approx([1 / 6] * 8)
    # with as many draws as there are others, none is the unit's own
    assert controlled(explained, score, draws=99).others.shape == (9, 8)
    assert float(controlled(explained[:8], score, draws=99).others.max()) < 0.5
    with pytest.raises(Refusal, match="explain two or more"):
        controlled(explained[:1], score)
