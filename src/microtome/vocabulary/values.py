"""Value vectors of feed-forward units, read in the vocabulary: what each unit promotes at its positive and its negative end.

Both ends are read alike: in a gated block reversing a unit's up branch and its value vector leaves the model as it was. How a block
of vectors is read, and what its control is, is said in `projection`. The axis end is + or -.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import UnitAddress
from microtome.model import Shape, Weights
from microtome.model.allocator import give_back_freed_memory
from microtome.numerics import benjamini_hochberg, hash_parts
from microtome.readout import RandomDirections, Reader, TopTokens, pooled_chance, tokens_table
from microtome.store.schemas import TABLES
from microtome.vocabulary.parameters import GROUPS, block_of
from microtome.vocabulary.projection import CONTROL, LEAST_DRAWS, Projected, Readable, Standing, read_block, readable

__all__ = [
    "READ_STATS",
    "Values",
    "read_values",
    "readable_layers",
    "strength_q",
    "strength_rows",
    "value_draws",
    "value_rows",
    "values_of",
]

READ_STATS: Final = ("read_top", "read_bottom")
"""Strength of the first token at the positive and at the negative end."""


@dataclass(frozen=True, eq=False)
class Values:
    """The units of a block (of an expert of it), what their value vectors promote, and what mixtures of the layer's units do."""

    layer: int
    expert: int | None
    top: TopTokens
    random: RandomDirections

    @property
    def addresses(self) -> list[str]:
        """The units' addresses, in order."""
        return [str(UnitAddress("neurons", i, layer=self.layer, expert=self.expert)) for i in range(len(self.top.tokens))]


def read_values(weights: Weights, shape: Shape, reader: Reader, k: int, directions: int, *, seed: int) -> Iterator[Values]:
    """Read every row of every W_out, one block at a time, against `directions` random mixtures in all, at least 128 a layer.

    What is read depends on weights and `seed` alone, not on the device or the number of threads.
    Cost: 2 d_model vocab FLOP per unit and mixture; memory for a layer's W_out.
    Source: Geva et al. 2022, arXiv:2203.14680, section 3.
    """
    draws = value_draws(shape, directions)
    for layer in range(shape.layers):
        give_back_freed_memory()
        found = read_block(block_of(weights, GROUPS["W_out"], layer), reader, k, draws, int(hash_parts(seed, layer)))
        yield from values_of(found, shape)


def value_draws(shape: Shape, directions: int) -> int:
    """Mixtures of a layer's units where there are to be `directions` in all."""
    return max(LEAST_DRAWS, -(-directions // shape.layers))


def values_of(found: Projected, shape: Shape) -> Iterator[Values]:
    """The units of a block that was read, of each expert where there are any."""
    assert found.block.layer is not None, "units are in layers"
    for expert in range(shape.experts) if shape.experts else (None,):
        yield Values(found.block.layer, expert, _of_expert(found.top, expert, shape.experts), found.random)


def value_rows(values: Sequence[Values]) -> Iterator[pa.Table]:
    """Rows of the table `tokens`, a block at a time in the order of the units' addresses."""
    for block in sorted(values, key=lambda block: block.addresses[0].removesuffix("0")):
        yield tokens_table(block.addresses, block.top)


def strength_q(values: Sequence[Values]) -> Float[Tensor, "unit end"]:
    """q-values of the strength of every end, over all units and both ends of the model together.

    An end is measured from its layer's mixtures; the tail is that of the mixtures of all layers (`readout.pooled_chance`).
    """
    layers = [[block for block in values if block.layer == layer] for layer in _layers(values)]
    strength = [torch.cat([block.top.strength for block in mine]) for mine in layers]
    p = torch.cat(pooled_chance(strength, [mine[0].random.strength.reshape(-1, 1) for mine in layers], "greater"))
    return benjamini_hochberg(p.flatten()).view_as(p)


def readable_layers(values: Sequence[Values], *, seed: int) -> list[Readable]:
    """How many units of each layer can be read, see `projection.readable`."""
    layers = [[block for block in values if block.layer == layer] for layer in _layers(values)]
    standing = [
        Standing("W_out", mine[0].layer, torch.cat([block.top.strength for block in mine]), mine[0].random.strength)
        for mine in layers
    ]
    return readable(standing, seed=seed)


def strength_rows(values: Sequence[Values], q: Float[Tensor, "unit end"], run: str) -> pa.Table:
    """Rows of `unit_stats` for the strength of both ends.

    `control` is the mean strength of the layer's mixtures; `lo` and `hi` are empty, because weights have no sampling error.
    """
    strength = torch.cat([block.top.strength for block in values])
    control = np.concatenate([np.full(len(block.top.strength), float(block.random.strength.mean())) for block in values])
    addresses = pa.array([address for block in values for address in block.addresses], pa.string())
    units = np.arange(len(addresses), dtype=np.int32)
    tables = []
    for end, stat in enumerate(READ_STATS):
        columns = {
            "unit": pa.DictionaryArray.from_arrays(units, addresses),
            "site": pa.nulls(len(units), pa.string()),
            "stat": pa.array([stat] * len(units)),
            "value": strength[:, end].numpy(),
            "control": control,
            "control_kind": pa.array([CONTROL] * len(units)),
            "lo": pa.nulls(len(units), pa.float64()),
            "hi": pa.nulls(len(units), pa.float64()),
            "q": q[:, end].numpy(),
            "run": pa.array([run] * len(units)),
        }
        tables.append(pa.table(columns).cast(TABLES["unit_stats"].schema))
    return pa.concat_tables(tables, promote_options="none").unify_dictionaries()


def _layers(values: Sequence[Values]) -> list[int]:
    return list(dict.fromkeys(block.layer for block in values))


def _of_expert(top: TopTokens, expert: int | None, experts: int) -> TopTokens:
    """The part of a block's readings that is an expert's."""
    return top if expert is None else TopTokens(*(part.chunk(experts)[expert] for part in vars(top).values()))
