"""Reservoirs: equal to sorting all hashes, under any split; deciles by edges; sources lead to the rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from microtome.numerics import hash_parts, reservoir, topk
from tests.unit.numerics.kernel_sets import kernel_set

pytestmark = pytest.mark.usefixtures(kernel_set.__name__)

EDGES = torch.tensor([[-1.0, 0.0, 0.5], [0.0, 0.0, 2.0], [-9.0, 8.0, 9.0]])


def in_python(values: Tensor, keys: Tensor, n: int, seed: int) -> list[list[list[tuple[int, int, float]]]]:
    """All entries of each unit and part, sorted by hash, the first n."""
    parts: list[list[list[tuple[int, int, float]]]] = [[[] for _ in range(4)] for _ in range(3)]
    hashes = hash_parts(seed, torch.arange(3), keys[:, None]).tolist()
    for row, key, scores in zip(values.tolist(), keys.tolist(), hashes, strict=True):
        for unit, value in enumerate(row):
            part = sum(edge <= value for edge in EDGES[unit].tolist())
            parts[unit][part].append((scores[unit], key, value))
    return [[sorted(part)[:n] for part in unit] for unit in parts]


def as_lists(state: dict[str, Tensor]) -> list[list[list[tuple[int, int, float]]]]:
    entries = zip(state["hashes"].tolist(), state["keys"].tolist(), state["values"].tolist(), strict=True)
    return [
        [[entry for entry in zip(*part, strict=True) if entry[0] != reservoir.EMPTY] for part in zip(*unit, strict=True)]
        for unit in entries
    ]


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 25), min_size=1, max_size=5),
    n=st.integers(1, 5),
    seed=st.integers(-5, 99),
    merged=st.booleans(),
)
def test_any_split_is_a_full_sort(sizes: list[int], n: int, seed: int, merged: bool):
    generator = torch.Generator().manual_seed(seed + 5)
    values = (2 * torch.randn(sum(sizes), 3, generator=generator)).round(decimals=1)
    keys = torch.randperm(3 * sum(sizes) + 1, generator=generator)[: sum(sizes)]
    state = reservoir.init(EDGES, n)
    for part, labels in zip(values.split(sizes), keys.split(sizes), strict=True):
        if merged:
            single = reservoir.init(EDGES, n)
            reservoir.update(single, part, labels, seed)
            state, source = reservoir.merge(state, single)
            assert source.shape == state["keys"].shape
        else:
            reservoir.update(state, part, labels, seed)
    assert as_lists(state) == in_python(values, keys, n, seed)


def test_sources_lead_to_the_rows():
    n = 2
    state = reservoir.init(EDGES, n)
    for batch in range(4):
        x = torch.randn(3, 40, 3, generator=torch.Generator().manual_seed(batch)).to(torch.bfloat16)
        keys = 120 * batch + torch.arange(120).view(3, 40)
        new = topk.fresh(reservoir.update(state, x, keys, 7, slice(5, 38)).flatten(0, 1), n)
        assert torch.equal(state["values"].flatten(0, 1)[new.unit, new.slot], x.flatten(0, 1)[new.row, new.unit // 4].float())
        assert torch.equal(state["keys"].flatten(0, 1)[new.unit, new.slot], keys.flatten()[new.row])
        assert not set((new.row % 40).tolist()) & {0, 1, 2, 3, 4, 38, 39}
    assert int((state["keys"] >= 0).sum()) > 12


def test_a_mask_is_the_rows_it_keeps():
    x = torch.randn(3, 40, 3, generator=torch.Generator().manual_seed(1))
    keys = torch.arange(120).view(3, 40)
    mask = torch.rand(3, 40, generator=torch.Generator().manual_seed(2)) < 0.4
    a, b = reservoir.init(EDGES, 3), reservoir.init(EDGES, 3)
    reservoir.update(a, x, keys, 1, mask)
    reservoir.update(b, x[mask], keys[mask], 1)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_what_is_no_number_is_never_taken():
    state = reservoir.init(EDGES, 2)
    reservoir.update(state, torch.tensor([[torch.nan, 1.0, torch.nan]]), torch.tensor([3]), 0)
    assert (state["keys"] == 3).sum((1, 2)).tolist() == [0, 1, 0]


def test_the_sample_is_even():
    """Each of 400 keys of one part is in a sample of 40 for a tenth of 500 units."""
    state = reservoir.init(torch.full((500, 1), 9.0), 40)
    reservoir.update(state, torch.zeros(400, 500), torch.arange(400), 3)
    times = state["keys"][:, 0].flatten().bincount(minlength=400)
    assert int(times.sum()) == 500 * 40
    assert 25 < int(times.min()) <= int(times.max()) < 80
