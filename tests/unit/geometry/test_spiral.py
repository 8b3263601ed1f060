"""The curve of positions: planted spirals and circles, orders at random, noise, and what cannot be a curve."""

import math

import pytest
import torch

from microtome.core import Refusal
from microtome.geometry.halves import Halves, centred
from microtome.geometry.spiral import curve, spiral
from tests.unit.geometry.simulated import observe, smooth

NAMES = ("angle_r2", "turns", "monotonicity", "arc_chord")


def winding(turns, tokens=80, width=30, opening=0.0, rise=0.2, seed=0):
    """A helix of this many turns in a random three-dimensional space; its radius grows from 1 to 1 + opening."""
    place = torch.linspace(0, 1, tokens, dtype=torch.float64)
    radius, angle = 1 + opening * place, 2 * math.pi * turns * place
    points = torch.stack([radius * angle.cos(), radius * angle.sin(), rise * place], 1)
    generator = torch.Generator().manual_seed(seed)
    frame = torch.linalg.qr(torch.randn(width, 3, generator=generator, dtype=torch.float64))[0]
    return points @ frame.T


@pytest.mark.parametrize("turns", [1, 2, 5])
def test_a_helix_has_its_turns_and_an_even_angle(turns) -> None:
    found = spiral(winding(turns))
    assert found.turns.value == pytest.approx(turns, rel=0.03)
    assert found.angle_r2.value == pytest.approx(1, abs=0.01)
    assert found.angle_r2.p == pytest.approx(1 / 201)
    assert found.arc_chord.p == pytest.approx(1 / 201)
    assert found.undefined == ""


def test_the_radius_of_an_opening_spiral_grows() -> None:
    opening, closing = spiral(winding(4, opening=2.0)), spiral(winding(4, opening=2.0).flip(0))
    assert opening.monotonicity.value > 0.8
    assert closing.monotonicity.value == pytest.approx(-opening.monotonicity.value)
    assert opening.monotonicity.p == pytest.approx(2 / 201)
    assert -0.1 < opening.monotonicity.control < 0.1


def test_numbers_of_a_quarter_circle_by_hand() -> None:
    """(1, 0), (1, 1) / sqrt 2, (0, 1): a quarter of a turn in two equal steps; radii tie."""
    half = 2**-0.5
    points = torch.tensor([[[1.0, 0.0, 0.0], [half, half, 0.0], [0.0, 1.0, 0.0]]], dtype=torch.float64)
    found = {name: float(value) for name, value in curve(points).items()}
    assert found["turns"] == pytest.approx(0.25)
    assert found["angle_r2"] == pytest.approx(1)
    assert found["arc_chord"] == pytest.approx(2 * 2 * math.sin(math.pi / 8) / 2**0.5)


def test_radii_are_compared_by_rank() -> None:
    """Radii 1, 8, 27 grow; 1, 27, 8 have Spearman correlation 1/2."""
    angles = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    for radii, expected in (([1.0, 8.0, 27.0], 1.0), ([1.0, 27.0, 8.0], 0.5)):
        radius = torch.tensor(radii, dtype=torch.float64)
        points = torch.stack([radius * angles.cos(), radius * angles.sin()], 1)[None]
        assert float(curve(points)["monotonicity"]) == pytest.approx(expected)


