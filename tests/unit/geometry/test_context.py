"""Context clustering: definitions against brute force and scikit-learn, controls that know documents from labels."""

import math

import numpy as np
import pytest
import torch

from microtome.core import Refusal
from microtome.geometry.context import (
    adjusted_rand,
    clustering,
    contingency,
    label_similarity,
    mutual_information,
    silhouette,
    topics,
    unit_rows,
)
from microtome.geometry.shuffles import orders

SIZES = (3, 1, 4, 2, 5, 2, 3, 4)
"""Windows of each document; documents 0, 2, 4, 6 have label 0, the others label 1."""


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def corpus(documents: int, per: int, labels: int, topic: float, own: float, seed: int = 0, width: int = 12):
    """Windows with a vector of their label, one of their document, and noise."""
    document = torch.arange(documents).repeat_interleave(per)
    label = document % labels
    x = topic * normal(labels, width, seed=seed)[label] + own * normal(documents, width, seed=seed + 1)[document]
    return x + normal(len(document), width, seed=seed + 2), label, document


@pytest.fixture(name="ragged")
def ragged_fixture():
    document = torch.repeat_interleave(torch.arange(8), torch.tensor(SIZES))
    label = document % 2
    x = normal(len(document), 5) + normal(2, 5, seed=1)[label] + normal(8, 5, seed=2)[document]
    return topics(x, label * 7 + 3, document * 10)


def brute(units: torch.Tensor, label: torch.Tensor, document: torch.Tensor) -> dict[str, float]:
    """The means pair by pair."""
    cosines = units @ units.T
    same = label[:, None] == label
    other = ~torch.eye(len(units), dtype=torch.bool)
    apart = document[:, None] != document
    within, between = cosines[same & other], cosines[~same]
    across = cosines[same & apart]
    return {
        "paper_within": float(cosines.abs()[same].mean()),
        "paper_between": float(cosines.abs()[~same].mean()),
        "within": float(within.mean()),
        "between": float(between.mean()),
        "across": float(across.mean()),
        "gap": float(across.mean() - between.mean()),
    }


def test_similarities_are_means_over_pairs(ragged) -> None:
    assert (ragged.labels, ragged.left_out, ragged.undefined) == ((3, 10), (), "")
    units = unit_rows(ragged.rows)
    permuted = ragged.by_document[orders(8, 100, 3)]
    found = label_similarity(units, ragged, permuted)
    expected = brute(units, ragged.label, ragged.document)
    null = [brute(units, each[ragged.document], ragged.document) for each in permuted]
    for name, value in expected.items():
        measured, drawn = getattr(found, name), np.array([each[name] for each in null])
        assert measured.value == pytest.approx(value, rel=1e-9), name
        assert measured.control == pytest.approx(drawn.mean(), rel=1e-9), name
        extreme = drawn <= value + 1e-12 if "between" in name else drawn >= value - 1e-12
        assert measured.p == pytest.approx((1 + extreme.sum()) / 101, abs=0.02), name


def test_similarities_do_not_depend_on_blocks(ragged, monkeypatch: pytest.MonkeyPatch) -> None:
    units, permuted = unit_rows(ragged.rows), ragged.by_document[orders(8, 100, 3)]
    whole = label_similarity(units, ragged, permuted)
    monkeypatch.setattr("microtome.geometry.context._BLOCK", 5)
    assert label_similarity(units, ragged, permuted).paper_within.value == pytest.approx(whole.paper_within.value, rel=1e-12)


@pytest.mark.parametrize("single", [False, True])
def test_silhouette_is_that_of_scikit_learn(ragged, single: bool) -> None:
    from sklearn.metrics import silhouette_score

    label = ragged.label.clone()
    if single:
        label[0] = 2
    expected = silhouette_score(ragged.rows.numpy(), label.numpy(), metric="cosine")
    assert silhouette(unit_rows(ragged.rows), label, 3) == pytest.approx(expected, rel=1e-9)
    found = clustering(ragged, draws=100)
    assert single or found.silhouette.value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("left", "right"), [(3, 4), (1, 3), (5, 5), (1, 1)])
def test_agreement_is_that_of_scikit_learn(left: int, right: int) -> None:
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    generator = torch.Generator().manual_seed(left)
    one = torch.randint(left, (50,), generator=generator)
    other = torch.where(
        torch.rand(50, generator=generator) < 0.5, one % right, torch.randint(right, (50,), generator=generator)
    )
    table = contingency(one, other)
    assert float(table.sum()) == 50
    assert adjusted_rand(table) == pytest.approx(adjusted_rand_score(one, other), abs=1e-12)
    assert mutual_information(table) == pytest.approx(normalized_mutual_info_score(one, other), abs=1e-12)


