"""Isotropy: known values, an independent form of each formula, and what few rows do to it."""

import math

import numpy as np
import pytest
import torch

from microtome.core import Refusal
from microtome.geometry.isotropy import (
    concentration,
    isoscore,
    isoscore_star,
    massive_coordinates,
    mean_cosine,
    mean_cosines,
    partition_isotropy,
    sinks,
)

MANY = 10**9


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def published(variances: torch.Tensor) -> float:
    """IsoScore as its paper writes it, defect and all."""
    d = len(variances)
    scaled = math.sqrt(d) * variances / variances.norm()
    defect = float((scaled - 1).norm()) / math.sqrt(2 * (d - math.sqrt(d)))
    phi = (d - defect**2 * (d - math.sqrt(d))) ** 2 / d**2
    return (d * phi - 1) / (d - 1)


@pytest.mark.parametrize("used", [1, 2, 5, 10])
def test_isoscore_counts_the_directions_in_use(used: int) -> None:
    variances = torch.zeros(10, dtype=torch.float64)
    variances[:used] = 3.0
    found = isoscore(variances, MANY)
    assert found.score.value == pytest.approx((used - 1) / 9)
    assert found.corrected == pytest.approx((used - 1) / 9, abs=1e-6)
    assert found.score.control == pytest.approx(1)


@pytest.mark.parametrize("seed", range(5))
def test_isoscore_is_the_published_formula(seed: int) -> None:
    variances = normal(17, seed=seed).exp()
    assert isoscore(variances, 100).score.value == pytest.approx(published(variances), rel=1e-12)


def test_isoscore_of_the_reference_package() -> None:
    """Values of IsoScore 2.0.1 for these rows."""
    rows = np.stack([[math.sin(i * (j + 1)) * (j + 1) for j in range(4)] for i in range(25)])
    variances = torch.from_numpy(np.linalg.eigvalsh(np.cov(rows.T)).copy())
    assert isoscore(variances, 25).score.value == pytest.approx(REFERENCE, rel=1e-6)


REFERENCE = 0.4921961706663902


def test_few_rows_look_anisotropic_and_the_corrected_score_does_not() -> None:
    """True spectra: all alike, and a slope. 60 rows in 30 dimensions, averaged over 60 draws."""
    for spectrum in (torch.ones(30, dtype=torch.float64), torch.linspace(0.2, 4, 30, dtype=torch.float64)):
        truth = isoscore(spectrum, MANY).score.value
        drawn = [torch.linalg.eigvalsh(torch.cov((normal(60, 30, seed=s) * spectrum.sqrt()).T)) for s in range(60)]
        found = [isoscore(each, 60) for each in drawn]
        assert np.mean([each.score.value for each in found]) < 0.8 * truth
        assert np.mean([each.corrected for each in found]) == pytest.approx(truth, rel=0.02)
        if spectrum[0] == 1:
            assert np.mean([each.score.value for each in found]) == pytest.approx(found[0].score.control, rel=0.01)


def test_isoscore_is_undefined_where_it_means_nothing() -> None:
    assert isoscore(torch.zeros(4), 10).score.undefined == "the rows are all the same"
    assert isoscore(torch.ones(1), 10).score.undefined == "one coordinate has one direction"
    assert isoscore(torch.ones(4), 2).score.undefined == "there are too few rows: 2"
    with pytest.raises(Refusal, match="NaN"):
        isoscore(torch.tensor([1.0, math.nan]), 10)


def test_mean_cosine_is_the_mean_over_pairs_of_different_windows() -> None:
    rows = normal(40, 6) + 0.5
    window = torch.arange(40) // 4
    units = torch.nn.functional.normalize(rows, dim=1)
    cosines = units @ units.T
    expected = float(cosines[window[:, None] != window].mean())
    found = mean_cosine(rows, window)
    assert found.value == pytest.approx(expected, rel=1e-12)
    assert found.lo < expected < found.hi
    assert found.control == 0
    blanks = torch.cat([rows, torch.zeros(3, 6, dtype=torch.float64)])
    assert mean_cosine(blanks, torch.cat([window, torch.tensor([0, 1, 20])])).value == pytest.approx(expected, rel=1e-12)


