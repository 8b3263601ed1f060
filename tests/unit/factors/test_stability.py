"""A dictionary is matched with itself in any order, with half of itself by half, and with chance by no more than chance; geometry is that of formulas."""

import itertools
import math

import pytest
import torch

from microtome.core import Refusal, Site
from microtome.factors.autoencoder import Autoencoder
from microtome.factors.coding import Greedy
from microtome.factors.dictionary import Above, Dictionary, Encoder
from microtome.factors.scaling import identity
from microtome.factors.stability import ALIKE, RANDOM, flat_directions, interference, matched, stability
from microtome.factors.training import Training, train
from microtome.factors.variants import TopK
from tests.unit.factors.planted_dictionaries import planted_dictionary, planted_states


def test_a_permuted_dictionary_is_the_same() -> None:
    phi = planted_dictionary(60, 16)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    found = matched(phi, 3 * phi[order])
    assert torch.equal(order[found.second], found.first)
    assert found.cosine.tolist() == pytest.approx([1.0] * 60, abs=1e-6)
    stats = stability(phi, phi[order])
    assert [stats[""][name].value for name in stats[""]] == pytest.approx([1, 1, 1, 1], abs=1e-6)


def test_the_match_is_the_best_of_all() -> None:
    one, other = planted_dictionary(6, 4, seed=2), planted_dictionary(6, 4, seed=3)
    best = max(sum(float(one[i] @ other[j]) for i, j in enumerate(order)) for order in itertools.permutations(range(6)))
    assert float(matched(one, other).cosine.sum()) == pytest.approx(best, abs=1e-5)


def test_half_a_dictionary_is_half_the_same() -> None:
    """In high dimension, where random directions are far from each other."""
    phi = planted_dictionary(80, 256)
    other = torch.cat([phi[:40], planted_dictionary(40, 256, seed=9)])
    stats = stability(phi, other)[""]
    assert stats["match_above_07"].value == 0.5
    assert stats["match_above_09"].value == 0.5


def test_directions_have_signs() -> None:
    phi = planted_dictionary(20, 64)
    assert stability(phi, -phi)[""]["match_above_07"].value == 0


def test_chance_is_what_the_controls_say() -> None:
    """Of directions in few of many dimensions random ones of the same covariance are near, and any are not."""
    turn = planted_dictionary(6, 64)
    one, other = (planted_dictionary(50, 6, seed=seed) @ turn for seed in (4, 5))
    stats = stability(one, other)
    own, any_, alike = (stats[kind]["match_cosine"].value for kind in ("", RANDOM, ALIKE))
    assert own == pytest.approx(alike, abs=0.06)
    assert any_ < own - 0.3


def test_two_trainings_on_planted_states_agree_and_random_directions_do_not() -> None:
    x = planted_states(256 * 300, units=48, d=32, k=3, noise=0.02).x

    def learnt(seed: int) -> torch.Tensor:
        batches = (rows[:, None] for rows in x.split(256))
        (trained,) = train([Autoencoder(TopK(3), 48, 32, seed=seed)], batches, Training(300, 256, rate=1e-2))
        return trained.autoencoder.directions.detach().flatten(1)

    stats = stability(learnt(0), learnt(1))
    assert stats[""]["match_above_09"].value > 0.7
    assert stats[RANDOM]["match_above_07"].value < 0.3
    assert stats[ALIKE]["match_above_09"].value < 0.1


def test_an_orthonormal_basis_has_no_interference() -> None:
    found = interference(torch.eye(12))[""]
    assert [found[name].value for name in ("max_cosine", "coherence", "babel")] == [0, 0, 0]
    assert found["effective_rank"].value == pytest.approx(12)


def test_interference_is_its_formula() -> None:
    """Two directions at 60 degrees, and one opposite to the first."""
    found = interference(torch.tensor([[2.0, 0.0], [0.5, 0.75**0.5], [-1.0, 0.0]]))[""]
    assert found["max_cosine"].value == pytest.approx((0.5 + 0.5 - 0.5) / 3, abs=1e-6)
    assert found["coherence"].value == pytest.approx(1)
    assert found["babel"].value == pytest.approx(1.5)
    s = torch.linalg.svdvals(torch.tensor([[1.0, 0.0], [0.5, 0.75**0.5], [-1.0, 0.0]]))
    p = s / s.sum()
    assert found["effective_rank"].value == pytest.approx(math.exp(-float((p * p.log()).sum())), rel=1e-5)


def test_crosscoders_are_compared_over_all_sites() -> None:
    sites = (Site("resid_pre", 0), Site("resid_pre", 1))
    directions = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1))
    coder = Encoder(torch.zeros(2, 3, 5), torch.zeros(5), Above(torch.zeros(5)))
    crosscoder = Dictionary("x", "crosscoder", sites, sites, coder, identity(2, 3), directions, torch.zeros(2, 3))
    flat = flat_directions(crosscoder)
    assert flat.shape == (5, 6)
    assert torch.allclose(flat[2] * directions[:, 2].norm(), directions[:, 2].flatten())
    shared = Dictionary("s", "shared", sites, sites, Greedy(1), identity(2, 3), directions[:1], torch.zeros(1, 3))
    assert flat_directions(shared, torch.tensor([True, False, True, False, False])).shape == (2, 3)


def test_what_cannot_be_matched_is_refused() -> None:
    with pytest.raises(Refusal, match="2 of 3 numbers"):
        matched(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(Refusal, match="1 direction"):
        interference(torch.ones(1, 3))
