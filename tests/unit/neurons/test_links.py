"""Links of units, against dense cosines and a planted pair."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from microtome.model import Model, wrap
from microtome.neurons import links
from microtome.neurons.links import (
    KINDS,
    link_operations,
    link_rows,
    linked_kinds,
    weight_links,
    why_no_links,
)
from microtome.store import write_table
from tests.unit.model.tiny import built, opened


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def values(model: Model) -> np.ndarray:
    return np.concatenate([unit(model.weights.get("W_out", layer).numpy()) for layer in range(3)])


def reads(name: str) -> Callable[[Model, int], np.ndarray]:
    """What the units of a layer read, in the stream: with the gain of an RMS norm."""

    def of(model: Model, layer: int) -> np.ndarray:
        return unit(model.weights.get(name, layer).T.numpy() * model.weights.norm("mlp_norm", layer).gain.numpy())

    return of


@pytest.mark.parametrize("kind", ["writes alike", "gate reads what is written", "amplitude reads what is written"])
def test_the_nearest_are_those_of_dense_cosines(kind: str) -> None:
    model = opened("llama")
    name, whose = KINDS[kind]
    for found in weight_links(model.weights, kind, k=5):
        rows = values(model)[24 * found.layer : 24 * (found.layer + 1)] if whose == "any" else reads(name)(model, found.layer)
        cosines = rows @ values(model).T
        if whose == "any":
            cosines[np.arange(24), 24 * found.layer + np.arange(24)] = 0
        else:
            cosines = cosines[:, : 24 * found.layer]
        if not cosines.shape[1]:
            assert bool((found.other_layer == -1).all())
            assert bool(found.cosine.isnan().all())
            continue
        order = np.argsort(-np.abs(cosines), 1, kind="stable")[:, :5]
        np.testing.assert_array_equal((24 * found.other_layer + found.other).numpy(), order)
        np.testing.assert_allclose(found.cosine.numpy(), np.take_along_axis(cosines, order, 1), atol=1e-6)
        assert found.control.shape == (5,)
        assert bool((found.control.diff() <= 0).all())


def test_a_planted_pair_stands_out_from_what_is_turned_at_random() -> None:
    module = built("llama")
    with torch.no_grad():
        module.model.layers[2].mlp.down_proj.weight[:, 5] = -3 * module.model.layers[0].mlp.down_proj.weight[:, 11]
        gain = module.model.layers[2].post_attention_layernorm.weight
        module.model.layers[2].mlp.gate_proj.weight[7] = module.model.layers[1].mlp.down_proj.weight[:, 3] / gain
    weights = wrap(module, name="planted").weights
    *_, last = weight_links(weights, "writes alike", k=3)
    assert (int(last.other_layer[5, 0]), int(last.other[5, 0])) == (0, 11)
    assert float(last.cosine[5, 0]) == pytest.approx(-1, abs=1e-6)
    assert float(last.control[0]) < 0.8
    *_, read = weight_links(weights, "gate reads what is written", k=3)
    assert (int(read.other_layer[7, 0]), int(read.other[7, 0])) == (1, 3)
    assert float(read.cosine[7, 0]) == pytest.approx(1, abs=1e-5)


def test_the_control_is_what_random_directions_do() -> None:
    """Untrained units have nothing to do with each other: the nearest of them are no nearer than the control says."""
    found = list(weight_links(opened("gpt2").weights, "writes alike", k=4))
    own = torch.stack([each.cosine.abs().mean(0) for each in found])
    torch.testing.assert_close(own, torch.stack([each.control for each in found]), atol=0.03, rtol=0)


def test_kinds_are_those_of_the_architecture(tmp_path: Path) -> None:
    assert linked_kinds(opened("gpt2").weights) == ["writes alike", "reads what is written"]
    assert linked_kinds(opened("llama").weights) == [kind for kind in KINDS if kind != "reads what is written"]
    assert linked_kinds(opened("mixtral").weights) == []
    tables = (link_rows(each) for each in weight_links(opened("gpt2").weights, "writes alike", k=2))
    rows = pq.read_table(write_table(tmp_path, "links", "neurons", tables)).to_pylist()
    assert len(rows) == 3 * 64 * 2
    (first,) = [
        row
        for row in rows
        if row["unit"] == "neurons.1/5"
        and row["score"] == max((row["score"] for row in rows if row["unit"] == "neurons.1/5"), key=abs)
    ]
    earlier = weight_links(opened("llama").weights, "gate reads what is written", k=2)
    path = write_table(tmp_path, "links", "gates", (link_rows(each) for each in earlier))
    assert pq.read_table(path).num_rows == 2 * 24 * 2, "the first layer reads what no unit writes"
    found = list(weight_links(opened("gpt2").weights, "writes alike", k=2))[1]
    assert first["other"] == f"neurons.{int(found.other_layer[5, 0])}/{int(found.other[5, 0])}"
    assert first["control"] == pytest.approx(float(found.control[0]))


def test_what_is_too_much_for_a_depth_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two kinds, 3 layers of 64 units: all pairs for one, a third of them for the other; each with its control, 2 d FLOP each: layers are small, so that all units are compared."""
    weights = opened("gpt2").weights
    assert link_operations(weights) == pytest.approx(2 * 2 * 16 * (192**2 + 192**2 / 3))
    assert why_no_links(weights, "standard") == ""
    assert "depth quick" in why_no_links(weights, "quick")
    assert "inside experts" in why_no_links(opened("mixtral").weights, "full")
    monkeypatch.setattr(links, "AFFORDED", 1e6)
    assert "3e+06 operations" in why_no_links(weights, "standard")
    assert why_no_links(weights, "full") == ""
