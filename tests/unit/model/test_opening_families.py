"""Every family, saved and opened: by its files alone, and built."""

from pathlib import Path

import pytest
import torch
import transformers

from microtome.core import Refusal
from microtome.model import load, open_checkpoint
from tests.unit.model.checkpoints import edit_config
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
