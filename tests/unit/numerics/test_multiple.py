"""Multiple testing: against scipy, by hand, and coverage of intervals."""

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from microtome.core import Refusal
from microtome.numerics import benjamini_hochberg, bootstrap_interval, permutation_p, resamples


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_q_values_are_those_of_scipy(p: list[float]):
    found = benjamini_hochberg(torch.tensor(p, dtype=torch.float64))
    np.testing.assert_allclose(found, scipy.stats.false_discovery_control(p), rtol=1e-12)


def test_tests_that_were_not_made_do_not_count():
    found = benjamini_hochberg(torch.tensor([0.01, torch.nan, 0.04]))
    assert found[1].isnan()
    torch.testing.assert_close(found[[0, 2]], torch.tensor([0.02, 0.04], dtype=torch.float64), rtol=1e-6, atol=0)
    assert benjamini_hochberg(torch.empty(0)).shape == (0,)


def test_what_is_no_p_value_is_refused():
    with pytest.raises(Refusal, match=r"q-values: a p-value is outside of 0 .. 1; pass p-values"):
        benjamini_hochberg(torch.tensor([0.5, 1.5]))


def test_permutation_p_by_hand():
    null = torch.arange(99.0).unsqueeze(1).expand(-1, 4)
    observed = torch.tensor([1000.0, 98.0, 49.0, -1.0])
    assert permutation_p(observed, null).tolist() == [0.01, 0.02, 0.51, 1.0]
    assert permutation_p(observed, null, "less").tolist() == [1.0, 1.0, 0.51, 0.01]
    assert permutation_p(observed, null, "both").tolist() == [0.02, 0.04, 1.0, 0.02]
    assert permutation_p(torch.tensor([torch.nan]), null[:, :1]).isnan().all()


def test_resamples_are_seeded_and_draw_as_many_groups_as_there_are():
    drawn = resamples(12, 200, seed=1)
    assert torch.equal(drawn, resamples(12, 200, seed=1))
    assert not torch.equal(drawn, resamples(12, 200, seed=2))
    assert drawn.sum(1).tolist() == [12] * 200
    assert float(drawn.double().mean()) == pytest.approx(1.0)


def test_intervals_cover_the_mean_although_tokens_of_a_group_agree():
    """95 % intervals over 40 groups of correlated values: about 19 of 20 contain the truth, 0; those over tokens would not."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, 50, (40,), generator=generator)
    effects = torch.randn(40, 300, generator=generator)
    low, high = bootstrap_interval(effects * tokens[:, None], tokens.double(), draws=400, seed=3)
    covered = ((low <= 0) & (high >= 0)).double().mean()
    assert 0.87 < float(covered) <= 0.99
    assert low.shape == (300,)
    constant = bootstrap_interval(torch.full((4,), 6.0), torch.full((4,), 2.0).double(), draws=10)
    assert [float(end) for end in constant] == [3.0, 3.0]


def test_one_group_is_refused():
    with pytest.raises(Refusal, match="interval over 1 groups: resampling needs at least two; add documents"):
        bootstrap_interval(torch.ones(1), torch.ones(1))
