"""Two halves: what cancels, what the test of an effect says of noise, and what is refused."""

import math

import pytest
import torch

from microtome.core import Refusal
from microtome.geometry.halves import Halves, centred, cross_gram, effect, indistinct, noise, widening
from microtome.geometry.measured import Measured
from microtome.geometry.shuffles import orders
from tests.unit.geometry.simulated import observe, smooth


def test_a_cross_validated_gram_by_hand() -> None:
    """Centred halves (-1, 1) and (-2, 2): products 2 on the diagonal, -2 beside it."""
    halves = Halves(torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [5.0]]))
    assert cross_gram(halves).tolist() == [[2, -2], [-2, 2]]
    assert noise(halves).tolist() == [[0.5], [-0.5]]


def test_a_cross_validated_gram_is_symmetric_and_blind_to_an_offset() -> None:
    _, halves, _ = observe(smooth(20, 30, 3), 10, seed=0)
    gram = cross_gram(halves)
    assert torch.equal(gram, gram.T)
    moved = Halves(halves.first + 7, halves.second - torch.arange(30))
    assert torch.allclose(cross_gram(moved), gram, atol=1e-9)
    assert gram.sum(0).abs().max() < 1e-12


def test_the_mean_of_cross_validated_grams_is_the_gram_of_the_truth() -> None:
    """60 repetitions: off the truth by chance only, whereas P P' has the noise on its diagonal."""
    truth = smooth(16, 12, 2)
    runs = [observe(truth, 8, seed=seed) for seed in range(60)]
    crossed = torch.stack([cross_gram(halves) for _, halves, _ in runs])
    plain = torch.stack([pos @ pos.T for pos, _, _ in runs])
    error = crossed.std(0) / 60**0.5
    assert ((crossed.mean(0) - truth @ truth.T).abs() / error).max() < 4.5
    bias = (plain.mean(0) - truth @ truth.T).diagonal()
    assert float(bias.mean()) == pytest.approx(12 / 8 * 15 / 16, rel=0.03)


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_the_noise_of_unequal_halves_is_that_of_the_whole(share) -> None:
    windows = 50
    states = torch.randn(windows, 40, 60, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    cut = round(share * windows)
    halves = Halves(states[:cut].mean(0), states[cut:].mean(0), share)
    whole = centred(states.mean(0))
    assert torch.allclose(share * centred(halves.first) + (1 - share) * centred(halves.second), whole)
    assert float(noise(halves).square().sum()) == pytest.approx(float(whole.square().sum()), rel=0.06)


def test_the_energy_of_a_weak_effect_is_unbiased_and_found() -> None:
    found = effect(observe(0.41 * smooth(63, 96, 4), 100, seed=3)[1])
    assert found.value == pytest.approx(0.168, abs=0.06)
    assert found.p == pytest.approx(1 / 1001)
    assert abs(found.control) < 0.01
    assert indistinct(found) == ""


@pytest.mark.parametrize(("scale", "carry"), [(1.0, 0.0), ((1.0 + torch.arange(24)) ** -0.7, 0.0), (1.0, 0.7)])
def test_noise_is_called_an_effect_about_as_often_as_the_level_says(scale, carry) -> None:
    """200 data sets without an effect, level 0.05: white, with coordinates of very unequal size, with neighbours correlated."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(2, 200, 40, 24, generator=generator, dtype=torch.float64)
    for t in range(1, 40):
        drawn[:, :, t] = carry * drawn[:, :, t - 1] + (1 - carry**2) ** 0.5 * drawn[:, :, t]
    called = sum(not indistinct(effect(Halves(*pair), draws=200)) for pair in (scale * drawn).transpose(0, 1))
    assert 2 <= called <= 21


@pytest.mark.parametrize("carry", [0.0, 0.3, 0.7])
def test_the_null_is_widened_by_the_correlation_of_neighbours(carry) -> None:
    """Correlations carry^l: 1 + 2 sum carry^2l = (1 + carry^2) / (1 - carry^2), and that is how products of two halves scatter."""
    _, halves, _ = observe(torch.zeros(200, 60, dtype=torch.float64), 10, seed=1, carry=carry)
    assert widening(halves) == pytest.approx(((1 + carry**2) / (1 - carry**2)) ** 0.5, rel=0.04)
    drawn = torch.randn(2, 1500, 60, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for t in range(1, 60):
        drawn[:, :, t] = carry * drawn[:, :, t - 1] + (1 - carry**2) ** 0.5 * drawn[:, :, t]
    scatter = float((drawn[0] * drawn[1]).sum((1, 2)).std()) / (60 * 4) ** 0.5
    assert scatter == pytest.approx(((1 + carry**2) / (1 - carry**2)) ** 0.5, rel=0.08)


def test_what_is_not_distinguishable_says_so_with_its_p() -> None:
    assert indistinct(Measured(0.1, p=0.43)) == "the position effect is not distinguishable from 0 (p = 0.43)"
    assert indistinct(Measured(0.1, p=0.05)) == ""


def test_one_position_and_equal_positions_have_no_effect() -> None:
    one = effect(Halves(torch.ones(1, 3), torch.ones(1, 3)))
    assert math.isnan(one.value)
    assert indistinct(one) == "one position has no other to differ from"
    same = effect(Halves(torch.ones(5, 3), torch.ones(5, 3)))
    assert (same.value, same.p) == (0, 1)
    assert "not distinguishable" in indistinct(same)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda x: Halves(x, x, 1.0), "share of 1: a half is empty; give it more documents", id="share"),
        pytest.param(lambda x: centred(x / 0), "geometry of positions: the numbers contain NaN or infinity", id="infinite"),
        pytest.param(lambda x: centred(x[:0]), "the geometry of no position", id="empty"),
        pytest.param(lambda x: orders(4, 99, 0), "a control of 99 draws.*draw at least 100", id="draws"),
    ],
)
def test_refusals(make, message) -> None:
    with pytest.raises(Refusal, match=message):
        make(torch.ones(3, 4))


def test_orders_are_permutations_that_the_seed_decides() -> None:
    drawn = orders(7, 300, 1)
    assert torch.equal(drawn.sort(1).values, torch.arange(7).expand(300, 7))
    assert torch.equal(drawn, orders(7, 300, 1))
    assert not torch.equal(drawn, orders(7, 300, 2))
    assert float((drawn[:, 0] == 3).double().mean()) == pytest.approx(1 / 7, abs=0.08)
