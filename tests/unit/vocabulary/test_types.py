"""Cosines and types of units against the definition case by case, planted units, nulls, and products of token scores."""

import pytest
import torch

from microtome.core import Refusal
from microtome.model import wrap
from microtome.vocabulary.subject import subject_of
from microtome.vocabulary.types import TYPES, UnitCosines, cosine_rows, type_rows, types_of, unit_cosines
from tests.unit.model.tiny import built, opened
from tests.unit.vocabulary.related import plain_gpt2


def typed(gate_up: float, up_down: float, gate_down: float) -> str:
    names = ("gate_up_cosine", "up_down_cosine", "gate_down_cosine")
    cosines = {name: torch.tensor([value]) for name, value in zip(names, (gate_up, up_down, gate_down), strict=True)}
    return TYPES[int(types_of(UnitCosines(0, ("neurons.0/0",), cosines, {}))[0])]


@pytest.mark.parametrize(
    ("gate_up", "up_down", "gate_down", "name"),
    [
        (0.9, 0.9, 0.9, "enrichment"),
        (-0.9, 0.9, 0.9, "enrichment"),
        (-0.9, 0.9, -0.9, "atypical enrichment"),
        (0.1, 0.9, 0.9, "atypical enrichment"),
        (0.1, 0.9, 0.1, "conditional enrichment"),
        (0.9, 0.9, 0.1, "atypical conditional enrichment"),
        (0.1, 0.1, -0.9, "proportional change"),
        (0.9, 0.1, 0.9, "atypical proportional change"),
        (0.9, 0.1, 0.1, "orthogonal output"),
        (0.9, -0.9, -0.9, "depletion"),
        (0.9, -0.9, 0.9, "atypical depletion"),
        (0.1, -0.9, -0.9, "atypical depletion"),
        (0.1, -0.9, 0.4, "conditional depletion"),
        (-0.9, -0.9, 0.4, "atypical conditional depletion"),
    ],
)
def test_types_are_those_of_the_definition(gate_up: float, up_down: float, gate_down: float, name: str) -> None:
    assert typed(gate_up, up_down, gate_down) == name


@pytest.mark.parametrize("name", ["llama", "mixtral", "gemma2"])
def test_cosines_are_those_of_the_units_vectors(name: str) -> None:
    model = opened(name)
    of = subject_of(model, tokens="all")
    found = list(unit_cosines(of))[1]
    count = 24 * max(model.shape.experts, 1)
    assert len(found.addresses) == count
    gain = model.weights.norm("mlp_norm", 1).gain
    behind = model.weights.norm("mlp_norm_post", 1).gain if name == "gemma2" else torch.ones(16)
    place = count - 24 + 5
    gate, up, down = (model.weights.get(each, 1) for each in ("W_gate", "W_up", "W_out"))
    if name == "mixtral":
        gate, up, down = gate[-1], up[-1], down[-1]
        assert found.addresses[place] == "neurons.1/e3.5"
    else:
        assert found.addresses[place] == "neurons.1/5"
    pairs = {
        "gate_up_cosine": (gate[:, 5] * gain, up[:, 5] * gain),
        "up_down_cosine": (up[:, 5] * gain, down[5] * behind),
        "gate_down_cosine": (gate[:, 5] * gain, down[5] * behind),
    }
    for stat, (one, other) in pairs.items():
        assert float(found.cosines[stat][place]) == pytest.approx(float(torch.cosine_similarity(one, other, dim=0)), abs=1e-4)


def test_plain_units_have_one_cosine_and_no_type() -> None:
    of = subject_of(wrap(plain_gpt2(16, 2, 0), name="plain"), tokens="all")
    (first, second) = unit_cosines(of)
    assert set(first.cosines) == {"in_out_cosine"}
    with pytest.raises(Refusal, match="they have no gate"):
        types_of(second)
    assert {row["stat"] for row in type_rows([first, second], "run").to_pylist()} == {"mean_in_out_cosine"}


def test_planted_enriching_units_are_found_with_their_layer_and_random_ones_are_not() -> None:
    module = built("llama")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
        for norm in (layer.post_attention_layernorm for layer in module.model.layers):
            norm.weight.fill_(1)
        mlp = module.model.layers[1].mlp
        mlp.up_proj.weight[:8] = mlp.down_proj.weight.T[:8]
    found = list(unit_cosines(subject_of(wrap(module, name="planted"), tokens="all")))
    rows = {row["unit"]: row for row in cosine_rows(found, "run").to_pylist() if row["stat"] == "up_down_cosine"}
    assert all(rows[f"neurons.1/{unit}"]["q"] < 0.01 and rows[f"neurons.1/{unit}"]["value"] > 0.99 for unit in range(8))
    assert sum(row["q"] < 0.01 for row in rows.values()) == 8
    assert abs(rows["neurons.0/3"]["control"]) < 0.1
    stats = {(row["layer"], row["stat"]): row for row in type_rows(found, "run").to_pylist()}
    conditional = stats[1, "type:conditional enrichment"]
    assert conditional["value"] >= 0.2
    assert conditional["value"] > conditional["control_hi"]
    assert conditional["q"] < 0.05
    assert stats[0, "type:conditional enrichment"]["q"] > 0.05
    assert sum(
        row["value"] for (layer, stat), row in stats.items() if layer == 1 and stat.startswith("type:")
    ) == pytest.approx(1)


def test_the_control_pairs_vectors_of_different_units() -> None:
    module = built("llama")
    with torch.no_grad():
        for layer in module.model.layers:
            layer.mlp.down_proj.weight.copy_(torch.eye(16, 24))
            layer.mlp.up_proj.weight.copy_(torch.eye(24, 16))
            layer.mlp.gate_proj.weight.copy_(torch.eye(24, 16))
    found = next(unit_cosines(subject_of(wrap(module, name="diagonal"), tokens="all")))
    assert float(found.cosines["up_down_cosine"][:16].min()) == pytest.approx(1)
    assert float(found.draws["up_down_cosine"].abs().max()) == 0
