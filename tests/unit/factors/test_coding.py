"""Codes against scikit-learn's coordinate descent, the conditions of the optimum, planted codes, and the gap against an exhaustive search."""

import contextlib
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Lasso as Descent
from torch import Tensor

from microtome.core import Refusal
from microtome.factors.coding import Coded, Greedy, Lasso, Prepared, coded, duality_gap, greedily, refitted, steepness
from microtome.numerics import kernels

PENALTY = 0.3
SOLVERS = ["fista", "torch", "compiled"]
"""By steps, and by active sets with the torch reference and with the compiled kernel."""
every_solver = pytest.mark.parametrize("solver", SOLVERS)


def solved(solver: str, phi: Tensor, x: Tensor, penalty: float, tolerance: float, start: Tensor | None = None) -> Coded:
    """Codes by one of the solvers, in as many steps as it wants."""
    if solver == "compiled" and not kernels.available():
        pytest.skip("the extra `fast` is not installed")
    name = "fista" if solver == "fista" else "active-set"
    with kernels.reference() if solver == "torch" else contextlib.nullcontext():
        return coded(phi, x, Lasso(penalty, tolerance, 50_000, solver=name), start)


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


def descended(phi: Tensor, x: Tensor, penalty: float) -> Tensor:
    """scikit-learn's coordinate descent, whose objective is ours over the width."""
    descent = Descent(penalty / phi.shape[1], positive=True, fit_intercept=False, tol=1e-12, max_iter=1_000_000)
    return torch.from_numpy(descent.fit(phi.T.numpy(), x.T.numpy()).coef_)


@every_solver
@pytest.mark.parametrize(("factors", "mean"), [(128, 0.0), (400, 0.0), (40, 0.0), (128, 0.8)])
def test_codes_are_those_of_coordinate_descent(factors: int, mean: float, solver: str) -> None:
    """With fewer factors than twice the width steps go by the factors' products, with more by the rest; `mean` makes steps slow."""
    phi = dictionary(factors, mean=mean)
    _, x = planted(phi, 60, noise=0.05)
    found = solved(solver, phi, x, PENALTY, 1e-13)
    expected = descended(phi, x, PENALTY)
    assert float(found.gap.max()) <= 1e-13
    torch.testing.assert_close(found.values, expected, atol=1e-4 if mean and solver == "fista" else 1e-6, rtol=0)


def test_all_solvers_agree() -> None:
    """Codes to 1e-6 and objectives much closer, raw and centred, in float64; in float32 to its rounding."""
    for mean in (0.0, 0.5):
        phi = dictionary(200, mean=mean)
        _, x = planted(phi, 40, noise=0.05)
        by = {solver: solved(solver, phi, x, PENALTY, 1e-13).values for solver in SOLVERS}
        by["float32"] = coded(phi.float(), x.float(), Lasso(PENALTY, 1e-9)).values.double()
        values = {name: (x - code @ phi).square().sum(1) / 2 + PENALTY * code.sum(1) for name, code in by.items()}
        for name in by:
            torch.testing.assert_close(by[name], by["torch"], atol=1e-5 if name == "float32" else 1e-6, rtol=0)
            torch.testing.assert_close(values[name], values["torch"], atol=0, rtol=1e-6)


