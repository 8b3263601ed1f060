"""What the page is told of attention heads read from their weights."""

from pydantic import BaseModel

from microtome.web.records.unit import Stat
from microtome.web.records.values import Column, Number, Problem

__all__ = ["Circuit", "HeadCard", "HeadPage", "HeadScores", "Heads", "Pair", "PairEnd"]


class HeadCard(BaseModel):
    """A head, and how many pairs of tokens are known of it."""

    unit: str
    layer: int | None
    index: int
    pairs: int


class HeadScores(BaseModel):
    """A statistic of all heads, in their order, beside controls."""

    column: Column
    control_kind: str | None
    value: list[Number]
    control: list[Number]
    q: list[Number]


class Heads(BaseModel):
    """All heads by layer, and their scores."""

    heads: list[HeadCard]
    scores: list[HeadScores]
    problems: list[Problem]


class Pair(BaseModel):
    """Two tokens that a head puts together; z in standard deviations over all pairs, control that of heads rotated inside."""

    token: int
    text: str
    other: int
    other_text: str
    score: Number
    z: Number
    control: Number


class PairEnd(BaseModel):
    """The pairs at an end (+ most, - least, ± by magnitude), the first of `of`."""

    end: str
    of: int
    pairs: list[Pair]


class Circuit(BaseModel):
    """What one circuit of a head does with two tokens: what the first and the second of a pair are."""

    circuit: str
    label: str
    first: str
    second: str
    ends: list[PairEnd]


class HeadPage(BaseModel):
    """What the weights of a head say."""

    run: str
    unit: str
    layer: int | None
    index: int
    previous: str | None
    next: str | None
    stats: list[Stat]
    circuits: list[Circuit]
    problems: list[Problem]
