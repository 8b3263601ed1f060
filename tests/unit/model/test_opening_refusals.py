"""Everything that can be wrong with a checkpoint: refused with what, why and what to do instead."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertConfig, BertModel, T5Config

from microtome.core import Refusal
from microtome.model import families, load, open_checkpoint
from microtome.model.opening import RemoteCode
from tests.toys import encoder_tokenizer, llama, save_checkpoint
from tests.unit.model.checkpoints import edit_config, edit_weights

DOWN = "model.layers.1.mlp.down_proj.weight"


def refused(source: Any, **options: Any) -> str:
    """What `load` says when it refuses."""
    with pytest.raises(Refusal) as refusal:
        load(source, **options)
    parts = refusal.value
    assert all(text and text.strip() == text for text in (parts.what, parts.why, parts.instead))
    return str(parts)


def refused_by_both(folder: Path) -> str:
    """What `load` says of what is refused before the model is built, too."""
    with pytest.raises(Refusal) as refusal:
        open_checkpoint(folder)
    assert refused(folder) == str(refusal.value)
    return str(refusal.value)


def test_a_missing_folder(tmp_path: Path) -> None:
    said = refused(tmp_path / "absent")
    assert said == f"model {tmp_path / 'absent'}: there is no such folder; name a model folder, a .gguf file or a hub id"
    assert "there is no such folder" in refused("./absent")
    assert "there is no such folder" in refused("one/two/three")


def test_a_single_file(folder: Path) -> None:
    assert "name the folder that holds it" in refused(folder / "model.safetensors")


def test_a_folder_without_configuration(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert refused_by_both(folder).endswith("it has no config.json; name the folder that save_pretrained wrote")
    (folder / "adapter_config.json").write_text("{}")
    assert "it holds an adapter and not a model; name it beside its base model" in refused_by_both(folder)


@pytest.mark.parametrize(
    ("text", "why"), [("{", "it is not JSON"), ("[]", "(model_type)"), ('{"hidden_size": 3}', "(model_type)")]
)
def test_a_configuration_that_is_none(folder: Path, text: str, why: str) -> None:
    (folder / "config.json").write_text(text)
    assert why in refused_by_both(folder)


def test_a_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "renamed.safetensors")
    assert "only renamed.safetensors; rename the file" in refused_by_both(folder)
    (folder / "renamed.safetensors").unlink()
    assert "it holds no weights; download model.safetensors" in refused_by_both(folder)


@pytest.mark.parametrize("name", ["model.pkl", "model.pt", "weights.ckpt", "other.bin"])
def test_other_pickles(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    said = refused_by_both(folder)
    assert f"its only weights are in {name}, a format whose opening can run code" in said
    assert said.endswith("save it by save_pretrained (safetensors)")


def test_truncated_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert "the file is damaged or incomplete" in refused_by_both(folder)


def test_a_missing_shard(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path, max_shard_size="10KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    shards[1].unlink()
    assert f"1 of {len(shards)} shards of its weights are missing: {shards[1].name}" in refused_by_both(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    assert "does not list the shards" in refused_by_both(tmp_path)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"hidden_size": 32}, "by its config.json"),
        (
            {"intermediate_size": 48},
            "model.layers.0.mlp.gate_proj.weight is 40 x 24 in its weights and 48 x 24 by its config.json",
        ),
        ({"vocab_size": 400}, "model.embed_tokens.weight is 352 x 24 in its weights and 400 x 24 by its config.json"),
        (
            {"num_hidden_layers": 2},
            "its weights hold model.layers.2.input_layernorm.weight, and its config.json counts 2 layers",
        ),
        ({"num_attention_heads": 8}, "self_attn.q_proj.weight is 32 x 24 in its weights and 64 x 24 by its config.json"),
        ({"num_key_value_heads": 4}, "self_attn.k_proj.weight is 16 x 24 in its weights and 32 x 24 by its config.json"),
    ],
)
def test_a_configuration_that_contradicts_the_weights(folder: Path, changes: dict[str, int], why: str) -> None:
    edit_config(folder, **changes)
    said = refused_by_both(folder)
    assert why in said
    assert said.endswith("use the config.json that was saved with these weights")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"num_hidden_layers": 4},
            "its weights lack 9 tensors that its config.json asks for: model.layers.3.input_layernorm.weight",
        ),
        ({"tie_word_embeddings": False}, "its weights lack 1 tensors that its config.json asks for: lm_head.weight"),
        (
            {"architectures": ["LlamaForSequenceClassification"]},
            "its weights lack 1 tensors that its config.json asks for: score",
        ),
        ({"architectures": ["GPT2LMHeadModel"]}, "names the class GPT2LMHeadModel and the architecture llama"),
        ({"model_type": "gpt2"}, "names the class LlamaForCausalLM and the architecture gpt2"),
        ({"model_type": "mistral", "architectures": ["MistralForCausalLM"], "head_dim": 6}, "q_proj.weight is 32 x 24"),
    ],
)
def test_a_class_that_the_weights_are_not_of(folder: Path, changes: dict[str, Any], why: str) -> None:
    edit_config(folder, **changes)
    assert why in refused_by_both(folder)


@pytest.mark.parametrize("changes", [{"hidden_size": "many"}, {"num_attention_heads": 5}, {"hidden_act": "gelou"}])
def test_a_configuration_that_contradicts_itself(folder: Path, changes: dict[str, Any]) -> None:
    edit_config(folder, **changes)
    assert str(next(iter(changes.values()))) in refused_by_both(folder)


def drop(name: str) -> Callable[[dict[str, Tensor]], object]:
    """An edit that removes a tensor."""
    return lambda tensors: tensors.pop(name)


def test_a_missing_tensor_is_named(folder: Path) -> None:
    edit_weights(folder, drop(DOWN))
    assert f"its weights lack 1 tensors that its config.json asks for: {DOWN}" in refused_by_both(folder)


def test_a_tensor_of_another_shape_is_named(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update({DOWN: torch.zeros(24, 39)}))
    assert f"{DOWN} is 24 x 39 in its weights and 24 x 40 by its config.json" in refused_by_both(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_none_are_named(folder: Path, value: float) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors[DOWN][3, 5] = value

    edit_weights(folder, spoil)
    assert f"{DOWN} holds 1 of 960 numbers that are NaN or infinite" in refused(folder)
    module = llama()
    module.get_parameter(DOWN).data[3, 5] = value
    assert f"{DOWN} holds 1 of 960 numbers" in refused(module)


def test_numbers_too_large_for_the_dtype(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors[DOWN].fill_(1e6))
    assert "overflow in this dtype, open them as float32" in refused(folder, dtype="float16")


@pytest.mark.parametrize("architecture", ["T5ForConditionalGeneration", "MambaForCausalLM"])
def test_a_family_that_is_not_known(architecture: str, tmp_path: Path) -> None:
    T5Config().save_pretrained(tmp_path)
    edit_config(tmp_path, architectures=[architecture], model_type=architecture[:2].lower())
    (tmp_path / "model.safetensors").touch()
    said = refused(tmp_path)
    assert f"microtome does not know the architecture {architecture[:2].lower()}" in said
    assert all(name in said for name in families.FAMILIES)


@pytest.mark.parametrize(
    ("named", "why"),
    [
        (None, "does not name the class of the model (architectures)"),
        ([], "does not name the class of the model (architectures)"),
        (["LlamaForEverything"], "has no class LlamaForEverything"),
    ],
)
def test_a_class_that_is_not_known(folder: Path, named: list[str] | None, why: str) -> None:
    edit_config(folder, architectures=named)
    assert why in refused_by_both(folder)


def test_compressed_weights(folder: Path) -> None:
    edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    assert "stored compressed (gptq); open the full-precision checkpoint, or a GGUF file" in refused_by_both(folder)


REMOTE = """
from transformers import LlamaForCausalLM

