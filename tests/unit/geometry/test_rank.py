"""Rank measures: by hand, against the published definitions, and on hidden states with no, a weak and a strong position effect."""

import math

import pytest
import torch

from microtome.core import Refusal
from microtome.geometry.halves import Halves, centred
from microtome.geometry.rank import (
    Position,
    effective_rank,
    explained,
    participation_ratio,
    position,
    relative_norm,
    stable_rank,
    states_norm,
)
from tests.unit.geometry.simulated import observe, smooth

TOKENS, WIDTH, WINDOWS = 63, 96, 100
NOTHING = torch.zeros(TOKENS, WIDTH, dtype=torch.float64)


def measured(effect, seed, **options) -> Position:
    pos, halves, second = observe(effect, WINDOWS, seed, **options)
    return position(pos, halves, norm=states_norm(second, TOKENS))


def test_measures_of_a_spectrum_by_hand() -> None:
    """4, 2, 2: squares 16, 4, 4; shares 1/2, 1/4, 1/4 with entropy 1.5 log 2."""
    values = torch.tensor([4.0, 2.0, 2.0])
    assert stable_rank(values.square()) == pytest.approx(24 / 16)
    assert effective_rank(values) == pytest.approx(2**1.5)
    assert participation_ratio(values.square()) == pytest.approx(24**2 / (256 + 16 + 16))
    assert explained(values, 1.0) == pytest.approx(4 / 8)
    assert explained(values.square(), 2.0) == pytest.approx(20 / 24)
    assert math.isnan(explained(values, math.nan))


@pytest.mark.parametrize("measure", [stable_rank, effective_rank, participation_ratio])
def test_ranks_count_equal_directions_at_any_scale_and_nothing_has_none(measure) -> None:
    for scale in (1e-6, 1.0, 1e6):
        assert measure(torch.tensor([scale] * 5 + [0.0] * 3)) == pytest.approx(5)
    assert math.isnan(measure(torch.zeros(4)))