def test_a_batch_of_curves_is_each_of_them() -> None:
    points = torch.randn(6, 15, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    together = curve(points)
    for row in range(6):
        for name, value in curve(points[row : row + 1]).items():
            assert float(value) == pytest.approx(float(together[name][row]))


def test_axes_are_singular_vectors_with_a_sign_that_flips_of_the_data_leave() -> None:
    pos = winding(2, opening=1.0)
    found, flipped = spiral(pos), spiral(-pos)
    assert torch.allclose(found.axes.T @ found.axes, torch.eye(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(found.coordinates, centred(pos) @ found.axes)
    lengths = found.coordinates.norm(dim=0)
    assert torch.allclose(lengths, torch.linalg.svdvals(centred(pos))[:3], atol=1e-9)
    largest = found.axes.gather(0, found.axes.abs().argmax(0)[None])
    assert bool((largest > 0).all())
    assert torch.allclose(flipped.axes, found.axes, atol=1e-9)
    assert flipped.turns.value == pytest.approx(found.turns.value)


def test_controls_keep_the_cloud_and_lose_the_curve() -> None:
    """The shuffled curve has the ends of the other, as the draws have."""
    pos = winding(3)
    inside = 1 + torch.randperm(78, generator=torch.Generator().manual_seed(5))
    shuffled = pos[torch.cat([torch.tensor([0]), inside, torch.tensor([79])])]
    found, other = spiral(pos), spiral(shuffled)
    assert torch.allclose(found.coordinates.square().sum(0), other.coordinates.square().sum(0))
    assert found.arc_chord.value < other.arc_chord.control_lo
    assert other.arc_chord.p > 0.01
    assert other.angle_r2.p > 0.01
    for name in NAMES:
        one, two = getattr(found, name), getattr(other, name)
        assert one.control_lo < one.control < one.control_hi
        assert one.control_lo < two.control < one.control_hi


def test_an_angle_at_random_fits_a_line_well_by_chance() -> None:
    """Why R^2 needs its control: an unwrapped angle in random order is a random walk."""
    assert spiral(winding(3)).angle_r2.control > 0.25


def test_noise_is_no_spiral() -> None:
    pos, halves, _ = observe(torch.zeros(63, 96, dtype=torch.float64), 100, seed=0)
    found = spiral(pos, halves)
    assert max(abs(each) for each in found.agreement) < 0.3
    assert min(getattr(found, name).p for name in NAMES) > 0.01
    assert set(found.noise) == set(NAMES)


def test_smooth_noise_makes_a_curve_that_halves_do_not_share() -> None:
    pos, halves, _ = observe(torch.zeros(63, 96, dtype=torch.float64), 100, seed=3, carry=0.9)
    found = spiral(pos, halves)
    assert found.arc_chord.p == pytest.approx(1 / 201)
    assert found.noise["arc_chord"] < found.arc_chord.control_lo
    assert max(abs(each) for each in found.agreement) < 0.6
    real = spiral(*observe(smooth(63, 96, 3), 100, seed=3, carry=0.9)[:2])
    assert min(real.agreement[:2]) > 0.8


def test_an_effect_is_the_same_curve_in_both_halves() -> None:
    pos, halves, _ = observe(2 * smooth(63, 96, 4), 100, seed=5)
    assert min(spiral(pos, halves).agreement) > 0.95


@pytest.mark.parametrize(
    ("pos", "why"),
    [
        pytest.param(torch.randn(3, 8), "a curve needs at least 4 positions, here are 3", id="few"),
        pytest.param(torch.ones(9, 8), "all positions have the same mean", id="none"),
        pytest.param(torch.arange(9.0)[:, None] * torch.ones(8), "position vectors lie on a line", id="line"),
        pytest.param(torch.randn(9, 1), "position vectors lie on a line", id="one coordinate"),
    ],
)
def test_what_is_no_curve_says_why(pos, why) -> None:
    found = spiral(pos, Halves(pos, pos))
    assert found.undefined == why
    for name in NAMES:
        assert math.isnan(getattr(found, name).value)
        assert getattr(found, name).undefined == why
    assert found.coordinates.shape[0] == len(pos)
    assert found.noise == {}


def test_a_plane_has_two_axes() -> None:
    found = spiral(winding(2)[:, :2].clone())
    assert found.axes.shape == (2, 2)
    assert not math.isnan(found.turns.value)


def test_too_few_draws_are_refused() -> None:
    with pytest.raises(Refusal, match="a control of 20 draws"):
        spiral(winding(1), draws=20)
