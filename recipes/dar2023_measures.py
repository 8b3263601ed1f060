"""The experiments of Dar et al. 2022, arXiv:2209.02535, that need one model, with the paper's settings and this project's controls.

Each is a call of a method of the lens. What is printed of them is said in `dar2023`, what is published in `dar2023_paper`.
"""

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.capture import fold_batch, material_of, tokens_per_batch, writing_to
from microtome.core import Fold, Site
from microtome.corpus import Reading, Source
from microtome.model import Model
from microtome.readout import Tokens, TokenSample
from microtome.vocabulary.activated import Activated, activated
from microtome.vocabulary.active import Active, active_units
from microtome.vocabulary.circuits import Kind, LayerHeads, layer_heads
from microtome.vocabulary.overlap import PARTNERS, Overlap, chosen_tokens, overlap_of
from microtome.vocabulary.pairs import LayerPairs, Question, common_tokens, pair_q, pairs_of_layer, read_pairs
from microtome.vocabulary.parameters import block_of, group_named, groups_of, layers_of
from microtome.vocabulary.subject import Subject
from microtome.vocabulary.topics import Search, search
from microtome.vocabulary.truncation import HIGH, LOW, Kept, normal_vectors, truncated, value_vectors

__all__ = [
    "BASES",
    "EXPERIMENTS",
    "KS",
    "TOPIC",
    "Experiments",
    "Ranked",
    "Sampled",
    "active_overlaps",
    "experiments",
    "kept_scores",
    "pairs_of_head",
    "pooled_states",
    "ranked_heads",
    "sampled",
    "similarities",
    "topic_search",
]

EXPERIMENTS: Final = ("keep", "pairs", "overlap", "search", "activated")
VECTORS: Final = 300
KS: Final = tuple(sorted((*LOW, 1000, *HIGH)))
BASES: Final = ("transpose", "pseudo-inverse")
TOPIC: Final = (
    "January",
    "February",
    "March",
    "April",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
"""May is left out, which is mostly a verb."""
_WINDOW: Final = 256
_RANKING: Final = 10


def kept_scores(
    subject: Subject,
    states: Float[Tensor, "row d_model"] | None = None,
    *,
    vectors: int = VECTORS,
    ks: Sequence[int] = KS,
    seed: int = 0,
) -> list[Kept]:
    """Keep-k of E^T and E^+ for normal vectors, feed-forward values and, where there are some, hidden states (appendix A)."""
    kinds = {
        "normal": normal_vectors(subject.shape.d_model, vectors, seed=seed),
        "values": value_vectors(subject, vectors, seed=seed),
        "states": states,
    }
    found = []
    for kind, rows in kinds.items():
        if rows is not None:
            found += truncated(subject.write, rows, kind, BASES, ks, seed=seed)
    return found


@dataclass(frozen=True, eq=False)
class Ranked:
    """A head by how far its first pairs stand out (`strength`), beside the rotated heads of its layer, with q over all heads."""

    kind: Kind
    layer: int
    head: int
    strength: float
    control: float
    q: float


def ranked_heads(
    subject: Subject, kind: Kind, *, common: int = 2048, layers: Sequence[int] | None = None, seed: int = 0
) -> list[Ranked]:
    """Every head, first the one whose pairs among the commonest tokens stand furthest beyond its layer's rotated heads."""
    tokens = common_tokens(subject, common)
    asked = Question(tokens, tokens, k=_RANKING, ends=("top",), pairs="different", seed=seed)
    found = list(read_pairs(subject, kind, asked, layers))
    heads = []
    for each, quality in zip(found, pair_q(found), strict=True):
        own, null = each.strength
        control = float(null.nanmean())
        heads += [Ranked(kind, each.layer, head, float(own[head]), control, float(quality[head])) for head in range(len(own))]
    return sorted(heads, key=lambda head: head.control - head.strength)


def pairs_of_head(
    subject: Subject,
    kind: Kind,
    layer: int,
    head: int,
    *,
    pairs: Literal["all", "different"] = "different",
    k: int = 50,
    seed: int = 0,
) -> LayerPairs:
    """The k best pairs of one head among all tokens shown, by the weights as they are stored (appendix C)."""
    one = _alone(layer_heads(subject.weights, layer, folding=subject.folding), head)
    tokens = subject.read.tokens.cpu()
    (found,) = pairs_of_layer(subject, one, kind, Question(tokens, tokens, k=k, ends=("top",), pairs=pairs, seed=seed))
    return found


def _alone(heads: LayerHeads, head: int) -> LayerHeads:
    """A layer of which only this head is left."""
    own, shared = slice(head, head + 1), slice(head // heads.sharing, head // heads.sharing + 1)
    return replace(heads, q=heads.q[own], o=heads.o[own], k=heads.k[shared], v=heads.v[shared], biases={})


def similarities(
    subject: Subject,
    layers: Iterable[int] | None = None,
    partners: Sequence[tuple[str, str]] = PARTNERS,
    *,
    k: int = 100,
    draws: int = 1000,
    seed: int = 0,
) -> list[Overlap]:
    """Sim_k of keys and values, of values and outputs, of queries and keys, by layer (appendix B.1)."""
    k, found = min(k, len(subject.write.tokens)), []
    for layer in range(subject.shape.layers) if layers is None else layers:
        ids: dict[str, Int[Tensor, "vector k"]] = {}
        for names in partners:
            groups = [group_named(name) for name in names]
            if any(layer not in layers_of(subject.weights, group) for group in groups):
                continue
            one, other = (block_of(subject.weights, group, layer, folding=subject.folding) for group in groups)
            for each in (one, other):
                if each.group.name not in ids:
                    reader = subject.read if each.group.end == "read" else subject.write
                    ids[each.group.name] = chosen_tokens(each.rows, reader, k, "magnitude")
            both = (ids[names[0]], ids[names[1]])
            found.append(overlap_of(subject, (one, other), both, k=k, chosen="magnitude", draws=draws, seed=seed))
    return found


def topic_search(subject: Subject, words: Sequence[str] = TOPIC, *, count: int = 5, seed: int = 0) -> Search:
    """The feed-forward keys and values that score a topic's mean token vector highest (appendix C)."""
    names = [name for name in ("W_in", "W_gate", "W_up", "W_out") if layers_of(subject.weights, group_named(name))]
    return search(subject, words, groups_of(subject.weights, names), count=count, measure="dot", seed=seed)


@dataclass(frozen=True, eq=False)
class Sampled:
    """Tokens of a text: their states after every layer, and what they activate most."""

    active: Sequence[Active]
    states: Sequence[Tokens]
    documents: int


def sampled(model: Model, text: Source, *, windows: int = 60, tokens: int = 1000, seed: int = 0) -> Sampled:
    """About `tokens` tokens of `windows` windows of a text. Cost: one forward pass over these."""
    with tempfile.TemporaryDirectory() as temporary:
        material = material_of(model, text, Reading(), window=_WINDOW, seed=seed)
        corpus = material.prepare(writing_to(Path(temporary), "main"), "main")
        chosen = corpus.sample(windows, seed)
        rate = min(1.0, tokens * corpus.windows / (max(corpus.tokens, 1) * len(chosen)))
        folds: dict[str, Fold] = {str(site): fold for site, fold in active_units(model, "next", rate, seed, most=5).items()}
        read = [Site("resid_post", layer) for layer in range(model.shape.layers)]
        samples = {str(site): TokenSample(site, model.shape.d_model, "next", rate, seed) for site in read}
        both = {**folds, **samples}
        kept = {name: fold.init() for name, fold in both.items()}
        for batch in corpus.batches(chosen, tokens_per_batch(model), model.device):
            fold_batch(model, batch, both, kept)
    active: list[Active] = [fold.result(kept[name]) for name, fold in folds.items()]
    states = [fold.result(kept[name]) for name, fold in samples.items()]
    return Sampled(active, states, len(states[0].document.unique()))


def pooled_states(found: Sampled, vectors: int = VECTORS, *, seed: int = 0) -> Float[Tensor, "row d_model"]:
    """States of random tokens of random layers, as they leave these; fewer where there are no more."""
    rows = torch.cat([each.values.float() for each in found.states])
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:vectors]]


