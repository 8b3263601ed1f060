"""Are the directions of a dictionary there again when it is learnt once more, and how much are they in each other's way?

Directions of two dictionaries are matched one to one. Beside that stand matches with random directions: any, and such as are spread like those of the
other dictionary, for directions in the same few dimensions are near each other whatever they mean. What is made of them belongs in `evaluation`.
Additional axes: `other` counts directions of the second dictionary, `pair` those that are matched, `kept` those that are not left out.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor
from torch.nn.functional import normalize

from microtome.core import Refusal
from microtome.factors.dictionary import Dictionary
from microtome.factors.evaluation import Stat

__all__ = ["ALIKE", "RANDOM", "Matched", "flat_directions", "interference", "matched", "stability"]

RANDOM: Final = "random directions"
ALIKE: Final = "random directions of the same covariance"
_SALT: Final = 0x73746162
_TILE: Final = 4096
_NEAREST: Final = 32
"""Others that Babel is about: how many factors are in a code, about."""


@dataclass(frozen=True, eq=False)
class Matched:
    """Pairs, one of each dictionary, whose cosines have the largest sum: direction `first[i]` with `second[i]`."""

    first: Int64[Tensor, " pair"]
    second: Int64[Tensor, " pair"]
    cosine: Float64[Tensor, " pair"]


def flat_directions(dictionary: Dictionary, alive: Bool[Tensor, " unit"] | None = None) -> Float[Tensor, "kept width"]:
    """Directions of length 1, those of a crosscoder at all its sites side by side; with `alive`, of these factors only: dead ones are as they began."""
    flat = normalize(dictionary.directions.transpose(0, 1).flatten(1).float(), dim=1)
    return flat if alive is None else flat[alive]


def matched(one: Float[Tensor, "unit width"], other: Float[Tensor, "other width_given"]) -> Matched:
    """Match directions of two dictionaries one to one; where one has more, some of its are left over.

    Source: Paulo and Belrose 2025, arXiv:2501.16615, section 3, on the Hungarian match of two seeds.
    Errors: `Refusal` for directions of different widths, and for none.
    Cost: 2 unit other width FLOP, and a match of about unit^2 other steps: seconds for some thousands, an hour for a hundred thousand.
    """
    from scipy.optimize import linear_sum_assignment

    if one.shape[1] != other.shape[1] or not len(one) or not len(other):
        why = f"there are {len(one)} of {one.shape[1]} numbers, and {len(other)} of {other.shape[1]}"
        raise Refusal("a match of directions", why=why, instead="give directions of two dictionaries of the same states")
    cosine = (normalize(one, dim=1) @ normalize(other, dim=1).T).double().cpu()
    first, second = (torch.from_numpy(each).long() for each in linear_sum_assignment(cosine.numpy(), maximize=True))
    return Matched(first, second, cosine[first, second])


def stability(
    one: Float[Tensor, "unit width"], other: Float[Tensor, "other width_given"], seed: int = 0, pairs: Matched | None = None
) -> dict[str, dict[str, Stat]]:
    """How much of a dictionary there is in another: under "" of both, under `RANDOM` and `ALIKE` of the first and as many random directions.

        match_cosine         the mean cosine of matched directions
        match_above_07, _09  the share of the matched with a cosine above 0.7, 0.9
        nearest_cosine       the mean over the first's directions of the largest cosine with any of the second, whoever else has it

    With `pairs`, what `matched` has found of the two either way round, that match is not made again.
    Errors and cost: of three matches, see `matched`.
    """
    generator = torch.Generator().manual_seed(_SALT + seed)
    drawn = torch.randn(other.shape, generator=generator).to(other)
    # rows G Phi / sqrt(other) have the second moments of Phi's own rows
    mixed = torch.randn(len(other), len(other), generator=generator).to(other) @ other
    own = _alike(one, other, pairs or matched(one, other))
    return {"": own, RANDOM: _alike(one, drawn, matched(one, drawn)), ALIKE: _alike(one, mixed, matched(one, mixed))}


def _alike(one: Float[Tensor, "unit width"], other: Float[Tensor, "other width_given"], pairs: Matched) -> dict[str, Stat]:
    cosine = pairs.cosine
    nearest = torch.cat([(normalize(some, dim=1) @ normalize(other, dim=1).T).amax(1) for some in one.split(_TILE)])
    return {
        "match_cosine": Stat(float(cosine.mean())),
        "match_above_07": Stat(float((cosine > 0.7).double().mean())),
        "match_above_09": Stat(float((cosine > 0.9).double().mean())),
        "nearest_cosine": Stat(float(nearest.double().mean())),
    }


def interference(directions: Float[Tensor, "unit width"], seed: int = 0) -> dict[str, Mapping[str, Stat]]:
    """How much directions are in each other's way: under "" of themselves, under `RANDOM` of as many random ones.

        max_cosine       the mean over directions of the largest cosine with another
        coherence        the largest |cosine| of two directions
        babel            the largest sum, over directions, of their 32 largest |cosines| with others: below 1, codes of 32 factors are unique
        effective_rank   exp of the entropy of s_i / sum s, of the singular values s

    Source: Tropp 2004, doi:10.1109/TIT.2004.834793, on coherence and Babel.
    Source: Roy & Vetterli 2007, The effective rank (no arXiv entry).
    Errors: `Refusal` for fewer than two directions.
    Cost: 2 unit^2 width FLOP, and a decomposition of width^2 unit.
    """
    if len(directions) < 2:
        raise Refusal("interference", why=f"there is {len(directions)} direction", instead="give two or more")
    drawn = torch.randn(directions.shape, generator=torch.Generator().manual_seed(_SALT + seed)).to(directions)
    return {"": _between(directions), RANDOM: _between(drawn)}


def _between(directions: Float[Tensor, "unit width"]) -> dict[str, Stat]:
    flat = normalize(directions.float(), dim=1)
    k, nearest, sums, largest = min(_NEAREST, len(flat) - 1), [], [], []
    for begin in range(0, len(flat), _TILE):
        cosine = flat[begin : begin + _TILE] @ flat.T
        row = torch.arange(len(cosine), device=flat.device)
        cosine[row, begin + row] = -torch.inf
        nearest.append(cosine.amax(1))
        cosine[row, begin + row] = 0
        size = cosine.abs().topk(k, dim=1).values
        largest.append(size[:, 0])
        sums.append(size.sum(1))
    singular = torch.linalg.eigvalsh(_smaller_product(flat.double())).clamp(min=0).sqrt()
    share = singular / singular.sum()
    return {
        "max_cosine": Stat(float(torch.cat(nearest).double().mean())),
        "coherence": Stat(float(torch.cat(largest).max())),
        "babel": Stat(float(torch.cat(sums).max())),
        "effective_rank": Stat(math.exp(float(torch.special.entr(share).sum()))),
    }


def _smaller_product(flat: Float64[Tensor, "unit width"]) -> Float64[Tensor, "some some"]:
    return flat.T @ flat if flat.shape[1] <= len(flat) else flat @ flat.T
