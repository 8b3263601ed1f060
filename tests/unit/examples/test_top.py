"""The survey: extreme contexts against a full sort, with ties, padding and any cut; neighbourhoods; moments, per half too."""

from dataclasses import replace

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from microtome.core import CONTENT, Refusal, Role
from microtome.examples import NO_TOKEN, UnitSurvey
from microtome.examples.entries import following
from microtome.numerics import kernels
from tests.unit.examples.planted import JUNK, SITE, Plain, batch_of, best, cut, folded, plant
from tests.unit.numerics.kernel_sets import kernel_set as kernel_set

GROUPS = ((1, 0), (1, 1), (-1, 0), (-1, 1))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(1, 30), k=st.integers(1, 6), sizes=st.lists(st.integers(1, 9), min_size=1))
def test_lists_are_those_of_a_full_sort(seed: int, count: int, k: int, sizes: list[int]) -> None:
    windows = plant(seed, count, units=3)
    fold = UnitSurvey(Plain(3), k=k, neighbours=2)
    found = fold.result(folded(fold, cut(windows, sizes))).contexts
    assert found.ends == ("top", "top", "bottom", "bottom")
    for group, (sign, half) in enumerate(GROUPS):
        for unit in range(3):
            filled = found.window[group, unit] >= 0
            entries = zip(
                found.value[group, unit][filled].tolist(),
                found.window[group, unit][filled].tolist(),
                found.position[group, unit][filled].tolist(),
                strict=True,
            )
            assert list(entries) == best(windows, unit, half, sign, k)
            assert set(found.half[group, unit][filled].tolist()) <= {half}


def test_order_of_windows_does_not_matter() -> None:
    windows = plant(3, 40, units=4, levels=1)
    fold = UnitSurvey(Plain(4), k=5, neighbours=3)
    forward, backward = folded(fold, cut(windows, [7])), folded(fold, cut(windows[::-1], [3, 8]))
    lists = [name for name in forward if name.startswith("contexts.")]
    assert len(lists) == 8
    assert all(torch.equal(forward[name], backward[name]) for name in lists)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_entries_carry_their_token_and_their_neighbours(dtype: torch.dtype) -> None:
    windows = plant(5, 12, units=2)
    fold = UnitSurvey(Plain(2), k=4, neighbours=3)
    found = fold.result(folded(fold, cut(windows, [5]), dtype)).contexts
    for group, unit, place in (found.window >= 0).nonzero().tolist():
        window = windows[int(found.window[group, unit, place])]
        position = int(found.position[group, unit, place])
        assert int(found.token[group, unit, place]) == int(window.ids[position])
        after = int(window.ids[position + 1]) if position + 1 < len(window.ids) else -1
        assert int(found.following[group, unit, place]) == after
        scale, codes = float(found.scale[group, unit, place]), found.activations[group, unit, place].tolist()
        for offset, code in zip(range(-3, 4), codes, strict=True):
            inside = 0 <= position + offset < len(window.ids)
            assert (code == NO_TOKEN) == (not inside)
            if inside:
                value = float(window.values[position + offset, unit].to(dtype))
                assert abs(code * scale - value) <= scale / 2 * 1.001


def test_uncounted_tokens_are_shown_but_never_selected() -> None:
    windows = plant(1, 6, units=2)
    fold = UnitSurvey(Plain(2), k=6, neighbours=16)
    found = fold.result(folded(fold, [windows])).contexts
    assert float(found.value[found.window >= 0].abs().max()) < JUNK
    assert float(found.scale[found.window >= 0].max()) == pytest.approx(JUNK / 127)


def test_a_window_without_counted_tokens_gives_nothing() -> None:
    windows = plant(2, 3, units=2)
    values, batch = batch_of(windows)
    batch.roles[:] = int(Role.SPECIAL)
    fold = UnitSurvey(Plain(2), k=2)
    state = fold.init()
    fold.update(state, values, batch)
    assert bool((state["contexts.window"] == -1).all())


def test_an_unsigned_basis_has_no_bottom() -> None:
    fold = UnitSurvey(Plain(2, signed=False), k=2)
    found = fold.result(folded(fold, [plant(0, 9, units=2)])).contexts
    assert found.ends == ("top", "top")


