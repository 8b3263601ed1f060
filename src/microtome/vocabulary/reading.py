"""Single directions in the vocabulary, for a person who asks: call `read`. All parameters of a model belong in `projection`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Refusal, WeightAddress
from microtome.model import Checkpoint, Model, open_checkpoint
from microtome.numerics import hash_parts
from microtome.readout import RandomDirections, TopTokens, chance, quoted, random_directions, read_random, top_tokens
from microtome.vocabulary.parameters import block_of, group_named, vector_at
from microtome.vocabulary.projection import ANYWHERE, mixtures
from microtome.vocabulary.subject import Preset, Subject, subject_of

__all__ = ["Reading", "Word", "read", "read_directions"]

_DRAWS: Final = 512
_SEED: Final = 0
_FEW: Final = 8


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
    `p` how often a direction it is compared with (`control_kind`) stands out as far. `source` are the token vectors it is read in: W_U,
    or the input embedding W_E of a checkpoint without a head.
    """

    name: str
    source: Literal["W_U", "W_E"]
    norm: float
    promoted: tuple[Word, ...]
    demoted: tuple[Word, ...]
    strength: tuple[float, float]
    p: tuple[float, float]
    control_kind: str

    def __str__(self) -> str:
        where = "" if self.source == "W_U" else ", read in the input embedding W_E: the checkpoint has no head"
        lines = [f"{self.name}  (length {self.norm:.3g}{where})"]
        for sign, words, strength, p in zip("+-", (self.promoted, self.demoted), self.strength, self.p, strict=True):
            lines.append(f"  {sign} {quoted([word.text for word in words], len(words))}")
            lines.append(
                f"    first: {strength:.1f} standard deviations from the mean, p = {p:.2g} against {self.control_kind}"
            )
        return "\n".join(lines)


def read(
    model: Model | Checkpoint | str | Path,
    what: str | Sequence[str] | Float[Tensor, "*unit d_model"],
    *,
    k: int = 20,
    preset: Preset = "folded",
    basis: str = "transpose",
    tokens: str | None = None,
) -> list[Reading]:
    """Read weight vectors by address, or directions of the stream, in the vocabulary of `model`; the model is not built.

        print(mt.vocabulary.read("HuggingFaceTB/SmolLM2-135M", "W_out.24/343")[0])

    `preset`, `basis` and `tokens` are those of `subject_of`. A weight vector is compared with random mixtures of the vectors of its
    group and layer, a direction with directions drawn from all alike.
    Errors: `Refusal` for an unknown address, k below 1 or above the vocabulary, directions of another width.
    Cost: one pass over the token vectors for all of them.
    Source: Dar et al. 2022, arXiv:2209.02535, section 3.
    """
    opened = model if isinstance(model, Model | Checkpoint) else open_checkpoint(model)
    subject = subject_of(opened, preset=preset, basis=basis, tokens=tokens)
    _require_k(k, subject)
    if isinstance(what, Tensor):
        return read_directions(subject, what, k)
    addresses: Sequence[str] = (what,) if isinstance(what, str) else what
    return [_read_address(subject, WeightAddress.parse(address), k) for address in addresses]


def read_directions(subject: Subject, directions: Float[Tensor, "*unit d_model"], k: int) -> list[Reading]:
    """Directions that something writes to the stream, at both ends.

    Errors: `Refusal` for directions of another width, or that hold NaN.
    """
    rows = directions.detach().reshape(-1, directions.shape[-1]).cpu().float()
    if rows.shape[1] != subject.shape.d_model:
        raise Refusal(
            f"directions of width {rows.shape[1]}",
            why=f"the stream of {subject.name} has width {subject.shape.d_model}",
            instead="give directions of the residual stream",
        )
    if not bool(torch.isfinite(rows).all()):
        raise Refusal("directions", why="they hold NaN or infinity", instead="leave those out")
    random = random_directions(subject.write, k, _DRAWS, seed=_SEED)
    names = [f"direction {number}" for number in range(len(rows))]
    return _readings(subject, names, rows, ("write", random, ANYWHERE))


def _read_address(subject: Subject, address: WeightAddress, k: int) -> Reading:
    group, vector = vector_at(subject.weights, address, folding=subject.folding)
    block = block_of(subject.weights, group_named(address.family), address.layer, folding=subject.folding)
    if not bool(torch.isfinite(block.rows).all()):
        why = "it, or another vector of its layer, holds NaN or infinity"
        raise Refusal(f"weight vector {address}", why=why, instead="check the checkpoint")
    reader = subject.read if group.end == "read" else subject.write
    if len(block.rows) < _FEW:
        random, kind = random_directions(reader, k, _DRAWS, seed=_SEED), ANYWHERE
    else:
        drawn = mixtures(block.rows, _DRAWS, int(hash_parts(_SEED, address.layer or 0)))
        random, kind = read_random(drawn, reader, k), f"mixtures of {str(address).split('/')[0]}"
    (found,) = _readings(subject, [str(address)], vector[None], (group.end, random, kind))
    return found


def _readings(
    subject: Subject, names: Sequence[str], rows: Float[Tensor, "unit d_model"], against: tuple[str, RandomDirections, str]
) -> list[Reading]:
    end, random, kind = against
    reader = subject.read if end == "read" else subject.write
    top = top_tokens(rows, reader, random)
    p = chance(top.strength, random)
    found = []
    for unit, name in enumerate(names):
        promoted, demoted = (_words(subject, top, unit, side) for side in range(2))
        (above, below), (p_above, p_below) = top.strength[unit].tolist(), p[unit].tolist()
        length = float(rows[unit].norm())
        found.append(Reading(name, reader.source, length, promoted, demoted, (above, below), (p_above, p_below), kind))
    return found


def _words(subject: Subject, top: TopTokens, unit: int, side: int) -> tuple[Word, ...]:
    columns = (each[unit, side].tolist() for each in (top.tokens, top.scores, top.control))
    return tuple(Word(token, subject.texts[int(token)], score, control) for token, score, control in zip(*columns, strict=True))


def _require_k(k: int, subject: Subject) -> None:
    shown = len(subject.write.tokens)
    if not 1 <= k <= shown:
        raise Refusal(f"k = {k}", why=f"{shown} tokens are shown", instead=f"ask for 1 to {shown}")
