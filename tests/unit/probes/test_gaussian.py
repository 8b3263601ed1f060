import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from microtome.core import Refusal
from microtome.probes import RANKERS, class_gaussians, greedy_units, held_out_information

FIRST = ([[-1.05, -1.1, 0.01], [0, -1.05, 0.005], [1.05, 1.1, 0.003], [0, 1.03, 0.1]], [1, 0, 2])
SECOND = ([[-1.1, -1.05, 0.01], [-1.05, 0, 0.005], [1.1, 1.05, 0.003], [1.03, 0, 0.1]], [0, 1, 2])


@pytest.mark.parametrize(("rows", "order"), [FIRST, SECOND])
def test_published_orders(rows: list[list[float]], order: list[int]) -> None:
    x, y = torch.tensor(rows, dtype=torch.float64), torch.tensor([0, 0, 1, 1])
    for prior in ("published", "diagonal"):
        gaussians = class_gaussians(x, y, 2, prior)  # pyright: ignore[reportArgumentType]
        assert greedy_units(gaussians, x, y, 3).tolist() == order
    assert RANKERS["gaussian"](x, y, 2).order.tolist() == order


def drawn(rows: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(rows) % 3
    x = torch.randn(rows, 5, generator=generator, dtype=torch.float64)
    x[:, 1] += 2.0 * (y == 1)
    x[:, 3] += 1.5 * (y == 2) + 0.9 * x[:, 1]
    return x, y


def test_covariances_by_the_formulas() -> None:
    x, y = drawn()
    published, ours = (class_gaussians(x, y, 3, prior) for prior in ("published", "diagonal"))  # pyright: ignore[reportArgumentType]
    for each in range(3):
        mine = x[y == each].numpy()
        covariance = np.cov(mine, rowvar=False)
        scatter = covariance * (len(mine) - 1)
        variances = np.diag(np.diag(covariance))
        below = len(mine) + 2 * 5 + 4
        np.testing.assert_allclose(published.covariance[each], (variances + scatter) / below)
        np.testing.assert_allclose(ours.covariance[each], (14 * variances + scatter) / below)
        np.testing.assert_allclose(published.mean[each], mine.mean(0))


def logits_by_scipy(x: torch.Tensor, y: torch.Tensor, units: list[int]) -> np.ndarray:
    found = class_gaussians(x, y, 3)
    columns = []
    for each in range(3):
        normal = multivariate_normal(found.mean[each, units].numpy(), found.covariance[each][units][:, units].numpy())  # pyright: ignore[reportArgumentType]
        columns.append(normal.logpdf(x[:, units].numpy()).reshape(-1) + float(found.prior[each]))
    return np.stack(columns, 1)


def test_logits_are_densities() -> None:
    x, y = drawn()
    found = class_gaussians(x, y, 3).logits(x, torch.tensor([3, 0])).log_softmax(1)
    expected = logits_by_scipy(x, y, [3, 0])
    np.testing.assert_allclose(found, expected - np.logaddexp.reduce(expected, 1, keepdims=True), atol=1e-9)


def test_each_step_takes_the_unit_that_adds_most() -> None:
    x, y = drawn()
    found = greedy_units(class_gaussians(x, y, 3), x, y, 4).tolist()
    chosen: list[int] = []
    for _ in range(4):
        scores = {}
        for unit in set(range(5)) - set(chosen):
            logits = logits_by_scipy(x, y, [*chosen, unit])
            scores[unit] = (logits - np.logaddexp.reduce(logits, 1, keepdims=True))[np.arange(len(y)), y].mean()
        chosen.append(max(scores, key=lambda unit: scores[unit]))
    assert found == chosen


def test_information_is_a_share_of_the_entropy() -> None:
    x, y = drawn(2000)
    gaussians = class_gaussians(x[::2], y[::2], 3)
    told = held_out_information(gaussians, x[1::2], y[1::2], torch.tensor([1, 3]))
    nothing = held_out_information(gaussians, x[1::2], y[1::2], torch.tensor([0]))
    assert abs(nothing) < 0.02 < 0.25 < told < 1


def test_what_has_no_density_is_refused() -> None:
    x, y = torch.zeros(4, 2), torch.tensor([0, 0, 1, 1])
    x[:, 0] = torch.arange(4.0)
    with pytest.raises(Refusal, match="a Gaussian for class 0: unit 1 is constant in it"):
        class_gaussians(x, y, 2)
    with pytest.raises(Refusal, match="a Gaussian for class 1: it has 1 rows"):
        class_gaussians(torch.randn(3, 1), torch.tensor([0, 0, 1]), 2)