@every_solver
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), penalty=st.floats(0.05, 2.0))
def test_the_rest_pulls_as_hard_as_the_penalty_where_a_factor_is_used_and_no_harder_elsewhere(
    solver: str, seed: int, penalty: float
) -> None:
    phi = dictionary(30, 12, seed=seed)
    x = 2 * torch.randn(8, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    code = solved(solver, phi, x, penalty, 1e-12).values
    near = 1e-4 if solver == "fista" else 1e-7
    pull = (x - code @ phi) @ phi.T
    assert bool((code >= 0).all())
    assert float((pull - penalty).max()) < near
    assert float((pull - penalty)[code > 1e-5].abs().max() if bool((code > 1e-5).any()) else 0) < near
    needed = (x @ phi.T).amax(1) > penalty
    assert torch.equal((code > 0).any(1), needed)


@every_solver
@pytest.mark.parametrize("penalty", [0.5, 0.02])
def test_factors_that_depend_on_others_are_no_hindrance(solver: str, penalty: float) -> None:
    """Twins, sums of two, a factor of zeros, and more factors that pull than there are dimensions."""
    few = dictionary(60, 12)
    sums = torch.nn.functional.normalize(few[:20] + few[20:40], dim=1)
    phi = torch.cat([few, few[:30], sums, torch.zeros(1, 12, dtype=torch.float64)])
    x = 3 * torch.randn(12, 12, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    found = solved(solver, phi, x, penalty, 1e-7)
    assert float(found.gap.max()) <= 1e-7
    objective = ((x - found.values @ phi).square().sum(1) / 2 + penalty * found.values.sum(1)).sum()
    expected = descended(phi, x, penalty)
    best = ((x - expected @ phi).square().sum(1) / 2 + penalty * expected.sum(1)).sum()
    assert float(objective) == pytest.approx(float(best), rel=1e-6)


@every_solver
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gaps_are_those_of_the_codes_and_below_the_tolerance(solver: str, dtype: torch.dtype) -> None:
    phi = dictionary(200, mean=0.8)
    _, x = planted(phi, 60, noise=0.2)
    for tolerance in (1e-2, 1e-4):
        found = solved(solver, phi.to(dtype), x.to(dtype), PENALTY, tolerance)
        true = duality_gap(phi, x, found.values.double(), PENALTY) / (x.square().sum(1) / 2)
        torch.testing.assert_close(found.gap.double(), true, atol=5e-6 if dtype == torch.float32 else 1e-12, rtol=0)
        assert float(found.gap.max()) <= tolerance
        assert found.values.dtype == found.gap.dtype == dtype


@pytest.mark.parametrize("reference", [True, False])
def test_gaps_of_rounded_codes_are_those_of_what_is_returned(reference: bool) -> None:
    phi = dictionary(200, mean=0.8).float()
    x = planted(phi.double(), 60, noise=0.2)[1].float()
    with kernels.reference() if reference else contextlib.nullcontext():
        found = coded(phi, x, Lasso(PENALTY, 1e-12, solver="active-set"))
    true = duality_gap(phi.double(), x.double(), found.values.double(), PENALTY) / (x.double().square().sum(1) / 2)
    assert 1e-10 < float(true.max()) < 1e-6
    torch.testing.assert_close(found.gap.double(), true, rtol=1e-5, atol=0)


def test_the_gap_is_objective_less_dual() -> None:
    phi = dictionary(20, 10)
    x = torch.randn(30, 10, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    code = torch.rand(30, 20, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    rest = x - code @ phi
    dual = rest * (PENALTY / (rest @ phi.T).amax(1, keepdim=True)).clamp(max=1)
    objective = rest.square().sum(1) / 2 + PENALTY * code.sum(1)
    torch.testing.assert_close(
        duality_gap(phi, x, code, PENALTY), objective - (x * dual).sum(1) + dual.square().sum(1) / 2, atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("reference", [True, False])
def test_vectors_whose_search_by_active_sets_ends_early_say_so(reference: bool) -> None:
    phi = dictionary(mean=0.8)
    _, x = planted(phi, 60, noise=0.05)
    with kernels.reference() if reference else contextlib.nullcontext():
        early = coded(phi, x, Lasso(PENALTY, 1e-9, 1, solver="active-set"))
    assert early.steps == 1
    assert float(early.gap.max()) > 1e-3
    true = duality_gap(phi, x, early.values, PENALTY) / (x.square().sum(1) / 2)
    torch.testing.assert_close(early.gap, true)


def test_a_prepared_dictionary_gives_the_same() -> None:
    phi = dictionary()
    _, x = planted(phi, 20, noise=0.05)
    ready = Prepared(phi)
    assert ready.steep == steepness(phi)
    assert ready.wide is ready
    torch.testing.assert_close(ready.gram, phi @ phi.T)
    for solver in ("auto", "fista"):
        with_it, without = (coded(each, x, Lasso(PENALTY, solver=solver)) for each in (ready, phi))
        assert torch.equal(with_it.values, without.values)
    assert torch.equal(greedily(ready, x, Greedy(3)), greedily(phi, x, Greedy(3)))
    assert Prepared(phi.float()).wide.gram.dtype == torch.float64


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


@every_solver
def test_a_start_that_is_the_answer_is_left_at_once_and_rows_do_not_depend_on_each_other(solver: str) -> None:
    phi = dictionary(mean=0.5)
    _, x = planted(phi, 40, noise=0.05)
    whole = solved(solver, phi, x, PENALTY, 1e-8)
    again = solved(solver, phi, x, PENALTY, 1e-7, whole.values)
    assert again.steps == 0
    assert torch.equal(again.values, whole.values)
    alone = torch.cat([solved(solver, phi, row, PENALTY, 1e-8).values for row in x.split(1)])
    torch.testing.assert_close(alone, whole.values, atol=1e-9, rtol=0)


@every_solver
def test_any_start_leads_to_the_same_and_a_near_one_sooner(solver: str) -> None:
    phi = dictionary(mean=0.5)
    _, x = planted(phi, 10, noise=0.05)
    cold = solved(solver, phi, x, PENALTY, 1e-10)
    near = solved(solver, phi, x, 1.2 * PENALTY, 1e-10).values
    anywhere = torch.rand(near.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    warm = solved(solver, phi, x, PENALTY, 1e-10, near)
    assert warm.steps < cold.steps
    for start in (near, anywhere, -anywhere):
        kept = start.clone()
        found = solved(solver, phi, x, PENALTY, 1e-10, start)
        torch.testing.assert_close(found.values, cold.values, atol=1e-3 if solver == "fista" else 1e-6, rtol=0)
        assert torch.equal(start, kept)


def test_restarts_take_a_shared_mean_away_quickly() -> None:
    phi = dictionary(mean=0.8)
    _, x = planted(phi, 60, noise=0.05)
    assert steepness(phi) > 5 * steepness(dictionary())
    assert steepness(phi) == pytest.approx(float(torch.linalg.svdvals(phi)[0]) ** 2, rel=1e-5)
    found = coded(phi.float(), x.float(), Lasso(PENALTY, solver="fista"))
    assert found.values.dtype == torch.float32
    assert float(found.gap.max()) <= 1e-4
    assert found.steps < 1000
    assert coded(phi.float(), x.float(), Lasso(PENALTY)).steps < 20


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
    found = refitted(phi, x, torch.ones(1, 2, dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0]]).double(), atol=1e-9, rtol=0)
    assert int((found > 0).sum()) == 1


@pytest.mark.parametrize("reference", [True, False])
def test_planted_factors_are_found_one_by_one(reference: bool) -> None:
    """Matching knows how much of each there is; a step along the gradient is a little off, and so is pursuit, which moves one alone."""
    phi = dictionary()
    truth, x = planted(phi, noise=0.01)
    left = {}
    for fit in ("matching", "gradient", "pursuit"):
        with kernels.reference() if reference else contextlib.nullcontext():
            code = greedily(phi, x, Greedy(5, fit))
        assert bool((code >= 0).all())
        assert int((code > 0).sum(1).max()) <= 5
        own = ((code > 0) == (truth > 0)).all(1)
        left[fit] = float((x - code @ phi)[own].square().sum() / x[own].square().sum())
        if fit != "pursuit":
            assert float(own.double().mean()) > 0.95
        if fit == "matching":
            assert float((code - truth)[own].abs().max()) < 0.05
    assert left["matching"] < left["gradient"] < left["pursuit"] < 0.1


@pytest.mark.parametrize("reference", [True, False])
def test_pursuit_adds_to_one_factor_at_a_time_what_the_rest_has_of_it(reference: bool) -> None:
    """By hand: (2, 1) has 2.2 of the second; of what is left, (0.24, -0.32), the first has 0.24."""
    phi = torch.tensor([[1.0, 0.0], [0.8, 0.6]], dtype=torch.float64)
    x = torch.tensor([[2.0, 1.0], [-1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    with kernels.reference() if reference else contextlib.nullcontext():
        found = torch.stack([greedily(phi, x, Greedy(steps, "pursuit"))[0] for steps in (1, 2)])
        assert not bool(greedily(phi, x[1:], Greedy(2, "pursuit")).any())
    torch.testing.assert_close(found, torch.tensor([[0.0, 2.2], [0.24, 2.2]], dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("reference", [True, False])
def test_pursuit_comes_back_to_a_factor(reference: bool) -> None:
    """Of two factors that point apart each takes too little at first, and half as much each time."""
    phi = torch.eye(10, dtype=torch.float64)
    phi[1, :2] = torch.tensor([-0.5, 0.75**0.5])
    x = phi[:1] + 0.9 * phi[1:2]
    with kernels.reference() if reference else contextlib.nullcontext():
        two, ten = (greedily(phi, x, Greedy(steps, "pursuit"))[0, :2] for steps in (2, 10))
    torch.testing.assert_close(two, torch.tensor([0.55, 0.675], dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(ten, torch.tensor([1.0, 0.9], dtype=torch.float64), atol=3e-3, rtol=0)


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
    with pytest.raises(Refusal, match=r"it is of \(1, 7\), and codes of \(1, 8\)"):
        coded(phi, torch.ones(1, 6, dtype=torch.float64), Lasso(PENALTY), torch.ones(1, 7, dtype=torch.float64))
    with pytest.raises(Refusal, match="some of it is not finite"):
        coded(phi, torch.ones(1, 6, dtype=torch.float64), Lasso(PENALTY), torch.full((1, 8), torch.inf, dtype=torch.float64))
    with pytest.raises(Refusal, match="some are not finite"):
        coded(phi, torch.full((1, 6), torch.nan, dtype=torch.float64), Lasso(PENALTY))
