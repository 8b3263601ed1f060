import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from microtome.core import Refusal
from microtome.probes import Adam, ElasticNet, LinearProbe, adam_probe, elastic_probe, prefix_steps, probe_ranking


def three_classes(rows: int = 600, units: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, units, generator=generator)
    y = torch.stack([x[:, 0], x[:, 1] + 0.3, -x[:, 0] + x[:, 2]]) + 0.5 * torch.randn(3, rows, generator=generator)
    return x, y.argmax(0)


def test_l1_alone_is_scikit_learns() -> None:
    x, y = three_classes()
    found = elastic_probe(x, y, 3, ElasticNet(0.01, 0.0), most=5000)
    other = LogisticRegression(l1_ratio=1, C=1 / (0.01 * len(x)), solver="saga", tol=1e-5, max_iter=20000).fit(
        x.numpy(), y.numpy()
    )
    np.testing.assert_allclose(found.weight, other.coef_, atol=2e-3)


@pytest.mark.parametrize("penalty", [ElasticNet(0.01, 0.02), ElasticNet(0.0, 0.1), ElasticNet(0.003, 0.0)])
def test_the_minimum_satisfies_its_conditions(penalty: ElasticNet) -> None:
    x, y = three_classes()
    found = elastic_probe(x, y, 3, penalty, most=5000)
    weight = found.weight.clone().requires_grad_()
    torch.nn.functional.cross_entropy(x @ weight.T + found.bias, y).backward()
    slope, size = weight.grad, found.weight.norm()
    assert slope is not None
    on = found.weight != 0
    rest = slope + penalty.l2 * found.weight / size
    torch.testing.assert_close(rest[on], -penalty.l1 * found.weight.sign()[on], atol=2e-4, rtol=0.0)
    assert bool((rest[~on].abs() <= penalty.l1 + 2e-4).all())


def test_the_second_penalty_is_not_squared() -> None:
    weight = torch.tensor([[3.0, 0.0], [0.0, -4.0]])
    assert float(ElasticNet(1.0, 1.0).of(weight)) == 7 + 5
    # a norm that is not squared puts all weights to exactly 0 when it is large enough; a square never does
    x, y = three_classes()
    assert not elastic_probe(x, y, 3, ElasticNet(0.0, 1.0)).weight.any()
    shrunk = ElasticNet(1.0, 2.0).shrunk(weight, 0.5)
    soft = torch.tensor([[2.5, 0.0], [0.0, -3.5]])
    torch.testing.assert_close(shrunk, soft * (1 - 1 / soft.norm()))


def test_adam_comes_near_the_same_loss() -> None:
    x, y = three_classes()
    penalty = ElasticNet(1e-3, 1e-3)
    losses = []
    for probe in (elastic_probe(x, y, 3, penalty), adam_probe(x, y, 3, Adam(penalty, epochs=60, rate=5e-3))):
        loss = torch.nn.functional.cross_entropy(probe.logits(x), y) + penalty.of(probe.weight)
        losses.append(float(loss))
    assert losses[0] <= losses[1] < losses[0] * 1.05
    again = [adam_probe(x, y, 3, Adam(seed=3, epochs=1)).weight for _ in range(2)]
    assert torch.equal(*again)


def test_units_that_are_not_kept_are_seen_as_zero() -> None:
    probe = LinearProbe(torch.tensor([[1.0, 2.0], [3.0, -1.0]]), torch.tensor([0.5, 0.0]))
    x = torch.tensor([[1.0, 1.0]])
    assert probe.logits(x).tolist() == [[3.5, 2.0]]
    assert probe.keeping(torch.tensor([0])).logits(x).tolist() == [[1.5, 3.0]]
    assert probe(x).tolist() == [0]


def test_prefix_steps_by_hand() -> None:
    # class 0: 5, 3, 2 of 10: at steps 0, 51, 81; class 1: 8, 2, 0: at 0, 81, never
    weight = torch.tensor([[-5.0, 2.0, 3.0, 0.0], [0.0, 8.0, -2.0, 0.0]])
    assert prefix_steps(weight).tolist() == [0, 0, 51, torch.inf]
    ranking = probe_ranking(LinearProbe(weight, torch.zeros(2)))
    assert ranking.order.tolist() == [1, 0, 2, 3]  # of 0 and 1, the one with more weight in all
    assert probe_ranking(LinearProbe(torch.zeros(2, 3), torch.zeros(2))).order.tolist() == [0, 1, 2]


def test_published_toy_of_prefixes() -> None:
    weight = torch.tensor([[4.0, 1, 5], [1, 1, 10]])
    assert probe_ranking(LinearProbe(weight, torch.zeros(2))).order.tolist() == [2, 0, 1]


def test_prefixes_are_the_shortest_of_their_mass() -> None:
    weight = torch.randn(3, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = prefix_steps(weight)
    for percent in (1, 10, 50, 90, 99):
        expected = set()
        for row in weight.abs():
            order = row.argsort(descending=True)
            mass = row[order].cumsum(0)
            count = int((mass < percent / 100 * row.sum()).sum()) + 1
            expected |= set(order[:count].tolist())
        assert set((step <= percent).nonzero()[:, 0].tolist()) == expected


def test_negative_penalties_are_refused() -> None:
    with pytest.raises(Refusal, match="penalties -1.0 and 0.0: one is negative"):
        ElasticNet(-1.0, 0.0)
