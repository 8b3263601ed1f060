"""Parameter vectors in the vocabulary: what each looks for or promotes, and whether it stands out from mixtures of its own layer.

The control of a vector are random mixtures of the vectors of its block, with weights from a normal distribution, at the vector's
length. They point where the block points as a whole, so what all of it says is nobody's finding. Which vectors there are is said in
`parameters`; sentences belong in `findings`. The axis `mixture` counts the mixtures of a block.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from microtome.model.allocator import give_back_freed_memory
from microtome.numerics import benjamini_hochberg, hash_parts
from microtome.readout import (
    RandomDirections,
    Reader,
    TopTokens,
    central_interval,
    read_random,
    top_tokens,
)
from microtome.readout.bases import population_of, standardised
from microtome.store.schemas import TABLES
from microtome.vocabulary.parameters import Block, Group, block_of, layers_of
from microtome.vocabulary.subject import Subject

__all__ = [
    "ANYWHERE",
    "CONTROL",
    "FEW",
    "LEAST_DRAWS",
    "Projected",
    "Readable",
    "Standing",
    "first_tokens",
    "meaningless",
    "mixtures",
    "project",
    "read_block",
    "read_group",
    "readable",
    "readable_rows",
]

CONTROL: Final = "random mixtures of the layer's vectors"
ANYWHERE: Final = "directions drawn from all alike"
LEAST_DRAWS: Final = 128
"""Mixtures of a block."""
FEW: Final = 8
"""Vectors of a block whose mixtures would be the vectors themselves: directions drawn from all alike are their control."""
_BLOCK: Final = 1024
_BEYOND: Final = 0.99
_REDRAWN: Final = 1000


@dataclass(frozen=True, eq=False)
class Projected:
    """A block in the vocabulary, and what directions of no meaning are there: mixtures of it, where `kind` does not say otherwise."""

    block: Block
    top: TopTokens
    random: RandomDirections
    kind: str


@dataclass(frozen=True, eq=False)
class Standing:
    """How far the first tokens of a block's vectors stand out, and those of its mixtures (see `TopTokens.strength`)."""

    group: str
    layer: int | None
    strength: Float[Tensor, "unit end"]
    null: Float[Tensor, "mixture end"]
    kind: str = CONTROL


@dataclass(frozen=True)
class Readable:
    """A block whose vectors are tested together.

    `share` of them have an end stronger than 99 % of the block's mixtures; of as many mixtures it is `control` on average and
    `low` to `high` in 95 % of 1,000 draws; q over all blocks that are tested with it.
    """

    group: str
    layer: int | None
    share: float
    control: float
    low: float
    high: float
    q: float
    kind: str = CONTROL


def project(
    subject: Subject, groups: Sequence[Group], k: int, *, draws: int = LEAST_DRAWS, seed: int = 0, hubs: str = "kept"
) -> Iterator[Projected]:
    """Read every vector of `groups` at both ends, a block at a time, in the order of their addresses as text.

    What reads the stream is read by `subject.read`, what writes to it by `subject.write`. With `hubs` "removed" scores are z-scores
    over the block (`readout.bases.standardised`): tokens that any vector scores high on are no longer first.
    What is read depends on weights and `seed` alone, not on the device or the number of threads.
    Cost: 2 d_model vocab FLOP per vector and mixture; memory for a layer of a group.
    Source: Dar et al. 2022, arXiv:2209.02535, section 3.2.
    """
    places = [(group, layer) for group in groups for layer in layers_of(subject.weights, group)]
    for group, layer in sorted(places, key=lambda place: _prefix(*place)):
        give_back_freed_memory()
        yield read_group(subject, group, layer, k, draws=draws, seed=seed, hubs=hubs)


def read_group(
    subject: Subject, group: Group, layer: int | None, k: int, *, draws: int = LEAST_DRAWS, seed: int = 0, hubs: str = "kept"
) -> Projected:
    """The vectors of a group in one layer, see `project`."""
    block = block_of(subject.weights, group, layer, folding=subject.folding)
    reader = subject.read if group.end == "read" else subject.write
    return read_block(block, reader, k, draws, int(hash_parts(seed, layer or 0)), hubs)


