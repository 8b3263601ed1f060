"""The addition experiment of Song & Zhong: where operators are, what a jump is, and the conclusion at a small size."""

import dataclasses
import itertools
from pathlib import Path

import pytest

from recipes.curves import Curve
from recipes.song2023_addition import QUICK, Row, addition, describe, leaps_of, rank, steps_of


def test_steps_at_operators() -> None:
    problem = "123+456=975"
    at, others = steps_of(3)
    assert [problem[step + 1 : step + 3] for step in at] == ["3+", "+4", "6=", "=9"]
    assert [problem[step + 1 : step + 3] for step in others] == ["23", "45", "56", "97", "75"]
    across, within = leaps_of(3)
    assert [problem[leap + 1 : leap + 4] for leap in across] == ["3+4", "6=9"]
    assert [problem[leap + 1 : leap + 4] for leap in within] == ["456", "975"]


def test_how_often_some_are_larger() -> None:
    assert rank([3.0, 1.0, 2.0, 4.0], [0, 3], [1, 2]) == 1.0
    assert rank([3.0, 1.0, 2.0, 4.0], [0, 1], [2, 3]) == 0.25, "3 exceeds 2, and nothing else"


def curve(steps: list[float], leaps: list[float]) -> Curve:
    return Curve("resid_post.0", 0.1, 1.0, 1.5, 0.2, 3.0, steps, leaps)


def test_a_jump_is_of_the_median_layer_after_its_block() -> None:
    jump = curve([0.1, 5.0, 5.0, 0.1, 0.1, 5.0, 5.0, 0.1, 0.1], [0.0, 9.0, 0.0, 1.0, 0.0, 9.0, 0.0, 1.0])
    flat = curve([5.0, 0.1, 0.1, 5.0, 5.0, 0.1, 0.1, 5.0, 5.0], [0.0, 1.0, 0.0, 9.0, 0.0, 1.0, 0.0, 9.0])
    row = Row("carry", 0, 10, 1.0, {"trained on": 0.5}, {3: [flat, jump, jump]}, [flat, jump], [flat, jump], 1.0)
    assert (row.at_operators, row.across_operators) == (1.0, 1.0)
    other = dataclasses.replace(row, by_layout={3: [jump, flat, flat]})
    assert (other.at_operators, other.across_operators) == (0.0, 0.0)


@pytest.mark.slow
def test_the_conclusion_at_a_small_size(tmp_path: Path) -> None:
    budget = dataclasses.replace(QUICK, seeds=1)
    rows = {row.condition: row for row in itertools.islice(addition(budget, tmp_path), 2)}
    assert list(rows) == ["untrained", "carry-free"]
    assert rows["untrained"].right["trained on"] == 0.0
    solved = rows["carry-free"]
    assert solved.right["trained on"] >= 0.99
    assert solved.steps < budget.schedule.steps, "training ends where it is solved"
    assert max(solved.right["shorter"], solved.right["mixed"]) < 0.1, "other lengths are not"
    assert "carry-free: 1 of 1 seeds solve 99 %" in describe(list(rows.values()))
