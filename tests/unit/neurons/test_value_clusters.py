"""Clusters of values: planted ones come back, and pairs' cosines are those of whole score vectors."""

from dataclasses import replace

import pytest
import torch

from microtome.core import Refusal
from microtome.neurons.promotion import Values, values_of
from microtome.neurons.value_clusters import Clustering, value_clusters
from tests.unit.model.tiny import opened

GROUPS, SIZE = 4, 6


def planted(seed: int = 0) -> list[Values]:
    """Two layers, in each of which unit u says what its group u % 4 says, at any length, with some noise; the last unit says nothing."""
    generator = torch.Generator().manual_seed(seed)
    layers = [values_of(opened("gpt2"), layer) for layer in (0, 2)]
    centres = torch.randn(GROUPS, layers[0].rows.shape[1], generator=generator)
    found = []
    for each in layers:
        group = torch.arange(GROUPS * SIZE) % GROUPS
        rows = centres[group] + 0.05 * torch.randn(len(group), centres.shape[1], generator=generator)
        rows = rows * (0.5 + 3 * torch.rand(len(group), 1, generator=generator))
        rows = torch.cat([rows, torch.zeros(1, rows.shape[1])])
        found.append(replace(each, rows=rows, length=rows.norm(dim=1)))
    return found


def test_planted_clusters_come_back_across_layers() -> None:
    found = value_clusters(planted(), Clustering(GROUPS), gated=False)
    assert len(found.cluster) == 2 * GROUPS * SIZE
    groups = found.unit % GROUPS
    assert len({(int(a), int(b)) for a, b in zip(groups, found.cluster, strict=True)}) == GROUPS
    assert (found.cosine > 0.9).all()
    own, random = found.means
    assert own > random + 0.1


@pytest.mark.parametrize("gated", [False, True])
def test_values_without_clusters_are_as_alike_as_random_points(gated: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    layer = values_of(opened("gpt2"), 0)
    rows = torch.randn(200, layer.rows.shape[1], generator=generator)
    found = value_clusters([replace(layer, rows=rows, length=rows.norm(dim=1))], Clustering(20), gated=gated)
    own, random = found.means
    assert own > 0.3  # a cluster is chosen to be alike
    assert own == pytest.approx(random, abs=0.04)


def test_both_ends_of_gated_units_are_points_and_reversing_one_changes_nothing() -> None:
    layers = planted()
    rows = layers[0].rows.clone()
    rows[3] *= -2
    turned = [replace(layers[0], rows=rows), layers[1]]
    one, other = (value_clusters(each, Clustering(2 * GROUPS), gated=True) for each in (layers, turned))
    assert len(one.cluster) == 4 * GROUPS * SIZE
    assert (one.cosine > 0.9).all()
    keys = [
        {frozenset((int(a), int(b), int(c) * (-1 if flip and (int(a), int(b)) == (0, 3) else 1)) for a, b, c, d in
                   zip(each.layer, each.unit, each.sign, each.cluster, strict=True) if int(d) == cluster) for cluster in range(2 * GROUPS)}
        for each, flip in ((one, False), (other, True))
    ]  # fmt: skip
    assert keys[0] == keys[1]


def test_cosines_are_those_of_whole_scores_and_tokens_those_of_the_mean() -> None:
    layers = planted()
    found = value_clusters(layers, Clustering(3, units=15, seed=4), gated=False, k=2)
    assert len(found.cluster) == 15
    at = {each.layer: each.rows for each in layers}
    rows = torch.stack([at[int(a)][int(b)] for a, b in zip(found.layer, found.unit, strict=True)]).double()
    scores = rows @ layers[0].reader.matrix.double()
    scores = scores - scores.mean(1, keepdim=True)
    cosine = torch.nn.functional.normalize(scores, dim=1)
    for cluster in range(3):
        mine = found.cluster == cluster
        own = cosine[mine] @ cosine[mine].T
        pairs = own[~torch.eye(len(own), dtype=torch.bool)]
        if len(own) > 1:
            assert float(found.cosine[cluster]) == pytest.approx(float(pairs.mean()), abs=1e-4)
        else:
            assert found.cosine[cluster].isnan()
        mean = torch.nn.functional.normalize(rows[mine], dim=1).sum(0) @ layers[0].reader.matrix.double()
        assert found.tokens[cluster].tolist() == mean.topk(2).indices.tolist()


def test_too_few_values_are_refused() -> None:
    with pytest.raises(Refusal, match="60 clusters"):
        value_clusters(planted(), Clustering(60), gated=False)
    with pytest.raises(Refusal, match="different norms"):
        value_clusters([], gated=False)