def read_block(block: Block, reader: Reader, k: int, draws: int, seed: int, hubs: str = "kept") -> Projected:
    """One block, see `project`."""
    rows = block.rows
    if hubs == "removed" and len(rows) >= FEW:
        population = population_of(rows)
        reader, rows = standardised(reader, population), (rows.double() - population.mean).float()
    directions, kind = meaningless(rows, draws, seed)
    random = read_random(directions, reader, k)
    return Projected(block, top_tokens(rows, reader, random), random, kind)


def meaningless(rows: Float[Tensor, "vector d_model"], draws: int, seed: int) -> tuple[Float[Tensor, "draw d_model"], str]:
    """Directions that vectors of a block are compared with, and what they are: mixtures, or of few vectors any directions."""
    if len(rows) < FEW:
        return torch.randn(draws, rows.shape[1], generator=torch.Generator().manual_seed(seed)), ANYWHERE
    return mixtures(rows, draws, seed), CONTROL


def first_tokens(found: Projected, k: int) -> Projected:
    """The same with the first `k` tokens of each end alone: one product gives lists of any length."""
    tokens, scores, control = (part[:, :, :k].contiguous() for part in (found.top.tokens, found.top.scores, found.top.control))
    random = RandomDirections(found.random.scores[:k], found.random.strength)
    return replace(found, top=TopTokens(tokens, scores, control, found.top.strength), random=random)


def mixtures(rows: Float[Tensor, "vector d_model"], draws: int, seed: int) -> Float[Tensor, "mixture d_model"]:
    """Sums of vectors, each at length 1, times normal random numbers; in float64."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.zeros(draws, rows.shape[-1], dtype=torch.float64)
    for block in rows.split(_BLOCK):
        vectors = block.double()
        vectors = vectors / vectors.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
        mixed += torch.randn(draws, len(block), generator=generator, dtype=torch.float64) @ vectors
    return mixed


def readable(standing: Sequence[Standing], *, seed: int) -> list[Readable]:
    """How many vectors of each block can be read, against as many mixtures, drawn 1,000 times.

    A draw takes the mixtures anew, with replacement, both those that stand for vectors and those that say what 99 % are.
    """
    found, tests = [], []
    for each in standing:
        strength, null = each.strength.amax(1), each.null.amax(1)
        share = float((strength > torch.quantile(null, _BEYOND)).double().mean())
        drawn = _shares_by_chance(null, len(strength), int(hash_parts(seed, each.layer or 0)))
        low, high = central_interval(drawn).tolist()
        tests.append((1 + int((drawn >= share).sum())) / (1 + _REDRAWN))
        found.append(Readable(each.group, each.layer, share, float(drawn.mean()), low, high, torch.nan, each.kind))
    q = benjamini_hochberg(torch.tensor(tests, dtype=torch.float64)).tolist()
    return [replace(each, q=quality) for each, quality in zip(found, q, strict=True)]


def readable_rows(found: Sequence[Readable], run: str) -> pa.Table:
    """Rows of `vocabulary_stats`: the share of readable vectors of each block of vectors."""
    rows = [
        {
            "run": run,
            "group": each.group,
            "layer": each.layer,
            "stat": "readable_share",
            "value": each.share,
            "control": each.control,
            "control_kind": each.kind,
            "control_lo": each.low,
            "control_hi": each.high,
            "q": each.q,
        }
        for each in found
    ]
    return pa.Table.from_pylist(rows, TABLES["vocabulary_stats"].schema)


def _prefix(group: Group, layer: int | None) -> str:
    """What the addresses of a block have in common, so that blocks come in the order of their addresses as text."""
    if layer is None:
        return f"{group.name}/"
    return f"{group.name}.{layer}" + ("." if group.lead in ("head", "head_kv") else "/")


def _shares_by_chance(null: Float[Tensor, " mixture"], units: int, seed: int) -> Float[Tensor, " draw"]:
    """Shares of `units` mixtures, drawn with replacement, that are beyond 99 % of the mixtures, which are drawn with replacement too."""
    generator = torch.Generator().manual_seed(seed)
    redrawn = null[torch.randint(len(null), (_REDRAWN, len(null)), generator=generator)]
    beyond = (null[None] > torch.quantile(redrawn, _BEYOND, dim=1, keepdim=True)).double().mean(1)
    return torch.binomial(torch.full_like(beyond, units), beyond, generator=generator) / units
