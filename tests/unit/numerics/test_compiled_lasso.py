"""Compiled sparse codes: each kernel beside its torch reference, beside quadratic programs solved by enumeration, and on several threads."""

from itertools import chain, combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from microtome.factors.active_set import searched
from microtome.factors.coding import Greedy, Lasso, Prepared, coded, greedily
from microtome.numerics import kernels

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the extra `fast` is not installed")


def problem(factors: int, d: int, rows: int, *, mean: float = 0.3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Factors of length 1 that share a direction, and vectors that share it too."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.nn.functional.normalize(torch.randn(1, d, generator=generator, dtype=torch.float64), dim=1)
    drawn = torch.randn(factors, d, generator=generator, dtype=torch.float64) / d**0.5
    x = 3 * torch.randn(rows, d, generator=generator, dtype=torch.float64) / d**0.5 + 3 * mean * shared
    return torch.nn.functional.normalize(drawn + mean * shared, dim=1), x


def enumerated(phi: Tensor, x: Tensor, penalty: float) -> Tensor:
    """The lasso's code of one vector: of all sets of factors whose own minimum is above 0, the one with the lowest objective."""
    gram, target = (phi @ phi.T).numpy(), (phi @ x).numpy()
    best, lowest = np.zeros(len(phi)), 0.0
    for chosen in chain.from_iterable(combinations(range(len(phi)), size) for size in range(1, len(phi) + 1)):
        each = list(chosen)
        value = np.linalg.solve(gram[np.ix_(each, each)], target[each] - penalty)
        objective = -value @ (target[each] - penalty) / 2
        if (value > 0).all() and objective < lowest:
            lowest, best = objective, np.zeros(len(phi))
            best[each] = value
    return torch.from_numpy(best)


@pytest.mark.parametrize("penalty", [0.05, 0.5])
def test_codes_are_the_best_of_all_sets_of_factors(penalty: float) -> None:
    phi, x = problem(9, 9, 12, mean=0.8)
    found = coded(phi, x, Lasso(penalty, 1e-14))
    expected = torch.stack([enumerated(phi, row, penalty) for row in x])
    torch.testing.assert_close(found.values, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-9), (torch.float32, 2e-5)])
@pytest.mark.parametrize("factors", [1, 3, 255, 600])
def test_lasso_is_its_reference(factors: int, dtype: torch.dtype, near: float) -> None:
    """Widths around a block and around four rows at a time; same sets, rounds and gaps."""
    wide, x = problem(factors, 64, 40)
    phi, x = wide.to(dtype), x.to(dtype)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    fast = coded(phi, x, Lasso(0.3, tolerance, solver="active-set"))
    with kernels.reference():
        slow = coded(phi, x, Lasso(0.3, tolerance, solver="active-set"))
    torch.testing.assert_close(fast.values, slow.values, atol=near, rtol=0)
    torch.testing.assert_close(fast.gap, slow.gap, atol=near, rtol=0)
    assert float(fast.gap.max()) <= tolerance


def test_the_reference_goes_by_products_alone() -> None:
    phi, x = problem(100, 32, 20)
    code, gap, steps = searched(phi @ phi.T, x @ phi.T, x.square().sum(1), torch.zeros(20, 100).double(), 0.3, 1e-10, 100)
    torch.testing.assert_close(code, coded(phi, x, Lasso(0.3, 1e-10)).values, atol=1e-9, rtol=0)
    assert float(gap.max()) <= 1e-10
    assert 1 < steps < 20


def test_wide_sets_that_lose_many_members_stay_exact() -> None:
    """From a start on all factors hundreds of members leave one by one; the conditions of the optimum hold to rounding."""
    phi, x = problem(300, 400, 6)
    start = torch.rand(6, 300, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = coded(phi, x, Lasso(0.3, 1e-14), start)
    pull = (x - found.values @ phi) @ phi.T
    assert float(pull.max()) < 0.3 + 1e-12
    assert float((pull - 0.3)[found.values > 0].abs().max()) < 1e-12
    assert 0 < int((found.values > 0).sum(1).max()) < 150


@pytest.mark.parametrize("fit", ["matching", "pursuit"])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-9), (torch.float32, 2e-4)])
def test_greedy_codes_are_those_of_the_reference(fit: str, dtype: torch.dtype, near: float) -> None:
    phi, x = problem(300, 64, 60)
    phi, x = phi.to(dtype), x.to(dtype)
    settings = Greedy(12, "matching" if fit == "matching" else "pursuit")
    fast = greedily(phi, x, settings)
    with kernels.reference():
        slow = greedily(phi, x, settings)
    torch.testing.assert_close(fast, slow, atol=near, rtol=0)
    assert int((fast > 0).sum(1).min()) >= 5


def test_matching_drops_factors_that_would_be_negative_as_its_reference_does() -> None:
    """Few dimensions and as many factors: later ones turn earlier ones round, again and again."""
    phi, x = problem(30, 6, 200, mean=0.5)
    fast = greedily(phi, x, Greedy(6))
    with kernels.reference():
        slow = greedily(phi, x, Greedy(6))
    assert int(((fast > 0).sum(1) < 6).sum()) > 20
    torch.testing.assert_close(fast, slow, atol=1e-7, rtol=0)


def test_twins_and_what_is_made_exactly_do_no_harm() -> None:
    phi, _ = problem(20, 32, 1)
    phi = torch.cat([phi, phi])
    x = (phi[:1] + 2 * phi[3:4]).repeat(2, 1)
    code = greedily(phi, x, Greedy(10))
    assert bool(torch.isfinite(code).all())
    assert float((x - code @ phi).norm()) < 1e-9


def test_codes_do_not_depend_on_threads() -> None:
    phi, x = problem(200, 64, 100)
    ready = Prepared(phi)
    target, square = x @ phi.T, x.square().sum(1)
    kernel = kernels.compiled_lasso_for(x)
    assert kernel is not None
    found, before = [], torch.get_num_threads()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        try:
            codes, gaps, steps = torch.zeros(100, 200).double(), torch.zeros(100).double(), torch.zeros(100, dtype=torch.long)
            given = ready.gram.numpy(), target.numpy(), square.numpy(), (0.3, 1e-9, 100, 64)
            into = codes.numpy(), gaps.numpy(), steps.numpy()
            kernels.spread(100, 16, lambda begin, end, given=given, into=into: kernel.lasso(*given, (begin, end), into))
            found.append(codes)
        finally:
            torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert kernels.compiled_lasso_for(x.half()) is None
    with kernels.reference():
        assert kernels.compiled_lasso_for(x) is None
