"""Pilot quantiles, decile contexts and histograms against brute force over hashes, for any cut."""

from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from microtome.examples import DecileContexts, PilotQuantiles
from microtome.numerics import hash_parts, hash_text, uniform
from tests.unit.examples.planted import Plain, Window, cut, folded, plant


def tokens_of(windows: list[Window]) -> list[tuple[Window, int]]:
    return [(window, position) for window in windows for position in window.counted()]


def edges_of(windows: list[Window]) -> torch.Tensor:
    rows = torch.cat([w.values[w.counted()] for w in windows])
    return torch.quantile(rows, torch.linspace(0, 1, 11), dim=0)


def test_pilot_quantiles_are_those_of_all_tokens_where_there_are_few() -> None:
    windows = plant(0, 20, units=3, levels=50)
    fold = PilotQuantiles(Plain(3), rows=500)
    found = fold.result(folded(fold, cut(windows, [6])))
    rows = torch.cat([w.values[w.counted()] for w in windows])
    assert found.rows == len(rows)
    expected = np.quantile(rows.numpy(), np.linspace(0, 1, 11), axis=0)
    np.testing.assert_allclose(found.edges.numpy(), expected, rtol=1e-5)


def test_pilot_keeps_the_tokens_of_lowest_hash() -> None:
    windows = plant(1, 20, units=2, levels=50)
    fold = PilotQuantiles(Plain(2), rows=7, seed=5)
    state = folded(fold, cut(windows, [4]))
    ranked = sorted(tokens_of(windows), key=lambda t: int(hash_parts(5, 1, t[0].index, torch.tensor(t[1]))))
    assert torch.equal(state["vectors"], torch.stack([window.values[position] for window, position in ranked[:7]]))


def test_pilot_without_tokens_has_zeros() -> None:
    fold = PilotQuantiles(Plain(2), rows=7)
    found = fold.result(fold.init())
    assert found.rows == 0
    assert bool((found.edges == 0).all())


def list_hash(unit: int, token: tuple[Window, int]) -> int:
    """The hash of (seed, basis, unit, window, token) by which entries of a list are chosen, for seed 11."""
    return int(hash_parts(int(hash_parts(11, 3, hash_text("plain.0/0"))), unit, token[0].index * 2**24 + token[1]))


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000),
    sizes=st.lists(st.integers(1, 9), min_size=1),
    rate=st.sampled_from([0.3, 1.0]),
    of=st.sampled_from(["all", "active"]),
)
def test_lists_hold_the_lowest_hashes_of_each_decile(
    seed: int, sizes: list[int], rate: float, of: Literal["all", "active"]
) -> None:
    windows = plant(seed, 25, units=2, levels=30)
    edges = edges_of(windows)
    fold = DecileContexts(Plain(2), edges, per_decile=2, rate=rate, seed=11, neighbours=2, of=of)
    found = fold.result(folded(fold, cut(windows, sizes)))
    sampled = [t for t in tokens_of(windows) if float(uniform(hash_parts(11, 2, t[0].index, torch.tensor(t[1])))) < rate]
    assert found.sampled == len(sampled)
    for unit in range(2):
        for decile in range(10):
            looked_at = [t for t in sampled if of == "all" or float(t[0].values[t[1], unit]) > 0]
            mine = [t for t in looked_at if int((edges[1:-1, unit] <= t[0].values[t[1], unit]).sum()) == decile]
            ranked = sorted(mine, key=lambda t: list_hash(unit, t))[:2]
            windows_found = found.contexts.window[decile, unit].tolist()
            expected = [window.index for window, _ in ranked]
            assert windows_found == expected + [-1] * (2 - len(expected))
            assert found.contexts.position[decile, unit].tolist()[: len(ranked)] == [position for _, position in ranked]
            values = found.contexts.value[decile, unit].tolist()[: len(ranked)]
            assert values == [float(window.values[position, unit]) for window, position in ranked]


def test_histograms_count_the_sampled_tokens() -> None:
    windows = plant(2, 30, units=2, levels=40)
    rows = torch.cat([w.values[w.counted()] for w in windows])
    edges = edges_of(windows)
    edges[0], edges[-1] = -10.13, 10.41
    fold = DecileContexts(Plain(2), edges)
    found = fold.result(folded(fold, cut(windows, [5])))
    assert found.histogram.sum(1).tolist() == [found.sampled] * 2 == [len(rows)] * 2
    for unit in range(2):
        column = rows[:, unit].numpy()
        inside, _ = np.histogram(column, bins=64, range=(-10.13, 10.41))
        assert found.histogram[unit].tolist() == [int((column < -10.13).sum()), *inside.tolist(), int((column > 10.41).sum())]


def test_a_constant_unit_fills_the_highest_decile() -> None:
    windows = plant(3, 6, units=1)
    for window in windows:
        window.values[:] = 0.5
    fold = DecileContexts(Plain(1), edges_of(windows))
    found = fold.result(folded(fold, [windows]))
    assert (found.contexts.window >= 0).sum(2)[:, 0].tolist() == [0] * 9 + [2]
    assert int(found.histogram.sum()) == found.sampled


@pytest.mark.parametrize("rate", [0.0, 1e-9])
def test_nothing_sampled_is_nothing_kept(rate: float) -> None:
    fold = DecileContexts(Plain(2), torch.zeros(11, 2), rate=rate)
    found = fold.result(folded(fold, [plant(4, 5, units=2)]))
    assert found.sampled == 0
    assert bool((found.contexts.window == -1).all())
