"""What the page is told of units that are like a unit."""

from pydantic import BaseModel

from microtome.web.records.values import Number, Problem

__all__ = ["Reason", "Related", "RelatedUnit"]


class Reason(BaseModel):
    """Why a unit is related, and which it is by this kind of evidence (from 1).

    The number stands beside its control, and is `clear` where it is larger; `tokens` are shared.
    """

    kind: str
    rank: int
    value: Number
    control: Number
    clear: bool
    tokens: list[str]


class RelatedUnit(BaseModel):
    """A unit that is like another, by all reasons; `score` is the sum of 1 / (10 + rank) over those that are clear."""

    unit: str
    basis: str
    layer: int | None
    score: float
    reasons: list[Reason]


class Related(BaseModel):
    """Units that are like `unit`, those that most speaks for first, of all `of` that something speaks for."""

    unit: str
    of: int
    rows: list[RelatedUnit]
    problems: list[Problem]
