import functools

import numpy as np
import pytest
import torch

from microtome.core import Refusal
from microtome.probes import Sparse, adaptive_probe, balanced_logistic, monosemantic, sparse_probe
from microtome.probes.sparse import best_sets, shifted_p
from tests.unit.probes.planted import planted_rows


def halved(rows: int) -> torch.Tensor:
    return torch.arange(rows) // 20 % 2


def test_two_planted_units_need_two() -> None:
    x, y = planted_rows()
    found = sparse_probe(x, y, halved(4000), Sparse((1, 2, 8, 100)))
    assert found.ks == (1, 2, 8)
    assert sorted(found.units[:2].tolist()) == [17, 42]
    one, two, eight = (score.f1 for score in found.scores)
    assert one < 0.8 < 0.95 < two
    assert abs(eight - two) < 0.02
    assert found.scores[1].auroc > 0.99
    assert len(found.random) == 3
    assert all(draw[1].mcc < found.scores[1].mcc - 0.3 for draw in found.random)
    assert found.base == pytest.approx(float(y[halved(4000) == 1].double().mean()))


def test_planted_units_are_found_in_bfloat16_too() -> None:
    x, y = planted_rows()
    found = sparse_probe(x.bfloat16(), y, halved(4000), Sparse((2,), draws=0))
    assert sorted(found.units.tolist()) == [17, 42]
    assert found.scores[0].f1 > 0.94


def test_a_feature_spread_over_many_units_needs_many() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 40, generator=generator)
    y = x[:, :16].sum(1) > 3
    f1 = {k: score.f1 for k, score in zip((1, 4, 16), sparse_probe(x, y, halved(4000), Sparse((1, 4, 16))).scores, strict=True)}
    assert f1[1] < f1[4] - 0.1 < f1[16] - 0.2


@functools.cache
def superposed(features: int = 12, units: int = 6, share: float = 0.05) -> tuple[torch.Tensor, torch.Tensor]:
    """Sparse features, and the units that Elhage's toy model keeps them in: what the trained W of x' = ReLU(x W W^T + b) makes of them."""
    generator = torch.Generator().manual_seed(0)

    def drawn(rows: int) -> torch.Tensor:
        there = torch.rand(rows, features, generator=generator) < share
        return torch.rand(rows, features, generator=generator) * there

    w = (0.3 * torch.randn(features, units, generator=generator)).requires_grad_()
    b = torch.zeros(features, requires_grad=True)
    learning = torch.optim.Adam([w, b], lr=0.02)
    for _ in range(300):
        x = drawn(300)
        learning.zero_grad()
        (x - torch.relu(x @ w @ w.T + b)).square().mean().backward()
        learning.step()
    kept, found = w.detach(), drawn(4000)
    cosine = torch.nn.functional.normalize(kept, dim=1) @ kept.T
    dimensions = kept.square().sum(1) / cosine.square().sum(1)
    assert dimensions == pytest.approx(0.5, abs=0.05), "pairs of opposite directions: half a dimension for each feature"
    return found, found @ kept


def test_superposed_features_need_as_many_units() -> None:
    """Twelve features in six units, none of which is a unit's own: F1 grows up to the last unit. Beside them, each with a unit of its own."""
    features, units = superposed()
    f1, own = (
        torch.tensor([[score.f1 for score in sparse_probe(x, y, halved(4000), Sparse((1, 3, 6), draws=0)).scores] for y in features.T > 0.2])
        for x in (units, features)
    )  # fmt: skip
    one, three, six = f1.mean(0).tolist()
    assert one < 0.55 < three < 0.8 < 0.92 < six
    assert bool((f1[:, 2] > f1[:, 0] + 0.3).all())
    assert float(own[:, 0].min()) > 0.9
    assert float((own[:, 2] - own[:, 0]).abs().max()) < 0.02, "a curve that is flat from one unit on"


