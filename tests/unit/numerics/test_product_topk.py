"""Ends of a whole product: equal to sorting every entry, whatever the precision, the kernels and the number of threads."""

import importlib
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from microtome.core import Refusal
from microtome.numerics import rounding
from microtome.numerics.product_topk import End, Pairs, product_diagonal, product_ends, product_topk
from microtome.numerics.rounding import Precision
from tests.unit.numerics.kernel_sets import kernel_set

module = importlib.import_module("microtome.numerics.product_topk")  # the package has a function of this name
pytestmark = pytest.mark.usefixtures(kernel_set.__name__)
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
ENDS: tuple[End, ...] = ("top", "bottom", "magnitude")
KEYS = {"top": lambda v: -v, "bottom": lambda v: v, "magnitude": lambda v: -abs(v)}


def sorted_whole(a: Tensor, b: Tensor, k: int, end: End, left_out: Tensor | None = None) -> list[tuple[float, int, int]]:
    """Every eligible entry in a list, sorted by Python."""
    whole = (a.double() @ b.double().T).float()
    kept = ~whole.isnan() if left_out is None else ~whole.isnan() & ~left_out
    entries = [(whole[r, c].item(), r, c) for r, c in kept.nonzero().tolist()]
    return sorted(entries, key=lambda e: (KEYS[end](e[0]), e[1], e[2]))[:k]


def listed(pairs: Pairs) -> list[tuple[float, int, int]]:
    return list(zip(pairs.value.tolist(), pairs.row.tolist(), pairs.column.tolist(), strict=True))


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles so small that toy products have many."""
    for place in (module, rounding):
        monkeypatch.setattr(place, "tile_shape", lambda _: (7, 150))


@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(1, 40), columns=st.integers(1, 60), k=st.integers(1, 90), levels=st.integers(0, 5), classes=st.integers(0, 4),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_integers_with_many_ties(rows: int, columns: int, k: int, levels: int, classes: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randint(-levels, levels + 1, (rows, 3), generator=generator).float()
    b = torch.randint(-levels, levels + 1, (columns, 3), generator=generator).float()
    left_out = of_rows = of_columns = None
    if classes:
        of_rows = torch.randint(0, classes, (rows,), generator=generator)
        of_columns = torch.randint(0, classes, (columns,), generator=generator)
        left_out = of_rows[:, None] == of_columns
    for precision in PRECISIONS:
        found = product_ends(a, b, k, row_class=of_rows, column_class=of_columns, precision=precision)
        for end in ENDS:
            assert listed(found[end]) == sorted_whole(a, b, k, end, left_out)
            single = product_topk(a, b, k, end, row_class=of_rows, column_class=of_columns, precision=precision)
            assert listed(single) == listed(found[end])


def adversarial(kind: str, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Factors whose best entries differ by less than the rounding of bfloat16, or not at all."""
    generator = torch.Generator().manual_seed(5)
    a, b = torch.randn(rows, 32, generator=generator), torch.randn(columns, 32, generator=generator)
    if kind == "near ties":  # all products of some pairs are 1, give or take 1e-6
        a, b = torch.full_like(a, 32**-0.5), torch.full_like(b, 32**-0.5)
        a *= 1 + 1e-6 * torch.rand(rows, 1, generator=generator)
        b *= 1 + 1e-6 * torch.rand(columns, 1, generator=generator)
    elif kind == "rounded away":  # signs and powers of two hide a difference in the last bits
        a, b = torch.where(a > 0, 1.0, 1 + 2.0**-9), torch.where(b > 0, 1.0, 1 - 2.0**-9)
    elif kind == "repeated":
        a, b = a[torch.arange(rows) % 5], b[torch.arange(columns) % 7]
    elif kind == "a hub":
        b[3] *= 1000
    elif kind == "zeros":
        a, b = torch.zeros_like(a), b
    elif kind == "tiny":
        a, b = a * 1e-30, b * 1e-12
    elif kind == "huge":
        a, b = a * 1e25, b * 1e20
    elif kind == "not finite":
        a[2, 1], a[5], b[4, 0], b[6, 3] = torch.inf, torch.nan, -torch.inf, torch.nan
    return a, b


