"""Ends of a matrix product: equal to sorting it whole, ties and exclusions included."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from microtome.core import Refusal
from microtome.numerics import matmul_topk
from tests.unit.numerics.kernel_sets import kernel_set

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
