"""Cheap dictionaries are what their names say: principal components explain what eigenvalues say, and planted structure of each kind is found."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from microtome.core import Refusal
from microtome.factors.baselines import BASELINES, Sample, baselines, sampled
from microtome.factors.coding import Greedy
from microtome.factors.dictionary import Dictionary
from microtome.factors.evaluation import Candidate, evaluated
from microtome.factors.scaling import Scaling, identity
from tests.unit.factors.planted_dictionaries import planted_states, recovered
from tests.unit.factors.test_evaluation import SITES, rows_of_states


def sample_of(states: Tensor) -> Sample:
    return Sample(states, SITES[:1], identity(1, states.shape[1]))


def explained(found: Mapping[Any, Dictionary], states: Tensor) -> dict[str, tuple[float, float]]:
    """Explained variance and l0 of each."""
    candidates = [Candidate(name, each) for name, each in found.items()]
    done = evaluated(candidates, [rows_of_states(states[:, None])], SITES[:1])
    stats = {name: of[SITES[0]].stats for name, of in done.items()}
    return {name: (each["explained_variance"].value, each["l0"].value) for name, each in stats.items()}


def test_principal_components_explain_what_their_eigenvalues_say() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(900, 12, generator=generator) @ torch.randn(12, 12, generator=generator) + 7
    eigenvalues = torch.linalg.eigvalsh(torch.cov(states.double().T)).flip(0)
    for k in (1, 4, 12):
        value, l0 = explained(baselines(sample_of(states), k, 24, ("pca",)), states)["pca"]
        assert value == pytest.approx(float(eigenvalues[:k].sum() / eigenvalues.sum()), abs=1e-5)
        assert l0 == k


def test_scaling_is_undone() -> None:
    """At two places of different size and mean, what is explained in the model's own units is what eigenvalues of scaled states say."""
    generator = torch.Generator().manual_seed(1)
    scaled = torch.randn(700, 6, generator=generator) * torch.arange(1.0, 7)
    scaled = scaled - scaled.mean(0)
    scaling = Scaling(torch.stack([torch.full((6,), 3.0), torch.full((6,), -8.0)]), torch.tensor([10.0, 0.1]))
    states = torch.stack([scaling.undo(scaled, place) for place in range(2)], 1)
    plain = Dictionary("none", "shared", SITES, SITES, Greedy(1), scaling, torch.eye(6)[None], torch.zeros(1, 6))
    sample = sampled(plain, [rows_of_states(states)], SITES, 5000)
    assert len(sample.states) == 1400
    eigenvalues = torch.linalg.eigvalsh(torch.cov(scaled.double().T)).flip(0)
    done = evaluated([Candidate("pca", baselines(sample, 2, 4, ("pca",))["pca"])], [rows_of_states(states)], SITES)["pca"]
    for of in done.values():
        assert of.stats["explained_variance"].value == pytest.approx(float(eigenvalues[:2].sum() / eigenvalues.sum()), abs=1e-4)


def test_the_largest_components_are_better_than_the_first() -> None:
    states = torch.randn(500, 16, generator=torch.Generator().manual_seed(2))
    found = explained(baselines(sample_of(states), 4, 32, ("pca", "pca largest")), states)
    assert found["pca largest"][0] > found["pca"][0] + 0.2
    assert found["pca largest"][1] == 4


def test_independent_components_are_found() -> None:
    """Sparse sources, mixed: what principal components turn into each other, independent ones do not."""
    generator = torch.Generator().manual_seed(3)
    sources = torch.randn(3000, 8, generator=generator) * (torch.rand(3000, 8, generator=generator) < 0.2)
    mixing = torch.nn.functional.normalize(torch.randn(8, 8, generator=generator), dim=1)
    found = baselines(sample_of(sources @ mixing), 2, 16, ("ica", "pca largest"))
    assert recovered(found["ica"].directions[0], mixing) == 1
    assert recovered(found["pca largest"].directions[0], mixing) < 0.5


def test_clusters_and_states_are_found() -> None:
    generator = torch.Generator().manual_seed(4)
    centres = torch.randn(6, 20, generator=generator)
    states = centres.repeat(100, 1) + 0.05 * torch.randn(600, 20, generator=generator)
    found = baselines(sample_of(states), 1, 6, ("k-means", "random states"))
    truth = centres - states.mean(0)
    assert recovered(found["k-means"].directions[0], truth, 0.99) == 1
    assert recovered(truth, found["random states"].directions[0], 0.98) == 1


def test_parts_are_found() -> None:
    """Parts that add to some coordinates and take from others."""
    generator = torch.Generator().manual_seed(5)
    parts = torch.zeros(5, 20)
    for part in range(5):
        parts[part, 4 * part : 4 * part + 4] = torch.tensor([1.0, 1.0, -1.0, -1.0])
    states = (3 * torch.rand(1500, 5, generator=generator) * (torch.rand(1500, 5, generator=generator) < 0.2)) @ parts
    found = baselines(sample_of(states), 2, 5, ("nmf",))["nmf"]
    assert recovered(found.directions[0], parts, 0.9) >= 0.8


def test_all_have_codes_as_sparse_and_planted_directions_are_better_than_all() -> None:
    planted = planted_states(2000, units=64, d=32, k=3)
    found = baselines(sample_of(planted.x), 3, 64)
    assert tuple(found) == BASELINES
    own = Dictionary(
        "own", "shared", SITES[:1], SITES[:1], Greedy(3), identity(1, 32), planted.directions[None], torch.zeros(1, 32)
    )
    scores = explained({**found, "own": own}, planted.x)
    for name, (value, l0) in scores.items():
        assert l0 <= 3, name
        assert value <= scores["own"][0], name
    assert scores["own"][0] > 0.9
    assert scores["random directions"][0] < scores["random states"][0]


def test_samples_do_not_depend_on_how_rows_come() -> None:
    states = torch.randn(300, 1, 4, generator=torch.Generator().manual_seed(6))
    rows = rows_of_states(states)
    plain = Dictionary("none", "shared", SITES[:1], SITES[:1], Greedy(1), identity(1, 4), torch.eye(4)[None], torch.zeros(1, 4))
    order = torch.randperm(300, generator=torch.Generator().manual_seed(7))
    one, other = (
        sampled(plain, [rows.take(part) for part in of.split(64)], SITES[:1], 50, 3) for of in (torch.arange(300), order)
    )
    assert torch.equal(one.states, other.states)
    assert len(one.states) == 50


def test_what_cannot_be_made_is_refused() -> None:
    with pytest.raises(Refusal, match="5 factors"):
        baselines(sample_of(torch.randn(20, 4)), 5, 8)
    plain = Dictionary("none", "shared", SITES[:1], SITES[:1], Greedy(1), identity(1, 4), torch.eye(4)[None], torch.zeros(1, 4))
    with pytest.raises(Refusal, match="no row"):
        sampled(plain, [], SITES[:1])
    with pytest.raises(Refusal, match="resid_pre.0"):
        sampled(plain, [], SITES[1:])
