"""Clusters without labels: planted ones are found in both halves, and a cloud without any is called one."""

import math

import numpy as np
import pytest
import torch

from microtome.core import Refusal
from microtome.geometry.clusters import _Surrogate, context_clusters


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def corpus(clusters: int, strength: float, seed: int = 0, documents: int = 60, per: int = 3, width: int = 30):
    """Documents of planted clusters of unequal size; halves by document."""
    document = torch.arange(documents).repeat_interleave(per)
    truth = (document % (clusters + 2)).clamp(max=clusters - 1)
    x = strength * normal(clusters, width, seed=seed)[truth] + 0.5 * normal(documents, width, seed=seed + 1)[document]
    half = torch.randperm(documents, generator=torch.Generator().manual_seed(seed + 3))[document] % 2
    return x + normal(len(document), width, seed=seed + 2), document, half, truth


def test_planted_clusters_are_found() -> None:
    from sklearn.metrics import adjusted_rand_score

    x, document, half, truth = corpus(4, strength=2.0)
    found = context_clusters(x, document, half.to(torch.uint8))
    assert found.count == 4
    assert adjusted_rand_score(truth.numpy(), found.assignment.numpy()) > 0.98
    assert found.stability.value > 0.95
    assert found.stability.p == pytest.approx(1 / 101)
    assert found.held_out.p == pytest.approx(1 / 101)
    assert found.stability.control < 0.8
    assert max(found.tried.values()) == found.tried[4]
    assert (min(found.tried), max(found.tried), found.components) == (2, 10, 20)
    sizes = torch.bincount(found.assignment).tolist()
    assert sizes == sorted(sizes, reverse=True)


def test_clusters_that_the_other_half_has_not_are_not_stable() -> None:
    x, document, _, truth = corpus(4, strength=2.0)
    found = context_clusters(x, document, (truth == 3).long())
    assert max(found.tried.values()) > 0.7
    assert (found.count, found.stability.p, found.held_out.p) == (3, 1, 1)


def test_a_cloud_without_clusters_is_called_one() -> None:
    """Stretched along two axes, so that k-means cuts it the same way in both halves: stable, and no more so than its control."""
    stretch = torch.ones(12, dtype=torch.float64)
    stretch[:2] = 6.0
    document = torch.arange(50).repeat_interleave(4)
    p, stability = [], []
    for seed in range(5):
        x = stretch * (normal(50, 12, seed=seed)[document] + 0.5 * normal(200, 12, seed=50 + seed))
        found = context_clusters(x, document, document % 2, counts=(2, 4), starts=1, seed=seed)
        p.append(found.stability.p)
        stability.append(found.stability.value)
    assert np.mean(stability) > 0.3
    assert np.median(p) > 0.1
    assert np.mean(np.array(p) < 0.05) <= 0.25


def test_surrogates_have_the_covariances_of_documents_and_windows() -> None:
    document = torch.arange(200).repeat_interleave(5)
    x = normal(200, 3)[document] * torch.tensor([3.0, 1.0, 0.3]) + normal(1000, 3, seed=1) * torch.tensor([0.2, 1.0, 2.0])
    surrogate, generator = _Surrogate.of(x, document), torch.Generator().manual_seed(0)
    drawn = torch.stack([surrogate.draw(generator) for _ in range(60)])

    def moments(cloud: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        means = cloud.reshape(200, 5, 3).mean(1)
        rest = cloud - means[document]
        return means.T @ means / 200, rest.T @ rest / 800

    between, inside = (torch.stack(each).mean(0) for each in zip(*[moments(cloud) for cloud in drawn], strict=True))
    true_between, true_inside = moments(x)
    assert torch.allclose(between, true_between, atol=0.05 * float(true_between.max()))
    assert torch.allclose(inside, true_inside, atol=0.02 * float(true_inside.max()))


def test_halves_must_not_share_documents() -> None:
    x, document, half, _ = corpus(2, 1.0)
    half = half.clone()
    half[0] = 1 - half[1]
    with pytest.raises(Refusal, match="document 0: it is in both halves; split the halves by document"):
        context_clusters(x, document, half)
    with pytest.raises(Refusal, match="NaN"):
        context_clusters(x * math.nan, document, half)


def test_too_little_is_undefined() -> None:
    x, document, half, _ = corpus(2, 1.0, documents=10)
    found = context_clusters(x, document, half)
    assert found.stability.undefined == "a half has too few windows for 10 clusters: 15"
    assert (found.count, found.assignment.unique().tolist()) == (0, [-1])
    assert (
        context_clusters(0 * x, document, half, counts=(2, 3)).held_out.undefined
        == "the context parts all have the same direction"
    )
