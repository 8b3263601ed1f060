"""Do windows about the same thing have similar context parts? Similarity within and between the corpus's labels.

Windows of one document resemble each other whatever they are about. Every control therefore moves labels between documents, never
between windows, and the similarity of two documents under one label is counted apart. Can a probe read the label off: `probe`;
what to do without labels: `clusters`; a map to look at: `projection`. In this module the axis `document` counts documents.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import Refusal
from microtome.geometry.measured import Measured, against, finite, undefined
from microtome.geometry.shuffles import orders

__all__ = [
    "Clustering",
    "Similarity",
    "Topics",
    "adjusted_rand",
    "clustering",
    "contingency",
    "label_similarity",
    "mutual_information",
    "silhouette",
    "topics",
    "unit_rows",
]

_BLOCK = 512


@dataclass(frozen=True, eq=False)
class Topics:
    """Labelled windows whose label has at least two members, labels and documents counted from 0.

    `labels` are the corpus's numbers of the labels that stayed, `left_out` those of labels with too few members. Fewer than two
    labels cannot be compared: `undefined` says so.
    """

    rows: Float[Tensor, "window d_model"]
    label: Int[Tensor, " window"]
    document: Int[Tensor, " window"]
    labels: tuple[int, ...]
    left_out: tuple[int, ...]
    undefined: str

    @property
    def by_document(self) -> Int[Tensor, " document"]:
        """The label of each document."""
        found = torch.zeros(int(self.document.max()) + 1, dtype=torch.int64)
        return found.index_copy(0, self.document, self.label)


@dataclass(frozen=True)
class Similarity:
    """Mean cosines of pairs of windows. `paper_`: absolute, a window with itself included, as published; the others: signed, without.

    `across` takes pairs with one label from two documents only, and `gap` is across - between: what labels say beyond documents.
    """

    paper_within: Measured
    paper_between: Measured
    within: Measured
    between: Measured
    across: Measured
    gap: Measured


@dataclass(frozen=True)
class Clustering:
    """How well context parts fall into the labels. Controls: the labels of documents permuted over documents.

    `silhouette` is by cosine distance; `rand` and `information` are the adjusted Rand index and the normalised mutual information of
    k-means clusters, as many as labels, with the labels.
    """

    similarity: Similarity
    silhouette: Measured
    rand: Measured
    information: Measured
    labels: tuple[int, ...]
    left_out: tuple[int, ...]
    windows: int
    documents: int


def topics(
    x: Float[Tensor, "window d_model"], label: Int[Tensor, " window"], document: Int[Tensor, " window"], fewest: int = 2
) -> Topics:
    """Keep the windows with a label (-1 is none) that at least `fewest` windows have.

    Errors: `Refusal` where a document has windows of two labels, as controls give a label to a document.
    """
    finite("context parts", x)
    labelled = label >= 0
    codes, place, sizes = torch.unique(label[labelled], return_inverse=True, return_counts=True)
    enough = sizes >= fewest
    kept = labelled.nonzero().flatten()[enough[place]]
    chosen = codes[enough]
    documents, mine = torch.unique(document[kept], return_inverse=True)
    pairs = torch.unique(torch.stack([mine, label[kept]]), dim=1)
    if pairs.shape[1] > len(documents):
        why = "a document has windows with different labels, and controls move the labels of whole documents"
        raise Refusal("labels of windows", why=why, instead="give each labelled part of a document a number of its own")
    reason = "" if len(chosen) > 1 else f"{len(chosen)} of {len(codes)} labels has two members or more, and comparing takes two"
    left_out = tuple(codes[~enough].tolist())
    return Topics(x[kept].double(), torch.searchsorted(chosen, label[kept]), mine, tuple(chosen.tolist()), left_out, reason)


def clustering(found: Topics, *, project: int | None = None, starts: int = 10, draws: int = 200, seed: int = 0) -> Clustering:
    """Similarity, silhouette and k-means agreement in one record, all against labels permuted over documents.

    `project` first reduces the windows to their leading singular vectors U_k S_k, without centring; the paper's alternative has 20.
    k-means takes rows of length 1 and is the best of `starts` starts. With one document per label there is nothing to permute:
    p-values are NaN, with the reason.
    Cost: window^2 d_model once, and per draw document^2 + window document operations times labels.
    Source: Song & Zhong 2023, arXiv:2310.04861, on context clustering.
    """
    counts = (len(found.rows), int(found.document.max()) + 1 if len(found.rows) else 0)
    reason = found.undefined or ("" if _differ(found.rows) else "the context parts all have the same direction")
    if reason:
        nothing = undefined(reason)
        return Clustering(Similarity(*[nothing] * 6), nothing, nothing, nothing, found.labels, found.left_out, *counts)
    units = unit_rows(found.rows, project)
    permuted = found.by_document[orders(counts[1], draws, seed)]
    clusters = _clusters(units, len(found.labels), starts, seed)
    agreement = _beside(_agreements(clusters, found), found, permuted)
    return Clustering(
        label_similarity(units, found, permuted),
        _beside(_silhouettes(units, found), found, permuted)["silhouette"],
        agreement["rand"],
        agreement["information"],
        found.labels,
        found.left_out,
        *counts,
    )


def unit_rows(x: Float[Tensor, "window d_model"], project: int | None = None) -> Float[Tensor, "window k"]:
    """Rows of length 1, of the rows as they are or of their `project` leading left singular vectors times singular values."""
    if project is not None:
        _, _, directions = torch.linalg.svd(x.double(), full_matrices=False)
        x = x.double() @ directions[:project].T
    return torch.nn.functional.normalize(x.double(), dim=1)


def label_similarity(units: Float[Tensor, "window k"], found: Topics, permuted: Int[Tensor, "draw document"]) -> Similarity:
    """Mean cosines within and between labels, each beside its values under the permuted labels of documents.

    Cosines are summed per pair of documents once: a draw only adds those up. Memory: document^2.
    """
    count = int(found.document.max()) + 1
    sizes = torch.bincount(found.document).double()
    sums = torch.zeros(count, units.shape[1], dtype=torch.float64).index_add_(0, found.document, units)
    magnitudes = torch.zeros(count, count, dtype=torch.float64)
    for block, owner in zip(units.split(_BLOCK), found.document.split(_BLOCK), strict=True):
        by_document = torch.zeros(len(block), count, dtype=torch.float64)
        by_document.index_add_(1, found.document, (block @ units.T).abs())
        magnitudes.index_add_(0, owner, by_document)
    signed, pairs = sums @ sums.T, torch.outer(sizes, sizes)
    own = float(units.square().sum())  # a window with itself
    same, alike = float(signed.trace()), float(sizes.square().sum())  # pairs in one document

    def statistics(label: Int[Tensor, " document"]) -> Mapping[str, float]:
        chosen = torch.nn.functional.one_hot(label, len(found.labels)).double()
        inside = [float((chosen * (matrix @ chosen)).sum()) for matrix in (magnitudes, signed, pairs)]
        outside = [float(matrix.sum()) - part for matrix, part in zip((magnitudes, signed, pairs), inside, strict=True)]
        across = (inside[1] - same) / (inside[2] - alike) if inside[2] > alike else math.nan
        between = outside[1] / outside[2]
        return {
            "paper_within": inside[0] / inside[2],
            "paper_between": outside[0] / outside[2],
            "within": (inside[1] - own) / (inside[2] - len(units)),
            "between": between,
            "across": across,
            "gap": across - between,
        }

    return Similarity(**_beside(statistics, found, permuted))


def silhouette(units: Float[Tensor, "window k"], label: Int[Tensor, " window"], labels: int) -> float:
    """Mean of (b - a) / max(a, b) by cosine distance: a to the window's own label, b to the nearest other; 0 for single members.

    Rows have length 1, so that mean distances are those to sums. Cost: window k labels. NaN with fewer than two labels in use.
    Source: Rousseeuw 1987, doi:10.1016/0377-0427(87)90125-7.
    """
    sums = torch.zeros(labels, units.shape[1], dtype=torch.float64).index_add_(0, label, units.double())
    return _silhouette(units.double() @ sums.T, label, torch.bincount(label, minlength=labels).double())


def _differ(x: Float[Tensor, "window d_model"]) -> bool:
    units = unit_rows(x)
    return bool(((units - units[0]).abs() > 1e-9).any())


def _silhouette(inner: Float[Tensor, "window label"], label: Int[Tensor, " window"], sizes: Float[Tensor, " label"]) -> float:
    """From the inner products of windows with the sums over labels."""
    if int((sizes > 0).sum()) < 2:
        return math.nan
    mine = torch.nn.functional.one_hot(label, len(sizes)).bool()
    size = sizes[label]
    own = (size - inner[mine]) / (size - 1).clamp(min=1)
    other = (1 - inner / sizes).masked_fill(mine | (sizes == 0), math.inf).amin(1)
    largest = torch.maximum(own, other).clamp(min=torch.finfo(torch.float64).tiny)
    return float(torch.where(size > 1, (other - own) / largest, 0.0).mean())


def _silhouettes(units: Float[Tensor, "window k"], found: Topics) -> Callable[[Tensor], Mapping[str, float]]:
    sums = torch.zeros(int(found.document.max()) + 1, units.shape[1], dtype=torch.float64)
    inner = units @ sums.index_add_(0, found.document, units).T

    def statistics(label: Int[Tensor, " document"]) -> Mapping[str, float]:
        chosen = torch.nn.functional.one_hot(label, len(found.labels)).double()
        mine = label[found.document]
        sizes = torch.bincount(mine, minlength=len(found.labels)).double()
        return {"silhouette": _silhouette(inner @ chosen, mine, sizes)}

    return statistics


def _clusters(units: Float[Tensor, "window k"], count: int, starts: int, seed: int) -> Int[Tensor, " window"]:
    from sklearn.cluster import KMeans

    model = KMeans(n_clusters=count, n_init=starts, random_state=seed)  # pyright: ignore[reportArgumentType]  # its default is a word
    return torch.from_numpy(model.fit_predict(units.numpy())).long()


def _agreements(clusters: Int[Tensor, " window"], found: Topics) -> Callable[[Tensor], Mapping[str, float]]:
    by_document = contingency(found.document, clusters)

    def statistics(label: Int[Tensor, " document"]) -> Mapping[str, float]:
        table = torch.nn.functional.one_hot(label, len(found.labels)).double().T @ by_document
        return {"rand": adjusted_rand(table), "information": mutual_information(table)}

    return statistics


def contingency(one: Int[Tensor, " window"], other: Int[Tensor, " window"]) -> Float[Tensor, "left right"]:
    """How many windows are in each pair of groups."""
    columns = int(other.max()) + 1
    cells = torch.bincount(one * columns + other, minlength=(int(one.max()) + 1) * columns)
    return cells.reshape(-1, columns).double()


def adjusted_rand(table: Float[Tensor, "left right"]) -> float:
    """The adjusted Rand index of a contingency table: agreement on pairs, 0 by chance with these group sizes, 1 for the same groups.

    Source: Hubert and Arabie 1985, doi:10.1007/BF01908075.
    """

    def pairs(sizes: Tensor) -> float:
        return float((sizes * (sizes - 1)).sum()) / 2

    both, left, right, everything = pairs(table), pairs(table.sum(1)), pairs(table.sum(0)), pairs(table.sum())
    chance = left * right / everything
    return (both - chance) / ((left + right) / 2 - chance) if left + right != 2 * chance else 1.0


def mutual_information(table: Float[Tensor, "left right"]) -> float:
    """Mutual information of a contingency table over the mean of the two entropies; 0 to 1. Not: adjusted for chance."""
    joint = table / table.sum()
    left, right = joint.sum(1), joint.sum(0)
    shared = float((torch.xlogy(joint, joint) - torch.xlogy(joint, torch.outer(left, right))).sum())
    entropies = -float(torch.xlogy(left, left).sum() + torch.xlogy(right, right).sum()) / 2
    return shared / entropies if entropies > 0 else 1.0


def _beside(
    statistics: Callable[[Tensor], Mapping[str, float]], found: Topics, permuted: Int[Tensor, "draw document"]
) -> dict[str, Measured]:
    """Statistics of the labels beside those of permuted ones; `between` is expected to be less than by chance, the others more."""
    seen = statistics(found.by_document)
    if len(found.by_document) == len(found.labels):
        why = "every label is one document: what labels do cannot be told from what documents do"
        return {name: Measured(value, undefined=why) for name, value in seen.items()}
    drawn = [statistics(label) for label in permuted]
    measured = {}
    for name, value in seen.items():
        null = torch.tensor([each[name] for each in drawn], dtype=torch.float64)
        measured[name] = against(value, null, "less" if "between" in name else "greater")
    return measured
