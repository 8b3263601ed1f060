"""Maps of directions: groups stay together whatever their lengths, and a map that keeps nothing is seen to."""

import pytest
import torch
from torch import Tensor

from microtome.core import Refusal
from microtome.factors.neighbour_map import neighbour_map
from microtome.numerics import plane
from microtome.numerics.plane import Layout, available


def _groups(groups: int = 6, each: int = 20, d: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(groups, d, generator=generator)
    owner = torch.arange(groups).repeat_interleave(each)
    size = 0.5 + 3 * torch.rand(groups * each, 1, generator=generator)
    return size * (centres[owner] + 0.4 * torch.randn(groups * each, d, generator=generator)), owner


@pytest.mark.parametrize("layout", available())
def test_groups_of_directions_stay_together_whatever_their_lengths(layout: Layout) -> None:
    directions, owner = _groups()
    found = neighbour_map(directions, layout, neighbours=5)
    assert found.points.shape == (120, 2)
    assert found.kept.trustworthiness >= found.linear.trustworthiness - 1e-9
    assert found.kept.trustworthiness > found.random.trustworthiness + 0.2
    assert found.kept.continuity > found.random.continuity + 0.2
    assert found.random.trustworthiness == pytest.approx(0.5, abs=0.1)
    if layout != "principal components":
        near = torch.cdist(found.points, found.points).fill_diagonal_(torch.inf).argmin(1)
        assert float((owner[near] == owner).double().mean()) > 0.95
        assert found.kept.trustworthiness > found.linear.trustworthiness


def test_a_plane_is_kept_whole_by_two_principal_components() -> None:
    angle = torch.rand(50, generator=torch.Generator().manual_seed(4)) * 6.28
    circle = torch.stack([angle.cos(), angle.sin()], 1).double()
    turn = torch.linalg.qr(torch.randn(9, 9, generator=torch.Generator().manual_seed(5)).double()).Q[:2]
    found = neighbour_map(3 * circle @ turn, "principal components", neighbours=5)
    assert (found.kept.trustworthiness, found.kept.continuity) == pytest.approx((1.0, 1.0))
    assert torch.allclose(torch.cdist(found.points, found.points), torch.cdist(circle, circle), atol=1e-6)


def test_a_map_is_the_same_again() -> None:
    directions, _ = _groups(3, 10)
    one, other = (neighbour_map(directions, "t-SNE", neighbours=4, seed=2) for _ in range(2))
    assert torch.equal(one.points, other.points)


def test_bad_directions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    directions, _ = _groups(2, 10)
    with pytest.raises(Refusal, match="fewer than half"):
        neighbour_map(directions, neighbours=10)
    with pytest.raises(Refusal, match="0 or not finite"):
        neighbour_map(torch.cat([directions, torch.zeros(1, 40)]), neighbours=3)
    monkeypatch.setattr(plane, "find_spec", lambda name: None)
    with pytest.raises(Refusal, match="not installed"):
        neighbour_map(directions, "openTSNE", neighbours=3)
