"""Everything about one site: what was planted is measured, and what was not is not."""

import math
from dataclasses import replace

import pytest
import torch

from microtome.core import Batch, Role, Site
from microtome.geometry import Decomposition
from microtome.geometry.halves import centred
from microtome.geometry.rows import stats_of
from microtome.geometry.sites import SiteGeometry
from microtome.model import capture, wrap
from tests.unit.geometry.planted import EACH, LABELS, TOKENS, Planted, measured, plant
from tests.unit.model.tiny import built

RANK = 3


@pytest.fixture(scope="module")
def planted() -> Planted:
    return plant(rank=RANK)


@pytest.fixture(scope="module")
def site(planted: Planted) -> SiteGeometry:
    return measured(planted, depth="standard")


@pytest.fixture(scope="module")
def without_position() -> SiteGeometry:
    return measured(plant(pos=0.0, seed=2))


def test_planted_parts_come_back(site: SiteGeometry, planted: Planted) -> None:
    whole = planted.states - planted.states.mean((0, 1))
    pos = whole.mean(0)
    total = float(whole.square().sum())
    torch.testing.assert_close(site.parts.pos, pos, atol=1e-5, rtol=0)
    torch.testing.assert_close(site.contexts.ctx, whole.mean(1)[site.windows.window], atol=1e-5, rtol=0)
    assert site.parts.share["pos"] == pytest.approx(len(whole) * float(pos.square().sum()) / total, abs=1e-6)
    assert site.parts.share["ctx"] == pytest.approx(TOKENS * float(whole.mean(1).square().sum()) / total, abs=1e-6)
    assert float((site.parts.pos - planted.pos).norm() / planted.pos.norm()) < 0.12, "the noise of 144 windows"


def test_rank_size_and_frequencies_of_position_are_the_planted_ones(site: SiteGeometry, planted: Planted) -> None:
    corrected = site.position.corrected
    assert corrected is not None
    assert corrected.screenot.rank == corrected.parallel.rank == RANK
    assert corrected.energy == pytest.approx(float(planted.pos.square().sum()) / TOKENS, rel=0.05)
    assert site.smoothness.corrected is not None
    lowest = site.smoothness.corrected.lfe[5]
    assert lowest.value == pytest.approx(1.0, abs=0.03), "position has frequencies 1 to 3 only"
    assert lowest.control == pytest.approx(4 / (TOKENS - 1))
    assert lowest.p < 0.02


def test_shares_without_noise_are_the_planted_ones(site: SiteGeometry, planted: Planted) -> None:
    """Planted variances per token: position 1, topic and window as drawn, noise 1."""
    pos, noise = 1.0, 1.0
    about = planted.ctx - planted.ctx.mean(0)
    truth = pos / (pos + float(about.square().sum(1).mean()) + noise)
    assert site.variance.omega2.value == pytest.approx(truth, rel=0.05)
    assert site.variance.agreed.value == pytest.approx(truth, rel=0.05)
    assert site.variance.agreed.p < 1e-6
    assert site.variance.pseudo_f.value > 50


def test_no_effect_of_position_reads_as_none(without_position: SiteGeometry) -> None:
    site = without_position
    assert site.position.naive.energy > 0.005, "position means have noise"
    assert site.position.corrected is not None
    assert site.position.effect is not None
    assert abs(site.position.corrected.energy) < 0.1 * site.position.naive.energy
    assert site.position.effect.p > 0.05
    assert site.variance.agreed.p > 0.05
    assert abs(site.variance.omega2.value) < 0.002
    assert site.variance.pseudo_f.value == pytest.approx(1.0, abs=0.15)
    for each in stats_of(site):
        if each.subject == "pos cross-validated" and each.stat not in ("energy", "largest_singular_value", "relative_norm"):
            assert each.found.undefined or (each.stat, each.found.value) == ("parallel_rank", 0.0), each.stat
    held = site.concentration
    assert "not distinguishable from 0" in held.position_share.undefined
    assert "not distinguishable from 0" in held.coordinate_share.undefined


def test_labels_planted_in_context_are_found_and_only_there(site: SiteGeometry) -> None:
    assert site.clustering is not None
    assert site.clustering.labels == tuple(range(LABELS))
    assert site.clustering.rand.value > 0.9
    assert site.clustering.rand.p < 0.02
    assert site.clustering.similarity.across.value > 0.5 > site.clustering.similarity.between.value
    assert site.clusters is not None
    assert site.clusters.count == LABELS
    assert site.clusters.stability.value > 0.9
    assert site.probes["label from ctx"].accuracy.value > 0.95
    assert site.probes["label from resid"].accuracy.value < 0.5
    assert site.probes["quarter from states"].accuracy.value > 0.7
    left = site.probes["quarter from resid"].accuracy
    assert left.value < 0.35
    assert left.control == pytest.approx(0.25, abs=0.03)


