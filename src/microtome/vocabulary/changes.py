"""What changed between two models with the same shape: every parameter vector's difference, how large it is and how it reads.

The difference of a vector, as the stream meets it in each model, is itself a vector of the stream and is read by the tuned model's token
vectors, at both ends. What a block's changes have in common are the leading singular directions of all its differences; of an adapter
these are all there are. Tables and sentences belong in `changed`.

Controls: a reading is compared with that of random mixtures of the base model's vectors in the same block; scores of a list of words are
the business of `lists`. Vectors that are equal in both models are counted and no more is said of them.

Axes of this module: `vector` is a vector of a block that differs, `end` is + or -, `read` a vector whose tokens are looked up,
`direction` a singular direction.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microtome.core import Refusal, WeightAddress
from microtome.model.adapter import AdaptedWeights
from microtome.model.allocator import give_back_freed_memory
from microtome.model.weights import OF_MODEL
from microtome.numerics import hash_parts
from microtome.readout import RandomDirections, Reader, TopTokens, random_directions, read_random, top_tokens
from microtome.vocabulary.lists import Scoring, WordList, WordScores, score, scoring
from microtome.vocabulary.parameters import Block, Group, block_of, blocks, groups_of
from microtome.vocabulary.subject import Subject

__all__ = [
    "ANY",
    "MIXED",
    "BlockChange",
    "Directions",
    "EmbeddingChange",
    "Reading",
    "changes",
    "embedding_changes",
    "leading_directions",
    "other_changes",
    "require_alike",
]

MIXED: Final = "random mixtures of the base model's vectors there"
ANY: Final = "random directions"
_ENOUGH: Final = 64
"""Vectors of a block, from which on mixtures of them are its control."""
_DRAWS: Final = 128
_DIRECTIONS: Final = 8
"""Singular directions that are read, where no adapter says how many there are."""
_ROUNDS: Final = 8
_ALIKE: Final = 0.99
"""Share of the tokens that two tokenizers must spell alike: a chat model gives some unused ones a meaning."""


@dataclass(frozen=True, eq=False)
class Directions:
    """Leading right singular vectors of a block's differences, at length 1, the largest first, and how they read.

    `values` are the singular values, `share` their part of the sum of all squares. The sign is such that the end whose first token
    stands out more is +.
    """

    vectors: Float[Tensor, "direction d_model"]
    values: Float[Tensor, " direction"]
    share: Float[Tensor, " direction"]
    top: TopTokens


@dataclass(frozen=True, eq=False)
class Reading:
    """Tokens of the differences of those vectors of a block that moved farthest: `vectors` are their places among those that differ."""

    vectors: Int[Tensor, " read"]
    top: TopTokens


@dataclass(frozen=True, eq=False)
class BlockChange:
    """A group of a layer (None: of the model) in both models.

    Of `total` vectors those of `addresses` differ: `moved` is |difference| / |vector of the base|, `cosine` that of both vectors, NaN where
    one has no length. `whole` is the same for the block: lengths of all differences and of all vectors, as root sums of squares.
    """

    group: str
    layer: int | None
    total: int
    addresses: Sequence[WeightAddress]
    moved: Float[Tensor, " vector"]
    cosine: Float[Tensor, " vector"]
    whole: float
    control_kind: str
    random: RandomDirections | None
    reading: Reading | None
    directions: Directions | None
    words: WordScores | None


@dataclass(frozen=True)
class EmbeddingChange:
    """An embedding that differs: how far it moved as a whole, how many of its tokens did, and the ids of those that did most."""

    name: str
    whole: float
    changed: int
    total: int
    tokens: tuple[int, ...]
    moved: tuple[float, ...]


def require_alike(base: Subject, tuned: Subject) -> None:
    """Errors: `Refusal` where two models have no vectors that correspond: by architecture, sizes, tokenizer or what they are read by."""
    what = f"changes from {base.name} to {tuned.name}"
    if base.weights.family.name != tuned.weights.family.name:
        why = f"one is of the architecture {base.weights.family.name} and the other of {tuned.weights.family.name}"
        raise Refusal(what, why=why, instead="name a model and what it was fine-tuned to")
    for size in ("layers", "d_model", "heads", "heads_kv", "d_head", "d_mlp", "experts", "gated"):
        one, other = getattr(base.shape, size), getattr(tuned.shape, size)
        if one != other:
            raise Refusal(what, why=f"{size} is {one} and {other}", instead="name a model and what it was fine-tuned to")
    if base.folding != tuned.folding:
        raise Refusal(what, why="one is read folded and the other raw", instead="use one preset for both")
    shared = list(zip(base.texts, tuned.texts, strict=False))
    differ = [(one, other) for one, other in shared if one != other and one and other]
    if len(differ) > (1 - _ALIKE) * len(shared):
        why = f"their tokenizers differ in {len(differ)} of {len(shared)} tokens: {differ[0][0]!r} is {differ[0][1]!r}"
        raise Refusal(what, why=why, instead="name two models with one tokenizer, or align them: --kind alignment")


def changes(
    base: Subject,
    tuned: Subject,
    groups: Sequence[str] = (),
    *,
    words: WordList | None = None,
    most: int | None = 64,
    k: int = 20,
    draws: int = 1000,
    seed: int = 0,
) -> Iterator[BlockChange]:
    """Every block of `groups` (none named: of all) in both models, one held at a time.

    `most` is how many vectors of a block are read, those that moved farthest (None: all); all are measured, and scored against `words`.
    `draws` is how often the list is shuffled.
    Errors: `Refusal` as `require_alike`, for k that the vocabulary has not, or for numbers that are none.
    Cost: one read of both models' weights, 2 d_model vocab FLOP per vector that is read, 2 d_model word + 2 draw word FLOP per vector
    with a list; memory of two blocks.
    Source: Dar et al. 2022, arXiv:2209.02535, section 4.3 and appendix D, for differences and both signs.
    """
    require_alike(base, tuned)
    if not 1 <= k <= len(tuned.write.tokens):
        why = f"the vocabulary that is read has {len(tuned.write.tokens)} tokens"
        raise Refusal(f"the {k} first tokens", why=why, instead="ask for 1 or more, and no more than that")
    ready: dict[int, Scoring] = {}
    if words is not None:
        ready = {
            id(reader): scoring(words, reader, draws, seed=seed)
            for reader in {id(r): r for r in (tuned.read, tuned.write)}.values()
        }
    for place, after in enumerate(blocks(tuned.weights, groups_of(tuned.weights, groups), folding=tuned.folding)):
        give_back_freed_memory()
        before = block_of(base.weights, after.group, after.layer, folding=base.folding)
        reader = tuned.read if after.group.end == "read" else tuned.write
        number = int(hash_parts(seed, place))
        yield _block(before, after, tuned, (reader, ready.get(id(reader))), most=most, k=k, seed=number)


def _block(
    before: Block,
    after: Block,
    tuned: Subject,
    by: tuple[Reader, Scoring | None],
    *,
    most: int | None,
    k: int,
    seed: int,
) -> BlockChange:
    group, layer, (reader, ready) = after.group, after.layer, by
    rows = after.rows - before.rows
    if not bool(rows.isfinite().all()):
        where = group.name if layer is None else f"{group.name} of layer {layer}"
        raise Refusal(where, why="it holds numbers that are NaN or infinite", instead="use a checkpoint that is whole")
    differs = (rows != 0).any(1)
    lengths = before.rows.norm(dim=1)
    moved = _over(rows.norm(dim=1), lengths)[differs]
    cosine = _over((before.rows * after.rows).sum(1), lengths * after.rows.norm(dim=1))[differs]
    whole = float(_over(rows.norm(), before.rows.norm()))
    addresses = [address for address, one in zip(after.addresses, differs.tolist(), strict=True) if one]
    kind = MIXED if len(rows) >= _ENOUGH else ANY
    random = reading = directions = scores = None
    if addresses:
        random = _control(before.rows, reader, k, seed) if kind == MIXED else random_directions(reader, k, _DRAWS, seed=seed)
        chosen = moved.nan_to_num(0.0).argsort(descending=True, stable=True)[:most]
        reading = Reading(chosen, top_tokens(rows[differs][chosen], reader, random))
        directions = _directions(rows[differs], _rank(tuned, group, layer), reader, random, seed)
        scores = None if ready is None else score(rows[differs], ready)
    return BlockChange(group.name, layer, len(rows), addresses, moved, cosine, whole, kind, random, reading, directions, scores)


def leading_directions(
    rows: Float[Tensor, "vector d_model"], count: int, *, seed: int = 0
) -> tuple[Float[Tensor, "direction d_model"], Float[Tensor, " direction"]]:
    """The right singular vectors of the `count` largest singular values, and these; exact where no more than `count` are not zero.

    Otherwise by subspace iteration from a random start, with as many more to spare. Cost: 2 vector d_model count FLOP for each of 8 rounds.
    Source: Halko et al. 2009, arXiv:0909.4061, section 4.4.
    """
    count = min(count, *rows.shape)
    if min(rows.shape) <= 2 * count:
        _, values, vectors = torch.linalg.svd(rows.double(), full_matrices=False)
        return vectors[:count].float(), values[:count].float()
    wide = min(2 * count, *rows.shape)
    span = torch.randn(rows.shape[0], wide, generator=torch.Generator().manual_seed(seed), dtype=rows.dtype)
    for _ in range(_ROUNDS):
        basis, _ = torch.linalg.qr(rows.T @ span)
        span, _ = torch.linalg.qr(rows @ basis)
    _, values, vectors = torch.linalg.svd((span.T @ rows).double(), full_matrices=False)
    return vectors[:count].float(), values[:count].float()


def embedding_changes(base: Subject, tuned: Subject, most: int = 20) -> list[EmbeddingChange]:
    """The embeddings W_E and W_U that differ, W_U only where it is not tied to W_E. Of tokens that both models have."""
    found, tied = [], all(getattr(each.weights.config, "tie_word_embeddings", False) for each in (base, tuned))
    for name in ("W_E", "W_U"):
        if not (base.weights.has(name) and tuned.weights.has(name)) or (name == "W_U" and tied):
            continue
        pair = [_token_rows(subject, name) for subject in (base, tuned)]
        count = min(map(len, pair))
        parts = [
            (after.float() - before.float()).norm(dim=1)
            for before, after in zip(pair[0][:count].split(4096), pair[1][:count].split(4096), strict=True)
        ]
        lengths = torch.cat([before.float().norm(dim=1) for before in pair[0][:count].split(4096)])
        differences = torch.cat(parts)
        changed = int((differences > 0).sum())
        if changed:
            moved = _over(differences, lengths).nan_to_num(0.0)
            first = moved.argsort(descending=True, stable=True)[: min(most, changed)].tolist()
            whole = float(_over(differences.norm(), lengths.norm()))
            found.append(EmbeddingChange(name, whole, changed, count, tuple(first), tuple(moved[first].tolist())))
    return found


def other_changes(base: Subject, tuned: Subject) -> list[str]:
    """Weights that differ and hold no vectors of the stream: inner biases, norms of queries and keys, biases of norms."""
    seen = {"W_E", "W_U"} | {name for group in groups_of(tuned.weights) for name in group.needs}
    found = []
    for layer in (None, *range(tuned.shape.layers)):
        where = "" if layer is None else f".{layer}"
        for name in tuned.weights.names(layer):
            pair = [subject.weights for subject in (base, tuned)]
            if name not in seen and pair[0].has(name, layer) and not _equal(*(w.get(name, layer) for w in pair)):
                found.append(f"{name}{where}")
        found += [f"{name}{where}" for name in _norms_that_differ(base, tuned, layer, seen)]
    return found


def _norms_that_differ(base: Subject, tuned: Subject, layer: int | None, seen: set[str]) -> Iterator[str]:
    for name in tuned.weights.family.norms:
        if (name in OF_MODEL) != (layer is None) or not tuned.weights.has(name, layer):
            continue
        one, other = (subject.weights.norm(name, layer) for subject in (base, tuned))
        if name not in seen and not _equal(one.gain, other.gain):
            yield name
        if one.bias is not None and other.bias is not None and not _equal(one.bias, other.bias):
            yield f"bias of {name}"


def _equal(one: Float[Tensor, "..."], other: Float[Tensor, "..."]) -> bool:
    return one.shape == other.shape and torch.equal(one.float(), other.float())


def _token_rows(subject: Subject, name: str) -> Float[Tensor, "vocab d_model"]:
    rows = subject.weights.get(name)
    return rows if name == "W_E" else rows.T


def _over(part: Float[Tensor, "..."], whole: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """A ratio, NaN where there is nothing to compare with."""
    return torch.where(whole > 0, part / whole.clamp(min=torch.finfo(torch.float32).tiny), torch.nan)


def _control(rows: Float[Tensor, "vector d_model"], reader: Reader, k: int, seed: int) -> RandomDirections:
    """How mixtures of vectors read: sums of all, each at length 1, times normal random numbers."""
    generator = torch.Generator().manual_seed(seed)
    units = torch.nn.functional.normalize(rows.double(), dim=1)
    return read_random(torch.randn(_DRAWS, len(rows), generator=generator, dtype=torch.float64) @ units, reader, k)


def _rank(tuned: Subject, group: Group, layer: int | None) -> int:
    """How many directions a block's differences can have by its adapter; the usual number where none says so."""
    weights, (name, *others) = tuned.weights, group.needs
    if not isinstance(weights, AdaptedWeights) or others or name in weights.family.norms:
        return _DIRECTIONS
    return weights.rank(name, layer) or _DIRECTIONS


def _directions(
    rows: Float[Tensor, "vector d_model"], count: int, reader: Reader, random: RandomDirections, seed: int
) -> Directions:
    vectors, values = leading_directions(rows, count, seed=seed)
    top = top_tokens(vectors, reader, random)
    turned: Bool[Tensor, " direction"] = top.strength[:, 1] > top.strength[:, 0]
    vectors = torch.where(turned[:, None], -vectors, vectors)
    share = values.square() / rows.double().square().sum().float()
    return Directions(vectors, values, share, top_tokens(vectors, reader, random))
