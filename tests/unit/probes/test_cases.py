from dataclasses import replace

import pytest
import torch

from microtome.core import Refusal
from microtome.probes import Cases
from tests.unit.probes.planted import planted_cases


def test_standardised_by_the_discover_half() -> None:
    cases = planted_cases(rows=400)
    x = cases.x * 3 + 5
    x[:, 0] = 2.0
    found = replace(cases, x=x).standardised()
    mine = found.x[cases.half == 0]
    torch.testing.assert_close(mine[:, 1:].mean(0), torch.zeros(59), atol=1e-5, rtol=0.0)
    torch.testing.assert_close(mine[:, 1:].std(0), torch.ones(59), atol=1e-5, rtol=0.0)
    assert not found.x[:, 0].any()


def test_majority_is_that_of_the_discover_half() -> None:
    y, half = torch.tensor([0, 0, 0, 1, 1, 1, 1, 0]), torch.tensor([0, 0, 0, 0, 0, 1, 1, 1])
    cases = Cases(torch.zeros(8, 1), y, ("a", "b"), half, half, half)
    assert cases.majority == pytest.approx(1 / 3)


def test_a_class_against_the_rest() -> None:
    cases = planted_cases(rows=100)
    assert torch.equal(cases.against_rest("yes"), cases.y == 1)
    with pytest.raises(Refusal, match="class 'maybe': there are no, yes"):
        cases.against_rest("maybe")


def test_what_cannot_be_judged_is_refused() -> None:
    cases = planted_cases(rows=200)
    with pytest.raises(Refusal, match="document 0: it is in both halves"):
        replace(cases, document=torch.zeros_like(cases.document))
    lone = torch.zeros_like(cases.y)
    lone[0] = 1
    with pytest.raises(Refusal, match="class 'yes': it has 1 examples to learn from, in the discover half, and 2 are needed"):
        cases.relabelled(lone)
    with pytest.raises(Refusal, match="class 'yes': it has 0 examples to be judged on"):
        cases.relabelled(torch.where(cases.half == 0, cases.y, 0))
    with pytest.raises(Refusal, match="there is one class only"):
        replace(cases, y=torch.zeros_like(cases.y), classes=("no",))
    x = cases.x.clone()
    x[3, 4] = torch.nan
    with pytest.raises(Refusal, match="an activation is not finite"):
        replace(cases, x=x)
