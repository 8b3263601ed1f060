"""Streaming top-k: equal to a full sort, ties included, under any split; sources say where entries came from."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from microtome.numerics import topk
from tests.unit.numerics.kernel_sets import kernel_set

pytestmark = pytest.mark.usefixtures(kernel_set.__name__)


def sorted_in_python(values: Tensor, keys: Tensor, k: int) -> tuple[list[list[float]], list[list[int]]]:
    lists = []
    for unit in range(values.shape[1]):
        pairs = sorted(zip(values[:, unit].tolist(), keys.tolist(), strict=True), key=lambda pair: (-pair[0], pair[1]))
        lists.append((pairs + [(-float("inf"), -1)] * k)[:k])
    return [[v for v, _ in row] for row in lists], [[key for _, key in row] for row in lists]


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=6), k=st.integers(1, 12), levels=st.integers(1, 40),
    seed=st.integers(0, 999), reduce=st.booleans(),
)  # fmt: skip
def test_any_split_is_a_full_sort(sizes: list[int], k: int, levels: int, seed: int, reduce: bool):
    generator = torch.Generator().manual_seed(seed)
    rows = sum(sizes)
    values = torch.randint(0, levels, (rows, 4), generator=generator).float()
    keys = torch.randperm(5 * rows + 1, generator=generator)[:rows]
    state = topk.init(4, k)
    for part, labels in zip(values.split(sizes), keys.split(sizes), strict=True):
        if reduce:
            single = topk.init(4, k)
            topk.update(single, part, labels)
            state, _ = topk.merge(state, single)
        else:
            topk.update(state, part, labels)
    best, labels = sorted_in_python(values, keys, k)
    assert state["values"].tolist() == best
    assert state["keys"].tolist() == labels


def test_sources_say_where_entries_came_from():
    generator = torch.Generator().manual_seed(0)
    state = topk.init(6, 5)
    values = torch.randint(0, 9, (600, 6), generator=generator).float()
    keys = torch.randperm(600, generator=generator)
    for begin in range(0, 600, 300):
        part, labels = values[begin : begin + 300], keys[begin : begin + 300]
        before = {name: tensor.clone() for name, tensor in state.items()}
        source = topk.update(state, part, labels)
        new = topk.fresh(source, 5)
        assert len(new.row)
        assert torch.equal(state["values"][new.unit, new.slot], part[new.row, new.unit])
        assert torch.equal(state["keys"][new.unit, new.slot], labels[new.row])
        unit, slot = (source < 5).nonzero(as_tuple=True)
        assert torch.equal(state["keys"][unit, slot], before["keys"][unit, source[unit, slot]])


def test_merge_source_indexes_both_sides():
    a, b = topk.init(1, 3), topk.init(1, 3)
    topk.update(a, torch.tensor([[5.0], [2.0], [1.0]]), torch.tensor([1, 2, 3]))
    topk.update(b, torch.tensor([[5.0], [3.0]]), torch.tensor([0, 9]))
    merged, source = topk.merge(a, b)
    assert merged["values"].tolist() == [[5.0, 5.0, 3.0]]
    assert merged["keys"].tolist() == [[0, 1, 9]]
    assert source.tolist() == [[3, 0, 4]]
    both = torch.cat([a["keys"], b["keys"]], 1)
    assert torch.equal(both.gather(1, source), merged["keys"])


def test_keys_of_each_element():
    state = topk.init(2, 2)
    topk.update(state, torch.tensor([[1.0, 1.0], [1.0, 2.0]]), torch.tensor([[7, 8], [3, 4]]))
    assert state["keys"].tolist() == [[3, 7], [4, 8]]


def test_values_that_are_no_numbers_are_never_taken():
    state = topk.init(1, 3)
    source = topk.update(state, torch.tensor([[torch.nan], [-torch.inf], [-7.0]]).to(torch.bfloat16), torch.arange(3))
    assert state["values"].tolist() == [[-7.0, -torch.inf, -torch.inf]]
    assert state["keys"].tolist() == [[2, -1, -1]]
    assert topk.fresh(source, 3).row.tolist() == [2]
    values, keys, _ = topk.merge_topk(
        torch.tensor([[torch.nan]]), torch.tensor([[4]]), torch.empty(1, 0), torch.empty(1, 0).long(), 2
    )
    assert values.tolist() == [[-torch.inf] * 2]
    assert keys.tolist() == [[-1, -1]]
