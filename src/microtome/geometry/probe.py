"""Can a linear probe read a label off vectors of documents that it has not seen?

The probe is ridge regression on one-hot labels, so that its fit is a formula and hundreds of control tasks cost little more than one
probe. Which vectors to probe (states, context parts, residuals) and what the labels are (topic, position) is the business of the caller.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microtome.core import Refusal
from microtome.geometry.context import Topics, topics
from microtome.geometry.measured import ROUNDING, Measured, against, undefined
from microtome.numerics import bootstrap_interval

__all__ = ["Probe", "probe"]

_PENALTIES: Final = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Ridge penalties tried, in units of the mean variance of a coordinate."""


@dataclass(frozen=True)
class Probe:
    """Accuracy on documents that were held out, and `selectivity`: accuracy minus that of the control task (`accuracy.control`).

    `majority` is the share of the commonest label. `components` leading principal components were probed. The interval resamples
    documents. `left_out` are labels with fewer than two documents.
    """

    accuracy: Measured
    selectivity: float
    majority: float
    components: int
    folds: int
    labels: tuple[int, ...]
    left_out: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class _Folds:
    """Coordinates with their sums per document and per fold; `fold` is that of a document."""

    x: Float[Tensor, "window k"]
    document: Int[Tensor, " window"]
    fold: Int[Tensor, " document"]
    sizes: Float[Tensor, " document"]
    sums: Float[Tensor, "document k"]
    grams: Float[Tensor, "fold k k"]


@dataclass(frozen=True, eq=False)
class _Training:
    """The documents of a training set and the eigendecomposition of their covariance."""

    chosen: Bool[Tensor, " document"]
    mean: Float[Tensor, " k"]
    count: float
    values: Float[Tensor, " k"]
    vectors: Float[Tensor, "k k"]


def probe(
    x: Float[Tensor, "window d_model"],
    label: Int[Tensor, " window"],
    document: Int[Tensor, " window"],
    *,
    components: int = 256,
    folds: int = 5,
    draws: int = 200,
    seed: int = 0,
) -> Probe:
    """Held-out accuracy of a linear probe, windows split by document, against control tasks.

    Documents are dealt to folds label by label. Each fold is predicted from the others, with the penalty that did best on those
    others in turn. A control task permutes the labels of documents inside folds, which keeps the folds as balanced as they are,
    so that the probe finds only what a label has in common beyond documents. Windows with label -1 are left out.
    Cost: folds^2 / 2 eigendecompositions of size `components`, and window components labels operations per draw.
    Source: Hewitt and Liang 2019, arXiv:1909.03368, on control tasks; Alain and Bengio 2016, arXiv:1610.01644, on linear probes.
    """
    if folds < 3:
        why = "the penalty of a fold is chosen on the others, which takes two"
        raise Refusal(f"a probe with {folds} folds", why=why, instead="use three or more")
    found, reason = _with_two_documents(topics(x, label, document))
    if reason:
        return Probe(undefined(reason), float("nan"), float("nan"), 0, 0, found.labels, found.left_out)
    by_document = found.by_document
    data = _folded(found, by_document, min(components, *found.rows.shape), min(folds, len(by_document)), seed)
    one_hot = torch.nn.functional.one_hot(by_document, len(found.labels)).double()
    penalties = _penalties(data, one_hot, by_document)
    tasks = torch.stack([by_document, *_control_tasks(by_document, data.fold, draws, seed)])
    right = _right(data, penalties, tasks, len(found.labels))
    accuracy = right.sum(1) / len(found.rows)
    measured = against(float(accuracy[0]), accuracy[1:], control=float(accuracy[1:].mean()))
    lo, hi = bootstrap_interval(right[0], data.sizes, seed=seed)
    majority = float((one_hot.T @ data.sizes).max() / data.sizes.sum())
    whole = Measured(
        measured.value, float(lo), float(hi), measured.control, measured.control_lo, measured.control_hi, measured.p
    )
    selectivity = whole.value - whole.control
    return Probe(whole, selectivity, majority, data.x.shape[1], len(data.grams), found.labels, found.left_out)


def _with_two_documents(found: Topics) -> tuple[Topics, str]:
    """Leave out labels with one document, which a probe cannot have seen when it meets them."""
    if found.undefined:
        return found, found.undefined
    documents = torch.bincount(found.by_document, minlength=len(found.labels))
    enough = documents >= 2
    names = torch.tensor(found.labels)
    kept = enough[found.label]
    left_out = tuple(sorted((*found.left_out, *names[~enough].tolist())))
    mine = torch.unique(found.document[kept], return_inverse=True)[1]
    label = torch.searchsorted(names[enough], names[found.label[kept]])
    rest = Topics(found.rows[kept], label, mine, tuple(names[enough].tolist()), left_out, "")
    if int(enough.sum()) < 2:
        return rest, f"{int(enough.sum())} labels have two documents or more, and telling labels apart takes two"
    if not float((rest.rows - rest.rows.mean(0)).abs().max()) > ROUNDING * float(rest.rows.abs().max()):
        return rest, "the vectors are all the same"
    return rest, ""