def test_update_leaves_the_activations_alone() -> None:
    values, batch = batch_of(plant(0, 9, units=2))
    fold = UnitSurvey(Plain(2), k=2)
    tensor = values[SITE]
    assert isinstance(tensor, torch.Tensor)
    before = tensor.clone()
    fold.update(fold.init(), values, batch)
    assert torch.equal(tensor, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moments_are_those_of_counted_tokens_in_all_and_per_half(dtype: torch.dtype) -> None:
    windows = plant(8, 30, units=5)
    fold = UnitSurvey(Plain(5), k=4)
    record = fold.result(folded(fold, cut(windows, [4, 9]), dtype))
    for found, halves in ((record.moments, {0, 1}), (record.by_half[0], {0}), (record.by_half[1], {1})):
        rows = torch.cat([w.values[w.counted()] for w in windows if w.half in halves]).double()
        assert found.count.tolist() == [len(rows)] * 5
        torch.testing.assert_close(found.mean, rows.mean(0))
        torch.testing.assert_close(found.standard_deviation, rows.std(0, correction=0))
        torch.testing.assert_close(found.kurtosis, torch.from_numpy(scipy.stats.kurtosis(rows.numpy())))
        torch.testing.assert_close(found.density, (rows > 0).double().mean(0))
        assert torch.equal(found.maximum, rows.amax(0))
        assert torch.equal(found.minimum, rows.amin(0))


def test_a_half_without_documents_is_not_a_number() -> None:
    windows = [replace(window, half=0) for window in plant(8, 5, units=2)]
    fold = UnitSurvey(Plain(2), k=4)
    record = fold.result(folded(fold, [windows]))
    assert record.by_half[1].count.tolist() == [0, 0]
    assert bool(record.by_half[1].kurtosis.isnan().all())
    assert torch.equal(record.moments.mean, record.by_half[0].mean)


def test_what_follows_is_an_ordinary_token_of_the_window() -> None:
    batch = batch_of(plant(0, 1, units=1, longest=6))[1]
    roles = [Role.SPECIAL, Role.CONTENT, Role.CONTENT, Role.SPECIAL, Role.CONTENT, Role.CONTENT, Role.PAD]
    batch = replace(batch, ids=torch.arange(10, 17)[None], roles=torch.tensor([roles], dtype=torch.uint8))
    assert following(batch).tolist() == [[11, 12, -1, 14, 15, -1, -1]]


def test_compiled_and_reference_kernels_agree() -> None:
    windows = plant(9, 30, units=5)
    fold = UnitSurvey(Plain(5), k=4)
    usual = folded(fold, cut(windows, [6]))
    with kernels.reference():
        reference = folded(fold, cut(windows, [6]))
    for name, tensor in usual.items():
        if name.startswith("contexts."):
            assert torch.equal(tensor, reference[name]), name
        else:
            torch.testing.assert_close(tensor, reference[name], rtol=1e-5, atol=1e-5)


def test_roles_decide_what_counts() -> None:
    windows = plant(4, 8, units=2)
    with_first = UnitSurvey(Plain(2), k=3, roles=CONTENT | {Role.FIRST})
    found = with_first.result(folded(with_first, [windows])).contexts
    assert bool((found.value[:2][found.window[:2] >= 0] == JUNK).all())
    assert bool((found.position[:2] == 0).all())


@pytest.mark.skipif(not kernels.available(), reason="the extra `fast` is not installed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_kernel_sets_keep_the_same_lists_to_the_bit(dtype: torch.dtype) -> None:
    """With ties, padding, lists that are full and windows that come out of order."""
    windows = plant(7, 60, units=300, levels=4)
    order = [windows[number * 7 % 60] for number in range(60)]
    fold = UnitSurvey(Plain(300), k=6, neighbours=3)
    compiled = folded(fold, cut(order, [5, 9, 2]), dtype)
    with kernels.reference():
        plain = folded(fold, cut(order, [5, 9, 2]), dtype)
    lists = [name for name in compiled if name.startswith("contexts.")]
    assert len(lists) == 8
    for name in lists:
        assert torch.equal(compiled[name], plain[name]), name


def test_activations_that_lie_otherwise_in_memory_are_read_alike() -> None:
    windows = plant(3, 4, units=40)
    values, batch = batch_of(windows)
    fold = UnitSurvey(Plain(40), k=3, neighbours=2)
    (site,) = fold.sites
    x = values[site]
    assert isinstance(x, torch.Tensor)
    turned = {site: x.transpose(1, 2).contiguous().transpose(1, 2)}
    assert turned[site].stride(2) != 1
    states = fold.init(), fold.init()
    fold.update(states[0], values, batch)
    fold.update(states[1], turned, batch)
    for name, expected in states[0].items():
        assert torch.equal(states[1][name], expected), name


def test_what_is_not_finite_around_an_extreme_is_refused(kernel_set: str) -> None:
    windows = plant(8, 4, units=3)
    windows[1].values[2, 1] = torch.inf
    with pytest.raises(Refusal, match="NaN or infinities"):
        folded(UnitSurvey(Plain(3), k=2, neighbours=3), cut(windows, [4]))
