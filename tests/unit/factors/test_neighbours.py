"""Neurons and heads beside factors, against dense products and planted weights."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from microtome.core import Site
from microtome.factors.basis import Factors
from microtome.factors.dictionary import Above, Dictionary, Encoder
from microtome.factors.neighbours import HEADS, NEURONS, head_links, neuron_links, stream_links, why_not_linked
from microtome.factors.scaling import Scaling
from microtome.model import Weights, wrap
from microtome.readout import fold_norm, written
from microtome.readout.directions import unit_directions
from tests.unit.model.tiny import built, opened

UNITS = 12


def dictionary_of(directions: torch.Tensor, *sites: Site) -> Dictionary:
    units, width = directions.shape
    places = len(sites)
    return Dictionary(
        name="planted",
        arrangement="shared",
        reads=sites,
        writes=sites,
        coder=Encoder(directions.T[None].clone(), torch.zeros(units), Above(torch.zeros(units))),
        scaling=Scaling(torch.zeros(places, width), torch.ones(places), torch.full((places,), torch.inf)),
        directions=directions[None],
        offset=torch.zeros(1, width),
        model="",
        learnt={},
    )


def drawn(width: int, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(UNITS, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def basis_of(directions: torch.Tensor) -> Factors:
    return Factors(dictionary_of(directions, Site("resid_pre", 1)), Site("resid_pre", 1))


def moved(weights: Weights, layer: int, head: int) -> torch.Tensor:
    """W_V W_O of a head as a whole matrix over the stream, by the definition."""
    values, outputs = (weights.get(name, layer).float() for name in ("W_V", "W_O"))
    shared = head // (len(outputs) // len(values))
    reads = values[shared].T
    if weights.has("attn_norm", layer):
        reads = fold_norm(weights.norm("attn_norm", layer), reads)
    return reads.T @ written(weights, layer, outputs[head], "attn")


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "gemma2"])
def test_neurons_and_heads_are_those_of_dense_products(family: str) -> None:
    weights = opened(family).weights
    shape = weights.shape
    directions = drawn(shape.d_model)
    tables = {
        table["kind"][0].as_py(): table.to_pylist() for table in neuron_links(directions, basis_of(directions), weights, k=3)
    }
    assert set(tables) == {kind for kind, name in NEURONS.items() if weights.has(name, 0)}
    for kind, rows in tables.items():
        every = torch.stack([directions @ unit_directions(weights, NEURONS[kind], layer).T for layer in range(shape.layers)], 1)
        for row in rows:
            unit = int(row["unit"].split("/")[1])
            layer, index = map(int, row["other"].removeprefix("neurons.").split("/"))
            assert row["score"] == pytest.approx(float(every[unit, layer, index]), abs=1e-5)
        best = np.array([row["score"] for row in rows[::3]])
        np.testing.assert_allclose(np.abs(best), every.flatten(1).abs().amax(1), atol=1e-5)
    for table in head_links(directions, basis_of(directions), weights, k=shape.layers * shape.heads):
        rows = table.to_pylist()
        kind = rows[0]["kind"]
        assert kind in HEADS
        for row in rows[:20]:
            unit = int(row["unit"].split("/")[1])
            layer, head = map(int, row["other"].removeprefix("heads.").split("/"))
            matrix = moved(weights, layer, head)
            through = matrix @ directions[unit] if kind == "written by head" else directions[unit] @ matrix
            assert row["score"] == pytest.approx(float(through.norm() / matrix.norm()), rel=1e-3)


def test_a_planted_writer_and_reader_stand_out_from_turned_directions() -> None:
    module = built("llama")
    width = module.config.hidden_size
    directions = drawn(width, 3)
    with torch.no_grad():
        module.model.layers[1].mlp.down_proj.weight[:, 4] = -2 * directions[5]
        gain = module.model.layers[2].post_attention_layernorm.weight
        module.model.layers[2].mlp.gate_proj.weight[6] = directions[7] / gain
        size = module.config.head_dim
        module.model.layers[0].self_attn.o_proj.weight[:, size : 2 * size] = directions[2][:, None] * torch.randn(1, size)
    weights = wrap(module, name="planted").weights
    rows = stream_links(dictionary_of(directions, Site("resid_pre", 1)), basis_of(directions), weights).to_pylist()
    first = {(row["unit"], row["kind"]): row for row in reversed(rows)}
    writer = first["factors@planted/5", "written by"]
    assert (writer["other"], round(writer["score"], 5)) == ("neurons.1/4", -1.0)
    assert writer["control"] < 0.9
    gate = first["factors@planted/7", "gates"]
    assert (gate["other"], round(gate["score"], 4)) == ("neurons.2/6", 1.0)
    head = first["factors@planted/2", "written by head"]
    assert (head["other"], round(head["score"], 4)) == ("heads.0/1", 1.0)
    assert head["control"] < 0.9


def test_untrained_units_are_no_nearer_than_turned_directions() -> None:
    directions = drawn(opened("gpt2").weights.shape.d_model, 9)
    for table in neuron_links(directions, basis_of(directions), opened("gpt2").weights, k=2):
        score, control = np.abs(table["score"].to_numpy()), table["control"].to_numpy()
        assert score.mean() == pytest.approx(control.mean(), abs=0.05)


def test_only_directions_of_the_stream_are_linked() -> None:
    weights = opened("gpt2").weights
    directions = drawn(weights.shape.d_model)
    assert not why_not_linked(dictionary_of(directions, Site("resid_pre", 0), Site("mlp_out", 1)), weights)
    assert "z.0 is not added" in why_not_linked(dictionary_of(directions, Site("z", 0)), weights)
    assert "mlp_in.0 is not added" in why_not_linked(dictionary_of(directions, Site("mlp_in", 0)), weights)


def test_a_branch_with_a_norm_behind_it_is_added_behind_that() -> None:
    weights = opened("gemma2").weights
    directions = drawn(weights.shape.d_model)
    assert "mlp_out.1 is not added" in why_not_linked(dictionary_of(directions, Site("mlp_out", 1)), weights)
    assert not why_not_linked(dictionary_of(directions, Site("mlp_out_post", 1)), weights)


def test_factors_are_taken_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = opened("llama").weights
    directions = drawn(weights.shape.d_model)
    whole = stream_links(dictionary_of(directions, Site("resid_pre", 1)), basis_of(directions), weights)
    monkeypatch.setattr("microtome.factors.neighbours._TILE", 5)
    parts = stream_links(dictionary_of(directions, Site("resid_pre", 1)), basis_of(directions), weights)
    assert whole["other"] == parts["other"]
    np.testing.assert_allclose(whole["score"].to_numpy(), parts["score"].to_numpy(), atol=1e-6)