def test_topics_are_found() -> None:
    found = clustering(topics(*corpus(24, 6, 3, topic=2.0, own=0.5)), draws=100)
    for name in ("paper_within", "within", "across", "gap", "paper_between", "between"):
        assert getattr(found.similarity, name).p == pytest.approx(1 / 101), name
    assert found.similarity.across.value > 0.5 > found.similarity.between.value
    assert found.silhouette.p == pytest.approx(1 / 101)
    assert found.rand.value > 0.95
    assert found.information.value > 0.9
    assert (abs(found.rand.control), found.rand.p) == (pytest.approx(0, abs=0.1), pytest.approx(1 / 101))
    assert (found.windows, found.documents, found.labels) == (144, 24, (0, 1, 2))


def test_documents_alone_do_not_pass_for_topics() -> None:
    """Windows of a document are alike, labels mean nothing: within > between, and yet p-values are those of chance."""
    p = {"within": [], "gap": [], "silhouette": [], "rand": []}
    within, between = [], []
    for seed in range(16):
        found = clustering(topics(*corpus(12, 6, 3, topic=0.0, own=3.0, seed=10 * seed)), draws=100, starts=1, seed=seed)
        within.append(found.similarity.within.value)
        between.append(found.similarity.between.value)
        for name in ("within", "gap"):
            p[name].append(getattr(found.similarity, name).p)
        for name in ("silhouette", "rand"):
            p[name].append(getattr(found, name).p)
    assert np.mean(np.array(within) - np.array(between)) > 0.1
    for name, values in p.items():
        assert 0.3 < np.mean(values) < 0.7, name
        assert np.mean(np.array(values) < 0.1) < 0.3, name


def test_few_documents_cannot_be_significant() -> None:
    """Four documents, two labels: of six ways to label them, two are the true split."""
    found = clustering(topics(*corpus(4, 8, 2, topic=3.0, own=0.1)), draws=400)
    for p in (found.similarity.gap.p, found.similarity.paper_within.p, found.silhouette.p, found.rand.p):
        assert p == pytest.approx(1 / 3, abs=0.08)


def test_projection_keeps_leading_singular_vectors() -> None:
    x, label, document = corpus(24, 6, 3, topic=2.0, own=0.0)
    left, sizes, _ = np.linalg.svd(x.numpy(), full_matrices=False)
    reduced = torch.from_numpy(left[:, :2] * sizes[:2])
    cosines, projected = reduced @ reduced.T / torch.outer(reduced.norm(dim=1), reduced.norm(dim=1)), unit_rows(x, 2)
    assert torch.allclose(projected @ projected.T, cosines, atol=1e-9)
    plain, found = (clustering(topics(x, label, document), project=k, draws=100) for k in (None, 2))
    assert found.similarity.paper_within.value > plain.similarity.paper_within.value


def test_small_labels_are_left_out_and_named() -> None:
    x, label, document = normal(8, 3), torch.tensor([4, 4, 9, -1, 6, 6, 2, -1]), torch.arange(8)
    found = topics(x, label, document)
    assert (found.labels, found.left_out) == ((4, 6), (2, 9))
    assert found.label.tolist() == [0, 0, 1, 1]
    assert torch.equal(found.rows, x[[0, 1, 4, 5]])


def test_fewer_than_two_labels_are_undefined() -> None:
    found = clustering(topics(normal(5, 3), torch.tensor([1, 1, 1, 0, 2]), torch.arange(5)))
    assert found.similarity.within.undefined == "1 of 3 labels has two members or more, and comparing takes two"
    assert math.isnan(found.silhouette.value)
    assert found.left_out == (0, 2)
    none = clustering(topics(normal(5, 3), torch.full((5,), -1), torch.arange(5)))
    assert none.rand.undefined == "0 of 0 labels has two members or more, and comparing takes two"


def test_one_document_per_label_has_values_and_no_p() -> None:
    found = clustering(topics(normal(20, 4), torch.arange(20) // 10, torch.arange(20) // 10))
    assert found.similarity.within.undefined.startswith("every label is one document")
    assert not math.isnan(found.similarity.within.value)
    assert math.isnan(found.similarity.within.p)
    assert math.isnan(found.similarity.across.value)


def test_context_parts_without_directions_are_undefined() -> None:
    found = clustering(topics(torch.zeros(8, 3), torch.arange(8) % 2, torch.arange(8)))
    assert found.similarity.gap.undefined == "the context parts all have the same direction"


def test_input_that_means_nothing_is_refused() -> None:
    with pytest.raises(Refusal, match="a document has windows with different labels"):
        topics(normal(4, 2), torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 2]))
    with pytest.raises(Refusal, match="NaN or infinity"):
        topics(normal(4, 2) * math.nan, torch.tensor([0, 1, 0, 1]), torch.arange(4))
    with pytest.raises(Refusal, match="at least 100"):
        clustering(topics(*corpus(6, 2, 2, 1.0, 1.0)), draws=20)