def _folded(found: Topics, by_document: Int[Tensor, " document"], components: int, folds: int, seed: int) -> _Folds:
    centred = found.rows - found.rows.mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    x = centred @ directions[:components].T
    shuffled = torch.randperm(len(by_document), generator=torch.Generator().manual_seed(seed))
    dealt = shuffled[by_document[shuffled].argsort(stable=True)]
    fold = torch.empty_like(dealt).index_copy(0, dealt, torch.arange(len(dealt)) % folds)
    sums = torch.zeros(len(by_document), components, dtype=torch.float64).index_add_(0, found.document, x)
    mine = fold[found.document]
    grams = torch.stack([x[mine == each].T @ x[mine == each] for each in range(folds)])
    return _Folds(x, found.document, fold, torch.bincount(found.document).double(), sums, grams)


def _training(data: _Folds, without: Sequence[int]) -> _Training:
    chosen = ~torch.isin(data.fold, torch.tensor(without))
    count = float(data.sizes[chosen].sum())
    mean = data.sums[chosen].sum(0) / count
    kept = [fold for fold in range(len(data.grams)) if fold not in without]
    values, vectors = torch.linalg.eigh(data.grams[kept].sum(0) - count * torch.outer(mean, mean))
    return _Training(chosen, mean, count, values.clamp(min=0), vectors)


def _scores(
    data: _Folds, training: _Training, one_hot: Float[Tensor, "document task"], penalty: float, test: Bool[Tensor, " window"]
) -> Float[Tensor, "tested task"]:
    """Predictions of ridge regression with an intercept, for any number of columns of labels at once."""
    labels = one_hot[training.chosen]
    totals = data.sizes[training.chosen] @ labels
    cross = data.sums[training.chosen].T @ labels - torch.outer(training.mean, totals)
    shrunk = (training.values + penalty * float(training.values.mean())).clamp(min=torch.finfo(torch.float64).tiny)
    weights = training.vectors @ ((training.vectors.T @ cross) / shrunk[:, None])
    return (data.x[test] - training.mean) @ weights + totals / training.count


def _penalties(data: _Folds, one_hot: Float[Tensor, "document label"], by_document: Int[Tensor, " document"]) -> list[float]:
    """For each fold, the penalty with the best accuracy when the other folds predict each other; the largest of equals."""
    folds = len(data.grams)
    right = torch.zeros(folds, len(_PENALTIES))
    for one in range(folds):
        for other in range(one + 1, folds):
            training = _training(data, (one, other))
            for inner, outer in ((one, other), (other, one)):
                test = data.fold[data.document] == inner
                truth = by_document[data.document[test]]
                for at, penalty in enumerate(_PENALTIES):
                    right[outer, at] += (_scores(data, training, one_hot, penalty, test).argmax(1) == truth).sum()
    return [_PENALTIES[len(_PENALTIES) - 1 - int(row.flip(0).argmax())] for row in right]


def _control_tasks(
    by_document: Int[Tensor, " document"], fold: Int[Tensor, " document"], draws: int, seed: int
) -> list[Int[Tensor, " document"]]:
    """Labels of documents, permuted inside folds."""
    generator = torch.Generator().manual_seed(seed + 1)
    home = fold.argsort(stable=True)
    tasks = []
    for _ in range(draws):
        noise = torch.rand(len(fold), generator=generator, dtype=torch.float64)
        tasks.append(torch.empty_like(by_document).index_copy(0, home, by_document[(fold + noise).argsort()]))
    return tasks


def _right(
    data: _Folds, penalties: Sequence[float], tasks: Int[Tensor, "task document"], labels: int
) -> Float[Tensor, "task document"]:
    """How many windows of each document each task's probe gets right."""
    one_hot = torch.nn.functional.one_hot(tasks, labels).double()
    columns = one_hot.movedim(1, 0).reshape(tasks.shape[1], -1)
    right = torch.zeros(tasks.shape[1], len(tasks), dtype=torch.float64)
    for fold, penalty in enumerate(penalties):
        test = data.fold[data.document] == fold
        scores = _scores(data, _training(data, (fold,)), columns, penalty, test)
        guess = scores.reshape(len(scores), len(tasks), labels).argmax(2)
        owner = data.document[test]
        right.index_add_(0, owner, (guess == tasks.T[owner]).double())
    return right.T