def test_the_interval_of_the_mean_cosine_covers() -> None:
    """Windows share a vector of their own; 100 samples of 60 windows, the truth from a large one. 95 % within 4 sd."""
    hits = 0
    truth = mean_cosine(
        normal(8000, 4, seed=99) * 0.7 + normal(2000, 4, seed=98).repeat_interleave(4, 0) + 0.5, torch.arange(8000) // 4
    )
    for seed in range(100):
        rows = normal(240, 4, seed=seed) * 0.7 + normal(60, 4, seed=500 + seed).repeat_interleave(4, 0) + 0.5
        found = mean_cosine(rows, torch.arange(240) // 4, draws=200)
        hits += found.lo <= truth.value <= found.hi
    assert 86 <= hits <= 100


def test_copies_of_a_context_change_nothing() -> None:
    rows, context = normal(60, 5) + 0.5, torch.arange(60) // 6
    once, often = mean_cosine(rows, context), mean_cosine(rows.repeat(10, 1), context.repeat(10))
    assert often.value == pytest.approx(once.value, rel=1e-9)
    assert (often.lo, often.hi) == (pytest.approx(once.lo, rel=1e-9), pytest.approx(once.hi, rel=1e-9))


def test_mean_cosine_falls_as_mu_and_pos_are_removed() -> None:
    position = torch.arange(600) % 6
    mu, pos = 4 * normal(8, seed=1), 2 * normal(6, 8, seed=2)
    pos = pos - pos.mean(0)
    rows = mu + pos[position] + normal(600, 8, seed=3)
    found = mean_cosines(rows, torch.arange(600) // 6, position, mu, pos)
    assert found["raw"].value > 0.5
    assert abs(found["pos removed"].value) < 0.01
    assert found["pos removed"].lo < 0 < found["pos removed"].hi
    centred = torch.nn.functional.normalize(rows - mu, dim=1)
    pairs = (centred @ centred.T)[torch.arange(600)[:, None] // 6 != torch.arange(600) // 6]
    assert found["mu removed"].value == pytest.approx(float(pairs.mean()), rel=1e-9)


def test_one_window_has_no_mean_cosine() -> None:
    found = mean_cosine(normal(5, 3), torch.zeros(5, dtype=torch.int64))
    assert found.undefined == "fewer than two contexts have hidden states other than 0"
    assert mean_cosine(torch.zeros(5, 3), torch.arange(5)).undefined


def test_partition_isotropy_by_hand() -> None:
    """Rows +-e1 twice as long as +-e2, in units of the root mean square coordinate, sqrt(10 / 8): F along e1 is 2 cosh 2u + 2."""
    rows, unit = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]]), math.sqrt(8 / 10)
    expected = (math.cosh(unit) + 1) / (math.cosh(2 * unit) + 1)
    for scale in (1, 1e-3, 1e4):
        assert partition_isotropy(scale * rows).value == pytest.approx(expected)
    even = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert partition_isotropy(even).value == pytest.approx(1)
    padded = torch.cat([even, torch.zeros(4, 4)], 1)  # six directions, four of them empty: F is 2 cosh sqrt 6 + 2, or 4
    assert partition_isotropy(padded).value == pytest.approx(2 / (math.cosh(math.sqrt(6)) + 1))
    assert partition_isotropy(torch.zeros(3, 2)).undefined == "all hidden states are 0"


def test_a_normal_cloud_has_the_partition_isotropy_of_its_control_and_one_with_a_mean_has_not() -> None:
    for shape in ((400, 20), (20, 60)):
        found = partition_isotropy(normal(*shape, seed=5))
        assert found.control_lo <= found.value * 1.2
        assert found.value <= found.control_hi * 1.2
        shifted = partition_isotropy(normal(*shape, seed=5) + 2)
        assert shifted.value < 0.1 * shifted.control_lo
    assert math.isnan(partition_isotropy(normal(9, 3), draws=0).control)


def test_isoscore_star_is_isoscore_of_the_mixed_covariance() -> None:
    few, many = torch.cov(normal(5, 8).T), torch.cov(normal(300, 8, seed=1).T)
    for zeta in (0.0, 0.3, 1.0):
        mixed = torch.linalg.eigvalsh((1 - zeta) * few + zeta * many)
        assert isoscore_star(few, many, (5, 300), zeta).score.value == pytest.approx(published(mixed), rel=1e-9)
    assert isoscore_star(few, many, (1, 300), 0.5).score.undefined == "there are too few rows: 1"
    with pytest.raises(Refusal, match="a shrinkage of 2"):
        isoscore_star(few, many, (5, 300), 2.0)


