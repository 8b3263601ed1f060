"""Which numbers are read: those of the checkpoint, where it is the model's."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from microtome.model import Model, Weights, load, open_checkpoint, wrap
from microtome.readout import stored_weights
from tests.toys import llama, save_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def rounded(folder: Path) -> Model:
    return load(folder, dtype="bfloat16", device="cpu")


def everything(weights: Weights) -> dict[str, torch.Tensor]:
    found = {}
    for layer in (None, *range(weights.shape.layers)):
        found |= {f"{name}.{layer}": weights.get(name, layer) for name in weights.names(layer)}
    return found


def test_a_rounded_model_is_read_in_the_numbers_of_its_checkpoint(folder: Path, rounded: Model) -> None:
    exact = everything(load(folder, dtype="float32", device="cpu").weights)
    stored = everything(stored_weights(rounded))
    assert rounded.weights.get("W_out", 0).dtype == torch.bfloat16
    assert set(stored) == set(exact)
    assert all(torch.equal(stored[name], exact[name]) for name in exact)


def test_a_checkpoint_and_a_float32_model_are_read_as_they_are(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    assert stored_weights(checkpoint) is checkpoint.weights
    model = load(folder, dtype="float32", device="cpu")
    assert stored_weights(model) is model.weights


def test_a_model_that_was_changed_is_read_in_its_own_numbers(rounded: Model) -> None:
    with torch.no_grad():
        rounded.weights.get("W_out", 2)[5, 3] += 1
    assert stored_weights(rounded) is rounded.weights


def test_a_changed_norm_is_noticed(rounded: Model) -> None:
    with torch.no_grad():
        rounded.weights.norm("mlp_norm", 1).gain[0] += 0.5
    assert stored_weights(rounded) is rounded.weights


@pytest.mark.parametrize("where", ["nowhere", "a folder of something else", "a name and no folder"])
def test_a_model_without_a_checkpoint_is_read_in_its_own_numbers(where: str, tmp_path: Path) -> None:
    module = llama().bfloat16()
    module.config.name_or_path = {"nowhere": "", "a folder of something else": str(tmp_path)}.get(where, "owner/name")
    model = wrap(module)
    assert stored_weights(model) is model.weights


def test_a_checkpoint_of_another_model_does_not_count(rounded: Model, tmp_path: Path) -> None:
    other = llama()
    with torch.no_grad():
        other.get_parameter("model.layers.1.mlp.down_proj.weight").mul_(2)
    other.save_pretrained(tmp_path)
    rounded.config.name_or_path = str(tmp_path)
    model = replace(rounded)
    assert stored_weights(model) is model.weights
