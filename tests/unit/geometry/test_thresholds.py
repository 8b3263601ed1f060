"""Rules that cut a spectrum: against the published package's numbers, planted ranks, random matrix theory, and every scale."""

import math

import numpy as np
import pytest
import torch

from microtome.geometry.halves import cross_product
from microtome.geometry.thresholds import Cut, flipped, gavish_donoho, parallel, parallel_of_halves, screenot
from tests.unit.geometry.simulated import observe, smooth

SHAPES = [(63, 96), (60, 60), (180, 45), (60, 240)]
SCALES = [1e-6, 1e-3, 1.0, 1e3, 1e6]


def planted(shape, rank, strength=3.0, seed=0, columns=0.0):
    """Low rank + noise whose columns are between 1 - `columns` and 1 + `columns` large; signals from `strength` times its edge."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.linspace(1 - columns, 1 + columns, shape[1], dtype=torch.float64)
    noise = torch.randn(*shape, generator=generator, dtype=torch.float64) * scale
    left = torch.linalg.qr(torch.randn(shape[0], rank, generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(shape[1], rank, generator=generator, dtype=torch.float64))[0]
    size = strength * float(torch.linalg.matrix_norm(noise, 2)) * (1 + torch.arange(rank, dtype=torch.float64) / max(rank, 1))
    return noise + left * size @ right.T


def as_published(y, shape, k):
    """The threshold written out a second time, in numpy, on an ascending spectrum of unit scale: the root by a fine scan."""
    y = np.sort(y)
    z = y.copy()
    for place in range(1, k + 1):
        weight = (1 - ((place - 1) / k) ** (2 / 3)) / (2 ** (2 / 3) - 1)
        z[-place] = y[-k - 1] + weight * (y[-k - 1] - y[-2 * k - 1])
    aspect = min(shape) / max(shape)

    def log_d(x):
        phi = np.mean(x / (x**2 - z**2))
        return np.log(phi * (aspect * phi + (1 - aspect) / x))

    def slope(x, step=1e-6):
        """The derivative of log D by log x, by differences instead of the formula."""
        return (log_d(x * (1 + step)) - log_d(x * (1 - step))) / (2 * step)

    low, high = z.max() * (1 + 1e-4), z.max() * 10
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < -4 else (low, middle)
    return high


@pytest.mark.parametrize(
    ("size", "shape", "k", "threshold"),
    [
        (63, (63, 96), 20, 2.6650056),
        (60, (60, 60), 20, 2.7468919),
        (100, (400, 100), 5, 2.4563919),
        (127, (127, 768), 20, 2.4634428),
    ],
)
def test_screenot_gives_the_thresholds_of_the_published_package(size, shape, k, threshold) -> None:
    """Computed by screenot 0.0.2, which stops within 1e-5."""
    y = np.sqrt(1 + 3 * np.linspace(0, 1, size) ** 2)
    y[-4:] += [1, 2, 4, 8]
    found = screenot(torch.from_numpy(np.sort(y)[::-1].copy()), shape, k)
    assert found.threshold == pytest.approx(threshold, abs=1e-5)
    assert (found.rank, found.bound) == (4, k)


@pytest.mark.parametrize("shape", SHAPES)
def test_screenot_is_where_the_derivative_of_log_d_is_minus_four(shape) -> None:
    values = torch.linalg.svdvals(planted(shape, 3, columns=0.5))
    assert screenot(values, shape).threshold == pytest.approx(as_published(values.numpy(), shape, 20), rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [0, 1, 5])
@pytest.mark.parametrize("columns", [0.0, 0.5])
def test_screenot_finds_planted_ranks(shape, rank, columns) -> None:
    found = screenot(torch.linalg.svdvals(planted(shape, rank, columns=columns)), shape)
    assert found.rank == rank


@pytest.mark.parametrize("aspect", [0.1, 0.5, 1.0])
def test_screenot_of_white_noise_is_the_known_optimum(aspect) -> None:
    """4 / sqrt(3) for a square: the threshold of Gavish and Donoho for noise of known level."""
    known = math.sqrt(2 * (aspect + 1) + 8 * aspect / (aspect + 1 + math.sqrt(aspect**2 + 14 * aspect + 1)))
    rows, columns = round(600 * aspect), 600
    generator = torch.Generator().manual_seed(1)
    values = torch.linalg.svdvals(torch.randn(rows, columns, generator=generator, dtype=torch.float64) / columns**0.5)
    assert screenot(values, (rows, columns), k=10).threshold == pytest.approx(known, rel=0.03)


@pytest.mark.parametrize("rule", [screenot, gavish_donoho])
def test_cuts_do_not_depend_on_the_scale(rule) -> None:
    matrix = planted((63, 96), 3, strength=1.2)
    base = rule(torch.linalg.svdvals(matrix), (63, 96))
    for scale in SCALES:
        found = rule(torch.linalg.svdvals(scale * matrix), (63, 96))
        assert found.rank == base.rank
        assert found.threshold == pytest.approx(scale * base.threshold, rel=1e-9)


def test_screenot_lowers_a_bound_that_is_too_large() -> None:
    values = torch.linalg.svdvals(planted((16, 40), 2, strength=4.0))
    assert screenot(values, (16, 40), k=20) == screenot(values, (16, 40), k=7)
    assert screenot(values, (16, 40)).bound == 7
    assert screenot(values, (16, 40)).rank == 2


def test_screenot_of_three_values_is_undefined() -> None:
    found = screenot(torch.tensor([3.0, 2.0, 1.0]), (3, 9))
    assert math.isnan(found.rank)
    assert math.isnan(found.threshold)
    assert found.undefined == "ScreeNOT needs at least 4 singular values, here are 3"
    assert screenot(torch.tensor([9.0, 3.0, 2.0, 1.0]), (4, 9)).bound == 1


@pytest.mark.parametrize("rank", [1, 4, 25])
@pytest.mark.parametrize("rule", [screenot, gavish_donoho])
def test_a_matrix_without_noise_is_cut_at_rounding(rank, rule) -> None:
    """Rank 25 exceeds the bound of ScreeNOT and is reported as the bound or less, never as more."""
    values = torch.linalg.svdvals(smooth(60, 80, rank))
    found = rule(values, (60, 80))
    assert found.rank == rank if rank <= 4 or rule is gavish_donoho else found.rank <= found.bound == 20


def test_gavish_donoho_has_the_published_coefficients() -> None:
    """The coefficient times a median of 1: the cubic that the paper gives for it is within 0.02, and 2.858 for a square."""
    ones = torch.ones(9)
    for aspect in (0.05, 0.2, 0.5, 0.8, 1.0):
        cubic = 0.56 * aspect**3 - 0.95 * aspect**2 + 1.82 * aspect + 1.43
        assert gavish_donoho(ones, (round(1000 * aspect), 1000)).threshold == pytest.approx(cubic, abs=0.02)
    assert gavish_donoho(ones, (7, 7)).threshold == pytest.approx(2.858, abs=5e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [0, 4])
def test_gavish_donoho_finds_planted_ranks_in_white_noise(shape, rank) -> None:
    assert gavish_donoho(torch.linalg.svdvals(planted(shape, rank)), shape).rank == rank


def test_gavish_donoho_of_nothing_is_undefined() -> None:
    assert gavish_donoho(torch.zeros(0), (1, 9)).undefined == "there is no singular value"


def test_parallel_counts_until_the_first_that_does_not_stand_out() -> None:
    null = torch.tensor([[5.0, 4.0, 3.0, 2.0]]).expand(100, 4)
    assert parallel(torch.tensor([9.0, 8.0, 3.0, 2.5]), null) == Cut(2.0, 3.0, 4)
    assert parallel(torch.tensor([9.0, 8.0, 7.0, 6.0]), null) == Cut(4.0, 2.0, 4)
    assert parallel(torch.tensor([4.0, 3.9, 3.8, 3.7]), null).rank == 0


@pytest.mark.parametrize("rank", [0, 1, 4])
def test_flips_of_signs_find_planted_ranks_in_noise_of_unequal_rows(rank) -> None:
    generator = torch.Generator().manual_seed(5)
    rows = 1 + 3 * torch.rand(60, 1, generator=generator, dtype=torch.float64)
    matrix = rows * planted((60, 90), 0) + planted((60, 90), rank, strength=6.0) * (rank > 0)
    matrix = matrix - matrix.mean(0)
    null = flipped(matrix, 100, seed=0)
    assert null.shape == (100, 60)
    assert parallel(torch.linalg.svdvals(matrix), null).rank == rank


def test_flips_keep_the_energy_but_for_what_centring_takes() -> None:
    matrix = planted((90, 40), 2)
    null = flipped(matrix, 100, seed=0)
    assert null.shape == (100, 40)
    energy = float(matrix.square().sum())
    assert float(null.square().sum(1).mean()) == pytest.approx(energy * 89 / 90, rel=0.01)
    assert torch.equal(null, flipped(matrix, 100, seed=0))
    assert not torch.equal(null, flipped(matrix, 100, seed=1))


def product(rank, seed, carry=0.0, amplitude=3.0):
    """P1 P2' of two halves that share `rank` directions, each with its own noise."""
    effect = smooth(40, 30, rank) if rank else torch.zeros(40, 30, dtype=torch.float64)
    return cross_product(observe(amplitude * effect, 60, seed, carry=carry)[1])


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_halves_share_the_planted_directions(rank) -> None:
    found = parallel_of_halves(product(rank, seed=1))
    assert (found.rank, found.bound) == (rank, 20)
    assert found.threshold > 0


def test_halves_of_noise_share_a_direction_about_as_often_as_the_level_says() -> None:
    assert sum(parallel_of_halves(product(0, seed)).rank > 0 for seed in range(40)) <= 6


def test_an_eigenvalue_has_to_exceed_the_widened_quantile() -> None:
    matrix = product(1, seed=2, amplitude=0.7)
    top = float(torch.linalg.eigvalsh((matrix + matrix.T) / 2)[-1])
    plain, wide = parallel_of_halves(matrix), parallel_of_halves(matrix, widening=100.0)
    assert plain.rank >= 1
    assert wide.rank == 0
    assert wide.threshold > top


def test_halves_without_noise_share_their_rank_and_stop_at_rounding() -> None:
    pos = smooth(30, 20, 3)
    for scale in SCALES:
        assert parallel_of_halves(scale * pos @ pos.T).rank == 3
    assert parallel_of_halves(pos @ pos.T, most=2) == parallel_of_halves(pos @ pos.T, most=2, seed=0)
    assert parallel_of_halves(pos @ pos.T, most=2).rank == parallel_of_halves(pos @ pos.T, most=2).bound == 2
    assert parallel_of_halves(torch.zeros(1, 1, dtype=torch.float64)).undefined == "there is one position"
