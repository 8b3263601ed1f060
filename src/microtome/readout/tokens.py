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

from microtome.model.precision import fast_bfloat16
from microtome.numerics import Precision, matmul_topk
from microtome.readout.nulls import central_interval
from microtome.readout.reader import Reader

__all__ = [
    "ENDS",
    "RandomDirections",
    "TopTokens",
    "chance",
    "quickest",
    "random_directions",
    "read_random",
    "tokens_table",
    "top_tokens",
]

ENDS = ("+", "-")
_TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True, eq=False)
class RandomDirections:
    """What directions without meaning look like: scores of random directions of length 1.

    `scores[r]` is the mean score of their r-th token; `strength` (see `TopTokens`) that of both ends of each. By symmetry both ends
    of a draw are draws, and a demoted token scores the negative of a promoted one.
    """

    scores: Float[Tensor, " k"]
    strength: Float[Tensor, "draw end"]

    @property
    def interval(self) -> tuple[float, float]:
        """Where 95 % of the strengths are."""
        low, high = central_interval(self.strength.flatten()).tolist()
        return low, high


@dataclass(frozen=True, eq=False)
class TopTokens:
    """The k tokens at both ends of each direction, best first.

    `scores` are inner products with the reader's token vectors, `control` the mean score at the same rank of random
    directions of the same length. `strength` is how far the first token's score is from the mean of the direction's own scores over
    the vocabulary, in their standard deviations, positive at both ends: how far the direction stands out, whatever its length.
    """

    tokens: Int[Tensor, "unit end k"]
    scores: Float[Tensor, "unit end k"]
    control: Float[Tensor, "unit end k"]
    strength: Float[Tensor, "unit end"]


def random_directions(reader: Reader, k: int = 10, draws: int = 1024, *, seed: int) -> RandomDirections:
    """Read `draws` directions drawn from all directions alike.

    Cost: 2 draws d_model vocab FLOP.
    """
    generator = torch.Generator().manual_seed(seed)
    return read_random(torch.randn(draws, reader.matrix.shape[0], generator=generator), reader, k)


def read_random(directions: Float[Tensor, "draw d_model"], reader: Reader, k: int = 10) -> RandomDirections:
    """Read random directions once, at length 1; every length follows, because scores scale with it.

    Cost: 2 draw d_model vocab FLOP.
    """
    rows = directions.double()
    rows = (rows / rows.norm(dim=1, keepdim=True).clamp(min=_TINY)).to(reader.matrix)
    _, scores = _both_ends(rows, reader, k)
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64, device=scores.device)[:, None]
    return RandomDirections((scores.double() * sign).mean((0, 1)).cpu(), _strength(rows, scores, reader).cpu())


def top_tokens(directions: Float[Tensor, "unit d_model"], reader: Reader, random: RandomDirections) -> TopTokens:
    """The tokens that each direction promotes and demotes most, as many as `random` has ranks.

    Scores are rounded to float32 after they are summed in float64, so that they are the same on any device and any number of threads;
    ties go to the lower token id. Cost: 2 unit d_model vocab FLOP; never holds more than a tile of scores.
    Source: Geva et al. 2022, arXiv:2203.14680, section 3.
    """
    rows = directions.to(reader.matrix)
    tokens, scores = _both_ends(rows, reader, len(random.scores))
    lengths = rows.double().norm(dim=1)
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64, device=rows.device)
    control = lengths[:, None, None] * sign[:, None] * random.scores.to(rows.device)
    return TopTokens(tokens.cpu(), scores.cpu(), control.float().cpu(), _strength(rows, scores, reader).cpu())


def chance(strength: Float[Tensor, "..."], random: RandomDirections) -> Float[Tensor, "..."]:
    """P-values: how often a random direction is as strong, (1 + draws at least as strong) / (1 + draws)."""
    null = random.strength.flatten().sort().values
    below = torch.searchsorted(null, strength.double().cpu().contiguous())
    return (1 + len(null) - below).double() / (1 + len(null))


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


def _strength(
    rows: Float[Tensor, "unit d_model"], scores: Float[Tensor, "unit end k"], reader: Reader
) -> Float[Tensor, "unit end"]:
    """How far the first score of each end is from the mean over the vocabulary, in standard deviations."""
    above = scores[:, :, 0].double() - reader.average(rows)[:, None]
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64, device=above.device)
    return above * sign / reader.spread(rows).clamp(min=_TINY)[:, None]


def _both_ends(
    directions: Float[Tensor, "unit d_model"], reader: Reader, k: int
) -> tuple[Int[Tensor, "unit end k"], Float[Tensor, "unit end k"]]:
    """Token ids and scores at both ends; fewer than k where the vocabulary is smaller."""
    rows = reader.entering(directions)
    ends = matmul_topk(rows, reader.columns, min(k, len(reader.tokens)), precision=quickest(rows.device))
    return reader.tokens[torch.stack([ends.top_index, ends.bottom_index], 1)], torch.stack([ends.top, ends.bottom], 1)


def quickest(device: torch.device) -> Precision:
    """In which precision candidates are looked for: that of the products a device is fastest at. What is found is the same in both."""
    return "bfloat16" if fast_bfloat16(device) else "float32"
