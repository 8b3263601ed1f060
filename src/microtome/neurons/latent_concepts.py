"""Latent concepts: clusters of a layer's word vectors, and which of them are what a label already says.

Clusters know no labels. A cluster of one word is aligned with every label that words decide, so beside the share of aligned clusters stand
labels shuffled among tokens, and labels given anew to whole words. Vectors of words are made in `probes.words`.

Axes of this module: `kept`, the words that are clustered; `cluster`; `class`, the labels; `count`, what is counted of an alignment: clusters aligned, those of several words
aligned, and confirm-half tokens that have the label of their cluster.

Source: Dalvi et al. 2022, arXiv:2205.07237, on clusters of contextual words; Sajjad et al. 2022, arXiv:2206.13289, on their alignment.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from microtome.core import Half, Refusal, Site
from microtome.model import Model
from microtome.neurons.basis import Neurons
from microtome.neurons.statistics import write_norms
from microtome.numerics import hash_parts, permutation_p
from microtome.probes import LabelledText, LabelledWords, Pooling, word_vectors

__all__ = [
    "SAJJAD",
    "SHUFFLED_TOKENS",
    "SHUFFLED_WORDS",
    "SPELLINGS",
    "Alignment",
    "LatentConcepts",
    "Ward",
    "alignment",
    "concept_vectors",
    "frequent",
    "latent_concepts",
    "spelled",
]

SHUFFLED_TOKENS: Final = "labels shuffled among the tokens"
SHUFFLED_WORDS: Final = "each word with the commonest label of another"
SPELLINGS: Final[Mapping[str, Callable[[str], str]]] = {
    "casing": lambda word: "title" if word.istitle() else "upper" if word.isupper() else "lower" if word.islower() else "mixed",
    "first three letters": lambda word: word[:3].casefold(),
    "last three letters": lambda word: word[-3:].casefold(),
}
"""Labels that a word's spelling decides."""


@dataclass(frozen=True)
class Ward:
    """How many clusters, of which words.

    Words with fewer than `fewest` tokens are left out, of others `most` tokens are kept; words are taken in an order drawn by hash while all
    their tokens fit into `rows`, for Ward's method takes rows^2 time and memory.
    """

    clusters: int = 100
    fewest: int = 5
    most: int = 50
    rows: int = 8000
    seed: int = 0


SAJJAD: Final = Ward(clusters=600, rows=25_000)
"""As many clusters as ConceptX; its published code keeps as many tokens of a word."""


@dataclass(frozen=True, eq=False)
class LatentConcepts:
    """Which of the words were clustered (`row`), and the cluster of each; `size` tokens and `words` different words of each cluster."""

    row: Int[Tensor, " kept"]
    cluster: Int[Tensor, " kept"]
    size: Int[Tensor, " cluster"]
    words: Int[Tensor, " cluster"]
    settings: Ward


@dataclass(frozen=True, eq=False)
class Alignment:
    """What label each cluster has, where `threshold` of its tokens have it (-1: none), and its commonest label's share.

    `aligned` is the share of clusters with a label, `several` the same of clusters of two words or more, and `held` the share of confirm-half
    tokens that have the label of their cluster, of clusters aligned by their discover half (two tokens or more); NaN where there is none.
    `tokens` and `words` are the three for labels shuffled as `SHUFFLED_TOKENS` and `SHUFFLED_WORDS` say; p-values are by `words`, which
    keeps that a word has one label. `labels` is how many clusters have each label.
    """

    classes: tuple[str, ...]
    label: Int[Tensor, " cluster"]
    purity: Float64[Tensor, " cluster"]
    labels: Int[Tensor, " class"]
    aligned: float
    several: float
    held: float
    tokens: Float64[Tensor, "draw count"]
    words: Float64[Tensor, "draw count"]
    threshold: float

    @property
    def p(self) -> Float64[Tensor, " count"]:
        """How often words with other words' labels align as well."""
        return permutation_p(torch.tensor([self.aligned, self.several, self.held], dtype=torch.float64), self.words)


def concept_vectors(
    model: Model, texts: Sequence[LabelledText], words: LabelledWords, site: Site, *, pooling: Pooling = "last"
) -> Float[Tensor, "row unit"]:
    """Word vectors at a site; those of `mlp_act` as they write, h_i |v_i|, so that rescaled units are no nearer or farther.

    Distances do not change where a unit is reversed against what it writes.
    """
    found = word_vectors(model, texts, words, [site], pooling=pooling)[site]
    if site.name != "mlp_act" or site.layer is None:
        return found
    return found * write_norms(model.weights, Neurons(site.layer, model.shape.d_mlp)).float().cpu()


