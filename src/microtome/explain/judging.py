"""Yes-or-no scores of explanations: does an excerpt make the unit fire, and are the marked tokens the ones it fires at?

A judge sees an explanation and texts. `RuleJudge` needs no language model: it asks a simulator, and says yes where the prediction is high.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from microtome.core import Refusal
from microtome.explain.examples import SCALE, Examples, Excerpts
from microtome.explain.protocols import Explanation, Simulator
from microtome.numerics import hash_parts, resamples

__all__ = ["Judge", "Judged", "Questions", "RuleJudge", "detection", "fuzzing"]

_SALT = 0x66757A7A


@runtime_checkable
class Judge(Protocol):
    """Answers by an explanation."""

    def detects(self, explanation: Explanation, ids: Int[Tensor, "excerpt token"]) -> Bool[Tensor, " excerpt"]:
        """Whether the unit fires anywhere in each excerpt."""
        ...

    def accepts(
        self, explanation: Explanation, ids: Int[Tensor, "excerpt token"], marked: Bool[Tensor, "excerpt token"]
    ) -> Bool[Tensor, " excerpt"]:
        """Whether the marked tokens of each excerpt are those at which the unit fires."""
        ...


@dataclass(frozen=True, eq=False)
class RuleJudge:
    """Says that a unit fires where its simulator predicts at least `level` of 10, and that marks are right where most of them are so.

    The usual level is below the half at which units are said to fire, for predictions are means of what fires and what does not.
    """

    simulator: Simulator
    level: float = 0.3 * SCALE

    def detects(self, explanation: Explanation, ids: Int[Tensor, "excerpt token"]) -> Bool[Tensor, " excerpt"]:
        """Yes for one token that is predicted to fire."""
        return (self.simulator.simulate(explanation, ids) >= self.level).any(1)

    def accepts(
        self, explanation: Explanation, ids: Int[Tensor, "excerpt token"], marked: Bool[Tensor, "excerpt token"]
    ) -> Bool[Tensor, " excerpt"]:
        """Yes for at least half of the marked tokens predicted to fire, and no for no mark."""
        fires = (self.simulator.simulate(explanation, ids) >= self.level) & marked
        return (2 * fires.sum(1) >= marked.sum(1)) & marked.any(1)


@dataclass(frozen=True)
class Questions:
    """What counts as firing: an activation above `fires` of the largest of training; 0 for units with exact zeros, as factors.

    An excerpt is active where a token fires. Wrong marks are on random tokens of excerpts that are not active ("inactive"), or on random
    tokens of active ones that do not fire there ("active"), which a judge that only knows excerpts cannot tell. Intervals are of `draws` resamples,
    and there are none without.
    """

    fires: float = 0.5
    wrong: Literal["inactive", "active"] = "inactive"
    draws: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Judged:
    """Answers counted: `accuracy` is the mean of the share of yes among the `positive` and of no among the `negative` questions.

    Chance is 0.5 whatever their numbers. `low` to `high` is the 95 % interval when questions of each kind are drawn anew. NaN where a kind is
    missing.
    """

    accuracy: float
    low: float
    high: float
    f1: float
    positive: int
    negative: int


def detection(judge: Judge, explanation: Explanation, examples: Examples, questions: Questions = Questions()) -> Judged:
    """Ask of every test excerpt whether the unit fires in it.

    Source: Paulo et al. 2024, arXiv:2410.13928, section 3.
    """
    part, fires = _asked(examples, questions)
    return _judged(judge.detects(explanation, part.ids), fires.any(1), questions)


def fuzzing(judge: Judge, explanation: Explanation, examples: Examples, questions: Questions = Questions()) -> Judged:
    """Mark the tokens that fire in active excerpts, and as many random ones as these have in the mean elsewhere; ask whether marks are right.

    Source: Paulo et al. 2024, arXiv:2410.13928, section 3.
    """
    part, fires = _asked(examples, questions)
    active = fires.any(1)
    if not bool(active.any()):
        return _judged(active, active, questions)
    right = part.take(active)
    marks = -(-int(fires.sum()) // int(active.sum()))
    others = ~active if questions.wrong == "inactive" else active
    wrong, allowed = part.take(others), (part.counted & ~fires)[others]
    marked = torch.cat([fires[active], _random_marks(wrong, allowed, marks, questions.seed)])
    said = judge.accepts(explanation, torch.cat([right.ids, wrong.ids]), marked)
    true = torch.arange(len(said)) < len(right)
    return _judged(said, true, questions)


def _asked(examples: Examples, questions: Questions) -> tuple[Excerpts, Bool[Tensor, "excerpt token"]]:
    part = examples.test
    if not len(part):
        raise Refusal("a judgement", why="there is no test excerpt", instead="select more excerpts")
    scaled = examples.scaled(part)
    fires = (scaled > questions.fires * SCALE) & part.counted
    return part, fires


def _random_marks(
    part: Excerpts, allowed: Bool[Tensor, "excerpt token"], count: int, seed: int
) -> Bool[Tensor, "excerpt token"]:
    """`count` of the allowed tokens of each excerpt, or all."""
    place = torch.arange(part.ids.shape[1])
    drawn = hash_parts(seed, _SALT, part.window[:, None], part.start[:, None], place) >> 1
    order = drawn.masked_fill(~allowed, torch.iinfo(torch.int64).max).argsort(dim=1, stable=True)
    return (order.argsort(dim=1) < count) & allowed


def _judged(said: Bool[Tensor, " question"], true: Bool[Tensor, " question"], questions: Questions) -> Judged:
    kinds = [said[true].double(), (~said[~true]).double()]
    positive, negative = map(len, kinds)
    if not positive or not negative:
        return Judged(torch.nan, torch.nan, torch.nan, torch.nan, positive, negative)
    low = high = torch.nan
    if questions.draws:
        drawn = [
            resamples(len(kind), questions.draws, questions.seed + side).double() @ kind / len(kind)
            for side, kind in enumerate(kinds)
        ]
        ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
        low, high = torch.quantile((drawn[0] + drawn[1]) / 2, ends).tolist()
    hits, wrong = float(kinds[0].sum()), float((1 - kinds[1]).sum())
    accuracy = float(kinds[0].mean() + kinds[1].mean()) / 2
    return Judged(accuracy, low, high, 2 * hits / (hits + wrong + positive), positive, negative)
