"""Early exits: planted clusters tell when a token is saturated, random ones do not, and traces are those of whole tensors."""

from dataclasses import replace

import pytest
import torch

from microtome.core import CONTENT, Half, Refusal, Site
from microtome.model import capture, final_norm, unembed
from microtome.neurons.aggregation import random_place
from microtome.neurons.early_exit import (
    NEVER,
    RULES,
    Trace,
    early_exits,
    exit_of,
    matches,
    nearest_clusters,
    probed,
    trace,
)
from microtome.neurons.promotion import values_of
from microtome.neurons.value_clusters import Clustering, value_clusters
from tests.unit.model.tiny import batch_for, opened

LAYERS, UNITS, DOMINANT, GROUPS = 6, 60, 5, 6


def planted(rows: int = 600, seed: int = 0, *, informed: bool = True) -> tuple[Trace, torch.Tensor]:
    """Tokens that are saturated at a random layer; there and above, units of a few clusters are dominant, each time others of them.

    Where not `informed`, units are of any cluster. The stream is far on one side where a token is saturated.
    """
    generator = torch.Generator().manual_seed(seed)
    saturation = torch.randint(1, LAYERS, (rows,), generator=generator)
    done = torch.arange(LAYERS) >= saturation[:, None]
    final = torch.randint(50, (rows, 1), generator=generator)
    top = torch.where(done, final, final + 50 + torch.arange(LAYERS))
    clusters = (torch.arange(UNITS) % GROUPS)[None, :, None].repeat(LAYERS, 1, 2)
    wanted = torch.where(done, 0, 3)[..., None] + torch.randint(3, (rows, LAYERS, DOMINANT), generator=generator)
    wanted[..., 1:] = torch.where(done, 0, 3)[..., None]
    if not informed:
        wanted = torch.randint(GROUPS, wanted.shape, generator=generator)
    unit = wanted + GROUPS * torch.randint(UNITS // GROUPS, wanted.shape, generator=generator)
    stream = torch.randn(rows, LAYERS, 8, generator=generator) + 4.0 * done[..., None]
    document = torch.arange(rows) % 60
    return Trace(document, document % 2, top, 2 * unit, stream), clusters


def test_saturation_is_where_the_answer_stays() -> None:
    top = torch.tensor([[5, 5, 5, 5], [5, 1, 5, 5], [5, 5, 1, 5], [1, 2, 3, 5]])
    none = torch.zeros(4, dtype=torch.int64)
    found = Trace(none, none, top, torch.zeros(4, 4, 1, dtype=torch.int64), torch.zeros(4, 4, 2))
    assert found.saturation.tolist() == [0, 2, 3, 3]


def test_matches_are_counted_in_their_order_and_with_tokens_saturated_at_the_layer() -> None:
    clusters = torch.tensor([[0, 1, 2, 0, 1]] * 2)[..., None].repeat(1, 1, 2)
    none = torch.zeros(3, dtype=torch.int64)
    top = torch.tensor([[7, 7], [1, 7], [7, 7]])
    dominant = torch.tensor([[[0, 2, 4], [0, 2, 4]], [[2, 2, 2], [2, 2, 2]], [[6, 8, 2], [0, 0, 0]]])
    seen = Trace(none, none, top, dominant, torch.zeros(3, 2, 1))
    asked = replace(seen, dominant=torch.tensor([[[6, 8, 4], [2, 0, 2]], [[2, 2, 2], [0, 2, 4]], [[4, 4, 4], [4, 4, 4]]]))
    # layer 0: rows 0 and 2 are saturated there, clusters (0, 1, 2) and (0, 1, 1); layer 1: row 1, (1, 1, 1)
    assert matches(seen, asked, clusters).tolist() == [[3, 2], [2, 1], [1, 0]]


def test_planted_clusters_tell_when_to_stop() -> None:
    found, clusters = planted()
    by_clusters, exchanged, probes = early_exits(found, clusters, seed=1)
    assert (by_clusters.rule, exchanged.rule, probes.rule) == RULES
    for rule in (by_clusters, probes):
        assert rule.accuracy > 0.93
        assert rule.low > rule.chance + 0.1
        assert rule.saved == pytest.approx(rule.most, abs=0.5)
        assert rule.low <= rule.accuracy <= rule.high
        assert rule.saved_low <= rule.saved <= rule.saved_high
    assert exchanged.saved < by_clusters.saved - 1


def test_random_clusters_save_little_and_are_no_better_than_chance() -> None:
    found, clusters = planted(informed=False)
    by_clusters = early_exits(found, clusters)[0]
    assert by_clusters.saved < 0.4 * by_clusters.most
    assert by_clusters.accuracy - by_clusters.chance < 0.04


def test_scores_that_say_nothing_never_leave() -> None:
    found, _ = planted()
    scores = torch.ones(found.top.shape)
    result = exit_of("none", scores, found, scores, found)
    assert (result.threshold, result.saved, result.accuracy, result.chance) == (NEVER, 0, 1, 1)


def test_chance_is_the_mean_over_exchanges_of_exits() -> None:
    found, _ = planted(200)
    scores = torch.rand(found.top.shape, generator=torch.Generator().manual_seed(2))
    result = exit_of("random", scores, found, scores, found, least=0.3)
    assert result.saved > 0
    layer = (scores >= result.threshold).index_fill(1, torch.tensor([LAYERS - 1]), True).long().argmax(1)
    assert result.saved == pytest.approx(float((LAYERS - 1 - layer).double().mean()))
    every = found.right[:, layer].double().mean()
    assert result.chance == pytest.approx(float(every))
    assert result.accuracy == pytest.approx(result.chance, abs=0.1)


def test_a_layer_where_nothing_is_saturated_is_never_left() -> None:
    found, _ = planted(100)
    late = replace(found, top=found.top.index_fill(1, torch.tensor([0, 1]), -1))
    assert (probed(late, late)[:, :2] == 0).all()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_traces_are_those_of_whole_tensors(name: str) -> None:
    model = opened(name)
    batch = batch_for(model, (9, 6, 9))
    found = trace(model, [batch], dominant=3, places=1, seed=4)
    row, place = random_place(batch, 4, CONTENT)
    for layer in range(model.shape.layers):
        sites = [Site(each, layer) for each in ("mlp_act", "resid_post")]
        act, behind = (value[row, place].float() for value in capture(model, batch, sites).values())
        with torch.inference_mode():
            assert torch.equal(found.top[:, layer], unembed(model, final_norm(model, behind)).argmax(1))
        size = act.abs() * model.weights.get("W_out", layer).norm(dim=1)
        unit = size.topk(3).indices
        assert torch.equal(found.dominant[:, layer] // 2, unit)
        assert torch.equal(found.dominant[:, layer] % 2, (act.gather(1, unit) < 0).long())
        assert torch.allclose(found.stream[:, layer], behind)
    assert torch.equal(found.document, batch.document[row])


def test_several_places_of_a_window_are_each_followed_once() -> None:
    model = opened("gpt2")
    found = trace(model, [batch_for(model, (9, 6, 9))], places=40)
    assert len(found.top) == int(batch_for(model, (9, 6, 9)).counted(CONTENT).sum())


def test_units_are_in_the_cluster_that_they_were_found_in_and_others_in_the_nearest() -> None:
    generator = torch.Generator().manual_seed(0)
    layers = [values_of(opened("gpt2"), layer) for layer in (0, 2)]
    centres = torch.randn(4, layers[0].rows.shape[1], generator=generator)
    made = []
    for each in layers:
        rows = centres[torch.arange(24) % 4] + 0.02 * torch.randn(24, centres.shape[1], generator=generator)
        rows[:, :] *= 0.5 + torch.rand(24, 1, generator=generator)
        rows[-1] = 0
        made.append(replace(each, rows=rows, length=rows.norm(dim=1)))
    clusters = value_clusters(made, Clustering(8, units=30), gated=True)
    found = nearest_clusters(clusters, made)
    place = torch.tensor([(0, 2).index(layer) for layer in clusters.layer.tolist()])
    end = (clusters.sign < 0).long()
    assert torch.equal(found[place, clusters.unit, end], clusters.cluster)
    assert (found[:, -1] == -1).all()
    for group in range(4):
        own = found[:, torch.arange(group, 23, 4)].flatten(0, 1)
        assert len(own.unique(dim=0)) == 1
        assert int(own[0, 0]) != int(own[0, 1])


def test_documents_that_make_no_three_parts_are_refused() -> None:
    found, clusters = planted(50)
    with pytest.raises(Refusal, match="three parts"):
        early_exits(found.take(found.half == int(Half.CONFIRM)), clusters)


def test_a_single_layer_is_refused() -> None:
    found, clusters = planted(50)
    single = replace(found, top=found.top[:, :1], dominant=found.dominant[:, :1], stream=found.stream[:, :1])
    with pytest.raises(Refusal, match="cannot be left early"):
        early_exits(single, clusters[:1])
