"""Factors that fire together: counts against a loop, planted pairs, and what the two nulls keep."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Batch, ExpertRows, Half, Refusal, Role, Site, UnitAddress
from microtome.factors.cofiring import Cofired, Cofiring, jaccard, partners, pointwise_information

SITE = Site("resid_pre", 0)


@dataclass(frozen=True)
class _Plain:
    """Units that are the site's own coordinates."""

    units: int
    sites: tuple[Site, ...] = (SITE,)
    signed: bool = False

    def encode(self, values: Mapping[Site, Tensor | ExpertRows]) -> Float[Tensor, "window token unit"]:
        found = values[SITE]
        assert isinstance(found, Tensor)
        return found

    def address(self, index: int) -> UnitAddress:
        return UnitAddress("factors", index, name="plain")


def _batch(windows: int, length: int, lengths: Tensor | None = None) -> Batch:
    index = torch.arange(windows)
    roles = torch.full((windows, length), int(Role.CONTENT), dtype=torch.uint8)
    if lengths is not None:
        roles[torch.arange(length) >= lengths[:, None]] = int(Role.PAD)
    return Batch(
        torch.zeros(windows, length, dtype=torch.int64),
        roles,
        index,
        index,
        index * 0,
        (index % 2).to(torch.uint8),
        index * 0,
        {},
    )


def _counted(x: Tensor, batch: Batch | None = None, draws: int = 1, step: int = 7) -> Cofired:
    fold = Cofiring(_Plain(x.shape[2]), draws=draws)
    batch = batch or _batch(len(x), x.shape[1])
    state = fold.init()
    for rows in torch.arange(len(x)).split(step):
        other = fold.init()
        fold.update(other, {SITE: x[rows]}, batch.take(rows))
        state = fold.merge(state, other)
    return fold.result(state)


@pytest.mark.parametrize(("share", "units"), [(0.01, 300), (0.9, 30)])
def test_counts_are_those_of_a_product_of_masks_where_few_are_active_and_where_many_are(share: float, units: int) -> None:
    generator = torch.Generator().manual_seed(1)
    x = (torch.rand(20, 9, units, generator=generator) < share) * torch.rand(20, 9, units, generator=generator)
    lengths = torch.randint(1, 10, (20,), generator=generator)
    batch = _batch(20, 9, lengths)
    found = _counted(x, batch)
    for half in Half:
        there = (batch.roles == Role.CONTENT) & (batch.half == half)[:, None]
        mask = (x > 0)[there].double()
        assert torch.equal(found.both[half, 0].double(), mask.T @ mask)
        assert torch.equal(found.active[half].double(), mask.sum(0))
        assert int(found.tokens[half]) == int(there.sum())


def test_a_shift_moves_each_window_as_a_whole_by_its_own_offset_and_never_by_none() -> None:
    x = torch.eye(12)[None].repeat(40, 1, 1)  # factor t at token t alone: with a shift by s it meets factor t + s
    found = _counted(x, draws=2)
    assert torch.equal(found.both[0, 0], 20 * torch.eye(12, dtype=torch.int64))
    for side in (1, 2):
        assert int(found.both[:, side].diagonal(dim1=1, dim2=2).sum()) == 0
        assert bool((found.both[0, side].sum(1) == 20).all())
        assert int((found.both[0, side, 0] > 0).sum()) > 3, "windows have different offsets"


def _planted(seed: int = 0) -> Tensor:
    """Factors 0 and 1 fire together, 2 only where 3 does not, 4 and 5 in the same windows but at tokens of their own, the others as they like."""
    generator = torch.Generator().manual_seed(seed)
    x = (torch.rand(200, 40, 24, generator=generator) < 0.05).float()
    x[..., 1] = torch.where(torch.rand(200, 40, generator=generator) < 0.9, x[..., 0], x[..., 1])
    x[..., 2] *= 1 - x[..., 3]
    theme = (torch.arange(200) // 2 % 5 == 0)[:, None]
    for factor in (4, 5):
        x[..., factor] = (theme & (torch.rand(200, 40, generator=generator) < 0.3)).float()
    return x


def test_planted_pairs_are_found_and_judged_where_they_were_not_chosen() -> None:
    found = partners(_counted(_planted(), step=50))
    assert int(found.unit[0, 0]) == 1
    assert int(found.unit[1, 0]) == 0
    assert float(found.value[0, 0]) > 0.7
    assert float(found.shifted[0, 0]) < 0.06
    assert float(found.expected[0, 0]) == pytest.approx(0.05 / 1.95, abs=0.01)
    assert float(found.control[0]) < 0.2
    alone = found.value[10:, 0]
    assert float(alone.max()) < 0.06


def test_what_a_windows_subject_brings_together_is_in_the_shifts_as_well() -> None:
    found = partners(_counted(_planted(), step=50), "information", k=23)
    place = int((found.unit[4] == 5).nonzero()[0, 0])
    assert float(found.value[4, place]) == pytest.approx(math.log2(5), abs=0.3)
    assert float(found.shifted[4, place]) == pytest.approx(float(found.value[4, place]), abs=0.3)
    place = int((found.unit[0] == 1).nonzero()[0, 0])
    assert float(found.value[0, place]) > 3.5
    assert abs(float(found.shifted[0, place])) < 1
    assert 3 not in found.unit[2].tolist(), "two that never meet are no partners"


def test_information_is_nought_for_independent_factors_and_known_by_hand_for_others() -> None:
    both = torch.tensor([[40, 20, 1], [20, 50, 0], [1, 0, 2]])
    counts = Cofired(torch.tensor([200, 200]), both.diagonal().repeat(2, 1), both.expand(2, 2, 3, 3).clone())
    found = pointwise_information(counts, Half.CONFIRM, least=0.3)
    assert float(found[0, 1]) == pytest.approx(math.log2(20 * 200 / (40 * 50)))
    assert float(found[0, 2]) == pytest.approx(math.log2(1 * 200 / (40 * 2)))
    assert float(found[1, 2]) == -math.inf
    assert math.isnan(found[0, 0])
    assert math.isnan(pointwise_information(counts, Half.CONFIRM)[0, 2])
    assert float(jaccard(counts, Half.CONFIRM)[0, 1]) == pytest.approx(20 / 70)
    independent = _counted((torch.rand(300, 40, 5, generator=torch.Generator().manual_seed(3)) < 0.2).float(), step=100)
    off = pointwise_information(independent, Half.CONFIRM)
    assert float(off[~torch.eye(5, dtype=torch.bool)].abs().max()) < 0.2


def test_units_without_a_shift_or_too_many_are_refused() -> None:
    with pytest.raises(Refusal, match="nothing was shifted"):
        partners(_counted(_planted(), draws=0, step=50))
    with pytest.raises(Refusal, match="pairs"):
        Cofiring(_Plain(10_000))
