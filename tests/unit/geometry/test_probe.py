"""The probe against scikit-learn's ridge regression, on labels that are there, and on those that only documents have."""

import math

import numpy as np
import pytest
import torch

from microtome.core import Refusal
from microtome.geometry import probe as module
from microtome.geometry.probe import probe


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def corpus(documents: int, per: int, labels: int, topic: float, own: float, seed: int = 0, width: int = 16):
    """Windows with a vector of their label, one of their document, and noise; sizes of documents differ."""
    sizes = per + torch.arange(documents) % 3
    document = torch.arange(documents).repeat_interleave(sizes)
    label = document % labels
    x = topic * normal(labels, width, seed=seed)[label] + own * normal(documents, width, seed=seed + 1)[document]
    return x + normal(len(document), width, seed=seed + 2), label, document


def test_labels_are_read_on_new_documents() -> None:
    found = probe(*corpus(30, 4, 3, topic=1.0, own=0.5), draws=100)
    assert found.accuracy.value > 0.9
    assert found.accuracy.lo <= found.accuracy.value <= found.accuracy.hi <= 1
    assert found.accuracy.p == pytest.approx(1 / 101)
    assert found.accuracy.control == pytest.approx(1 / 3, abs=0.06)
    assert found.selectivity == pytest.approx(found.accuracy.value - found.accuracy.control)
    assert found.majority == pytest.approx(60 / 150, abs=0.08)
    assert (found.components, found.folds, found.labels, found.left_out) == (16, 5, (0, 1, 2), ())


def test_what_documents_share_does_not_pass_for_a_label() -> None:
    """Documents are perfectly told apart, labels are arbitrary: split by window one would read 100 %; here it is chance."""
    values = []
    p = []
    for seed in range(20):
        found = probe(*corpus(20, 5, 2, topic=0.0, own=4.0, seed=10 * seed), draws=100, seed=seed)
        values.append(found.accuracy.value)
        p.append(found.accuracy.p)
    assert np.mean(values) == pytest.approx(0.5, abs=0.1)
    assert 0.3 < np.mean(p) < 0.7
    assert np.mean(np.array(p) < 0.1) < 0.3


def test_predictions_are_those_of_ridge_regression() -> None:
    """One fold's windows per document that are right, recomputed with scikit-learn from the same folds and penalties."""
    from sklearn.linear_model import Ridge

    x, label, document = corpus(16, 4, 3, topic=0.6, own=0.5)
    found, _ = module._with_two_documents(module.topics(x, label, document))
    data = module._folded(found, found.by_document, 16, 4, seed=0)
    penalties = [0.01, 0.1, 1.0, 10.0]
    right = module._right(data, penalties, found.by_document[None], 3)[0]
    expected = torch.zeros(16)
    one_hot = np.eye(3)[found.label.numpy()]
    for fold, penalty in enumerate(penalties):
        test = (data.fold[found.document] == fold).numpy()
        train = x.numpy()[~test]
        alpha = penalty * np.linalg.eigvalsh((train - train.mean(0)).T @ (train - train.mean(0))).mean()
        guess = Ridge(alpha=alpha).fit(train, one_hot[~test]).predict(x.numpy()[test]).argmax(1)
        for at, hit in zip(np.flatnonzero(test), guess == found.label.numpy()[test], strict=True):
            expected[found.document[at]] += float(hit)
    assert right.tolist() == expected.tolist()


def test_folds_split_documents_and_spread_labels() -> None:
    found, _ = module._with_two_documents(module.topics(*corpus(23, 2, 3, 1.0, 1.0)))
    data = module._folded(found, found.by_document, 16, 5, seed=2)
    table = torch.zeros(5, 3)
    table.index_put_((data.fold, found.by_document), torch.ones(23), accumulate=True)
    assert int(table.amax() - table.amin()) == 1
    assert sorted(torch.bincount(data.fold).tolist()) == [4, 4, 5, 5, 5]
    tasks = module._control_tasks(found.by_document, data.fold, 50, seed=0)
    for task in tasks:
        moved = torch.zeros(5, 3)
        moved.index_put_((data.fold, task), torch.ones(23), accumulate=True)
        assert torch.equal(moved, table)
    assert len({tuple(task.tolist()) for task in tasks}) == 50


def test_noise_calls_for_a_larger_penalty() -> None:
    def chosen(width: int, topic: float) -> list[float]:
        found, _ = module._with_two_documents(module.topics(*corpus(20, 2, 2, topic, 0.0, width=width)))
        data = module._folded(found, found.by_document, min(width, len(found.rows)), 5, seed=0)
        one_hot = torch.nn.functional.one_hot(found.by_document, 2).double()
        return module._penalties(data, one_hot, found.by_document)

    assert chosen(4, 5.0) == [10.0] * 5  # nothing to lose: ties go to the largest
    assert set(chosen(60, 0.2)) <= set(module._PENALTIES)


def test_more_windows_than_components_and_fewer() -> None:
    wide = probe(*corpus(12, 2, 2, topic=2.0, own=0.2, width=100), draws=100)
    assert wide.components == 36
    assert wide.accuracy.value > 0.9
    narrow = probe(*corpus(12, 2, 2, topic=2.0, own=0.2, width=100), components=5, draws=100)
    assert narrow.components == 5


def test_labels_with_one_document_are_left_out_and_named() -> None:
    x, label, document = corpus(12, 3, 2, 1.0, 0.5)
    label, document = label.clone(), document.clone()
    label[document == 0], label[document == 3] = 9, -1
    found = probe(x, label + (label == 1) * 4, document, draws=100)
    assert (found.labels, found.left_out) == ((0, 5), (9,))
    assert not math.isnan(found.accuracy.value)


def test_too_little_is_undefined() -> None:
    x, label, document = corpus(3, 3, 2, 1.0, 0.5)
    found = probe(x, label, document)
    assert found.accuracy.undefined == "1 labels have two documents or more, and telling labels apart takes two"
    assert math.isnan(found.selectivity)
    assert probe(x, 0 * label, document).accuracy.undefined.startswith("1 of 1 labels")
    flat = corpus(8, 3, 2, 1.0, 0.5)
    assert probe(0 * flat[0] + 2, *flat[1:]).accuracy.undefined == "the vectors are all the same"
    with pytest.raises(Refusal, match="a probe with 2 folds: the penalty of a fold"):
        probe(x, label, document, folds=2)
