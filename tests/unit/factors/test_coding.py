"""Codes against scikit-learn's coordinate descent, the conditions of the optimum, planted codes, and the gap against an exhaustive search."""

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import sparse_encode
from torch import Tensor

from microtome.core import Refusal
from microtome.factors.coding import Greedy, Lasso, coded, duality_gap, greedily, refitted, steepness

PENALTY = 0.3


def dictionary(factors: int = 128, d: int = 64, *, mean: float = 0.0, seed: int = 0) -> Tensor:
    """Factors of length 1; `mean` adds the same direction to all of them, as states have that were not centred."""
    drawn = torch.randn(factors + 1, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows = torch.nn.functional.normalize(drawn, dim=1)
    return torch.nn.functional.normalize(rows[1:] + mean * rows[0], dim=1)


def planted(phi: Tensor, rows: int = 200, k: int = 5, *, noise: float = 0.0, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Vectors made of k factors each, and of which."""
    generator = torch.Generator().manual_seed(seed)
    code = torch.zeros(rows, len(phi), dtype=torch.float64)
    place = torch.rand(rows, len(phi), generator=generator).argsort(1)[:, :k]
    code.scatter_(1, place, 1 + torch.rand(rows, k, generator=generator, dtype=torch.float64))
    return code, code @ phi + noise * torch.randn(rows, phi.shape[1], generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("factors", "mean"), [(128, 0.0), (400, 0.0), (40, 0.0), (128, 0.8)])
def test_codes_are_those_of_coordinate_descent(factors: int, mean: float) -> None:
    """With fewer factors than twice the width codes are searched by the factors' products, with more by the rest."""
    phi = dictionary(factors, mean=mean)
    _, x = planted(phi, 60, noise=0.05)
    found = coded(phi, x, Lasso(PENALTY, 1e-13, 20000))
    expected = sparse_encode(x.numpy(), phi.numpy(), algorithm="lasso_cd", alpha=PENALTY, positive=True, max_iter=100_000)
    assert float(found.gap.max()) <= 1e-13
    torch.testing.assert_close(found.values, torch.from_numpy(expected), atol=1e-4 if mean else 1e-6, rtol=0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), penalty=st.floats(0.05, 2.0))
def test_the_rest_pulls_as_hard_as_the_penalty_where_a_factor_is_used_and_no_harder_elsewhere(
    seed: int, penalty: float
) -> None:
    phi = dictionary(30, 12, seed=seed)
    x = 2 * torch.randn(8, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    code = coded(phi, x, Lasso(penalty, 1e-12, 20000)).values
    pull = (x - code @ phi) @ phi.T
    assert bool((code >= 0).all())
    assert float((pull - penalty).max()) < 1e-4
    assert float((pull - penalty)[code > 1e-5].abs().max() if bool((code > 1e-5).any()) else 0) < 1e-4
    needed = (x @ phi.T).amax(1) > penalty
    assert torch.equal((code > 0).any(1), needed)


def test_the_gap_bounds_what_is_missed() -> None:
    phi = dictionary(20, 10)
    x = torch.randn(30, 10, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def objective(code: Tensor) -> Tensor:
        return (x - code @ phi).square().sum(1) / 2 + PENALTY * code.sum(1)

    best = objective(coded(phi, x, Lasso(PENALTY, 1e-13, 20000)).values)
    for steps in (1, 3, 10, 30):
        rough = coded(phi, x, Lasso(PENALTY, 1e-13, steps)).values
        missed, gap = objective(rough) - best, duality_gap(phi, x, rough, PENALTY)
        assert bool((gap >= missed - 1e-12).all())
    assert float(missed.min()) > -1e-12
    assert float(duality_gap(phi, x, torch.zeros(30, 20, dtype=torch.float64), PENALTY).min()) > 0


def test_a_start_that_is_the_answer_is_left_at_once_and_rows_do_not_depend_on_each_other() -> None:
    phi = dictionary(mean=0.5)
    _, x = planted(phi, 40, noise=0.05)
    whole = coded(phi, x, Lasso(PENALTY, 1e-8, 20000))
    again = coded(phi, x, Lasso(PENALTY, 1e-7, 20000), start=whole.values, steep=steepness(phi))
    assert again.steps == 0
    assert torch.equal(again.values, whole.values)
    alone = torch.cat([coded(phi, row, Lasso(PENALTY, 1e-8, 20000)).values for row in x.split(1)])
    torch.testing.assert_close(alone, whole.values, atol=1e-9, rtol=0)


def test_restarts_take_a_shared_mean_away_quickly() -> None:
    phi = dictionary(mean=0.8)
    _, x = planted(phi, 60, noise=0.05)
    assert steepness(phi) > 10 * steepness(dictionary())
    assert steepness(phi) == pytest.approx(float(torch.linalg.svdvals(phi)[0]) ** 2, rel=1e-5)
    found = coded(phi.float(), x.float(), Lasso(PENALTY))
    assert found.values.dtype == torch.float32
    assert float(found.gap.max()) <= 1e-4
    assert found.steps < 1000


def test_refits_undo_what_the_penalty_takes() -> None:
    phi = dictionary()
    truth, x = planted(phi, k=3)
    code = coded(phi, x, Lasso(0.05, 1e-9, 20000)).values
    own = ((code > 0) == (truth > 0)).all(1)
    assert float(own.double().mean()) > 0.5
    shrunk, right = (code - truth)[own].abs().max(), (refitted(phi, x, code) - truth)[own].abs().max()
    assert float(shrunk) > 0.02
    assert float(right) < 1e-9


def test_a_factor_that_a_refit_would_turn_round_is_dropped() -> None:
    phi = torch.tensor([[1.0, 0.0], [0.8, 0.6]], dtype=torch.float64)
    x = torch.tensor([[1.0, -0.1]], dtype=torch.float64)
    assert torch.equal(refitted(phi, x, torch.ones(1, 2, dtype=torch.float64)), torch.tensor([[1.0, 0.0]]).double())


@pytest.mark.parametrize("fit", ["matching", "gradient"])
def test_planted_factors_are_found_one_by_one(fit: str) -> None:
    phi = dictionary()
    truth, x = planted(phi, noise=0.01)
    code = greedily(phi, x, Greedy(5, fit))  # type: ignore[arg-type]
    assert float(((code > 0) == (truth > 0)).all(1).double().mean()) > 0.95
    assert bool((code >= 0).all())
    assert int((code > 0).sum(1).max()) <= 5
    assert float((code - truth)[((code > 0) == (truth > 0)).all(1)].abs().max()) < (0.05 if fit == "matching" else 0.5)


def test_of_two_factors_matching_finds_the_best_pair_that_greed_can() -> None:
    phi = dictionary(8, 6)
    _, x = planted(phi, 40, k=2, noise=0.02)
    rest = (x - greedily(phi, x, Greedy(2)) @ phi).square().sum(1)
    pairs = torch.tensor(list(combinations(range(8), 2)))
    every = torch.stack(
        [
            (x - refitted(phi, x, torch.zeros(40, 8, dtype=torch.float64).index_fill(1, pair, 1.0)) @ phi).square().sum(1)
            for pair in pairs
        ]
    )
    best = every.amin(0)
    assert bool((rest >= best - 1e-12).all())
    assert float((rest <= best + 1e-12).double().mean()) > 0.8


def test_zeros_and_opposites_have_no_code() -> None:
    phi = dictionary(8, 6)
    found = coded(phi, torch.zeros(3, 6, dtype=torch.float64), Lasso(PENALTY))
    assert float(found.values.abs().max()) == float(found.gap.max()) == found.steps == 0
    against = -phi[:1]
    assert float(greedily(phi[:1], against, Greedy(1)).abs().max()) == 0
    assert float(coded(phi[:1], against, Lasso(PENALTY)).values.abs().max()) == 0


def test_bad_requests_are_refused() -> None:
    phi = dictionary(8, 6)
    with pytest.raises(Refusal, match="not all above 0"):
        Lasso(0.0)
    with pytest.raises(Refusal, match="name one or more"):
        Greedy(0)
    with pytest.raises(Refusal, match="the dictionary has 8"):
        greedily(phi, torch.ones(1, 6, dtype=torch.float64), Greedy(9))
    with pytest.raises(Refusal, match="5 numbers each, and factors 6"):
        coded(phi, torch.ones(1, 5, dtype=torch.float64), Lasso(PENALTY))
    with pytest.raises(Refusal, match="some are not finite"):
        coded(phi, torch.full((1, 6), torch.nan, dtype=torch.float64), Lasso(PENALTY))
