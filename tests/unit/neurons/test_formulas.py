from itertools import product

import numpy as np
import pytest
import torch

from microtome.core import Refusal
from microtome.neurons.formulas import OPERATORS, Beam, Formula, beam_search, overlap_of
from microtome.numerics.bits import packed

APPLIED = {"or": lambda a, b: a | b, "and": lambda a, b: a & b, "and not": lambda a, b: a & ~b}


def drawn(concepts: int, rows: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    share = 0.1 + 0.5 * torch.rand(concepts, 1, generator=generator)
    return torch.rand(concepts, rows, generator=generator) < share


def overlap(one: torch.Tensor, other: torch.Tensor) -> float:
    return int((one & other).sum()) / max(int((one | other).sum()), 1)


def test_a_formula_is_read_from_left_to_right() -> None:
    masks = drawn(3, 100, 0)
    formula = Formula(0, (("and not", 1), ("or", 2)))
    assert len(formula) == 3
    assert formula.text(["a", "b", "c"]) == "(a and not b) or c"
    assert (formula.of(packed(masks)) == packed((masks[0] & ~masks[1]) | masks[2])).all()


@pytest.mark.parametrize("seed", range(6))
def test_two_of_eight_concepts_as_by_brute_force(seed: int) -> None:
    masks, (target,) = drawn(8, 150, seed), drawn(1, 150, seed + 100)
    single = max(overlap(each, target) for each in masks)
    double = max(overlap(APPLIED[op](a, b), target) for op in OPERATORS for a, b in product(masks, masks))
    found = beam_search(packed(target), packed(masks), Beam(longest=2))
    assert [each.overlap for each in found] == [single, max(single, double)]


@pytest.mark.parametrize("op", OPERATORS)
def test_a_planted_formula_of_two_is_found(op: str) -> None:
    masks = drawn(8, 500, 1)
    target = APPLIED[op](masks[2], masks[5])
    best = beam_search(packed(target), packed(masks), Beam(longest=4))
    assert best[1].overlap == 1
    assert len(best[3].formula) == 2, "nothing is added to what is exact"
    assert overlap_of(best[1].formula.of(packed(masks)), packed(target)) == 1


def test_an_exception_that_the_target_never_has_is_found_only_with_all_leaves() -> None:
    masks = drawn(6, 400, 2)
    target = masks[0] & ~masks[1]
    everything, overlapping = (
        beam_search(packed(target), packed(masks[:2]), Beam(2, leaves=each))[1] for each in ("all", "overlapping")
    )
    assert (everything.overlap, everything.formula.text("ab")) == (1, "a and not b")
    assert len(overlapping.formula) == 1
    assert overlapping.overlap == overlap(masks[0], target)


@pytest.mark.parametrize("penalty", [1.0, 0.9])
def test_what_a_formula_is_worth_never_falls_with_length(penalty: float) -> None:
    masks, targets = drawn(30, 300, 3), drawn(20, 300, 4)
    for target in targets:
        found = beam_search(packed(target), packed(masks), Beam(5, penalty=penalty))
        worth = [each.overlap * penalty ** (len(each.formula) - 1) for each in found]
        assert worth == sorted(worth)
        assert all(len(each.formula) <= length for length, each in enumerate(found, 1))
        for each in found:
            assert each.overlap == overlap_of(each.formula.of(packed(masks)), packed(target))


def test_a_penalty_keeps_formulas_short() -> None:
    masks, (target,) = drawn(30, 300, 3), drawn(1, 300, 5)
    lengths = [len(beam_search(packed(target), packed(masks), Beam(5, penalty=each))[-1].formula) for each in (1.0, 0.97, 0.5)]
    assert lengths[0] == 5
    assert lengths[0] > lengths[1] > lengths[2] == 1


def test_formulas_of_one_mask_take_one_place_of_a_beam() -> None:
    """Three concepts make twelve formulas of two; with three copies of each, a beam of twelve has them all if it has none twice."""
    masks = drawn(3, 400, 6)
    target = (masks[0] & masks[1]) | masks[2]
    copies = masks.repeat_interleave(4, 0)
    assert beam_search(packed(target), packed(copies), Beam(3, width=12))[-1].overlap == 1


def test_nothing_overlaps_and_everything_does() -> None:
    masks = drawn(5, 130, 7)
    empty, full = torch.zeros(130, dtype=torch.bool), torch.ones(130, dtype=torch.bool)
    assert beam_search(packed(empty), packed(masks), Beam()) == ()
    assert beam_search(packed(masks[0] & ~masks[0].roll(0)), packed(masks), Beam()) == ()
    found = beam_search(packed(full), packed(masks), Beam())
    assert found[0].overlap == float(masks.sum(1).max()) / 130
    assert found[-1].overlap == pytest.approx(float(masks.any(0).double().mean()))
    assert np.isnan(overlap_of(packed(empty), packed(empty)))
    assert overlap_of(packed(empty), packed(full)) == 0


@pytest.mark.parametrize(("longest", "width", "penalty"), [(0, 1, 1.0), (1, 0, 1.0), (1, 1, 0.0), (1, 1, 1.1)])
def test_a_search_of_nothing_is_refused(longest: int, width: int, penalty: float) -> None:
    with pytest.raises(Refusal, match="a search for formulas"):
        Beam(longest, width, penalty)