def test_relative_norm_in_one_pass_is_that_of_the_stacked_matrices() -> None:
    """Written out: P once for every window, over all hidden states, spectral norms of both."""
    states = 3 + torch.randn(7, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pos = states.mean(0) - states.mean((0, 1))
    rows = states.reshape(35, 4)
    stacked = torch.linalg.svdvals(pos.repeat(7, 1))[0] / torch.linalg.svdvals(rows)[0]
    assert relative_norm(pos, states) == pytest.approx(float(stacked), rel=1e-12)
    one_pass = float(torch.linalg.svdvals(pos)[0]) / states_norm(rows.T @ rows / 35, 5)
    assert one_pass == pytest.approx(float(stacked), rel=1e-12)


def test_without_an_effect_naive_measures_read_the_noise_and_corrected_ones_zero() -> None:
    """Expected of the noise: energy width / windows, stable rank that of a white matrix, and no cut finds anything."""
    found = measured(NOTHING, seed=0)
    energy = WIDTH / WINDOWS * (TOKENS - 1) / TOKENS
    white = TOKENS * WIDTH / (TOKENS**0.5 + WIDTH**0.5) ** 2
    for ranks in (found.naive, found.noise):
        assert ranks is not None
        assert ranks.energy == pytest.approx(energy, abs=0.06)
        assert ranks.stable_rank == pytest.approx(white, rel=0.1)
        assert (ranks.screenot.rank, ranks.gavish_donoho.rank) == (0, 0)
        assert (ranks.undefined, ranks.clipped) == ("", 0)
    assert found.naive.parallel.rank == 0
    assert found.effect is not None
    assert found.corrected is not None
    assert found.corrected.energy == found.effect.value == pytest.approx(0, abs=0.08)
    assert found.corrected.parallel.rank == 0
    assert abs(found.corrected.top) < 0.2 * found.naive.top
    assert abs(found.corrected.relative_norm) < 0.2 * found.naive.relative_norm
    assert found.corrected.clipped == pytest.approx(0.5, abs=0.05)
    assert math.isnan(found.corrected.stable_rank)
    assert math.isnan(found.corrected.screenot.rank)
    assert found.corrected.undefined.startswith("the position effect is not distinguishable from 0 (p = 0.")


def test_corrected_energy_and_top_of_noise_are_zero_on_average() -> None:
    nothing = torch.zeros(16, 24, dtype=torch.float64)
    runs = [position(*observe(nothing, 20, seed)[:2]) for seed in range(40)]
    for values in (
        [each.corrected.energy for each in runs if each.corrected],
        [each.corrected.top for each in runs if each.corrected],
    ):
        drawn = torch.tensor(values)
        assert len(drawn) == 40
        assert abs(float(drawn.mean())) < 4 * float(drawn.std()) / 40**0.5
    assert min(each.naive.energy for each in runs) > 0.7


def test_a_weak_effect_is_inflated_in_naive_measures_only() -> None:
    """True energy .168 with 4 directions, below the noise's .945: shapes of P are those of noise."""
    effect = 0.41 * smooth(TOKENS, WIDTH, 4)
    found, truth = measured(effect, seed=4), torch.linalg.svdvals(effect).square()
    assert found.corrected is not None
    assert found.naive.energy == pytest.approx(0.168 + 0.945, abs=0.08)
    assert found.corrected.energy == pytest.approx(0.168, abs=0.06)
    assert found.corrected.undefined == ""
    assert found.naive.stable_rank > 10 > 2.08 == pytest.approx(stable_rank(truth), abs=0.01)
    assert found.corrected.stable_rank == pytest.approx(stable_rank(truth), rel=0.25)
    assert found.naive.participation_ratio > 30
    assert found.corrected.participation_ratio == pytest.approx(participation_ratio(truth), rel=0.35)
    assert found.corrected.top <= float(truth[0]) ** 0.5 <= found.naive.top


def test_a_strong_effect_has_its_planted_rank_by_every_rule() -> None:
    effect = 4 * smooth(TOKENS, WIDTH, 4)
    found, truth = measured(effect, seed=5), torch.linalg.svdvals(effect).square()
    assert found.corrected is not None
    for cut in (found.naive.screenot, found.naive.gavish_donoho, found.naive.parallel):
        assert cut.rank == 4
    assert (found.corrected.screenot.rank, found.corrected.parallel.rank) == (4, 4)
    assert found.corrected.gavish_donoho.undefined.startswith("the noise of a cross-validated Gram matrix")
    assert found.corrected.stable_rank == pytest.approx(stable_rank(truth), rel=0.03)
    assert found.corrected.participation_ratio == pytest.approx(participation_ratio(truth), rel=0.03)
    assert found.corrected.top == pytest.approx(float(truth[0]) ** 0.5, rel=0.02)
    assert found.corrected.explained > found.naive.explained
    assert found.corrected.explained_squares == pytest.approx(1, abs=0.02)
    assert effective_rank(truth.sqrt()) < found.corrected.effective_rank < found.naive.effective_rank


def test_noise_in_few_coordinates_fools_published_cuts_and_not_the_corrected_one() -> None:
    scale = 5 * (1.0 + torch.arange(WIDTH)) ** -0.7
    found = measured(NOTHING, seed=2, scale=scale)
    assert found.noise is not None
    assert found.corrected is not None
    assert min(found.naive.screenot.rank, found.naive.gavish_donoho.rank) > 3
    assert min(found.noise.screenot.rank, found.noise.gavish_donoho.rank) > 3
    assert found.corrected.parallel.rank == 0
    assert math.isnan(found.corrected.screenot.rank)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_nothing_but_sizes_depends_on_the_scale(scale) -> None:
    pos, halves, _ = observe(2 * smooth(30, 20, 3), 40, seed=6)
    one = position(pos, halves)
    other = position(scale * pos, Halves(scale * halves.first, scale * halves.second))
    for before, after in ((one.naive, other.naive), (one.corrected, other.corrected)):
        assert before is not None
        assert after is not None
        assert after.screenot.rank == before.screenot.rank
        assert after.parallel.rank == before.parallel.rank
        assert after.top == pytest.approx(scale * before.top, rel=1e-9)
        assert after.energy == pytest.approx(scale**2 * before.energy, rel=1e-9)
        assert after.effective_rank == pytest.approx(before.effective_rank, rel=1e-6)
        assert after.clipped == pytest.approx(before.clipped, abs=1e-9)


def test_an_offset_that_all_positions_share_changes_nothing() -> None:
    pos, halves, _ = observe(2 * smooth(30, 20, 3), 40, seed=7)
    one, other = position(pos, None).naive, position(pos + 50, None).naive
    assert other.stable_rank == pytest.approx(one.stable_rank, rel=1e-9)
    assert other.screenot.rank == one.screenot.rank


def test_the_seed_decides_the_draws() -> None:
    pos, halves, _ = observe(smooth(20, 12, 2), 30, seed=8)
    again = [position(pos, halves, seed=seed).naive.parallel for seed in (1, 1, 2)]
    assert again[0] == again[1]
    assert again[0].threshold != again[2].threshold


def test_without_halves_only_naive_measures_are_there() -> None:
    found = position(smooth(20, 12, 2), None)
    assert (found.corrected, found.noise, found.effect) == (None, None, None)
    assert (found.tokens, found.width, found.draws) == (20, 12, 100)
    assert found.naive.screenot.rank == 2
    assert math.isnan(found.naive.relative_norm)


@pytest.mark.parametrize(
    ("pos", "why"),
    [(torch.ones(1, 5), "there is one position"), (torch.ones(4, 5), "all positions have the same mean")],
)
def test_positions_that_do_not_differ_have_no_rank_and_say_why(pos, why) -> None:
    found = position(pos, Halves(pos, pos), norm=2.0)
    assert found.naive.undefined == found.naive.screenot.undefined == why
    assert (found.naive.energy, found.naive.top, found.naive.relative_norm) == (0, 0, 0)
    assert math.isnan(found.naive.stable_rank)
    assert found.corrected is not None
    assert found.corrected.undefined
    assert math.isnan(found.corrected.parallel.rank)


def test_two_positions_and_one_coordinate_are_measured() -> None:
    found = position(torch.tensor([[1.0], [4.0]]), Halves(torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [3.0]])))
    assert found.naive.energy == pytest.approx(4.5 / 2)
    assert found.naive.stable_rank == pytest.approx(1)
    assert "at least 4" in found.naive.screenot.undefined
    assert found.corrected is not None
    assert found.corrected.energy == pytest.approx(1)


def test_too_few_draws_are_refused() -> None:
    pos = centred(smooth(8, 4, 2))
    with pytest.raises(Refusal, match="a control of 10 draws: its interval and p-value would be coarse; draw at least 100"):
        position(pos, Halves(pos, pos), draws=10)
