"""Side by side with NeuroX 1.0.9 (BSD-3): the numbers here are what it printed for these very vectors, labels and weights."""

import numpy as np
import torch

from microtome.probes import class_moments, probeless
from microtome.probes.evaluation import redundancy
from microtome.probes.linear import prefix_steps
from microtome.probes.rankings import ranked

ORDER = [5, 8, 2, 9, 1, 3, 4, 0, 6, 7]
OF_CLASSES = [[5, 8, 2, 1, 9, 4, 3, 0, 6, 7], [2, 5, 8, 1, 9, 3, 4, 0, 6, 7], [5, 8, 2, 9, 3, 1, 4, 0, 6, 7]]
SELECTED = [{1, 3, 7}, 5, 0, 8, 4, 6, 9, 2]
"""Units by the cutoff at which they are first selected: three at 0 %, then one by one."""
CUTOFFS = [19, 26, 36, 56, 64, 74, 87]
CLUSTERS = [6, 3, 5, 9, 8, 4, 7, 1, 4, 2]


def drawn() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = np.random.RandomState(7)
    x = np.round(draw.randn(120, 10), 2).astype(np.float32)
    y = draw.randint(0, 3, 120)
    x[:, 2] += y == 1
    x[:, 5] -= (y == 2) * 1.5
    x[:, 8] = x[:, 5] * np.float32(0.9) + x[:, 8] * np.float32(0.1)
    return torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(np.round(draw.randn(3, 10), 2).astype(np.float32))


def test_probeless_orders_units_of_all_classes_and_of_each() -> None:
    x, y, _ = drawn()
    score = probeless(class_moments(x, y, 3))
    assert ranked("probeless", score.sum(0)).order.tolist() == ORDER
    assert [ranked("probeless", each).order.tolist() for each in score] == OF_CLASSES


def test_units_are_selected_at_the_same_share_of_weight() -> None:
    steps = prefix_steps(drawn()[2])
    assert set((steps == 0).nonzero()[:, 0].tolist()) == SELECTED[0]
    assert [int(steps[unit]) for unit in SELECTED[1:]] == CUTOFFS


def test_redundant_units_are_those_of_the_same_clusters() -> None:
    found = redundancy(drawn()[0], cut=0.5).cluster.tolist()
    assert len(set(zip(found, CLUSTERS, strict=True))) == len(set(found)) == len(set(CLUSTERS))
