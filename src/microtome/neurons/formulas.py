"""Formulas of yes-or-no concepts, and the beam search for those whose mask is most like a given one.

Masks are bits (`numerics.bits`); whose masks they are, and whether a formula holds on other text, is the business of `compositional`, what
the concepts are that of `primitives`. In this module `concept` counts masks that formulas are made of, `operator` the three operators.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from jaxtyping import Float64, Int64, UInt64

from microtome.core import Refusal
from microtome.numerics.bits import Bits, at_rows, intersections, ones, rows_of

__all__ = ["OPERATORS", "Beam", "Formula", "Scored", "beam_search", "overlap_of"]

Operator = Literal["or", "and", "and not"]
OPERATORS: Final[tuple[Operator, ...]] = ("or", "and", "and not")
_LOOKED_AT: Final = 16
"""Candidates that are looked at for each place of a beam; the others of equal mask are at most as many as orders of writing it."""

_DENSE: Final = 0.1
"""The share of rows from which on a target's own rows are not put together first."""


@dataclass(frozen=True)
class Formula:
    """A concept, and operators with further ones, applied from left to right: ((first op a) op b) ..."""

    first: int
    rest: tuple[tuple[Operator, int], ...] = ()

    def __len__(self) -> int:
        return 1 + len(self.rest)

    def of(self, concepts: UInt64[np.ndarray, "concept word"]) -> UInt64[np.ndarray, " word"]:
        """The rows that it holds of."""
        found = concepts[self.first]
        for operator, concept in self.rest:
            found = _applied(operator, found, concepts[concept])
        return found

    def text(self, names: Sequence[str]) -> str:
        """As one writes it; brackets where the operator changes.

        >>> Formula(0, (("and not", 1), ("or", 2), ("or", 0))).text(["a", "b", "c"])
        '(a and not b) or c or a'
        """
        found, last = names[self.first], None
        for operator, concept in self.rest:
            found = f"({found})" if last not in (None, operator) else found
            found, last = f"{found} {operator} {names[concept]}", operator
        return found


@dataclass(frozen=True)
class Beam:
    """How formulas are searched: the `longest`, how many of each length are extended, and with what.

    A formula is worth its overlap times `penalty` for each concept beyond the first. Of `leaves`, "overlapping" extends by concepts that the
    target has a row of; "all" also takes away concepts that it has none of, which is how exceptions are written.
    Errors: `Refusal` for less than one concept or one formula, and a penalty outside of 0 to 1.
    """

    longest: int = 5
    width: int = 10
    penalty: float = 1.0
    leaves: Literal["all", "overlapping"] = "all"

    def __post_init__(self) -> None:
        if self.longest < 1 or self.width < 1 or not 0 < self.penalty <= 1:
            why = f"longest is {self.longest}, the width {self.width} and the penalty {self.penalty}"
            raise Refusal("a search for formulas", why=why, instead="use 1 or more, and a penalty of at most 1")


@dataclass(frozen=True)
class Scored:
    """A formula and its overlap with the target: |both| / |either|."""

    formula: Formula
    overlap: float


def overlap_of(one: UInt64[np.ndarray, "*any word"], other: UInt64[np.ndarray, "*any word"]) -> Float64[np.ndarray, "*any"]:
    """Intersection over union of masks, one by one; NaN where both are empty."""
    either = ones(one | other)
    return np.where(either > 0, ones(one & other) / np.maximum(either, 1), np.nan)


def beam_search(
    target: UInt64[np.ndarray, " word"], concepts: UInt64[np.ndarray, "concept word"], beam: Beam
) -> tuple[Scored, ...]:
    """The best formula of at most 1, 2, ... `longest` concepts; none where no concept has a row of the target.

    With a penalty of 1 the overlaps never fall. Each length has a beam of its own, in which no two formulas have the same mask, and none has that
    of a shorter one; of equal overlaps the first in the order of operators, beam and concepts is kept. The authors' beam has formulas of
    all lengths, so that one which is only good for what can be made of it is lost early.
    Exact for `longest` = 2 where the beam holds all concepts that overlap. Source: Mu and Andreas 2020, arXiv:2006.14032, section 2.
    Cost: width intersections with every concept for each length, about 1 ns for 64 rows; twice that for a target of a tenth of the rows.
    """
    counts = _Counts(target, concepts)
    held = _distinct(counts.alone(), [], concepts, beam.width, seen := set())
    best: list[Scored] = []
    for length in range(1, beam.longest + 1):
        if length > 1 and held:
            held = _distinct(counts.extended(held, beam.leaves), held, concepts, beam.width, seen)
        before = _worth(best[-1], beam) if best else 0.0
        found = Scored(held[0].formula, held[0].overlap) if held else None
        if found and _worth(found, beam) > before:
            best.append(found)
        elif best:
            best.append(best[-1])
    return tuple(best)


