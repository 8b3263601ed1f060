"""Value vectors of feed-forward units, read in the vocabulary: what each unit promotes at its positive and its negative end.

Both ends are read alike: in a gated block reversing a unit's up branch and its value vector leaves the model as it was.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import UnitAddress
from microtome.model import Shape, Weights
from microtome.numerics import benjamini_hochberg
from microtome.readout import RandomDirections, Reader, TopTokens, chance, tokens_table, top_tokens, written
from microtome.store.tables import TABLES

__all__ = ["CONTROL", "READ_STATS", "Values", "read_values", "strength_rows", "value_rows"]

CONTROL = "random directions of the same length"
READ_STATS = ("read_top", "read_bottom")
"""Strength of the first token at the positive and at the negative end."""


@dataclass(frozen=True, eq=False)
class Values:
    """The units of a block (of an expert of it) and what their value vectors promote."""

    layer: int
    expert: int | None
    top: TopTokens
    p: Float[Tensor, "unit end"]

    @property
    def addresses(self) -> list[str]:
        """The units' addresses, in order."""
        return [str(UnitAddress("neurons", i, layer=self.layer, expert=self.expert)) for i in range(len(self.top.tokens))]


def read_values(weights: Weights, shape: Shape, reader: Reader, random: RandomDirections) -> Iterator[Values]:
    """Read every row of every W_out, one block at a time.

    Cost: 2 d_model vocab FLOP per unit.
    Source: Geva et al. 2022, arXiv:2203.14680, section 3.
    """
    for layer in range(shape.layers):
        rows = weights.get("W_out", layer)
        for expert in range(shape.experts) if shape.experts else (None,):
            mine = (rows if expert is None else rows[expert]).to(reader.matrix)
            top = top_tokens(written(weights, layer, mine, "mlp"), reader, random)
            yield Values(layer, expert, top, chance(top.strength, random))


def value_rows(values: Sequence[Values]) -> pa.Table:
    """Rows of the table `tokens`."""
    return pa.concat_tables([tokens_table(block.addresses, block.top) for block in values])


def strength_rows(values: Sequence[Values], random: RandomDirections, run: str) -> tuple[pa.Table, Float[Tensor, "unit end"]]:
    """Rows of `unit_stats` for the strength of both ends, and the q-values, corrected over all units of the model by end.

    `control` is the mean strength of random directions; `lo` and `hi` are empty, because weights have no sampling error.
    """
    strength = torch.cat([block.top.strength for block in values]).cpu()
    p = torch.cat([block.p for block in values])
    q = torch.stack([benjamini_hochberg(p[:, end]) for end in range(len(READ_STATS))], 1)
    addresses = pa.array([address for block in values for address in block.addresses], pa.string())
    units = np.arange(len(addresses), dtype=np.int32)
    tables = []
    for end, stat in enumerate(READ_STATS):
        columns = {
            "unit": pa.DictionaryArray.from_arrays(units, addresses),
            "site": pa.nulls(len(units), pa.string()),
            "stat": pa.array([stat] * len(units)),
            "value": strength[:, end].numpy(),
            "control": np.full(len(units), float(random.strength.mean())),
            "control_kind": pa.array([CONTROL] * len(units)),
            "lo": pa.nulls(len(units), pa.float64()),
            "hi": pa.nulls(len(units), pa.float64()),
            "q": q[:, end].numpy(),
            "run": pa.array([run] * len(units)),
        }
        tables.append(pa.table(columns).cast(TABLES["unit_stats"].schema))
    return pa.concat_tables(tables, promote_options="none").unify_dictionaries(), q
