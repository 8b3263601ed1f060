"""Intervals and cross-validated shares: against the spread over repeated data, and where nothing is there to be found."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from microtome.core import Batch, Role, Site
from microtome.geometry import Decomposition, Parts
from microtome.geometry.jackknife import directions

SITE = Site("resid_post", 0)
PER_DOCUMENT = 3


def decomposed(h: Tensor, seed: int = 0, **settings: int) -> Parts:
    """The decomposition of windows of one length, three of them to a document, documents in turns in the halves."""
    windows, tokens, width = h.shape
    index = torch.arange(windows)
    batch = Batch(
        ids=torch.zeros(windows, tokens, dtype=torch.int64),
        roles=torch.full((windows, tokens), int(Role.CONTENT), dtype=torch.uint8),
        window=index,
        document=index // PER_DOCUMENT,
        start=index * 0,
        half=(index // PER_DOCUMENT % 2).to(torch.uint8),
        label=index * 0,
        extra={},
    )
    fold = replace(Decomposition(SITE, torch.zeros(width), tokens, seed=seed), **settings)
    state = fold.init()
    fold.update(state, {SITE: h}, batch)
    return fold.result(state)


def planted(seed: int, position: float, windows: int = 120, tokens: int = 40, width: int = 24) -> Tensor:
    """A position part of size `position`, a part per document and noise that neighbours share."""
    generator = torch.Generator().manual_seed(seed)
    pos = torch.randn(1, tokens, width, generator=torch.Generator().manual_seed(99)) * position
    document = torch.randn(windows // PER_DOCUMENT, 1, width, generator=generator).repeat_interleave(PER_DOCUMENT, 0)
    return pos + 0.5 * document + torch.randn(windows, tokens, width, generator=generator)


def test_no_effect_of_position_reads_as_none_where_the_plain_share_does_not() -> None:
    found = [decomposed(planted(seed, position=0.0)) for seed in range(20)]
    plain = torch.tensor([each.share["pos"] for each in found])
    agreed = torch.tensor([each.agreed for each in found])
    assert float(plain.min()) > 0.005
    assert abs(float(agreed.mean())) < 3 * float(agreed.std()) / math.sqrt(20)
    small = sum(each.uncertainty.p_positive(each.agreed) < 0.05 for each in found)
    assert small <= 4, "at a level of 5 % one of twenty is expected"


def test_a_weak_effect_is_found_at_its_size() -> None:
    found = decomposed(planted(0, position=0.2))
    total = 0.04 + 0.25 + 1
    true = 0.04 / total
    assert found.agreed == pytest.approx(true, rel=0.15)
    assert found.share["pos"] > found.agreed
    assert found.uncertainty.p_positive(found.agreed) < 1e-6


def test_the_interval_is_as_wide_as_the_spread_over_repeated_data() -> None:
    found = [decomposed(planted(seed, position=0.3), sketch=100) for seed in range(40)]
    for part in ("pos", "ctx", "resid"):
        spread = float(torch.tensor([each.share[part] for each in found]).std())
        error = float(torch.tensor([each.uncertainty.share[part] for each in found]).mean())
        assert 0.6 < error / spread < 1.6, part


def test_a_sketch_gives_the_width_of_the_interval() -> None:
    h = planted(3, position=0.3, width=96)
    exact, sketched = (decomposed(h, sketch=count).uncertainty for count in (96, 24))
    for part, error in exact.share.items():
        assert sketched.share[part] == pytest.approx(error, rel=0.5)
    assert 0.8 < sketched.cross_validated / exact.cross_validated < 1.3 * math.sqrt(96 / 24), "it errs on the safe side"


def test_directions_keep_lengths_on_average_and_all_of_them_are_no_sketch() -> None:
    x = torch.randn(4000, 40, generator=torch.Generator().manual_seed(0))
    ratio = (x @ directions(40, 10, 0)).square().sum() / x.square().sum()
    assert float(ratio) == pytest.approx(1, abs=0.05)
    assert torch.equal(directions(40, 40, 0), torch.eye(40))


def test_few_documents_have_no_interval_and_say_why() -> None:
    found = decomposed(planted(0, 0.3, windows=12)).uncertainty
    assert math.isnan(found.share["pos"])
    assert math.isnan(found.p_positive(0.5))
    assert "an interval needs 8" in found.undefined


def test_context_that_is_only_the_likeness_of_neighbours_is_not_agreed_on_by_blocks() -> None:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(200, 66 + 3, 12, generator=generator)
    smooth = torch.stack([noise[:, lag : lag + 66] for lag in range(4)]).sum(0) / 2
    found = decomposed(smooth)
    assert found.share["ctx"] > 2.5 * found.control["ctx"], "four times the variance of a mean of independent tokens"
    assert abs(found.agreed_ctx) < 0.02
    topics = 0.7 * torch.randn(200, 1, 12, generator=generator)
    assert decomposed(smooth + topics).agreed_ctx == pytest.approx(0.49 / 1.49, rel=0.15)
