import pytest
import torch

from microtome.probes import RANKERS, auroc, random_ranking, ranked, reversed_ranking
from tests.unit.probes.planted import planted_rows

TRUTH = [17, 42]


@pytest.mark.parametrize("name", RANKERS)
def test_planted_units_come_first(name: str) -> None:
    x, y = planted_rows()
    found = RANKERS[name](x, y.long(), 2)
    assert found.name == name
    assert sorted(found.order.tolist()) == list(range(60))
    true = torch.zeros(60, dtype=torch.bool)
    true[TRUTH] = True
    assert float(auroc(found.score[:, None], true)[0]) == 1
    assert sorted(found.order[:2].tolist()) == TRUTH


@pytest.mark.parametrize("name", RANKERS)
def test_reversing_units_changes_no_ranking(name: str) -> None:
    x, y = planted_rows(rows=600, units=50)
    sign = torch.where(torch.arange(50) % 3 == 0, -1.0, 1.0)
    one, other = (RANKERS[name](each, y.long(), 2) for each in (x, x * sign))
    torch.testing.assert_close(one.score, other.score, rtol=1e-3, atol=1e-3)
    assert one.order[:2].tolist() == other.order[:2].tolist()


def test_permuted_units_give_a_permuted_ranking() -> None:
    x, y = planted_rows(rows=600, units=50)
    shuffle = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    for name in ("probeless", "F", "mutual information", "average precision", "overlap"):
        torch.testing.assert_close(
            RANKERS[name](x[:, shuffle], y.long(), 2).score, RANKERS[name](x, y.long(), 2).score[shuffle], rtol=1e-5, atol=1e-6
        )


def test_ties_are_in_the_order_of_units() -> None:
    assert ranked("score", torch.tensor([1.0, 3.0, 1.0, 3.0])).order.tolist() == [1, 3, 0, 2]


def test_random_and_reversed() -> None:
    one = random_ranking(20, seed=1)
    assert torch.equal(one.order, random_ranking(20, seed=1).order)
    assert not torch.equal(one.order, random_ranking(20, seed=2).order)
    assert torch.equal(reversed_ranking(one).order, one.order.flip(0))
    assert reversed_ranking(one).name == "random, reversed"


def test_classes_are_told_apart_when_there_are_several() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(900) % 3
    x = torch.randn(900, 20, generator=generator)
    for label in range(3):
        x[:, 4 + label] -= 2.0 * (y == label)
    for name, ranker in RANKERS.items():
        assert sorted(ranker(x, y, 3).order[:3].tolist()) == [4, 5, 6], name
