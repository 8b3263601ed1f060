"""What a unit is explained from and judged on: excerpts of text with its activation at every token.

Which excerpts a unit gets is the business of `excerpts`; here is what they are, and how activations become the scale of 0 to 10 on which
explanations predict. Two axes are used by this package alone: `excerpt` counts stretches of text, `token` their tokens, as everywhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

__all__ = ["NOTHING", "SCALE", "End", "Examples", "Excerpts", "joined"]

NOTHING: Final = -1
"""Stands among ids for "no token here": behind the end of a text."""
SCALE: Final = 10
"""The prediction for the largest activation among the training excerpts."""

End = Literal["top", "bottom"]
"""Which end of a unit: large activations, or negative ones, which are then all taken times -1."""


@dataclass(frozen=True, eq=False)
class Excerpts:
    """Stretches of windows: ids, activation of one end of a unit, and which tokens count.

    Tokens that do not count (special ones, the first of a window) are read but neither explained nor scored. `window` is the excerpt's
    window in its run, `start` the place there of its first token, and `chosen` says how it came here: as one of the unit's most active,
    or at random.
    """

    ids: Int[Tensor, "excerpt token"]
    counted: Bool[Tensor, "excerpt token"]
    activation: Float[Tensor, "excerpt token"]
    window: Int64[Tensor, " excerpt"]
    start: Int64[Tensor, " excerpt"]
    active: Bool[Tensor, " excerpt"]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Int[Tensor, " _"] | Bool[Tensor, " excerpt"]) -> "Excerpts":
        """Some of them."""
        return Excerpts(*(getattr(self, name)[rows] for name in _FIELDS))

    @property
    def peak(self) -> tuple[Float[Tensor, " excerpt"], Int64[Tensor, " excerpt"]]:
        """The largest activation at a token that counts, and its place, the first of equal ones; -inf where none counts."""
        masked = self.activation.masked_fill(~self.counted, -torch.inf)
        largest = masked.amax(1)
        return largest, (masked == largest[:, None]).long().argmax(1)


_FIELDS: Final = ("ids", "counted", "activation", "window", "start", "active")


def joined(parts: Sequence[Excerpts]) -> Excerpts:
    """All excerpts of several lists of equal length in tokens."""
    return Excerpts(*(torch.cat([getattr(part, name) for part in parts]) for name in _FIELDS))


@dataclass(frozen=True, eq=False)
class Examples:
    """The excerpts of one end of one unit, in four parts that have none in common.

    An explanation is made from `train` (and `calibration`, if predictions are calibrated); it is scored on `valid`, or, for questions that
    were settled with its help, on `test`. `largest` is the largest activation of `train`.
    """

    end: End
    train: Excerpts
    calibration: Excerpts
    valid: Excerpts
    test: Excerpts
    largest: float

    def scaled(self, part: Excerpts) -> Float[Tensor, "excerpt token"]:
        """10 relu(a) / largest, which may exceed 10 where a text beats those of training; negative activations are another end's.

        Source: Bills et al. 2023, Language models can explain neurons in language models (no arXiv entry), who also round down.
        """
        return SCALE * part.activation.double().clamp(min=0) / self.largest

    def levels(self, part: Excerpts) -> Int[Tensor, "excerpt token"]:
        """Whole numbers min(10, floor(10 relu(a) / largest)): what a language model is shown.

        Source: Bills et al. 2023, Language models can explain neurons in language models (no arXiv entry).
        """
        return self.scaled(part).floor().clamp(max=SCALE).long()
