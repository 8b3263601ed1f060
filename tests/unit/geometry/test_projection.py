"""Maps: a plane is mapped without loss, a random map is as trustworthy as its formula says, and poor maps say so."""

import math

import numpy as np
import pytest
import torch

from microtome.core import Refusal
from microtome.geometry.projection import context_map, random_trustworthiness


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_directions_in_a_plane_are_mapped_as_they_are() -> None:
    angle = torch.rand(60, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 * math.pi
    frame = torch.linalg.qr(normal(9, 9))[0][:2]
    x = torch.rand(60, 1, dtype=torch.float64).add(1) * torch.stack([angle.cos(), angle.sin()], 1) @ frame
    found = context_map(x)
    assert found.explained == pytest.approx(1)
    assert found.trustworthiness.value == pytest.approx(1)
    chords = torch.cdist(torch.nn.functional.normalize(x, dim=1), torch.nn.functional.normalize(x, dim=1))
    assert torch.allclose(torch.cdist(found.points, found.points), chords, atol=1e-6)


@pytest.mark.parametrize(("n", "k"), [(30, 5), (80, 10)])
def test_random_maps_have_the_expected_trustworthiness(n: int, k: int) -> None:
    from sklearn.manifold import trustworthiness

    drawn = [
        trustworthiness(normal(n, 6, seed=s).numpy(), normal(n, 2, seed=900 + s).numpy(), n_neighbors=k) for s in range(60)
    ]
    assert random_trustworthiness(n, k) == pytest.approx(np.mean(drawn), abs=4 * float(np.std(drawn)) / 60**0.5)


def test_a_cloud_in_many_dimensions_has_no_good_map() -> None:
    found = context_map(normal(120, 60))
    assert found.explained < 0.15
    assert 0.5 < found.trustworthiness.value < 0.8
    assert found.trustworthiness.control == random_trustworthiness(120, 10)


def test_neighbour_embedding_keeps_planted_groups() -> None:
    group = torch.arange(90) % 6
    x = 3 * normal(6, 40)[group] + normal(90, 40, seed=1)
    flat, found = context_map(x), context_map(x, "tsne", seed=1)
    assert found.trustworthiness.value > max(flat.trustworthiness.value, 0.85)
    assert math.isnan(found.explained)
    nearest = torch.cdist(found.points, found.points).fill_diagonal_(math.inf).argmin(1)
    assert float((group[nearest] == group).double().mean()) > 0.95
    assert torch.equal(found.points, context_map(x, "tsne", seed=1).points)


def test_maps_do_not_depend_on_the_sign_of_singular_vectors() -> None:
    x = normal(40, 5)
    turned = context_map(x @ torch.linalg.qr(normal(5, 5, seed=3))[0])
    assert torch.allclose(turned.points, context_map(x).points, atol=1e-9)
    assert bool((turned.points.amax(0) == turned.points.abs().amax(0)).all())


def test_what_cannot_be_mapped_says_so() -> None:
    with pytest.raises(Refusal, match="a map of 2 windows: two points have no arrangement; add windows"):
        context_map(normal(2, 4))
    with pytest.raises(Refusal, match="NaN"):
        context_map(normal(20, 4) * math.nan)
    assert context_map(normal(15, 4)).trustworthiness.undefined == "10 neighbours of 15 windows: fewer than half are needed"
    flat = context_map(torch.ones(30, 4), "tsne")
    assert flat.trustworthiness.undefined == "the context parts all have the same direction"
    assert context_map(normal(30, 1)).points.shape == (30, 2)
