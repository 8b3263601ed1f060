"""Points in the plane: components by their definition, layouts of groups, and quality by its formula, one way and the other."""

import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from microtome.numerics import plane
from microtome.numerics.plane import (
    Layout,
    available,
    laid_out,
    neighbourhoods,
    principal_coordinates,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("width", [1, 2, 9, 40])
def test_principal_coordinates_are_those_of_another_implementation_but_for_signs(width: int) -> None:
    x = normal(25, width) * torch.linspace(3, 1, width, dtype=torch.float64)
    found, sizes = principal_coordinates(x)
    wanted = torch.from_numpy(PCA().fit_transform(x.numpy()))
    assert found.shape == (25, max(2, min(25, width)))
    strong = wanted[:, : min(24, width)]
    assert torch.allclose(found[:, : strong.shape[1]].abs(), strong.abs(), atol=1e-8)
    assert torch.allclose(sizes[: strong.shape[1]], strong.norm(dim=0), atol=1e-8)
    assert bool((found.amax(0) == found.abs().amax(0)).all()), "the largest coordinate is positive"


def test_without_a_search_places_are_the_first_two_coordinates() -> None:
    coordinates, _ = principal_coordinates(normal(30, 7))
    assert torch.equal(laid_out(coordinates, "principal components", seed=4), coordinates[:, :2])


@pytest.mark.parametrize("layout", [each for each in available() if each != "principal components"])
def test_planted_groups_stay_together_and_a_layout_is_the_same_again(layout: Layout) -> None:
    owner = torch.arange(60) % 4
    x = 3 * normal(4, 60)[owner] + 0.5 * normal(60, 60, seed=1)
    coordinates, _ = principal_coordinates(x)
    points = laid_out(coordinates, layout, perplexity=10.0, seed=2)
    near = torch.cdist(points, points).fill_diagonal_(torch.inf).argmin(1)
    assert torch.equal(owner[near], owner)
    assert torch.equal(laid_out(coordinates, layout, perplexity=10.0, seed=2), points)


def test_what_is_not_installed_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plane, "find_spec", lambda name: None)
    assert available() == ("principal components", "t-SNE")


def _by_the_formula(high: Tensor, low: Tensor, k: int) -> float:
    n = len(high)
    rank = torch.cdist(high, high).fill_diagonal_(-1).argsort(1).argsort(1)
    near = torch.cdist(low, low).fill_diagonal_(torch.inf).topk(k, largest=False).indices
    total = sum(max(0, int(rank[i, j]) - k) for i in range(n) for j in near[i].tolist())
    return 1 - 2 / (n * k * (2 * n - 3 * k - 1)) * total


def test_quality_is_that_of_the_formula_one_way_and_the_other() -> None:
    generator = torch.Generator().manual_seed(3)
    high, low = torch.randn(40, 6, generator=generator).double(), torch.randn(40, 2, generator=generator).double()
    found = neighbourhoods(high, low, 7)
    assert found.trustworthiness == pytest.approx(_by_the_formula(high, low, 7))
    assert found.continuity == pytest.approx(_by_the_formula(low, high, 7))


def test_what_is_torn_apart_is_no_question_of_trust_but_of_continuity() -> None:
    line = torch.linspace(0, 1, 60).double()[:, None]
    torn = torch.cat([line, (line > 0.5).double() * 50], 1)
    glued = torch.stack([line[:, 0] % 0.5, torch.zeros(60).double()], 1)
    whole = torch.cat([line, torch.zeros_like(line)], 1)
    assert neighbourhoods(whole, glued, 5).trustworthiness < neighbourhoods(whole, glued, 5).continuity
    assert neighbourhoods(glued, whole, 5).continuity < neighbourhoods(glued, whole, 5).trustworthiness
    assert neighbourhoods(whole, torn, 5).trustworthiness > 0.99