KINDS = ("random", "near ties", "rounded away", "repeated", "a hub", "zeros", "tiny", "huge", "not finite")


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_the_numbers(kind: str):
    a, b = adversarial(kind, 30, 400)
    expected = {end: sorted_whole(a, b, 40, end) for end in ENDS}
    for precision in PRECISIONS:
        found = product_ends(a, b, 40, precision=precision)
        assert {end: listed(found[end]) for end in ENDS} == expected, precision


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_more_candidates_than_there_is_room_for(precision: Precision):
    a, b = torch.ones(60, 4), torch.ones(600, 4)  # 36,000 equal entries
    found = product_topk(a, b, 700, precision=precision)
    assert found.value.tolist() == [4.0] * 700
    assert (found.row * 600 + found.column).tolist() == list(range(700))


def test_two_thousand_by_two_thousand():
    generator = torch.Generator().manual_seed(7)
    a, b = torch.randn(2000, 64, generator=generator), torch.randn(2000, 64, generator=generator)
    words = torch.arange(2000) // 2
    whole = (a.double() @ b.double().T).float()
    whole[words[:, None] == words] = -torch.inf
    top = whole.flatten().topk(1000)
    for precision in PRECISIONS:
        found = product_topk(a, b, 1000, row_class=words, column_class=words, precision=precision)
        assert torch.equal(found.value, top.values)
        assert set((found.row * 2000 + found.column).tolist()) == set(top.indices.tolist())


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads", "small_tiles")
def test_threads_change_nothing():
    a, b = adversarial("repeated", 60, 300)
    for precision in PRECISIONS:
        assert listed(product_topk(a, b, 30, precision=precision)) == sorted_whole(a, b, 30, "top")


def test_most_tiles_are_not_multiplied_where_rows_are_short(monkeypatch: pytest.MonkeyPatch):
    multiplied, calls = rounding.multiplied, []
    monkeypatch.setattr(rounding, "multiplied", lambda *parts: calls.append(1) or multiplied(*parts))
    a, b = torch.randn(5120, 8), torch.randn(600, 8)
    a[512:] *= 1e-6  # ten tiles of rows, nine of them hopeless
    found = product_topk(a, b, 5)
    assert len(calls) == 1
    assert int(found.row.max()) < 512


def test_fewer_eligible_than_asked_for():
    a, b, words = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1])
    found = product_ends(a, b, 9, row_class=words, column_class=words)
    assert listed(found["top"]) == [(2.0, 1, 0), (-1.0, 0, 1)]
    assert listed(found["bottom"]) == [(-1.0, 0, 1), (2.0, 1, 0)]
    assert listed(found["magnitude"]) == [(2.0, 1, 0), (-1.0, 0, 1)]
    nothing = product_topk(a, b, 3, row_class=torch.zeros(2, dtype=torch.int64), column_class=torch.zeros(2, dtype=torch.int64))
    assert len(nothing) == 0


def test_the_diagonal_pairs_equal_tokens():
    a, b = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = product_diagonal(a, b, torch.tensor([7, 9, 8]), torch.tensor([8, 7]))
    assert listed(found) == [(2.0, 0, 1), (5.0, 2, 0)]
    assert listed(product_diagonal(a[:2], b)) == [(1.0, 0, 0), (4.0, 1, 1)]


def test_refusals():
    a, words = torch.ones(2, 3), torch.tensor([0, 1])
    with pytest.raises(Refusal, match="the 0 first entries of a product: there is nothing to select; ask for 1 or more"):
        product_topk(a, a, 0)
    with pytest.raises(Refusal, match="classes of one side"):
        product_topk(a, a, 1, row_class=words)
    with pytest.raises(Refusal, match="a token is in several columns"):
        product_diagonal(a, a, words, torch.tensor([4, 4]))
    with pytest.raises(Refusal, match="give row_token and column_token"):
        product_diagonal(a, a[:1])