def frequent(kind: Int[Tensor, " row"], settings: Ward) -> Int[Tensor, " kept"]:
    """The rows that are clustered, in order: tokens of words that are frequent enough, of each as many as are kept, by hash."""
    order = hash_parts(settings.seed, kind, torch.arange(len(kind))).argsort(stable=True)
    order = order[kind[order].argsort(stable=True)]
    kinds, place, counts = kind[order].unique_consecutive(return_inverse=True, return_counts=True)
    rank = torch.arange(len(order)) - (counts.cumsum(0) - counts)[place]
    taken = torch.where(counts >= settings.fewest, counts.clamp(max=settings.most), 0)
    drawn = hash_parts(settings.seed, kinds).argsort(stable=True)
    fits = torch.zeros_like(taken, dtype=torch.bool)
    fits[drawn] = taken[drawn].cumsum(0) <= settings.rows
    return order[(rank < taken[place]) & fits[place]].sort().values


def latent_concepts(x: Float[Tensor, "row unit"], words: LabelledWords, settings: Ward = Ward()) -> LatentConcepts:
    """Ward's clusters of the vectors of frequent words.

    Errors: `Refusal` for fewer such words than clusters, and for a vector that is not finite.
    Cost: memory 4 rows^2 bytes and more, time rows^2 units.
    """
    from sklearn.cluster import AgglomerativeClustering

    row = frequent(words.kind, settings)
    if len(row) <= settings.clusters:
        why = f"{len(row)} tokens are of words with {settings.fewest} tokens or more"
        raise Refusal(f"{settings.clusters} clusters of words", why=why, instead="ask for fewer, or give more text")
    points = x[row].double()
    if not bool(torch.isfinite(points).all()):
        raise Refusal("clusters of words", why="a vector is not finite", instead="leave such rows out")
    found = AgglomerativeClustering(settings.clusters, linkage="ward").fit_predict(points.numpy())
    cluster = torch.from_numpy(found).long()
    pairs = torch.stack([cluster, words.kind[row]], 1).unique(dim=0)
    size, several = (each.bincount(minlength=settings.clusters) for each in (cluster, pairs[:, 0]))
    return LatentConcepts(row, cluster, size, several, settings)


def spelled(words: LabelledWords, spelling: str) -> tuple[Int[Tensor, " row"], tuple[str, ...]]:
    """Labels of words by one of `SPELLINGS`, and their names."""
    names = [SPELLINGS[spelling](word) for word in words.words]
    classes = tuple(sorted(set(names)))
    number = {name: index for index, name in enumerate(classes)}
    return torch.tensor([number[name] for name in names]), classes


def alignment(
    found: LatentConcepts,
    words: LabelledWords,
    labels: tuple[Int[Tensor, " row"], tuple[str, ...]] | None = None,
    *,
    threshold: float = 0.95,
    draws: int = 20,
    seed: int = 0,
) -> Alignment:
    """Compare clusters with labels of all words: their own, or others (`spelled`).

    Cost: a count of the tokens for each draw.
    """
    whole, classes = (words.y, words.classes) if labels is None else labels
    y, kind, half = whole[found.row], words.kind[found.row], words.half[found.row]
    generator = torch.Generator().manual_seed(seed)
    counts = _counts(found.cluster, y, (len(found.size), len(classes)))
    purity, best = (counts / found.size[:, None]).max(1)
    label = torch.where(purity >= threshold, best, -1)
    kinds, place = kind.unique(return_inverse=True)
    own = _counts(place, y, (len(kinds), len(classes))).argmax(1)
    tokens, several = [], []
    for _ in range(draws):
        for drawn, kept in (
            (y[torch.randperm(len(y), generator=generator)], tokens),
            (own[torch.randperm(len(own), generator=generator)][place], several),
        ):
            kept.append(_shares(found, drawn, half, len(classes), threshold))
    aligned, of_several, held = _shares(found, y, half, len(classes), threshold).tolist()
    sizes = label[label >= 0].bincount(minlength=len(classes))
    nulls = [torch.stack(each) if each else torch.zeros(0, 3, dtype=torch.float64) for each in (tokens, several)]
    return Alignment(classes, label, purity, sizes, aligned, of_several, held, nulls[0], nulls[1], threshold)


def _counts(group: Int[Tensor, " kept"], y: Int[Tensor, " kept"], shape: tuple[int, int]) -> Float64[Tensor, "cluster class"]:
    return (group * shape[1] + y).bincount(minlength=shape[0] * shape[1]).reshape(shape).double()


def _shares(
    found: LatentConcepts, y: Int[Tensor, " kept"], half: Int[Tensor, " kept"], classes: int, threshold: float
) -> Float64[Tensor, " count"]:
    """Clusters aligned, those of several words aligned, and tokens of the confirm half that have the label of their cluster."""
    shape = (len(found.size), classes)
    learning, judging = (
        _counts(found.cluster[half == int(side)], y[half == int(side)], shape) for side in (Half.DISCOVER, Half.CONFIRM)
    )
    both = learning + judging
    aligned = both.max(1).values >= threshold * both.sum(1)
    best, label = learning.max(1)
    sure = (best >= threshold * learning.sum(1)) & (learning.sum(1) > 1)
    right = judging.gather(1, label[:, None])[sure].sum() / judging[sure].sum()
    return torch.stack([aligned.double().mean(), aligned[found.words > 1].double().mean(), right])
