"""Every family, saved and opened: by its files alone, and built."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from microtome.core import Refusal
from microtome.model import load, open_checkpoint
from tests.unit.model.checkpoints import edit_config, edit_weights
from tests.unit.model.tiny import TINY


@pytest.mark.parametrize("name", TINY)
def test_every_family_opens(name: str, tmp_path: Path) -> None:
    module = TINY[name]()
    module.save_pretrained(tmp_path)
    disk = open_checkpoint(tmp_path)
    model = load(tmp_path)
    assert type(model.module) is type(module)
    assert (disk.shape, disk.fingerprint) == (model.shape, model.fingerprint)
    assert all(torch.equal(value, model.module.state_dict()[key]) for key, value in module.state_dict().items())
    for layer in range(disk.shape.layers):
        assert disk.weights.names(layer) == model.weights.names(layer)
    edit_config(tmp_path, hidden_size=32, n_embd=32, d_model=32, dim=32)
    with pytest.raises(Refusal):
        open_checkpoint(tmp_path)


def _is_refused(opening: Callable[[Path], object], folder: Path) -> bool:
    try:
        opening(folder)
    except Refusal:
        return True
    return False


@pytest.mark.parametrize("name", ["bert-pretraining", "llama", "mixtral", "vit-classifier", "dinov2-gated"])
def test_headers_alone_say_what_transformers_says_of_the_loaded_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each tensor of the first layer and of the model is taken out in turn."""
    TINY[name]().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    lacking = 0
    for gone in whole:
        if re.search(r"\.[12]\.", gone):
            continue
        save_file({key: tensor for key, tensor in whole.items() if key != gone}, file, metadata={"format": "pt"})
        refused = _is_refused(open_checkpoint, tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr("microtome.model.opening.check_headers", lambda *_: None)
            assert refused == _is_refused(load, tmp_path), gone
        lacking += refused
    assert lacking > 10


@pytest.mark.parametrize("name", ["bert", "roberta", "albert", "electra", "distilbert"])
def test_norms_by_the_names_of_old_checkpoints(name: str, tmp_path: Path) -> None:
    def old(tensors: dict[str, torch.Tensor]) -> None:
        for key in list(tensors):
            renamed = key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[renamed] = tensors.pop(key)

    TINY[name]().save_pretrained(tmp_path)
    edit_weights(tmp_path, old)
    disk, model = open_checkpoint(tmp_path), load(tmp_path)
    for layer in range(disk.shape.layers):
        assert torch.equal(disk.weights.norm("mlp_norm_post", layer).gain, model.weights.norm("mlp_norm_post", layer).gain)
    assert torch.equal(disk.weights.norm("embed_norm").gain, model.weights.norm("embed_norm").gain)


def test_experts_that_do_not_fit_together_are_named(tmp_path: Path) -> None:
    TINY["mixtral"]().save_pretrained(tmp_path)
    victim = "model.layers.1.block_sparse_moe.experts.2.w1.weight"
    edit_weights(tmp_path, lambda tensors: tensors.update({victim: torch.zeros(23, 16)}))
    with pytest.raises(
        Refusal, match="W_gate of layer 1 is no weight in its files: stack expects each tensor to be equal size"
    ):
        open_checkpoint(tmp_path)
    edit_config(tmp_path, num_local_experts=3)
    edit_weights(tmp_path, lambda tensors: tensors.update({victim: torch.zeros(24, 16)}))
    with pytest.raises(Refusal, match="router|gate"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("BertForQuestionAnswering", "none"),
        ("ElectraForPreTraining", "none"),
        ("BertForTokenClassification", "labels"),
        ("BertForNextSentencePrediction", "none"),
    ],
)
def test_files_and_built_model_agree_on_what_the_head_predicts(name: str, expected: str, tmp_path: Path) -> None:
    architecture = getattr(transformers, name)
    module = architecture(TINY["electra" if name.startswith("Electra") else "bert"]().config)
    module.save_pretrained(tmp_path)
    assert open_checkpoint(tmp_path).shape.head == load(tmp_path).shape.head == expected