@dataclass(frozen=True, eq=False)
class _Held:
    """A formula of a beam, with its mask."""

    formula: Formula
    overlap: float
    mask: Bits


class _Counts:
    """How much of each other the target and the concepts have, and what overlap formulas would have."""

    def __init__(self, target: Bits, concepts: Bits) -> None:
        self.target, self.concepts = target, concepts
        self.sizes, self.hits, self.wanted = ones(concepts), ones(concepts & target), int(ones(target))
        self.rows = rows_of(target) if self.wanted < _DENSE * 64 * len(target) else None
        self.there = concepts if self.rows is None else at_rows(concepts, self.rows)

    def alone(self) -> Float64[np.ndarray, " concept"]:
        """Overlaps of single concepts; -1 for those that overlap nowhere."""
        return np.where(self.hits > 0, self.overlaps(self.hits, self.sizes), -1.0)

    def extended(self, held: Sequence[_Held], leaves: str) -> Float64[np.ndarray, "operator row concept"]:
        """Overlaps of every formula with every operator and concept; -1 where the mask becomes the formula's own, or the concept's."""
        masks = np.stack([each.mask for each in held])
        inside = masks & self.target if self.rows is None else at_rows(masks, self.rows)
        both, kept = intersections(masks, self.concepts), intersections(inside, self.there)
        own, hits = ones(masks)[:, None], ones(inside)[:, None]
        new = (both < own) & (both < self.sizes)
        found = np.stack(
            [
                np.where(new, self.overlaps(hits + self.hits - kept, own + self.sizes - both), -1.0),
                np.where(new, self.overlaps(kept, both), -1.0),
                np.where((both > 0) & (both < own), self.overlaps(hits - kept, own - both), -1.0),
            ]
        )
        if leaves == "overlapping":
            found[:, :, self.hits == 0] = -1.0
        return found

    def overlaps(self, hits: Int64[np.ndarray, "*any"], sizes: Int64[np.ndarray, "*any"]) -> Float64[np.ndarray, "*any"]:
        return hits / np.maximum(sizes + self.wanted - hits, 1)


def _distinct(
    scores: Float64[np.ndarray, "*any concept"], held: Sequence[_Held], concepts: Bits, width: int, seen: set[bytes]
) -> list[_Held]:
    """The best formulas whose masks are new, from the best down; of equal ones those that come first."""
    flat = scores.ravel()
    count = min(len(flat), _LOOKED_AT * width)
    least = np.partition(flat, len(flat) - count)[len(flat) - count]
    places = np.flatnonzero((flat >= least) & (flat > 0))
    places = places[np.argsort(-flat[places], kind="stable")]
    found: list[_Held] = []
    for place in places:
        *extends, concept = (int(each) for each in np.unravel_index(place, scores.shape))
        formula, mask = Formula(concept), concepts[concept]
        if extends:
            operator, old = OPERATORS[extends[0]], held[extends[1]]
            formula = Formula(old.formula.first, (*old.formula.rest, (operator, concept)))
            mask = _applied(operator, old.mask, mask)
        if (key := mask.tobytes()) not in seen:
            seen.add(key)
            found.append(_Held(formula, float(flat[place]), mask))
        if len(found) == width:
            break
    return found


def _worth(found: Scored, beam: Beam) -> float:
    return found.overlap * beam.penalty ** (len(found.formula) - 1)


def _applied(operator: Operator, one: Bits, other: Bits) -> Bits:
    if operator == "or":
        return one | other
    return one & (other if operator == "and" else ~other)
