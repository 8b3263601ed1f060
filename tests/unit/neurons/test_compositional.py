from typing import Any

import pytest
import torch

from microtome.core import Refusal
from microtome.neurons.compositional import MU_ANDREAS, Compositional, explained, explained_masks, thresholds
from microtome.neurons.formulas import Beam
from microtome.neurons.primitives import Primitives

ROWS = 4000
HALF = torch.arange(ROWS) // 50 % 2
QUICK = Compositional(Beam(longest=3), draws=39)


def concepts(seed: int = 0) -> Primitives:
    """Twelve concepts of 5 to 30 % of the rows that have nothing to do with each other."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.linspace(0.05, 0.3, 12)[:, None]
    return Primitives(tuple("ABCDEFGHIJKL"), torch.rand(12, ROWS, generator=generator) < share)


def planted(kind: str, known: Primitives) -> tuple[torch.Tensor, torch.Tensor]:
    """Units of which 3 has the mask (E and not F) or A. A gated unit 4 has it backwards, and forwards B; the others have noise.

    Plain units are rectified, gated ones signed.
    """
    e, f, a, b = (known.mask["ABCDEFGHIJKL".index(name)] for name in "EFAB")
    mask = (e & ~f) | a
    x = torch.randn(ROWS, 6, generator=torch.Generator().manual_seed(1))
    x[:, 3] = 0.2 * x[:, 3] + 5.0 * mask
    if kind == "gated":
        x[:, 4] = 0.2 * x[:, 4] - 5.0 * mask + 5.0 * (b & ~mask)
    return (x.relu() if kind == "plain" else x), mask


def same(one: Any, other: Any) -> bool:
    return bool(torch.equal(torch.nan_to_num(one, -9.0), torch.nan_to_num(other, -9.0)))


@pytest.mark.parametrize("kind", ["plain", "gated"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_planted_formula_is_recovered(kind: str, dtype: torch.dtype) -> None:
    known = concepts()
    x, mask = planted(kind, known)
    tau = torch.full((6,), 2.5)
    found = explained(x.to(dtype), known, HALF, tau, QUICK)
    ends = [(3, 0)] if kind == "plain" else [(3, 0), (4, 0), (4, 1)]
    assert list(zip(found.unit.tolist(), found.end.tolist(), strict=True)) == ends
    assert found.skipped == 12 - len(ends)
    for row in (0, -1):
        assert found.text(row) == "(E and not F) or A"
        assert found.text(row, 1) == "E"
        assert float(found.discover[2, row]) == float(found.confirm[2, row]) == 1
    assert found.active[:, 0].tolist() == [int(mask[side == HALF].sum()) for side in (0, 1)]
    if kind == "gated":
        assert found.text(1).startswith("B and not ")
    assert float(found.p.max()) == 1 / 40
    assert float(found.q.max()) == pytest.approx(1 / 40)
    assert bool((found.discover.diff(dim=0) >= 0).all())


def test_a_mask_of_nothing_does_not_hold_on_the_other_half() -> None:
    generator = torch.Generator().manual_seed(3)
    masks = torch.rand(1, 60, ROWS, generator=generator) < 0.05
    found = explained_masks(masks, concepts(), HALF, QUICK)
    assert len(found.unit) == 60
    assert float(found.discover[-1].mean()) > float(found.chance.mean()) + 0.01, "the search flatters itself"
    assert float(found.confirm[-1].mean()) == pytest.approx(float(found.chance.mean()), abs=0.004)
    assert float(found.control.mean()) == pytest.approx(float(found.confirm[-1].mean()), abs=0.004)
    assert float(found.control_discover.mean()) == pytest.approx(float(found.discover[-1].mean()), abs=0.004)
    assert 0.3 < float(found.p.mean()) < 0.7
    assert float(found.q.min()) > 0.05


def test_the_control_of_a_planted_unit_finds_nothing() -> None:
    x, _ = planted("gated", known := concepts())
    found = explained(x, known, HALF, torch.full((6,), 2.5), QUICK)
    assert float(found.control.max()) < 0.2 < 0.9 < float(found.confirm[-1].min())
    assert float((found.control_discover - found.control).abs().max()) < 0.05


def test_reversing_units_swaps_their_ends() -> None:
    x, _ = planted("gated", known := concepts())
    scale = torch.tensor([1.0, 3.0, 1.0, 0.25, 8.0, 1.0])
    few = Compositional(Beam(longest=3), fewest=10, draws=39)
    found, other = explained(x, known, HALF, settings=few), explained(-x * scale, known, HALF, settings=few)
    place = {key: row for row, key in enumerate(zip(other.unit.tolist(), other.end.tolist(), strict=True))}
    assert len(found.unit) > 4
    order = torch.tensor([place[unit, 1 - end] for unit, end in zip(found.unit.tolist(), found.end.tolist(), strict=True)])
    assert found.formulas == tuple(other.formulas[row] for row in order.tolist())
    for name in ("discover", "confirm", "chance", "p", "q", "control", "control_discover", "active"):
        assert same(getattr(found, name), getattr(other, name)[..., order]), name


def test_a_threshold_is_exceeded_by_its_share_of_the_discover_half() -> None:
    x, _ = planted("gated", concepts())
    tau = thresholds(x, HALF, 0.03)
    assert (x[HALF == 0].abs() > tau).sum(0).tolist() == [60] * 6
    with pytest.raises(Refusal, match="2e-05 of 2000 rows are 0"):
        thresholds(x, HALF, 2e-5)


def test_empty_and_full_masks() -> None:
    known = concepts()
    lone = Primitives(("A",), known.mask[:1])
    masks = torch.stack([torch.zeros(ROWS, dtype=torch.bool), torch.ones(ROWS, dtype=torch.bool), ~known.mask[0]])[None]
    found = explained_masks(masks, lone, HALF, QUICK)
    assert found.unit.tolist() == [1, 2], "an empty mask is left out"
    assert found.skipped == 1
    share = [float(known.mask[0, side == HALF].double().mean()) for side in (0, 1)]
    assert found.discover[:, 0].tolist() == [share[0]] * 3
    assert float(found.confirm[-1, 0]) == pytest.approx(share[1])
    assert (float(found.chance[0]), float(found.p[0])) == (pytest.approx(share[1]), 1), (
        "a full mask is as full when turned round"
    )
    assert (found.text(1), bool(found.discover[:, 1].isnan().all()), bool(found.p[1].isnan())) == ("", True, True)
    assert found.order().tolist() == [0, 1]


def test_rare_units_are_left_out_as_the_preset_says() -> None:
    known = concepts()
    masks = torch.zeros(1, 2, ROWS, dtype=torch.bool)
    rows = (HALF == 0).nonzero()[:, 0]
    masks[0, 0, rows[:499]] = True
    masks[0, 1, rows[:500]] = True
    assert explained_masks(masks, known, HALF, MU_ANDREAS).unit.tolist() == [1]
    none = explained_masks(masks[:, :1], known, HALF, MU_ANDREAS)
    assert (len(none.unit), none.discover.shape, none.confirm.shape, none.skipped) == (0, (5, 0), (5, 0), 1)
    assert len(none.q) == len(none.control) == 0


def test_what_does_not_fit_is_refused() -> None:
    known = concepts()
    masks = torch.ones(1, 1, ROWS, dtype=torch.bool)
    with pytest.raises(Refusal, match="4000 rows of units, 10 of 12 concepts"):
        explained_masks(masks, Primitives(known.names, known.mask[:, :10]), HALF)
    with pytest.raises(Refusal, match="halves of 4000 and 0"):
        explained_masks(masks, known, torch.zeros_like(HALF))
    with pytest.raises(Refusal, match="of 0 concepts"):
        explained_masks(masks, Primitives((), known.mask[:0]), HALF)
    with pytest.raises(Refusal, match="0 active rows and 9 draws"):
        Compositional(fewest=0, draws=9)
