import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, mutual_info_score, roc_auc_score

from microtome.core import Refusal
from microtome.probes import (
    RANKERS,
    auroc,
    average_precision,
    average_precisions,
    best_overlap,
    chance_overlap,
    mutual_information,
    overlap_at,
)


@given(seed=st.integers(0, 1000), levels=st.sampled_from([1, 2, 5, 1000]), rows=st.integers(4, 60))
def test_precision_and_area_are_those_of_scikit_learn(seed: int, levels: int, rows: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(levels, (rows, 5), generator=generator).float() - levels // 2
    y = torch.rand(rows, generator=generator) < 0.4
    y[:2] = torch.tensor([True, False])
    found, area = average_precision(x, y), auroc(x, y)
    for unit in range(5):
        for end, sign in enumerate((1, -1)):
            expected = average_precision_score(y.numpy(), sign * x[:, unit].numpy())
            assert float(found[end, unit]) == pytest.approx(expected)
        assert float(area[unit]) == pytest.approx(roc_auc_score(y.numpy(), x[:, unit].numpy()))


def test_tasks_are_scored_each_by_itself() -> None:
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    ys = torch.stack([torch.arange(40) % 3 == 0, torch.arange(40) % 5 == 0])
    found = average_precisions(x, ys)
    for task in range(2):
        torch.testing.assert_close(found[task], average_precision(x, ys[task]))


def test_reversing_a_unit_exchanges_its_ends() -> None:
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    y = torch.arange(50) % 4 == 0
    torch.testing.assert_close(average_precision(-3 * x, y), average_precision(x, y).flip(0))


def test_one_sided_labels_are_refused() -> None:
    with pytest.raises(Refusal, match="all rows are on one side"):
        average_precision(torch.zeros(3, 1), torch.ones(3, dtype=torch.bool))


def test_overlap_is_that_of_masks_and_not_precision() -> None:
    x = torch.tensor([[4.0], [3.0], [2.0], [1.0]])
    y = torch.tensor([True, False, True, False])
    found = best_overlap(x, y)
    assert float(found.value[0, 0]) == pytest.approx(2 / 3)  # {4, 3, 2}: two of three
    assert float(found.threshold[0, 0]) == 2
    assert float(average_precision(x, y)[0, 0]) == pytest.approx(5 / 6)
    assert float(found.value[1, 0]) == 0.5  # everything
    np.testing.assert_allclose(overlap_at(x, y, found.threshold), found.value)


@given(seed=st.integers(0, 100))
def test_the_best_overlap_is_the_largest_of_all_thresholds(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(6, (25, 3), generator=generator).float()
    y = torch.rand(25, generator=generator) < 0.3
    y[:2] = torch.tensor([True, False])
    found = best_overlap(x, y)
    for unit in range(3):
        for end, sign in enumerate((1, -1)):
            masks = [sign * x[:, unit] >= sign * limit for limit in x[:, unit].unique()]
            values = [float((mask & y).sum() / (mask | y).sum()) for mask in masks]
            assert float(found.value[end, unit]) == pytest.approx(max(values))


def test_chance_is_what_unrelated_masks_reach() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4000, 300, generator=generator)
    y = torch.rand(4000, generator=generator) < 0.2
    found = overlap_at(x, y, torch.tensor([[0.7] * 300, [-0.3] * 300], dtype=torch.float64))
    assert float(found[0].mean()) == pytest.approx(chance_overlap(0.3, float(y.double().mean())), rel=0.01)


def test_information_is_that_of_binned_units() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 4, generator=generator)
    y = (x[:, 1] > 0.5).long() + (x[:, 1] > -0.5).long()
    found = mutual_information(x, y, 3)
    for unit in range(4):
        column = x[:, unit].double().numpy()
        binned = np.searchsorted(np.quantile(column, np.arange(1, 10) / 10), column)
        assert float(found[unit]) == pytest.approx(mutual_info_score(y.numpy(), binned), abs=1e-9)
    assert float(found[1]) > 0.9 > 0.02 > float(found[[0, 2, 3]].max())


def test_constant_units_tell_nothing() -> None:
    x, y = torch.zeros(30, 2), torch.arange(30) % 3
    assert mutual_information(x, y, 3).tolist() == [0, 0]


def test_published_toy_of_masks() -> None:
    x = torch.tensor([[-1.0, -1, 0], [-1, 0, 0], [1, 1, 0], [1, 0, 0]])
    y = torch.tensor([0, 0, 1, 1])
    assert RANKERS["average precision"](x, y, 2).order.tolist() == [0, 1, 2]
    assert RANKERS["overlap"](x, y, 2).order.tolist()[0] == 0