def active_overlaps(
    subject: Subject, found: Sampled, layers: Sequence[int] | None = None, *, ks: Sequence[int] = (50, 100), seed: int = 0
) -> list[Activated]:
    """R_k of states with the five parameters of each group that they activate most, by layer (section 4.2)."""
    last = found.states[-1].site.layer
    chosen = range(subject.shape.layers) if layers is None else layers
    active = [each for each in found.active if each.site.layer in chosen]
    states = [each for each in found.states if each.site.layer in (*chosen, last)]
    return list(activated(subject, active, states, ks=ks, seed=seed))


@dataclass(frozen=True, eq=False)
class Experiments:
    """What was measured of a model; what was not asked for is empty. `read` are the best pairs of the first of `heads`, in their order."""

    kept: Sequence[Kept] = ()
    heads: Sequence[Ranked] = ()
    read: Sequence[LayerPairs] = ()
    similar: Sequence[Overlap] = ()
    searched: Search | None = None
    active: Sequence[Activated] = ()
    documents: int = 0


def experiments(
    model: Model,
    subject: Subject,
    text: Source = "sample",
    *,
    only: Sequence[str] = EXPERIMENTS,
    layers: Sequence[int] | None = None,
    heads: int = 2,
    topic: Sequence[str] = TOPIC,
    seed: int = 0,
) -> Experiments:
    """The experiments named in `only`, of some `layers` (None: all); pairs of the first `heads` heads of each kind of circuit are read.

    Cost: that of the whole weights through the vocabulary, 2 d_model vocab FLOP a vector, several times; one pass over 60 windows.
    """
    text_read: Sampled | None = None
    if {"keep", "activated"} & set(only):
        text_read = sampled(model, text, seed=seed)
    ranked = [
        head for kind in ("ov", "qk") if "pairs" in only for head in ranked_heads(subject, kind, layers=layers, seed=seed)
    ]
    chosen = [head for kind in ("ov", "qk") for head in [each for each in ranked if each.kind == kind][:heads]]
    kept: list[Kept] = []
    active: list[Activated] = []
    if text_read is not None and "keep" in only:
        kept = kept_scores(subject, pooled_states(text_read, seed=seed), seed=seed)
    if text_read is not None and "activated" in only:
        active = active_overlaps(subject, text_read, layers, seed=seed)
    return Experiments(
        kept=kept,
        heads=ranked,
        read=[pairs_of_head(subject, each.kind, each.layer, each.head, seed=seed) for each in chosen],
        similar=similarities(subject, layers, seed=seed) if "overlap" in only else (),
        searched=topic_search(subject, topic, seed=seed) if "search" in only else None,
        active=active,
        documents=0 if text_read is None else text_read.documents,
    )
