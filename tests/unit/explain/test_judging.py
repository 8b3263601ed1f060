"""Detection and fuzzing with the rule judge: planted units, a rule that is right, one that knows only excerpts, one that knows nothing."""

import pytest
import torch
from torch import Tensor

from microtome.explain import (
    ByRule,
    Explanation,
    Questions,
    RuleJudge,
    Selection,
    TableExplainer,
    detection,
    fuzzing,
)
from tests.unit.explain.planted import examples_of, name

# at the rarest of 100 tokens, so that random excerpts are usually silent
RARE = Selection(length=32, active=12, random=12, shortest=4)


def rare_unit(ids: Tensor) -> Tensor:
    return 2.0 * (ids == 3)


class Always:
    """Predicts the same everywhere."""

    def __init__(self, value: float) -> None:
        self.value = value

    def predict(self, ids: Tensor) -> Tensor:
        return torch.full(ids.shape, self.value)


class WholeExcerpts:
    """Predicts 10 at every token of an excerpt that has token 3."""

    def predict(self, ids: Tensor) -> Tensor:
        return 10.0 * (ids == 3).any(1, keepdim=True).expand(ids.shape)


EXAMPLES = examples_of(rare_unit, vocab=100, selection=RARE)
JUDGE = RuleJudge(ByRule())


def test_a_true_rule_answers_everything() -> None:
    explanation = TableExplainer(1, name).explain(EXAMPLES)
    for found in (
        detection(JUDGE, explanation, EXAMPLES),
        fuzzing(JUDGE, explanation, EXAMPLES),
        fuzzing(JUDGE, explanation, EXAMPLES, Questions(wrong="active")),
    ):
        assert (found.accuracy, found.low, found.high, found.f1) == (1, 1, 1, 1)
        assert found.positive >= 6
        assert found.negative >= 4


def test_sides_are_counted_as_they_are() -> None:
    part = EXAMPLES.test
    fires = ((part.ids == 3) & part.counted).any(1)
    found = detection(JUDGE, Explanation("", WholeExcerpts()), EXAMPLES)
    assert (found.positive, found.negative) == (int(fires.sum()), int((~fires).sum()))


@pytest.mark.parametrize("value", [0.0, 10.0])
def test_an_answer_that_is_always_the_same_is_worth_a_half(value: float) -> None:
    same = Explanation("", Always(value))
    assert detection(JUDGE, same, EXAMPLES).accuracy == 0.5
    assert fuzzing(JUDGE, same, EXAMPLES).accuracy == 0.5


def test_marks_inside_active_excerpts_need_tokens() -> None:
    """A rule of whole excerpts passes where wrong marks are in silent ones, and is at chance where they are in active ones."""
    whole = Explanation("", WholeExcerpts())
    assert fuzzing(JUDGE, whole, EXAMPLES).accuracy == 1
    inside = fuzzing(JUDGE, whole, EXAMPLES, Questions(wrong="active"))
    assert inside.accuracy == 0.5
    assert inside.positive == inside.negative


def test_without_one_kind_nothing_is_said() -> None:
    everywhere = examples_of(lambda ids: 1.0 + 0.0 * ids)
    found = detection(JUDGE, Explanation("", Always(1.0)), everywhere)
    assert found.accuracy != found.accuracy
    assert found.negative == 0
    never = detection(JUDGE, Explanation("", Always(1.0)), EXAMPLES, Questions(fires=5.0))
    assert never.accuracy != never.accuracy
    assert never.positive == 0
    assert fuzzing(JUDGE, Explanation("", Always(1.0)), EXAMPLES, Questions(fires=5.0)).positive == 0


class Marks:
    """A judge that keeps what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Tensor, Tensor]] = []

    def detects(self, explanation: Explanation, ids: Tensor) -> Tensor:
        return (ids == 3).any(1)

    def accepts(self, explanation: Explanation, ids: Tensor, marked: Tensor) -> Tensor:
        self.asked.append((ids, marked))
        return marked.any(1)


def test_wrong_marks_are_as_many_as_right_ones_in_the_mean_rounded_up() -> None:
    judge = Marks()
    found = fuzzing(judge, Explanation(""), EXAMPLES)
    (ids, marked) = judge.asked[0]
    right, wrong = marked[: found.positive].sum(1), marked[found.positive :].sum(1)
    assert set(wrong.tolist()) == {-(-int(right.sum()) // len(right))}
    assert bool((ids[: found.positive][marked[: found.positive]] == 3).all())
    assert not bool((ids[found.positive :][marked[found.positive :]] == 3).any())
    fuzzing(judge, Explanation(""), EXAMPLES, Questions(seed=1))
    assert not torch.equal(judge.asked[1][1], marked)
