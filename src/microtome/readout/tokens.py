"""Directions in the vocabulary: the tokens at both ends, and how far they stand out from those of random directions.

The axis `end` has two entries: what a direction promotes (+) and what it demotes (-). Exact selection is `numerics`' business;
which directions to read, and what is said about them, that of the lenses.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.numerics import matmul_topk
from microtome.readout.reader import Reader

__all__ = ["ENDS", "RandomDirections", "TopTokens", "chance", "random_directions", "tokens_table", "top_tokens"]

ENDS = ("+", "-")


@dataclass(frozen=True, eq=False)
class RandomDirections:
    """What directions without meaning look like: scores of random directions of length 1, isotropic, drawn once per run.

    `scores[r]` is the mean score of their r-th token; `strength` the strengths (see `TopTokens`) of all draws, ascending. By
    symmetry both ends of a draw are draws, and a demoted token scores the negative of a promoted one.
    """

    scores: Float[Tensor, " k"]
    strength: Float[Tensor, " draw"]
    draws: int


@dataclass(frozen=True, eq=False)
class TopTokens:
    """The k tokens at both ends of each direction, best first.

    `scores` are inner products with the reader's token vectors, `control` the mean score at the same rank of random
    directions of the same length. `strength` is the first token's score in standard deviations of the direction's own scores
    over the vocabulary, positive at both ends: how far the direction stands out, whatever its length.
    """

    tokens: Int[Tensor, "unit end k"]
    scores: Float[Tensor, "unit end k"]
    control: Float[Tensor, "unit end k"]
    strength: Float[Tensor, "unit end"]


def random_directions(reader: Reader, k: int = 10, draws: int = 1024, *, seed: int) -> RandomDirections:
    """Read `draws` random directions once; every length follows, because scores scale with it.

    Cost: 2 draws d_model vocab FLOP.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(draws, reader.matrix.shape[0], generator=generator)
    directions = (directions / directions.norm(dim=1, keepdim=True)).to(reader.matrix)
    _, scores = _both_ends(directions, reader, k)
    magnitude = scores.abs().double()
    strength = magnitude[:, :, 0] / reader.spread(directions)[:, None]
    return RandomDirections(magnitude.mean((0, 1)), strength.flatten().sort().values.cpu(), draws)


def top_tokens(directions: Float[Tensor, "unit d_model"], reader: Reader, random: RandomDirections) -> TopTokens:
    """The tokens that each direction promotes and demotes most, exactly, as many as `random` has ranks.

    Ties go to the lower token id. Cost: 2 unit d_model vocab FLOP; never holds more than a tile of scores.
    Source: Geva et al. 2022, arXiv:2203.14680, section 3.
    """
    rows = directions.to(reader.matrix)
    tokens, scores = _both_ends(rows, reader, len(random.scores))
    lengths = rows.double().norm(dim=1)
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64, device=rows.device)
    control = lengths[:, None, None] * sign[:, None] * random.scores.to(rows.device)
    spread = reader.spread(rows)
    strength = scores[:, :, 0].double() * sign / spread.clamp(min=torch.finfo(torch.float64).tiny)[:, None]
    return TopTokens(tokens, scores, control.float(), strength)


def chance(strength: Float[Tensor, "..."], random: RandomDirections) -> Float[Tensor, "..."]:
    """P-values: how often a random direction is as strong, (1 + draws at least as strong) / (1 + draws)."""
    total = len(random.strength)
    below = torch.searchsorted(random.strength, strength.double().cpu().contiguous())
    return (1 + total - below).double() / (1 + total)


def tokens_table(addresses: Sequence[str], top: TopTokens) -> pa.Table:
    """Rows of the store's table `tokens`, one per direction, end and rank."""
    units, ends, k = top.tokens.shape
    flat = {name: tensor.reshape(-1).cpu().numpy() for name, tensor in vars(top).items() if name != "strength"}
    unit = pa.DictionaryArray.from_arrays(
        np.repeat(np.arange(units, dtype=np.int32), ends * k), pa.array(addresses, pa.string())
    )
    end = pa.DictionaryArray.from_arrays(np.tile(np.repeat(np.arange(ends, dtype=np.int16), k), units), pa.array(ENDS))
    return pa.table(
        {
            "unit": unit,
            "end": end,
            "rank": np.tile(np.arange(k, dtype=np.int16), units * ends),
            "token": flat["tokens"].astype(np.int32),
            "score": flat["scores"].astype(np.float32),
            "control": flat["control"].astype(np.float32),
        }
    )


def _both_ends(
    directions: Float[Tensor, "unit d_model"], reader: Reader, k: int
) -> tuple[Int[Tensor, "unit end k"], Float[Tensor, "unit end k"]]:
    """Token ids and scores at both ends; fewer than k where the vocabulary is smaller."""
    ends = matmul_topk(directions, reader.matrix, min(k, len(reader.tokens)))
    columns = torch.stack([ends.top_index, ends.bottom_index], 1)
    return reader.tokens[columns], torch.stack([ends.top, ends.bottom], 1)
