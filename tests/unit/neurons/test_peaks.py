"""Peaked units: chosen in one half, ranked in the other; what selection alone makes is not found."""

import numpy as np
import pytest
import torch

from microtome.examples.detectors import q_values
from microtome.neurons.peaks import peaks_of
from microtome.numerics import Moments, moments


def of(rows: torch.Tensor) -> Moments:
    state = moments.init(rows.shape[1])
    moments.update(state, rows)
    return moments.result(state)


def spiked(seed: int, units: int, spikes: dict[int, float]) -> torch.Tensor:
    """Normal numbers, and one row at which some units are far out."""
    rows = torch.randn(500, units, generator=torch.Generator().manual_seed(seed))
    for unit, height in spikes.items():
        rows[7, unit] = height
    return rows


def test_p_is_the_rank_in_the_other_half() -> None:
    discover, confirm = of(spiked(0, 400, {3: 90.0, 9: 50.0})), of(spiked(1, 400, {3: 40.0, 20: 80.0}))
    found = peaks_of(discover, confirm)
    assert np.flatnonzero(found.tested).tolist() == [3, 9], "a two-hundredth of the units, by the discover half"
    assert found.p[3] == 2 / 400
    assert found.p[9] > 2 / 400
    assert found.kurtosis[3] == pytest.approx(float(confirm.kurtosis[3]))
    low, median, high = np.quantile(confirm.kurtosis.numpy(), [0.025, 0.5, 0.975])
    assert (found.low, found.median, found.high) == (low, median, high)


def test_equal_units_are_no_peaks() -> None:
    rows = torch.randn(50, 1, generator=torch.Generator().manual_seed(0)).expand(50, 300)
    found = peaks_of(of(rows), of(rows))
    assert found.p[found.tested].tolist() == [1.0]


def test_what_selection_makes_is_not_found() -> None:
    """Each half has outliers of its own at random units: the most peaked of one half are any units in the other."""
    generator = torch.Generator().manual_seed(2)
    p = []
    for seed in range(8):
        heights = [dict.fromkeys(torch.randperm(1000, generator=generator)[:100].tolist(), 30.0) for _ in range(2)]
        p.append(peaks_of(of(spiked(2 * seed, 1000, heights[0])), of(spiked(2 * seed + 1, 1000, heights[1]))).p)
    tested = np.concatenate(p)
    tested = tested[~np.isnan(tested)]
    assert len(tested) == 8 * 5
    assert min(float(np.nanmin(q)) for q in q_values(p)) > 0.05
    assert 0.3 < tested.mean() < 0.7


def test_what_repeats_is_found() -> None:
    lasting = dict.fromkeys(range(5), 60.0)
    found = peaks_of(of(spiked(0, 1000, lasting)), of(spiked(1, 1000, lasting)))
    assert np.flatnonzero(q_values([found.p])[0] <= 0.05).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("units", [1, 99])
def test_few_units_are_no_null(units: int) -> None:
    found = peaks_of(of(spiked(0, units, {0: 90.0})), of(spiked(1, units, {0: 90.0})))
    assert not found.tested.any()
    assert found.median == np.median(found.kurtosis)


def test_constant_units_and_empty_halves_are_not_tested() -> None:
    rows = spiked(0, 300, {1: 50.0})
    rows[:, 0] = 1.0
    assert np.flatnonzero(peaks_of(of(rows), of(rows)).tested).tolist() == [1]
    nothing = peaks_of(of(rows), of(rows[:0]))
    assert not nothing.tested.any()
    assert np.isnan([nothing.median, nothing.low, nothing.high]).all()
