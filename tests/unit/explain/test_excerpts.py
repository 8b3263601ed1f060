"""Excerpts: those that the definition names, by a search over everything; parts that have none in common."""

import pytest
import torch
from torch import Tensor

from microtome.core import Refusal
from microtome.explain import BILLS, Examples, Excerpts, Selection
from microtome.explain.examples import joined
from tests.unit.explain.planted import SMALL, examples_of, surveyed, text, token_unit

UNITS, WINDOWS, TOKENS = 4, 30, 70


def drawn() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return text(WINDOWS, TOKENS, 9), torch.randn(WINDOWS, TOKENS, UNITS, generator=generator)


def parts(examples: Examples) -> list[Excerpts]:
    return [examples.train, examples.calibration, examples.valid, examples.test]


def places(part: Excerpts) -> set[tuple[int, int]]:
    return set(zip(part.window.tolist(), part.start.tolist(), strict=True))


def test_the_most_active_excerpts_are_those_of_a_full_search() -> None:
    ids, x = drawn()
    record = surveyed(ids, x, Selection(length=32, active=5, random=4, shortest=8))
    for end, sign in enumerate((1.0, -1.0)):
        for unit in range(UNITS):
            for half in range(2):
                # the last 6 tokens of 70 are too few for an excerpt, and the first counts in none
                signed = sign * x[half::2, :64, unit]
                signed[:, 0] = -9.0
                peak, place = signed.max(1)
                best = peak.argsort(descending=True)[:5]
                assert torch.allclose(record.peak[end, half, unit], peak[best])
                assert record.window[end, half, unit].tolist() == (2 * best + half).tolist()
                begin = place[best] // 32 * 32
                assert record.active["start"][end, half, unit].tolist() == begin.tolist()
                for rank, (window, start) in enumerate(zip((2 * best + half).tolist(), begin.tolist(), strict=True)):
                    found = record.active["activation"][end, half, unit, rank]
                    assert torch.equal(found, sign * x[window, start : start + 32, unit])
                    assert torch.equal(record.active["ids"][end, half, unit, rank].long(), ids[window, start : start + 32])


def test_random_excerpts_are_the_same_for_all_units_and_have_their_activations() -> None:
    ids, x = drawn()
    record = surveyed(ids, x, Selection(length=32, active=4, random=6, shortest=8))
    for half in range(2):
        for rank in range(6):
            window, start = int(record.random_window[half, rank]), int(record.random["start"][half, rank])
            assert window % 2 == half
            assert torch.equal(record.random["activation"][half, rank], x[window, start : start + 32])
    other = surveyed(ids, x, Selection(length=32, active=4, random=6, shortest=8, seed=1))
    assert not torch.equal(other.random_window, record.random_window)


@pytest.mark.parametrize("selection", [SMALL, Selection(32, 12, 12, "ranks", shortest=4)])
def test_parts_have_no_excerpt_in_common(selection: Selection) -> None:
    ids, x = drawn()
    for end in ("top", "bottom"):
        found = [places(part) for part in parts(surveyed(ids, x, selection).examples(1, end))]
        assert all(found)
        assert sum(map(len, found)) == len(set().union(*found))


def test_halves_keep_what_is_scored_apart() -> None:
    ids, x = drawn()
    train, calibration, valid, test = parts(surveyed(ids, x).examples(2))
    assert {int(half) for half in train.window % 2} == {0} == {int(half) for half in calibration.window % 2}
    assert {int(half) for half in valid.window % 2} == {1} == {int(half) for half in test.window % 2}
    assert train.active.any()
    assert not train.active.all()


def test_ranks_deal_as_published() -> None:
    ids, x = text(200, 64, 9), torch.randn(200, 64, 2, generator=torch.Generator().manual_seed(3))
    examples = surveyed(ids, x, BILLS).examples(0)
    assert len(examples.train) == 5
    assert [int(part.active.sum()) for part in parts(examples)] == [5, 5, 5, 5]
    peaks = [part.take(part.active).peak[0] for part in parts(examples)]
    order = torch.stack(peaks, 1).flatten()
    assert torch.equal(order, order.sort(descending=True).values)
    assert all(4 <= int((~part.active).sum()) <= 5 for part in parts(examples)[1:])


def test_both_ends_of_a_reversed_unit_change_places() -> None:
    ids, x = drawn()
    one, other = surveyed(ids, x).examples(0, "bottom"), surveyed(ids, -x).examples(0, "top")
    assert one.largest == other.largest > 0
    for mine, theirs in zip(parts(one), parts(other), strict=True):
        assert torch.equal(mine.ids, theirs.ids)
        assert torch.equal(mine.activation, theirs.activation)


def test_the_scale_is_of_training_and_its_levels_are_rounded_down() -> None:
    examples = examples_of(token_unit)
    assert examples.largest == 2.0
    one = Excerpts(
        torch.tensor([[1, 2, 3, 4]]),
        torch.ones(1, 4, dtype=torch.bool),
        torch.tensor([[-1.0, 0.19, 1.99, 5.0]]),
        torch.tensor([0]),
        torch.tensor([0]),
        torch.tensor([True]),
    )
    assert examples.scaled(one)[0].tolist() == pytest.approx([0.0, 0.95, 9.95, 25.0])
    assert examples.levels(one).tolist() == [[0, 0, 9, 10]]
    assert len(joined([one, one])) == 2


def test_what_does_not_count_is_no_peak() -> None:
    ids, x = drawn()
    x[:, 0] = 100.0
    record = surveyed(ids, x)
    assert float(record.peak.max()) < 10
    assert record.examples(0).largest < 10


def test_ends_that_are_not_there_are_refused() -> None:
    ids, x = drawn()
    with pytest.raises(Refusal, match="negative activations of the basis mean nothing"):
        surveyed(ids, x, signed=False).examples(0, "bottom")
    silent = x.clone()
    silent[..., 0] = 0.0
    record = surveyed(ids, silent)
    assert not record.explicable[:, 0].any()
    assert record.explicable[:, 1:].all()
    units = range(1, x.shape[2])
    assert record.explicable_ends() == [(unit, end) for unit in units for end in ("top", "bottom")]
    assert record.explicable_ends([2, 0, 1]) == [(2, "top"), (2, "bottom"), (1, "top"), (1, "bottom")]
    with pytest.raises(Refusal, match="active in too few excerpts"):
        record.examples(0)
    with pytest.raises(Refusal, match="four parts need one of each"):
        Selection(active=3)


def test_short_windows_have_no_excerpt() -> None:
    ids, x = text(4, 3, 9), torch.ones(4, 3, 1)
    record = surveyed(ids, x)
    assert not record.explicable.any()
    assert (record.random_window == -1).all()
