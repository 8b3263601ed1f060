"""One direction in the vocabulary: tokens at both ends, beside those of directions it is compared with.

What a person may name is said in `reading`; all parameters of a model belong in `projection`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Refusal, WeightAddress
from microtome.numerics import hash_parts
from microtome.readout import (
    RandomDirections,
    TopTokens,
    central_interval,
    chance,
    quoted,
    random_directions,
    read_random,
    top_tokens,
)
from microtome.vocabulary.parameters import block_of, group_named, vector_at
from microtome.vocabulary.projection import ANYWHERE, FEW, mixtures
from microtome.vocabulary.subject import Subject

__all__ = ["Beside", "Reading", "Word", "backwards", "beside", "directions_of", "read_directions", "read_vector", "readings"]

_DRAWS: Final = 512
_SEED: Final = 0
_LARGEST: Final = 1e300
"""Of the numbers of a direction: with larger ones its length may have no double."""
_FAINT: Final = 1e-6
"""Of the first score of random directions: below it scores are what rounding leaves of zero."""
_UNDEFINED: Final = (math.nan, math.nan)
_TINY: Final = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class Beside:
    """A number beside what it is compared with: their mean, where 95 % of them are, and how often one is as far from their mean."""

    value: float
    control: float
    low: float
    high: float
    p: float

    def __str__(self) -> str:
        return f"{self.value:.2f} (control {self.control:.2f}, 95 % in {self.low:.2f} to {self.high:.2f}, p = {self.p:.2g})"


@dataclass(frozen=True)
class Word:
    """A token at an end of a direction, and the mean score at its rank of what it is compared with."""

    token: int
    text: str
    score: float
    control: float


@dataclass(frozen=True)
class Reading:
    """A direction in the vocabulary: tokens it promotes, or looks for, best first, and those of the opposite direction.

    `strength` is how far the first token of each end stands out, in standard deviations of the direction's scores over the vocabulary;
    `p` how often a direction it is compared with (`control_kind`) stands out as far. A direction that scores all tokens alike, as zero
    does, has no tokens, and both are NaN. `source` are the token vectors it is read in: W_U, or the input embedding W_E of a checkpoint
    without a head. `sharing` is how many singular directions have this one's value, nearly: those turn freely among themselves.
    """

    name: str
    source: Literal["W_U", "W_E"]
    norm: float
    promoted: tuple[Word, ...]
    demoted: tuple[Word, ...]
    strength: tuple[float, float]
    p: tuple[float, float]
    control_kind: str
    sharing: int = 1

    def __str__(self) -> str:
        where = "" if self.source == "W_U" else ", read in the input embedding W_E: the checkpoint has no head"
        shared = f", one of {self.sharing} of its singular value: they turn freely" if self.sharing > 1 else ""
        lines = [f"{self.name}  (length {self.norm:.3g}{shared}{where})"]
        if not self.promoted:
            return f"{lines[0]}\n  {'it scores all tokens alike' if self.norm else 'it is zero'}: no token stands out"
        for end, sign in enumerate("+-"):
            lines.append(f"  {sign} {self.words(end, len(self.promoted))}")
            lines.append(
                f"    first: {self.strength[end]:.1f} standard deviations from the mean, p = {self.p[end]:.2g} against {self.control_kind}"
            )
        return "\n".join(lines)

    def words(self, end: int, most: int) -> str:
        """The first distinct words at end 0 (+) or 1 (-), in quotation marks."""
        return quoted([word.text for word in (self.promoted, self.demoted)[end]], most)


def backwards(found: Reading) -> Reading:
    """The reading of the opposite direction, whose name has the end sign -."""
    promoted, demoted = (
        tuple(replace(word, score=-word.score, control=-word.control) for word in words)
        for words in (found.demoted, found.promoted)
    )
    strength, p = found.strength[::-1], found.p[::-1]
    return replace(found, name=f"{found.name}-", promoted=promoted, demoted=demoted, strength=strength, p=p)


def beside(value: float, draws: Float[Tensor, " draw"]) -> Beside:
    """A number beside draws of what it would be by chance. Undefined draws are left out; without a draw or a number all is NaN."""
    drawn = draws[~draws.isnan()].double()
    if not len(drawn) or math.isnan(value):
        return Beside(value, *[math.nan] * 4)
    mean, (low, high) = float(drawn.mean()), central_interval(drawn).tolist()
    far = (drawn - mean).abs() >= abs(value - mean)
    return Beside(value, mean, low, high, (1 + int(far.sum())) / (1 + len(drawn)))


def directions_of(what: Any) -> Float[Tensor, "*unit d_model"]:
    """A tensor, an array, or lists of numbers or tensors, as directions. Errors: `Refusal` for what is no table of real numbers."""
    try:
        if isinstance(what, Tensor):
            found = what.detach().to_dense()
        elif isinstance(what, Sequence) and what and all(isinstance(each, Tensor) for each in what):
            found = torch.stack([each.detach().to_dense() for each in what])
        else:
            array = np.array(what)
            found = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
        found = found.cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise Refusal(
            "directions", why=f"they are no table of numbers: {error}", instead="give a tensor, an array, or lists of floats"
        ) from error
    if not found.is_floating_point():
        raise Refusal(
            f"directions of {found.dtype}", why="a direction is made of real numbers", instead="convert them to float32"
        )
    if not found.ndim or not found.numel():
        raise Refusal(
            f"directions of shape {tuple(found.shape)}", why="there are none", instead="give one of the stream's width, or more"
        )
    return found


def read_directions(subject: Subject, directions: Float[Tensor, "*unit d_model"], k: int) -> list[Reading]:
    """Directions that something writes to the stream, at both ends.

    Errors: `Refusal` for directions of another width, or that hold NaN.
    """
    rows = directions.detach().reshape(-1, directions.shape[-1]).cpu().double()
    if rows.shape[1] != subject.shape.d_model:
        raise Refusal(
            f"directions of width {rows.shape[1]}",
            why=f"the stream of {subject.name} has width {subject.shape.d_model}",
            instead="give directions of the residual stream",
        )
    if not bool((rows.abs() <= _LARGEST).all()):
        raise Refusal("directions", why="they hold NaN, infinity or numbers beyond 1e300", instead="leave those out")
    names = [f"direction {number}" for number in range(len(rows))]
    return _beside_any(subject, names, rows, "write", k)


def read_vector(subject: Subject, address: WeightAddress, k: int) -> Reading:
    """A weight vector, beside random mixtures of the vectors of its group and layer; beside any directions where these are few.

    Errors: `Refusal` for an address that names nothing, and for blocks that hold NaN.
    Cost: 2 d_model vocab FLOP for it and each of 512 mixtures, and two reads of its block.
    """
    group, vector = vector_at(subject.weights, address, folding=subject.folding)
    block = block_of(subject.weights, group_named(address.family), address.layer, folding=subject.folding)
    if not bool(torch.isfinite(block.rows).all()):
        why = "it, or another vector of its layer, holds NaN or infinity"
        raise Refusal(f"weight vector {address}", why=why, instead="check the checkpoint")
    if len(block.rows) < FEW:
        return _beside_any(subject, [str(address)], vector[None], group.end, k)[0]
    reader = subject.read if group.end == "read" else subject.write
    random = read_random(mixtures(block.rows, _DRAWS, int(hash_parts(_SEED, address.layer or 0))), reader, k)
    kind = f"mixtures of {str(address).split('/')[0]}"
    return _read(subject, [str(address)], vector[None], group.end, random, kind)[0]


def readings(
    subject: Subject, names: Sequence[str], lengths: Sequence[float], top: TopTokens, against: tuple[RandomDirections, str]
) -> list[Reading]:
    """Directions of length 1 that have been read, as records of directions that are so long."""
    random, kind = against
    p = chance(top.strength, random).tolist()
    source, strength = subject.write.source, top.strength.tolist()
    telling = (top.scores[:, :, 0].abs().amax(1) > _FAINT * random.scores[0]).tolist()
    found = []
    for unit, (name, length) in enumerate(zip(names, lengths, strict=True)):
        if telling[unit]:
            promoted, demoted = (_words(subject, top, unit, side, length) for side in range(2))
            found.append(Reading(name, source, length, promoted, demoted, tuple(strength[unit]), tuple(p[unit]), kind))
        else:
            found.append(Reading(name, source, length, (), (), _UNDEFINED, _UNDEFINED, kind))
    return found


def _words(subject: Subject, top: TopTokens, unit: int, side: int, length: float) -> tuple[Word, ...]:
    columns = (each[unit, side].tolist() for each in (top.tokens, top.scores, top.control))
    return tuple(
        Word(token, subject.texts[int(token)], length * score, length * control)
        for token, score, control in zip(*columns, strict=True)
    )


def _beside_any(subject: Subject, names: Sequence[str], rows: Float[Tensor, "unit d_model"], end: str, k: int) -> list[Reading]:
    reader = subject.read if end == "read" else subject.write
    return _read(subject, names, rows, end, random_directions(reader, k, _DRAWS, seed=_SEED), ANYWHERE)


def _read(
    subject: Subject,
    names: Sequence[str],
    rows: Float[Tensor, "unit d_model"],
    end: str,
    random: RandomDirections,
    kind: str,
) -> list[Reading]:
    """Rows at length 1, so that no score overflows on the way."""
    exact = rows.double()
    largest = exact.abs().amax(1, keepdim=True).clamp(min=_TINY)
    within = (exact / largest).norm(dim=1, keepdim=True)
    units = (exact / largest / within.clamp(min=_TINY)).float()
    top = top_tokens(units, subject.read if end == "read" else subject.write, random)
    return readings(subject, names, (largest * within)[:, 0].tolist(), top, (random, kind))