def test_scale_and_sign_of_units_do_not_matter() -> None:
    x, y = planted_rows(rows=1000)
    factor = torch.where(torch.arange(60) % 2 == 0, -5.0, 0.1)
    one, other = (sparse_probe(each, y, halved(1000), Sparse((1, 2, 4), draws=1)) for each in (x, x * factor))
    assert torch.equal(one.units, other.units)
    np.testing.assert_allclose([each.auroc for each in one.scores], [each.auroc for each in other.scores], atol=1e-3)


def test_the_confirm_half_is_not_learnt_from() -> None:
    x, y = planted_rows(rows=1000)
    half = halved(1000)
    swapped = y.clone()
    swapped[half == 1] = ~y[half == 1]
    one, other = (sparse_probe(x, each, half, Sparse((2,), draws=0)) for each in (y, swapped))
    assert torch.equal(one.units, other.units)
    assert other.scores[0].auroc == pytest.approx(1 - one.scores[0].auroc)


def test_adaptive_thresholding_finds_units_that_tell_only_together() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 12, generator=generator)
    hidden = x[:, 3] - x[:, 8]
    x[:, 3], y = x[:, 3] * 1.0, hidden > 0.8
    x[:, 8] += 3 * x[:, 5]  # a large part that another unit has to take away
    ranked_first = sparse_probe(x, y, halved(4000), Sparse((3,), draws=0))
    adaptive = adaptive_probe(x, y, halved(4000), start=12)
    assert adaptive.ks == (1, 2, 3, 4, 5, 6, 7, 8, 10, 12)
    assert sorted(adaptive.units[:3].tolist()) == [3, 5, 8]
    assert adaptive.scores[2].f1 > 0.93 > 0.8 > ranked_first.scores[0].f1
    assert sorted(adaptive.units.tolist()) == list(range(12))


def test_all_sets_are_tried() -> None:
    x, y = planted_rows(rows=1000)
    sets, loss = best_sets(x, y, 2, candidates=6)
    assert len(sets) == 15
    assert sorted(sets[0].tolist()) == [17, 42]
    few = x[:, sets[4]]
    few = (few - few.mean(0)) / few.std(0)
    assert float(loss[4]) == pytest.approx(float(balanced_logistic(few[None], y).loss[0]), rel=1e-3)
    assert bool((loss.diff() >= 0).all())
    assert len(best_sets(x, y, 1, candidates=6)[0]) == 6


def test_monosemantic_units_beat_the_same_search_on_shifted_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    y = (torch.arange(2000) // 10) % 7 == 0  # runs of the label
    x = torch.randn(2000, 30, generator=generator)
    x[:, 4] -= 6.0 * y
    found = monosemantic(x, y, halved(2000), top=5, draws=19)
    assert int(found.units[0]) == 4
    assert found.scores[0].mcc > 0.95
    assert float(found.p[0]) == pytest.approx(1 / 20)
    assert float(found.p[1:].min()) > 0.05
    assert float(found.null.max()) < 0.5


def test_a_unit_that_knows_nothing_agrees_as_well_with_shifted_labels() -> None:
    generator = torch.Generator().manual_seed(4)
    row = torch.arange(2000)
    y, half = torch.repeat_interleave(torch.rand(400, generator=generator) < 0.25, 5), row // 500 % 2
    told = y + 0.5 * torch.randn(2000, generator=generator)
    assert shifted_p(told, y, half) == pytest.approx(1e-3)
    blind = [shifted_p(torch.randn(2000, generator=generator), y, half, draws=199, seed=draw) for draw in range(20)]
    assert 0.25 < sum(blind) / 20 < 0.75
    assert sum(p <= 0.05 for p in blind) <= 4
    runs = torch.repeat_interleave(torch.randn(400, generator=generator), 5)  # as slow as the labels, and of nothing
    assert shifted_p(runs, y, half) > 0.02


def test_halves_without_the_label_are_refused() -> None:
    x, y = planted_rows(rows=100)
    half = halved(100)
    with pytest.raises(Refusal, match="the confirm half has it on 0 of 40 rows"):
        sparse_probe(x, y & (half == 0), half)
    with pytest.raises(Refusal, match="there are 60"):
        sparse_probe(x, y, half, Sparse((61,)))
    with pytest.raises(Refusal, match="a probe has one unit or more"):
        Sparse((0, 1))
