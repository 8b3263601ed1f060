"""Opening what is in order: the model is the checkpoint's, in the dtype that was asked for, and so are its parts on disk."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForPreTraining, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from microtome.core import Refusal
from microtome.model import Checkpoint, Model, load, open_checkpoint, precision
from tests.toys import decoder_tokenizer, encoder_tokenizer, llama
from tests.unit.model.checkpoints import edit_config, edit_weights

IDS = torch.arange(12)[None]


def logits(model: Model) -> torch.Tensor:
    """What the module says about some tokens."""
    module: Any = model.module
    with torch.inference_mode():
        return module(IDS).logits


@pytest.fixture(scope="module")
def opened(saved: Path) -> Checkpoint:
    return open_checkpoint(saved)


def test_a_folder_gives_the_model_that_was_saved(saved: Path) -> None:
    model = load(saved)
    with torch.inference_mode():
        expected = llama()(IDS).logits
    assert torch.equal(logits(model), expected)
    assert isinstance(model.module, LlamaForCausalLM)
    assert not model.module.training
    assert (model.name, model.dtype, model.device.type) == ("tiny-llama", torch.float32, "cpu")
    assert model.tokenizer.encode("The river") == decoder_tokenizer().encode("The river")
    assert model.certificate.passed


@pytest.mark.parametrize("kind", ["sharded", "bin", "sharded bin"])
def test_any_form_of_the_weights_gives_the_same_model(kind: str, saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    if kind == "sharded":
        llama().save_pretrained(folder, max_shard_size="10KB")
        assert len(list(folder.glob("model-*.safetensors"))) > 1
    else:
        folder.mkdir()
        shutil.copy(saved / "config.json", folder)
        tensors = load_file(saved / "model.safetensors")
        if kind == "bin":
            torch.save(tensors, folder / "pytorch_model.bin")
        else:
            _save_in_two(tensors, folder)
    expected = load(saved)
    model = load(folder)
    assert model.tokenizer is None
    assert torch.equal(logits(model), logits(expected))
    disk = open_checkpoint(folder).weights
    assert torch.equal(disk.get("W_out", 2), expected.weights.get("W_out", 2))


def _save_in_two(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    names = sorted(tensors)
    parts = {"pytorch_model-00001-of-00002.bin": names[:9], "pytorch_model-00002-of-00002.bin": names[9:]}
    for file, part in parts.items():
        torch.save({name: tensors[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_the_class_in_the_configuration_is_built_with_its_head(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=2, n_positions=32)).save_pretrained(
        tmp_path / "gpt2"
    )
    assert type(load(tmp_path / "gpt2").module).__name__ == "GPT2LMHeadModel"
    edit_config(tmp_path / "gpt2", architectures=["GPT2Model"])
    bare = load(tmp_path / "gpt2")
    assert type(bare.module).__name__ == "GPT2Model"
    assert (bare.shape.head, open_checkpoint(tmp_path / "gpt2").shape.head) == ("none", "none")


def test_weights_of_other_heads_do_no_harm(tmp_path: Path) -> None:
    """Published BERT folders hold the next-sentence head and the pooler beside the masked-language-model head."""
    config = BertConfig(vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    torch.manual_seed(0)
    BertForPreTraining(config).save_pretrained(tmp_path)
    edit_config(tmp_path, architectures=["BertForMaskedLM"])
    assert load(tmp_path).shape.head == "masked"
    edit_config(tmp_path, architectures=["BertModel"])
    assert load(tmp_path).shape.head == "none"
    edit_weights(tmp_path, lambda tensors: [tensors.pop(name) for name in list(tensors) if "pooler" in name])
    assert load(tmp_path).certificate.passed  # nothing reads the pooler


def test_a_checkpoint_opens_without_being_built(opened: Checkpoint, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = load(saved)
    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("the model was built"))
    again = open_checkpoint(saved)
    assert again.shape == opened.shape == built.shape
    assert again.architecture is LlamaForCausalLM
    assert again.fingerprint == built.fingerprint
    assert again.stored == torch.float32
    for name in ("W_E", "W_U"):
        assert torch.equal(again.weights.get(name), built.weights.get(name))
    for layer in range(3):
        assert again.weights.names(layer) == built.weights.names(layer)
        for name in again.weights.names(layer):
            assert torch.equal(again.weights.get(name, layer), built.weights.get(name, layer))


def test_the_fingerprint_follows_content_and_nothing_else(saved: Path, folder: Path, opened: Checkpoint) -> None:
    assert open_checkpoint(folder).fingerprint == opened.fingerprint
    edit_config(folder, _name_or_path="elsewhere", transformers_version="0.0.0", use_cache=False)
    assert open_checkpoint(folder).fingerprint == opened.fingerprint
    edit_config(folder, rms_norm_eps=1e-5)
    changed = open_checkpoint(folder).fingerprint
    assert changed != opened.fingerprint
    edit_weights(folder, lambda tensors: tensors["model.norm.weight"].add_(1e-3))
    assert open_checkpoint(folder).fingerprint not in (changed, opened.fingerprint)


@pytest.mark.parametrize(
    ("stored", "asked", "runs"),
    [
        (torch.float32, "auto", torch.float32),
        (torch.bfloat16, "auto", torch.bfloat16),
        (torch.float16, "auto", torch.float32),
        (torch.float32, "bfloat16", torch.bfloat16),
        (torch.bfloat16, torch.float32, torch.float32),
    ],
)
def test_dtype(
    stored: torch.dtype, asked: str | torch.dtype, runs: torch.dtype, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_cpu_flags", lambda: frozenset({"avx512_bf16"}))
    edit_weights(folder, lambda tensors: tensors.update({name: tensor.to(stored) for name, tensor in tensors.items()}))
    assert open_checkpoint(folder).stored == stored
    assert load(folder, dtype=asked, device="cpu").dtype == runs


def test_a_folder_that_was_quantised_before_counts_as_low(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_cpu_flags", lambda: frozenset({"avx512_bf16"}))
    (folder / "microtome.json").write_text('{"stored": "quantised"}')
    model = load(folder, device="cpu")
    assert model.dtype == torch.bfloat16
    assert model.certificate.dtypes
    assert load(folder, dtype="float32").dtype == torch.float32


def test_a_model_that_is_already_built(saved: Path) -> None:
    module = llama()
    model = load(module)
    assert model.module is module
    assert (model.name, model.tokenizer) == ("LlamaForCausalLM", None)
    named = load(LlamaForCausalLM.from_pretrained(saved))
    assert named.name == "tiny-llama"
    assert named.tokenizer is not None
    assert load(llama()).fingerprint == model.fingerprint
    other: tuple[dict[str, Any], ...] = ({"dtype": "bfloat16"}, {"dtype": torch.float16}, {"device": "cuda"})
    for options in other:
        with pytest.raises(Refusal, match="it is already built, as torch.float32 on cpu; convert it"):
            load(module, **options)
    assert load(module, dtype="float32", device="cpu").module is module


def test_paths_may_be_text_or_relative(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved)
    assert open_checkpoint(".").name == "tiny-llama"
    monkeypatch.chdir(saved.parent)
    assert open_checkpoint("tiny-llama").name == "tiny-llama"
    assert open_checkpoint(str(saved)).name == "tiny-llama"


def test_an_encoders_tokenizer_is_opened(tmp_path: Path) -> None:
    vocab = len(encoder_tokenizer())
    config = BertConfig(vocab_size=vocab, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    BertForPreTraining(config).save_pretrained(tmp_path)
    encoder_tokenizer().save_pretrained(tmp_path)
    edit_config(tmp_path, architectures=["BertModel"])
    assert open_checkpoint(tmp_path).tokenizer.cls_token == "[CLS]"


def test_transformers_is_left_as_talkative_as_before(saved: Path) -> None:
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load(saved)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (level, bars)