def test_isoscore_star_of_few_rows_is_stable_and_its_control_and_correction_hold() -> None:
    """12 rows of 30 dimensions beside 200: a true spectrum that slopes, and one that is flat, averaged over 100 draws."""
    for spectrum in (torch.ones(30, dtype=torch.float64), torch.linspace(0.2, 4, 30, dtype=torch.float64)):
        truth, found, alone = isoscore(spectrum, MANY).score.value, [], []
        for seed in range(100):
            few, many = (torch.cov((normal(n, 30, seed=s) * spectrum.sqrt()).T) for n, s in ((12, seed), (200, 1000 + seed)))
            found.append(isoscore_star(few, many, (12, 200), 0.5))
            alone.append(isoscore_star(few, many, (12, 200), 0.0).score.value)
        assert np.mean([each.corrected for each in found]) == pytest.approx(truth, rel=0.03)
        assert np.mean(alone) < 0.7 * np.mean([each.score.value for each in found])
        if spectrum[0] == 1:
            assert np.mean([each.score.value for each in found]) == pytest.approx(found[0].score.control, rel=0.01)


def test_massive_coordinates_pass_both_thresholds() -> None:
    largest = torch.tensor([3000.0, -2500.0, 90.0, 150.0])
    found = massive_coordinates(largest, 0.1)
    assert found.coordinates == (0, 1, 3)
    assert found.threshold == pytest.approx(100)
    assert massive_coordinates(largest, 2.6).coordinates == (0,)
    assert massive_coordinates(largest, 2.6).threshold == pytest.approx(2600)
    assert massive_coordinates(largest, 0.05).coordinates == (0, 1, 3)  # 90 is 1800 medians, and not over 100
    assert found.ratio.tolist() == pytest.approx([30000, 25000, 900, 1500])
    with pytest.raises(Refusal, match="median magnitude of nan"):
        massive_coordinates(largest, math.nan)


def test_sinks_are_found_at_any_position() -> None:
    norms = torch.ones(64)
    norms[0], norms[17], norms[40] = 30.0, 3.3, 2.9
    assert sinks(norms) == (0, 17)


def test_concentration_in_one_outlier() -> None:
    pos = torch.zeros(4, 3)
    pos[0] = torch.tensor([0.0, -9.0, 0.0])
    pos[1:] = torch.tensor([1.0, 3.0, 0.0])
    found = concentration(pos, torch.tensor([2, 2, 2, 2]))
    assert (found.position, found.coordinate) == (0, 1)
    assert found.position_share.value == pytest.approx(81 / 111)
    assert found.coordinate_share.value == pytest.approx(108 / 111)
    assert (found.position_share.control, found.coordinate_share.control) == pytest.approx((1 / 4, 1 / 3))
    weighted = concentration(pos, torch.tensor([0, 1, 1, 2]))
    assert (weighted.position, weighted.position_share.value) == (3, pytest.approx(0.5))
    assert concentration(torch.zeros(4, 3), torch.ones(4, dtype=torch.int64)).position_share.undefined


def test_concentration_across_halves_is_not_fooled_by_noise() -> None:
    """Noise is loud in one position: one half sees a concentration there, products of two halves see the truth on average."""
    loud = torch.ones(30, 1, dtype=torch.float64)
    loud[5] = 8.0
    signal = normal(30, 1, seed=7).expand(30, 40) * 2
    truth = float(signal[5].square().sum() / signal.square().sum())
    counts = torch.ones(30, dtype=torch.int64)
    halves = [(signal + loud * normal(30, 40, seed=s), signal + loud * normal(30, 40, seed=900 + s)) for s in range(60)]
    alone = [float((one[5] ** 2).sum() / (one**2).sum()) for one, _ in halves]
    assert np.mean(alone) > 2 * truth
    agreed = [one * other for one, other in halves]
    together = torch.stack(agreed).mean(0)
    assert float(together[5].sum() / together.sum()) == pytest.approx(truth, abs=0.04)
    found = concentration(halves[0][0], counts, halves[0][1])
    assert found.position_share.value == pytest.approx(float((agreed[0].sum(1) / agreed[0].sum()).max()))


def test_few_contexts_have_a_mean_cosine_and_no_interval() -> None:
    rows = normal(60, 5) + 0.5
    for contexts in (2, 3, 7):
        found = mean_cosine(rows, torch.arange(60) % contexts)
        assert found.value == found.value
        assert (found.lo, found.hi) == (pytest.approx(float("nan"), nan_ok=True), pytest.approx(float("nan"), nan_ok=True))
    found = mean_cosine(rows, torch.arange(60) % 8)
    assert found.lo < found.value < found.hi
