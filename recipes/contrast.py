"""A measure of models trained under two conditions, seed by seed, and whether it differs by more than seeds do.

With a handful of seeds a p-value says little; what is asked is cruder and harder to pass by chance.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

__all__ = ["Contrast", "Question", "Trial", "contrasts", "lines"]


class Trial(Protocol):
    """What became of one model; its seed does not matter here."""

    @property
    def condition(self) -> str:
        """What it was trained on."""
        ...


T = TypeVar("T", bound=Trial)


@dataclass(frozen=True)
class Question(Generic[T]):
    """Something to be said of two conditions: a measure is expected lower in `less` than in `more`."""

    says: str
    measure: Callable[[T], float]
    less: str
    more: str


@dataclass(frozen=True)
class Contrast:
    """A measure of two conditions, by seed: `less` is expected below `more`."""

    says: str
    less: tuple[float, ...]
    more: tuple[float, ...]

    @property
    def gap(self) -> float:
        """How far the means are apart; negative the other way round."""
        return statistics.fmean(self.more) - statistics.fmean(self.less)

    @property
    def spread(self) -> float:
        """How far apart seeds are, in the condition where they are further apart."""
        return max(max(values) - min(values) for values in (self.less, self.more))

    @property
    def verdict(self) -> Literal["yes", "no", "the other way round"]:
        """Whether it is as it says, by more than seeds differ."""
        if not abs(self.gap) > self.spread:
            return "no"
        return "yes" if self.gap > 0 else "the other way round"


def contrasts(questions: Sequence[Question[T]], trials: Sequence[T]) -> list[Contrast]:
    """What can be said of the models there are: where there are two seeds or more in both conditions."""
    found = []
    for question in questions:
        conditions = (question.less, question.more)
        one, other = (tuple(question.measure(each) for each in trials if each.condition == name) for name in conditions)
        if min(len(one), len(other)) > 1:
            found.append(Contrast(question.says, one, other))
    return found


def lines(found: Sequence[Contrast], differences: Sequence[str]) -> list[str]:
    """The conclusions, with their numbers, and what differs from the paper."""
    said = [f"  {each.verdict:20} {each.says}: {_range(each.less)} against {_range(each.more)}" for each in found]
    return [
        "",
        "By more than seeds differ:",
        *said,
        "",
        "What differs from the paper:",
        *(f"  - {each}" for each in differences),
    ]


def _range(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.3g} ({min(values):.3g} to {max(values):.3g})"
