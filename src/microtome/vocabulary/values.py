"""Value vectors of feed-forward units, read in the vocabulary: what each unit promotes at its positive and its negative end.

Both ends are read alike: in a gated block reversing a unit's up branch and its value vector leaves the model as it was.

The control of a unit are random mixtures of the units of its layer, with weights from a normal distribution, at the unit's length.
They point where the layer's units point as a whole, so what all of a layer writes is no unit's finding. Axes: end is + or -, mixture
one of a layer's mixtures.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
from microtome.readout import (
    RandomDirections,
    Reader,
    TopTokens,
    central_interval,
    pooled_chance,
    read_random,
    tokens_table,
    top_tokens,
    written,
)
from microtome.store.schemas import TABLES

__all__ = [
    "CONTROL",
    "LEAST_DRAWS",
    "READ_STATS",
    "Readable",
    "Values",
    "read_values",
    "readable_layers",
    "strength_q",
    "strength_rows",
    "value_rows",
]

CONTROL: Final = "random mixtures of the layer's units"
LEAST_DRAWS: Final = 128
"""Random mixtures of a layer; more where the model has few layers, because the tail is that of all layers together."""
READ_STATS: Final = ("read_top", "read_bottom")
"""Strength of the first token at the positive and at the negative end."""
_BLOCK: Final = 1024
_BEYOND: Final = 0.99
_REDRAWN: Final = 1000


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


@dataclass(frozen=True)
class Readable:
    """A layer whose units are tested together.

    `share` of its units have an end stronger than 99 % of the layer's mixtures; of as many mixtures it is `control` on average and
    `low` to `high` in 95 % of 1,000 draws; q over all layers.
    """

    layer: int
    share: float
    control: float
    low: float
    high: float
    q: float


def read_values(weights: Weights, shape: Shape, reader: Reader, k: int, directions: int, *, seed: int) -> Iterator[Values]:
    """Read every row of every W_out, one block at a time, against `directions` random mixtures in all, at least 128 a layer.

    What is read depends on weights and `seed` alone, not on the device or the number of threads.
    Cost: 2 d_model vocab FLOP per unit and mixture; memory for a layer's W_out.
    Source: Geva et al. 2022, arXiv:2203.14680, section 3.
    """
    draws = max(LEAST_DRAWS, -(-directions // shape.layers))
    for layer in range(shape.layers):
        give_back_freed_memory()
        rows = weights.get("W_out", layer)
        random = read_random(_mixtures(weights, layer, rows, draws, int(hash_parts(seed, layer))), reader, k)
        for expert in range(shape.experts) if shape.experts else (None,):
            mine = (rows if expert is None else rows[expert]).to(reader.matrix)
            yield Values(layer, expert, top_tokens(written(weights, layer, mine, "mlp"), reader, random), random)


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
    """How many units of each layer can be read, against as many mixtures, drawn 1,000 times.

    A draw takes the mixtures anew, with replacement, both those that stand for units and those that say what 99 % are.
    """
    found, tests = [], []
    for layer in _layers(values):
        mine = [block for block in values if block.layer == layer]
        strength = torch.cat([block.top.strength for block in mine]).amax(1)
        null = mine[0].random.strength.amax(1)
        share = float((strength > torch.quantile(null, _BEYOND)).double().mean())
        drawn = _shares_by_chance(null, len(strength), int(hash_parts(seed, layer)))
        low, high = central_interval(drawn).tolist()
        tests.append((1 + int((drawn >= share).sum())) / (1 + _REDRAWN))
        found.append(Readable(layer, share, float(drawn.mean()), low, high, torch.nan))
    q = benjamini_hochberg(torch.tensor(tests, dtype=torch.float64)).tolist()
    return [replace(each, q=quality) for each, quality in zip(found, q, strict=True)]


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


def _mixtures(
    weights: Weights, layer: int, rows: Float[Tensor, "*expert unit d_model"], draws: int, seed: int
) -> Float[Tensor, "draw d_model"]:
    """Sums of a layer's value vectors, each at length 1, times normal random numbers."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.zeros(draws, rows.shape[-1], dtype=torch.float64, device=rows.device)
    for block in rows.flatten(0, -2).split(_BLOCK):
        vectors = written(weights, layer, block.float(), "mlp").double()
        vectors /= vectors.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
        mixed += torch.randn(draws, len(block), generator=generator, dtype=torch.float64).to(rows.device) @ vectors
    return mixed


def _shares_by_chance(null: Float[Tensor, " mixture"], units: int, seed: int) -> Float[Tensor, " draw"]:
    """Shares of `units` mixtures, drawn with replacement, that are beyond 99 % of the mixtures, which are drawn with replacement too."""
    generator = torch.Generator().manual_seed(seed)
    redrawn = null[torch.randint(len(null), (_REDRAWN, len(null)), generator=generator)]
    beyond = (null[None] > torch.quantile(redrawn, _BEYOND, dim=1, keepdim=True)).double().mean(1)
    return torch.binomial(torch.full_like(beyond, units), beyond, generator=generator) / units