class OwnForCausalLM(LlamaForCausalLM):
    written_by = "the checkpoint"
"""


def with_code(folder: Path) -> Path:
    """The checkpoint with a class of its own."""
    (folder / "own_code.py").write_text(REMOTE)
    edit_config(folder, architectures=["OwnForCausalLM"], auto_map={"AutoModelForCausalLM": "own_code.OwnForCausalLM"})
    return folder


@pytest.mark.parametrize("remote_code", ["refuse", "allow"])
def test_code_in_a_checkpoint_runs_only_when_allowed(folder: Path, remote_code: RemoteCode) -> None:
    with_code(folder)
    (folder / "own_code.py").write_text(REMOTE + f"open({str(folder / 'ran')!r}, 'w').close()\n")
    if remote_code == "refuse":
        assert "its class OwnForCausalLM is code inside the checkpoint" in refused(folder)
        assert not (folder / "ran").exists()
    else:
        model = load(folder, remote_code=remote_code)
        assert type(model.module).__dict__["written_by"] == "the checkpoint"
        assert (folder / "ran").exists()


@pytest.mark.parametrize("vocab", [100, 4000])
def test_the_tokenizer_of_another_model(tmp_path: Path, vocab: int) -> None:
    config = BertConfig(vocab_size=vocab, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    BertModel(config).save_pretrained(tmp_path)
    assert open_checkpoint(tmp_path).tokenizer is None
    encoder_tokenizer().save_pretrained(tmp_path)
    size = len(encoder_tokenizer())
    assert f"it has {size} tokens, and the model embeds {vocab}: it is another model's" in refused_by_both(tmp_path)


def test_tokens_without_an_embedding_are_named(folder: Path) -> None:
    tokenizer = open_checkpoint(folder).tokenizer
    tokenizer.add_tokens(["<pad>", "<more>"])
    tokenizer.save_pretrained(folder)
    said = refused_by_both(folder)
    assert "the model embeds ids below 352, and these tokens have larger ones: <more>, <pad>" in said
    assert said.endswith("or take these tokens out")


def test_a_tokenizer_that_does_not_open(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(json.dumps({"model": "none"}))
    assert f"tokenizer in {folder}: it does not open" in refused_by_both(folder)


def test_several_gguf_files(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    assert "it holds several GGUF files: a.gguf, b.gguf; name one of them" in refused(tmp_path)


def test_a_name_that_is_neither_file_nor_hub_id() -> None:
    assert "it is neither a file here nor a hub id" in refused("no such model!")


def test_a_refused_model_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    edit_weights(folder, drop(DOWN))
    before = sorted(path.name for path in folder.iterdir())
    refused(folder)
    assert sorted(path.name for path in folder.iterdir()) == before
    shutil.rmtree(folder)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"architectures": [3]}, "not a list of names"),
        ({"architectures": "LlamaForCausalLM"}, "not a list of names"),
        ({"architectures": ["AutoModel"]}, "has no class AutoModel"),
        ({"auto_map": "x"}, "its auto_map is no mapping"),
        ({"quantization_config": "x"}, "stored compressed"),
        ({"max_position_embeddings": -1}, "allows -1 positions"),
    ],
)
def test_a_config_of_wrong_types(tmp_path: Path, wrong: dict[str, Any], why: str) -> None:
    save_checkpoint(tmp_path / "toy")
    path = tmp_path / "toy" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    assert why in refused(tmp_path / "toy")


def test_activations_that_overflow(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "toy")
    path = tmp_path / "toy" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"] *= 1e30
    tensors["model.layers.1.mlp.gate_proj.weight"] *= 1e30
    save_file(tensors, path, metadata={"format": "pt"})
    assert "activations are NaN or infinite in float32" in refused(tmp_path / "toy")
