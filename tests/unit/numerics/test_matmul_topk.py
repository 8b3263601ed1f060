"""Ends of a matrix product: equal to sorting it whole, ties and exclusions included."""

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from microtome.core import Refusal
from microtome.numerics.matmul_topk import matmul_topk
from microtome.numerics.rounding import Precision
from tests.unit.numerics.kernel_sets import kernel_set
from tests.unit.numerics.test_product_topk import KINDS, adversarial

module = importlib.import_module("microtome.numerics.matmul_topk")  # the package has a function of this name
pytestmark = pytest.mark.usefixtures(kernel_set.__name__)


def sorted_whole(scores: Tensor, k: int, excluded: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kept = torch.arange(scores.shape[1]) if excluded is None else (~excluded).nonzero()[:, 0]
    top = scores[:, kept].sort(dim=1, descending=True, stable=True)
    bottom = scores[:, kept].sort(dim=1, stable=True)
    return top.values[:, :k], kept[top.indices[:, :k]], bottom.values[:, :k], kept[bottom.indices[:, :k]]


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 30), columns=st.integers(1, 6000), k=st.integers(1, 30), levels=st.integers(1, 30), seed=st.integers(0, 99),
    without=st.booleans(),
)  # fmt: skip
def test_integers_with_many_ties(rows: int, columns: int, k: int, levels: int, seed: int, without: bool):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randint(-levels, levels + 1, (rows, 3), generator=generator).float()
    b = torch.randint(-levels, levels + 1, (3, columns), generator=generator).float()
    excluded = torch.rand(columns, generator=generator) < 0.3 if without else None
    k = min(k, columns if excluded is None else int((~excluded).sum()))
    if k == 0:
        return
    found = matmul_topk(a, b, k, excluded=excluded)
    for mine, expected in zip(
        (found.top, found.top_index, found.bottom, found.bottom_index), sorted_whole(a @ b, k, excluded), strict=True
    ):
        assert torch.equal(mine, expected)


def test_real_numbers_bias_and_bfloat16():
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(600, 40, generator=generator), torch.randn(40, 10_000, generator=generator).to(torch.bfloat16)
    bias = torch.randn(10_000, generator=generator)
    found = matmul_topk(a, b, 12, bias=bias)
    scores = a @ b.float() + bias
    top, _, bottom, _ = sorted_whole(scores, 12)
    torch.testing.assert_close(found.top, top, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found.bottom, bottom, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(scores.gather(1, found.top_index), found.top, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(scores.gather(1, found.bottom_index), found.bottom, rtol=1e-5, atol=1e-4)


def test_values_that_are_no_numbers_are_never_taken():
    found = matmul_topk(torch.tensor([[1.0]]), torch.tensor([[2.0, torch.nan, 1.0]]), 2)
    assert found.top_index.tolist() == [[0, 2]]
    assert found.bottom_index.tolist() == [[2, 0]]


def test_more_than_there_are_is_refused():
    with pytest.raises(Refusal, match="the 4 largest of 2 columns: there are not as many; ask for at most 2"):
        matmul_topk(torch.ones(1, 1), torch.ones(1, 3), 4, excluded=torch.tensor([True, False, False]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_whatever_the_numbers(kind: str, precision: Precision):
    a, b = adversarial(kind, 130, 1500)
    scores = (a.double() @ b.double().T).float()
    found = matmul_topk(a, b.T, 20, precision=precision)
    for sign, value, index in ((1, found.top, found.top_index), (-1, found.bottom, found.bottom_index)):
        keys = (sign * scores).nan_to_num(-torch.inf, torch.inf, -torch.inf)  # values that are no numbers come last
        expected = keys.sort(dim=1, descending=True, stable=True)
        assert torch.equal(value, sign * expected.values[:, :20])
        assert torch.equal(index, torch.where(expected.values > -torch.inf, expected.indices, -1)[:, :20])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_pairs_of_equal_class_are_left_out_before_selection(precision: Precision):
    generator = torch.Generator().manual_seed(3)
    a, b = torch.randn(100, 24, generator=generator), torch.randn(1200, 24, generator=generator)
    of_rows, of_columns = torch.arange(100) % 4, torch.arange(1200) % 3
    excluded = torch.arange(1200) % 11 == 0
    found = matmul_topk(a, b.T, 9, excluded=excluded, row_class=of_rows, column_class=of_columns, precision=precision)
    scores = (a.double() @ b.double().T).float()
    scores[(of_rows[:, None] == of_columns) | excluded] = -torch.inf
    assert torch.equal(found.top, scores.topk(9).values)
    assert torch.equal(scores.gather(1, found.top_index), found.top)
    assert torch.equal(found.bottom, scores.nan_to_num(neginf=torch.inf).topk(9, largest=False).values)
    assert torch.equal(scores.gather(1, found.bottom_index), found.bottom)


def test_a_row_with_too_few_pairs_is_filled_up_with_nothing():
    found = matmul_topk(
        torch.ones(2, 1), torch.tensor([[1.0, 2.0]]), 2, row_class=torch.tensor([0, 5]), column_class=torch.tensor([0, 1])
    )
    assert found.top_index.tolist() == [[1, -1], [1, 0]]
    assert found.bottom.tolist() == [[2.0, torch.inf], [1.0, 2.0]]


def test_few_pairs_that_count_are_found_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_whole", lambda *_: pytest.fail("all pairs that count were looked at"))
    generator = torch.Generator().manual_seed(4)
    a, b = torch.randn(70, 8, generator=generator), torch.randn(900, 8, generator=generator)
    of_columns = torch.arange(900).clamp(max=20)  # but for twenty, all columns have the class of every row
    found = matmul_topk(a, b.T, 5, row_class=torch.full((70,), 20), column_class=of_columns)
    assert torch.equal(found.top, (a.double() @ b[:20].double().T).float().topk(5).values)


def test_rows_that_are_not_certain_are_looked_at_again(monkeypatch: pytest.MonkeyPatch):
    a, b = adversarial("near ties", 3, 4000)
    a[0] = torch.randn(a.shape[1], generator=torch.Generator().manual_seed(0)) * b[0]
    looked: list[int] = []
    shortlisted = module._shortlisted
    monkeypatch.setattr(module, "_shortlisted", lambda *parts: looked.append(len(parts[0].length)) or shortlisted(*parts))
    monkeypatch.setattr(module, "_FEW", 0)
    found = matmul_topk(a, b.T, 5, precision="bfloat16")
    assert looked[0] == 3
    assert len(looked) > 1, "bfloat16 cannot tell near ties apart"
    assert torch.equal(found.top, (a.double() @ b.double().T).float().topk(5).values)


def test_nothing_to_select_is_refused():
    with pytest.raises(Refusal, match="the 0 largest entries of a row: there is nothing to select"):
        matmul_topk(torch.ones(1, 1), torch.ones(1, 3), 0)
    with pytest.raises(Refusal, match="classes of one side"):
        matmul_topk(torch.ones(1, 1), torch.ones(1, 3), 1, row_class=torch.tensor([0]))