def test_a_planted_massive_coordinate_and_sink_are_found(planted: Planted) -> None:
    states = planted.states.clone()
    states[:, 0, 7] += 2000.0
    found = measured(replace(planted, states=states))
    assert found.massive.coordinates == (7,)
    assert found.sinks == (0,)
    assert found.concentration.position == 0
    assert found.concentration.coordinate == 7
    assert found.concentration.position_share.value == pytest.approx(1 - 1 / TOKENS, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lengths_and_extremes_are_those_of_a_direct_computation(planted: Planted, dtype: torch.dtype) -> None:
    lengths = [TOKENS - row % 7 for row in range(len(planted.states))]
    planted = replace(planted, states=planted.states.to(dtype))
    found = measured(planted, lengths=lengths)
    counted = torch.arange(TOKENS) < torch.tensor(lengths)[:, None]
    states = planted.states.double()
    squares = (states.square().sum(2) * counted).sum(0) / counted.sum(0)
    torch.testing.assert_close(found.parts.lengths, squares.sqrt(), atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(found.parts.lowest, states[counted].amin(0), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found.parts.highest, states[counted].amax(0), atol=1e-6, rtol=1e-6)
    assert found.parts.counts == tuple(counted.sum(0).tolist())
    assert found.parts.tokens == sum(lengths)
    assert found.parts.share["pos"] == pytest.approx(measured(planted).parts.share["pos"], rel=0.1)


def test_the_longest_windows_may_all_be_in_one_half(planted: Planted) -> None:
    lengths = [TOKENS if half else TOKENS - 5 for half in planted.half.tolist()]
    found = measured(planted, lengths=lengths)
    assert found.smoothness.tokens == len(found.parts.pos) == TOKENS
    assert found.position.corrected is not None
    assert found.position.corrected.screenot.rank == RANK
    assert found.smoothness.corrected is not None
    assert found.smoothness.corrected.lfe[5].control == pytest.approx(4 / (TOKENS - 6))


def test_states_that_do_not_vary_have_nothing_but_their_mean() -> None:
    still = plant()
    found = measured(replace(still, states=torch.full_like(still.states, 0.3)))
    assert found.parts.undefined == "hidden states do not vary"
    known = {(each.subject, each.stat): each.found.value for each in stats_of(found) if not each.found.undefined}
    assert known.pop(("states", "largest_over_median")) == pytest.approx(1.0)
    assert known.pop(("states", "mean_cosine, raw")) == pytest.approx(1.0)
    assert known.pop(("states", "partition_isotropy")) == pytest.approx(0.0, abs=1e-5), "all of it is the mean"
    assert known == dict.fromkeys(known, 0.0)


def test_without_labels_there_is_no_clustering_and_with_one_there_is_a_reason(planted: Planted) -> None:
    none = measured(replace(planted, label=torch.full_like(planted.label, -1)), depth="standard")
    assert none.clustering is None
    assert not [name for name in none.probes if name.startswith("label")]
    single = torch.where(planted.document == 5, 1, 0)
    lonely = torch.where(single == 1, -1, 0)
    lonely[5 * EACH] = 1
    for label in (torch.zeros_like(single), lonely):
        found = measured(replace(planted, label=label)).clustering
        assert found is not None
        assert "has two members or more, and comparing takes two" in found.rand.undefined
        assert math.isnan(found.similarity.gap.value)
    deep = measured(replace(planted, label=single), depth="standard")
    assert "1 labels have two documents or more" in deep.probes["label from ctx"].accuracy.undefined


def test_position_entering_gpt2_is_its_position_embeddings() -> None:
    """With random tokens, position at resid_pre.0 is W_pos about its mean, up to the noise of token embeddings."""
    model = wrap(built("gpt2"), name="gpt2")
    tokens, windows, place = 32, 800, Site("resid_pre", 0)
    fold = Decomposition(place, torch.zeros(model.shape.d_model), tokens)
    state, none = fold.init(), torch.zeros(windows, dtype=torch.int64)
    ids = torch.randint(50, (windows, tokens), generator=torch.Generator().manual_seed(1))
    numbers = torch.arange(windows)
    roles = torch.full(ids.shape, int(Role.CONTENT), dtype=torch.uint8)
    batch = Batch(ids, roles, numbers, numbers, none, (numbers % 2).to(torch.uint8), none, {})
    fold.update(state, capture(model, batch, [place]), batch)
    found = fold.result(state)
    truth = centred(model.weights.get("W_pos")[:tokens])
    spread = float(model.weights.get("W_E").double().var(0, correction=0).sum())
    error = float((found.pos - truth).square().sum(1).mean())
    assert error == pytest.approx(spread / windows, rel=0.2), "what is left is the noise of a mean over windows"
    assert error < 0.05 * float(truth.square().sum(1).mean())
    assert found.agreed == pytest.approx(float(truth.square().sum(1).mean()) / found.spread**2, rel=0.05)


def test_copies_of_documents_leave_the_mean_cosine_and_its_interval_as_they_are(planted: Planted) -> None:
    """Windows of one document are one context: ten copies of each are no ten times as much text."""
    few = replace(planted, **{name: getattr(planted, name)[:48] for name in ("states", "document", "label", "half")})
    copied = replace(few, **{name: torch.cat([getattr(few, name)] * 3) for name in ("states", "document", "label", "half")})
    once, often = (measured(each, depth="quick").cosines["raw"] for each in (few, copied))
    assert len(few.document.unique()) >= 8
    assert often.value == pytest.approx(once.value, abs=0.03), "other tokens are sampled"
    assert often.hi - often.lo == pytest.approx(once.hi - once.lo, rel=0.2), "by windows it would be 0.58 as wide"
