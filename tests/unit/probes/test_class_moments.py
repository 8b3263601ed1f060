import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_selection import f_classif

from microtome.probes import RANKERS, class_moments, combined, f_statistic, mean_differences, probeless


def drawn(rows: int, units: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.cat([torch.arange(classes).repeat(2), torch.randint(classes, (rows,), generator=generator)])
    return torch.randn(len(y), units, generator=generator) * 3 + 100 + y[:, None], y


def test_moments_are_those_of_each_class() -> None:
    x, y = drawn(5000, 7, 3, seed=0)
    found = class_moments(x, y, 3)
    for each in range(3):
        mine = x[y == each].double().numpy()
        assert found.count[each] == len(mine)
        np.testing.assert_allclose(found.mean[each], mine.mean(0), rtol=1e-6)
        np.testing.assert_allclose(found.squares[each], ((mine - mine.mean(0)) ** 2).sum(0), rtol=1e-4)
    np.testing.assert_allclose(found.deviation, x.double().numpy().std(0), rtol=1e-4)


@given(split=st.integers(6, 90), seed=st.integers(0, 20))
def test_parts_merge(split: int, seed: int) -> None:
    x, y = drawn(90, 4, 3, seed)
    whole = class_moments(x, y, 3)
    parts = combined(class_moments(x[:split], y[:split], 3), class_moments(x[split:], y[split:], 3))
    for name in ("count", "mean", "squares"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-4, atol=1e-3)


def test_f_is_that_of_scikit_learn() -> None:
    x, y = drawn(3000, 12, 4, seed=1)
    np.testing.assert_allclose(f_statistic(class_moments(x, y, 4)), f_classif(x.double().numpy(), y.numpy())[0], rtol=1e-3)


def test_rows_without_a_label_are_left_out() -> None:
    x, y = drawn(100, 3, 2, seed=2)
    x[:50] += 1000
    masked = torch.where(torch.arange(len(y)) < 50, -1, y)
    torch.testing.assert_close(class_moments(x, masked, 2).mean, class_moments(x[50:], y[50:], 2).mean, rtol=1e-5, atol=1e-5)


def test_mean_difference_by_hand_and_under_scale_and_sign() -> None:
    x = torch.tensor([[1.0, 5.0], [3.0, 5.0], [7.0, 5.0], [9.0, 5.0]])
    y = torch.tensor([0, 0, 1, 1])
    found = mean_differences(class_moments(x, y, 2))
    np.testing.assert_allclose(found[1], [6 / 10**0.5, 0.0])
    np.testing.assert_allclose(found[0], -found[1])
    np.testing.assert_allclose(mean_differences(class_moments(-4 * x, y, 2))[1], -found[1])


def test_probeless_by_hand() -> None:
    x, y = torch.tensor([[0.0], [0.0], [1.0], [5.0]]), torch.tensor([0, 0, 1, 2])
    found = probeless(class_moments(x, y, 3))
    assert found[:, 0].tolist() == [6, 5, 9]  # |0-1| + |0-5|, ...
    assert float(found.sum()) / 2 == 1 + 5 + 4


def test_published_toy_of_probeless() -> None:
    x = torch.tensor([[-1.0, -1, 0], [-1, 0, 0], [1, 1, 0], [1, 0, 0]])
    assert RANKERS["probeless"](x, torch.tensor([0, 0, 1, 1]), 2).order.tolist() == [0, 1, 2]
    tags = probeless(class_moments(2 * torch.eye(4) - 1, torch.arange(4), 4))
    assert tags.argmax(1).tolist() == [0, 1, 2, 3]
