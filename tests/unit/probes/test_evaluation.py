from dataclasses import replace

import numpy as np
import pytest
import torch

from microtome.core import Refusal
from microtome.numerics import hash_parts
from microtome.probes import (
    PROBES,
    RANKERS,
    Cases,
    crossed,
    kept_units,
    minimal_set,
    redundancy,
    selectivity,
)
from microtome.probes.evaluation import sizes_to
from tests.unit.probes.planted import planted_cases


def test_sizes() -> None:
    assert sizes_to(20) == (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20)
    assert sizes_to(3) == (1, 2, 3)


def test_few_planted_units_carry_the_probe() -> None:
    cases = planted_cases().standardised()
    found = kept_units(cases, RANKERS["probe"], (0.03, 0.5, 1.0))
    assert found.sizes == (2, 30, 60)
    assert found.full > 0.95
    assert float(found.top[0]) > 0.95
    assert float(found.bottom[0]) < 0.8
    assert float(found.random[:, 0].mean()) < float(found.top[0]) - 0.15
    np.testing.assert_allclose(found.random[:, 2], found.full)
    with pytest.raises(Refusal, match="one is not in 0 .. 1"):
        kept_units(cases, RANKERS["F"], (0.0,))


def test_the_minimal_set_is_the_planted_one() -> None:
    found = minimal_set(planted_cases().standardised(), RANKERS["probe"], allowed=0.01)
    assert found.size == 2
    assert found.accuracy > 0.97
    assert abs(found.accuracy - found.full) < 0.03
    assert float(found.random.max()) < found.accuracy - 0.1


def control_cases(cases: Cases) -> Cases:
    """Labels that are nothing but what each kind of word was given at random."""
    return cases.relabelled((hash_parts(99, cases.kind) & 1).long())


def worded_cases() -> Cases:
    """Vectors that know the word, and a coordinate that knows the label, which is of the context and not of the word."""
    generator = torch.Generator().manual_seed(0)
    number = torch.arange(3000)
    kind = torch.randint(40, (3000,), generator=generator)
    y = torch.randint(2, (3000,), generator=generator)
    x = 2 * torch.randn(40, 50, generator=generator)[kind] + 0.5 * torch.randn(3000, 50, generator=generator)
    x[:, 7] += 6.0 * y
    return Cases(x, y, ("a", "b"), number // 30, number // 30 % 2, kind).standardised()


def test_random_labels_have_no_selectivity() -> None:
    cases = worded_cases()
    real, random = selectivity(cases, draws=4), selectivity(control_cases(cases), draws=4)
    assert real.task > 0.85
    assert random.task > 0.85, "the probe remembers the words"
    assert abs(random.value) < 0.1
    low, high = random.extremes
    assert low <= random.value <= high
    noise = torch.randint(2, (3000,), generator=torch.Generator().manual_seed(5))
    assert selectivity(cases.relabelled(noise), draws=4).value < -0.2


def test_a_label_of_the_context_is_selective() -> None:
    cases = worded_cases()
    flat = replace(cases, x=torch.randn(3000, 50, generator=torch.Generator().manual_seed(1)) + 2 * (cases.y == 1)[:, None])
    found = selectivity(flat, draws=3)
    assert found.task > 0.95
    assert found.value > 0.3
    assert found.majority < 0.6


@pytest.mark.parametrize("probe", PROBES)
def test_rankings_are_judged_by_other_probes(probe: str) -> None:
    rankers = {name: RANKERS[name] for name in ("probe", "gaussian", "F")}
    found = crossed(planted_cases(rows=2000).standardised(), rankers, {probe: PROBES[probe]}, (2, 10))
    assert found.accuracy.shape == (3, 1, 2)
    assert float(found.accuracy.min()) > 0.9
    assert float(found.reversed.max()) < 0.8
    assert float(found.random[:, :, 0].mean()) < float(found.accuracy[:, :, 0].min()) - 0.1
    with pytest.raises(Refusal, match="there are 60"):
        crossed(planted_cases(rows=400), rankers, sizes=(61,))


def test_units_that_go_together_are_one_cluster() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 6, generator=generator)
    x[:, 3] = -2 * x[:, 1] + 0.1 * torch.randn(500, generator=generator)
    x[:, 5] = x[:, 1] + 0.5 * torch.randn(500, generator=generator)
    x[:, 4] = 1.0
    found = redundancy(x)
    assert found.cluster.tolist() == [0, 1, 2, 1, 3, 1]
    assert found.kept.tolist() == [0, 1, 2, 4]
    assert redundancy(x, cut=0.05).cluster.tolist() == [0, 1, 2, 1, 3, 4]
    assert redundancy(x[:, :1]).kept.tolist() == [0]
