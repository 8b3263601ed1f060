"""Frequencies of a Gram matrix: against written-out cosines, planted curves, random orders, and the bound that smoothness gives."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from microtome.core import Refusal
from microtome.geometry.halves import Halves, centred
from microtome.geometry.smoothness import (
    MODES,
    cosine_gram,
    cosines,
    low_frequency_error,
    roughness,
    smoothness,
    transform,
)
from tests.unit.geometry.simulated import observe, smooth

NOTHING = torch.zeros(63, 96, dtype=torch.float64)


def written_out(tokens):
    """The orthonormal cosine vectors, one by one."""
    columns = []
    for k in range(tokens):
        vector = torch.tensor([math.cos(math.pi * k * (t + 0.5) / tokens) for t in range(tokens)], dtype=torch.float64)
        columns.append(vector / vector.norm())
    return torch.stack(columns, 1)


def random(tokens, width, seed=0):
    return centred(torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


@pytest.mark.parametrize("tokens", [1, 2, 7, 12])
def test_the_transform_is_that_of_written_out_cosines(tokens) -> None:
    phi, pos = written_out(tokens), random(tokens, 5)
    assert torch.allclose(cosines(tokens, tokens), phi, atol=1e-12)
    assert torch.allclose(transform(pos @ pos.T), phi.T @ (pos @ pos.T) @ phi, atol=1e-10)
    assert torch.allclose(cosines(tokens, 1), phi[:, :1], atol=1e-12)


def test_measures_of_a_random_part_are_those_of_their_definitions() -> None:
    pos = random(24, 9)
    found, phi = smoothness(pos, None).naive, written_out(24)
    coefficients = phi.T @ pos
    hat = coefficients @ coefficients.T
    energy = coefficients.square().sum(1)
    for modes in MODES:
        assert found.lf[modes].value == pytest.approx(float(hat[:modes, :modes].square().sum() / hat.square().sum()))
        assert found.lfe[modes].value == pytest.approx(float(energy[:modes].sum() / pos.square().sum()))
    reached = energy.cumsum(0) / energy.sum()
    assert found.k90 == 1 + int((reached < 0.9).sum())
    assert found.k99 == 1 + int((reached < 0.99).sum())
    assert found.roughness.value == pytest.approx(float(pos.diff(dim=0).square().sum() / pos.square().sum()))
    assert found.centroid.value == pytest.approx(float((energy * torch.arange(24)).sum() / energy.sum()))
    assert torch.allclose(found.block, hat[:10, :10], atol=1e-10)
    assert found.block[0].abs().max() < 1e-10


def test_one_frequency_is_found_where_it_was_planted() -> None:
    """pos_t = phi_6(t) v: nothing in the lowest 5, everything in the lowest 10."""
    found = smoothness(written_out(40)[:, 6:7] * torch.tensor([3.0, 4.0]), None).naive
    assert [round(found.lf[modes].value, 9) for modes in MODES] == [0, 0, 1, 1]
    assert (found.k90, found.k99) == (7, 7)
    assert found.centroid.value == pytest.approx(6)
    assert float(found.block[6, 6]) == pytest.approx(25)


def test_controls_are_the_measures_of_reordered_positions() -> None:
    """Means over all orders are known: (K - 1) / (token - 1), 2 and token / 2; the spectrum is the same in every order."""
    pos = smooth(40, 12, 3)
    found = smoothness(pos, None, draws=400).naive
    for modes in MODES:
        share = found.lfe[modes]
        assert share.control == pytest.approx((modes - 1) / 39)
        assert share.control_lo < share.control < share.control_hi
        assert share.p == pytest.approx(1 / 401)
        assert found.lf[modes].p == pytest.approx(1 / 401)
    assert found.roughness.control == 2
    assert found.roughness.control_lo < 2 < found.roughness.control_hi
    assert found.roughness.p == pytest.approx(1 / 401)
    assert found.centroid.control == 20


def test_the_interval_of_a_control_holds_what_reordered_positions_give() -> None:
    pos = smooth(40, 12, 3)
    found = smoothness(pos, None, draws=400, seed=1).naive
    generator = torch.Generator().manual_seed(9)
    inside = {"lf": 0, "lfe": 0, "roughness": 0}
    for _ in range(100):
        other = smoothness(pos[torch.randperm(40, generator=generator)], None, draws=100).naive
        pairs = {
            "lf": (found.lf[5], other.lf[5]),
            "lfe": (found.lfe[5], other.lfe[5]),
            "roughness": (found.roughness, other.roughness),
        }
        for name, (control, one) in pairs.items():
            inside[name] += control.control_lo <= one.value <= control.control_hi
    assert all(88 <= count <= 100 for count in inside.values()), inside


def test_without_an_effect_nothing_is_smooth() -> None:
    pos, halves, _ = observe(NOTHING, 100, seed=0)
    found = smoothness(pos, halves)
    assert found.noise is not None
    assert found.corrected is not None
    for each in (found.naive, found.noise):
        assert each.roughness.value == pytest.approx(2, abs=0.08)
        assert each.lfe[10].value == pytest.approx(9 / 62, abs=0.02)
        assert each.centroid.value == pytest.approx(31.5, abs=1)
    assert min(found.naive.roughness.p, *(found.naive.lf[modes].p for modes in MODES)) > 0.02
    assert found.corrected.undefined.startswith("the position effect is not distinguishable from 0")
    assert found.corrected.lf[5].undefined == found.corrected.undefined
    assert math.isnan(found.corrected.roughness.value)
    assert math.isnan(found.corrected.k90)


def test_smooth_noise_looks_smooth_and_is_told_apart_by_the_halves() -> None:
    """Neighbouring positions share noise: far from any random order, and still no effect of position."""
    pos, halves, _ = observe(NOTHING, 100, seed=3, carry=0.5)
    found = smoothness(pos, halves)
    assert found.noise is not None
    assert found.corrected is not None
    assert found.naive.roughness.p == pytest.approx(1 / 201)
    assert found.noise.roughness.value == pytest.approx(found.naive.roughness.value, abs=0.1)
    assert found.corrected.undefined


def test_a_weak_smooth_effect_is_seen_through_its_noise() -> None:
    pos, halves, _ = observe(0.41 * smooth(63, 96, 4), 100, seed=4)
    truth = smoothness(smooth(63, 96, 4), None).naive
    found = smoothness(pos, halves)
    assert found.corrected is not None
    assert found.effect is not None
    assert found.effect.p < 0.01
    assert truth.lfe[5].value == pytest.approx(1)
    assert found.naive.lfe[5].value < 0.3
    assert found.corrected.lfe[5].value == pytest.approx(1, abs=0.3)
    assert found.naive.lf[5].value < 0.5
    assert found.corrected.lf[5].value == pytest.approx(1, abs=0.25)
    assert found.corrected.roughness.value < 0.7 < 1.5 < found.naive.roughness.value
    assert found.corrected.k90 < found.naive.k90
    assert found.corrected.lfe[5].p < 0.01


def test_frequencies_do_not_depend_on_scale_or_offset() -> None:
    pos, halves, _ = observe(smooth(30, 20, 3), 40, seed=6)
    one = smoothness(pos, halves)
    other = smoothness(1e-6 * pos + 3, Halves(1e-6 * halves.first, 1e-6 * halves.second))
    for before, after in ((one.naive, other.naive), (one.corrected, other.corrected)):
        assert before is not None
        assert after is not None
        assert after.lf[5].value == pytest.approx(before.lf[5].value, rel=1e-6)
        assert after.roughness.value == pytest.approx(before.roughness.value, rel=1e-6)
        assert (after.k90, after.k99) == (before.k90, before.k99)
    assert torch.allclose(other.cosine_block, one.cosine_block, atol=1e-6)


def test_the_cosine_gram_has_the_trace_of_the_figure() -> None:
    gram = cosine_gram(random(15, 6) * torch.arange(1, 16)[:, None])
    assert torch.allclose(gram.diagonal(), torch.ones(15, dtype=torch.float64))
    assert float(transform(gram).trace()) == pytest.approx(15)
    still = cosine_gram(torch.tensor([[1.0], [-1.0], [0.0]]))
    assert still[2].tolist() == [0, 0, 0]


def test_roughness_by_hand() -> None:
    """-1, 1, -1, 1: three steps of 2 over a sum of squares of 4; a straight line -1, 0, 1: two steps of 1 over 2."""
    zigzag, line = torch.tensor([[-1.0], [1.0], [-1.0], [1.0]]), torch.tensor([[-1.0], [0.0], [1.0]])
    assert roughness(zigzag @ zigzag.T) == pytest.approx(3)
    assert roughness(line @ line.T) == pytest.approx(1)


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(2, 20),
    width=st.integers(1, 6),
    modes=st.integers(1, 20),
    order=st.integers(1, 2),
    seed=st.integers(0, 10**6),
    power=st.floats(0, 3),
)
def test_a_smooth_gram_is_low_frequency_by_the_bound(tokens, width, modes, order, seed, power) -> None:
    """For smooth, rough and white parts alike (`power` is the decay of their frequencies)."""
    weights = (1.0 + torch.arange(tokens, dtype=torch.float64)) ** -power
    pos = centred(written_out(tokens) @ (weights[:, None] * random(tokens, width, seed)))
    error, bound, largest = low_frequency_error(pos @ pos.T, min(modes, tokens), order)
    assert error <= bound * (1 + 1e-9) + 1e-12
    assert bound <= largest * (1 + 1e-9)


def test_the_bound_is_met_within_a_factor_by_the_lowest_frequency_it_discards() -> None:
    """G = phi_1 phi_1' + phi_5 phi_5', 4 kept: the error is the second term, 1 / token; the bound sees both."""
    phi = written_out(30)[:, [1, 5]]
    error, bound, _ = low_frequency_error(phi @ phi.T, 5, 1)
    assert error == pytest.approx(1 / 30)
    assert error < bound < 20 * error
    assert low_frequency_error(phi @ phi.T, 6, 1)[0] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("modes", "order"), [(0, 1), (1, 0)])
def test_a_bound_of_nothing_is_refused(modes, order) -> None:
    with pytest.raises(Refusal, match=f"a bound of order {order} for {modes} frequencies: both are at least 1"):
        low_frequency_error(torch.eye(4, dtype=torch.float64), modes, order)


@pytest.mark.parametrize(
    ("pos", "why"),
    [(torch.ones(1, 5), "there is one position"), (torch.ones(4, 5), "all positions have the same mean")],
)
def test_positions_that_do_not_differ_have_no_frequency_and_say_why(pos, why) -> None:
    found = smoothness(pos, Halves(pos, pos))
    assert found.naive.undefined == found.naive.roughness.undefined == found.naive.lf[3].undefined == why
    assert math.isnan(found.naive.k99)
    assert found.corrected is not None
    assert found.corrected.undefined


def test_shares_of_all_frequencies_are_undefined() -> None:
    found = smoothness(random(8, 5), None).naive
    assert not math.isnan(found.lf[5].value)
    assert found.lf[10].undefined == found.lfe[20].undefined == "8 positions have no more than 8 frequencies"
    assert math.isnan(found.lfe[10].value)
    assert found.block.shape == (8, 8)


def test_without_halves_there_is_only_the_naive_part() -> None:
    found = smoothness(smooth(20, 12, 2), None)
    assert (found.corrected, found.noise, found.effect) == (None, None, None)
    assert (found.tokens, found.draws) == (20, 200)
