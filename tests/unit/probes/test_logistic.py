import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, matthews_corrcoef, precision_score, recall_score, roc_auc_score

from microtome.core import Refusal
from microtome.probes import balanced_logistic, judged


def rows_of(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(500, 4, generator=generator, dtype=torch.float64)
    y = x[:, 0] - 0.5 * x[:, 2] + torch.randn(500, generator=generator) > 1.2
    return x, y


@pytest.mark.parametrize("penalty", [0.01, 1.0, 100.0])
def test_fits_are_those_of_scikit_learn(penalty: float) -> None:
    x, y = rows_of(0)
    found = balanced_logistic(torch.stack([x, -2 * x]), y, penalty)
    for row, data in enumerate((x, -2 * x)):
        other = LogisticRegression(C=1 / penalty, class_weight="balanced", tol=1e-10, max_iter=5000).fit(
            data.numpy(), y.numpy()
        )
        np.testing.assert_allclose(found.weight[row], other.coef_[0], rtol=2e-3, atol=1e-4)
        np.testing.assert_allclose(found.bias[row], other.intercept_[0], rtol=2e-3, atol=1e-4)
        np.testing.assert_allclose(
            found.scores(data[None].expand(2, -1, -1))[row], other.decision_function(data.numpy()), atol=5e-3
        )


def test_separable_rows_converge_in_single_precision() -> None:
    x = torch.linspace(-1, 1, 200)[:, None] * torch.tensor([[1.0, 0.0]])
    y = x[:, 0] > 0.5
    found = balanced_logistic(x[None], y)
    assert torch.isfinite(found.weight).all()
    assert float(found.weight[0, 1]) == 0
    other = LogisticRegression(class_weight="balanced", tol=1e-10).fit(x.numpy(), y.numpy())
    np.testing.assert_allclose(found.weight[0], other.coef_[0], rtol=1e-2, atol=1e-5)


def test_judged_as_by_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(3)
    score = torch.randn(300, generator=generator)
    y = torch.rand(300, generator=generator) < 0.2
    found, called = judged(score, y), score.numpy() > 0
    assert found.f1 == pytest.approx(f1_score(y.numpy(), called))
    assert found.precision == pytest.approx(precision_score(y.numpy(), called))
    assert found.recall == pytest.approx(recall_score(y.numpy(), called))
    assert found.mcc == pytest.approx(matthews_corrcoef(y.numpy(), called))
    assert found.auroc == pytest.approx(roc_auc_score(y.numpy(), score.numpy()))


def test_nothing_called_positive_scores_nothing() -> None:
    found = judged(torch.full((4,), -1.0), torch.tensor([True, False, True, False]))
    assert (found.f1, found.precision, found.recall, found.mcc, found.auroc) == (0, 0, 0, 0, 0.5)


def test_one_class_is_refused() -> None:
    with pytest.raises(Refusal, match="all rows are of one class"):
        balanced_logistic(torch.zeros(1, 3, 1), torch.ones(3, dtype=torch.bool))
