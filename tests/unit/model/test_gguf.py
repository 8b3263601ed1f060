"""GGUF files: converted once, and refused where they are none."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter

from microtome.core import Refusal
from microtome.model import caches, gguf, load, open_checkpoint
from microtome.model.gguf import converted
from tests.toys import decoder_tokenizer, llama

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MICROTOME_CACHE", str(tmp_path / "cache"))


def interleaved(matrix: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a query or key projection in the order in which GGUF files of Llama have them: halves of each head alternate."""
    return matrix.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def gguf_tensors() -> dict[str, torch.Tensor]:
    """The toy Llama's tensors by their names in GGUF."""
    config: Any = llama().config
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    tensors = {}
    for name, tensor in llama().state_dict().items():
        if name == "model.embed_tokens.weight":
            tensors["token_embd.weight"] = tensor
        elif name == "model.norm.weight":
            tensors["output_norm.weight"] = tensor
        elif name != "lm_head.weight":
            _, _, layer, rest = name.split(".", 3)
            short = NAMES[rest.removesuffix(".weight")]
            tensors[f"blk.{layer}.{short}.weight"] = interleaved(tensor, heads[short]) if short in heads else tensor
    return tensors


def write_gguf(path: Path, kind: GGMLQuantizationType = GGMLQuantizationType.F32) -> Path:
    """The toy Llama and its tokenizer as a GGUF file whose matrices are stored as `kind`."""
    config: Any = llama().config
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    tokenizer: Any = decoder_tokenizer()
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    # transformers gives every tokenizer of this kind an <|endoftext|>, which must have an embedding
    writer.add_token_list([token.replace("<end>", "<|endoftext|>") for token, _ in vocabulary])
    writer.add_token_types([3 if token in ("<unk>", "<end>") else 1 for token, _ in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in _merges(tokenizer)])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    for name, tensor in gguf_tensors().items():
        half = kind == GGMLQuantizationType.F16 and tensor.ndim == 2
        writer.add_tensor(name, tensor.numpy().astype(np.float16 if half else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _merges(tokenizer: Any) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]


def test_a_gguf_file_gives_the_model_in_it_and_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    model = load(path)
    ids = torch.arange(12)[None]
    module: Any = model.module
    with torch.inference_mode():
        assert torch.equal(module(ids).logits, llama()(ids).logits)
    assert (model.name, model.dtype) == ("tiny", torch.float32)
    text = "The river holds the stone."
    assert model.tokenizer.encode(text) == decoder_tokenizer().encode(text)
    monkeypatch.setattr(gguf, "_convert", lambda *_: pytest.fail("converted twice"))
    (entry,) = caches()
    assert entry.what == "tiny.gguf as safetensors"
    assert entry.path == converted(path)
    assert load(path).fingerprint == model.fingerprint
    assert open_checkpoint(tmp_path).fingerprint == model.fingerprint  # a folder with one GGUF file in it
    moved = path.rename(tmp_path / "tiny-2.gguf")
    with pytest.raises(pytest.fail.Exception, match="converted twice"):
        converted(moved)


def test_a_file_that_stores_fewer_bits_is_remembered(tmp_path: Path) -> None:
    assert open_checkpoint(write_gguf(tmp_path / "full.gguf")).stored == torch.float32
    half = open_checkpoint(write_gguf(tmp_path / "half.gguf", GGMLQuantizationType.F16))
    assert half.stored == torch.float16
    assert half.weights.get("W_E").dtype == torch.float32
    assert torch.equal(half.weights.get("W_E"), llama().get_parameter("model.embed_tokens.weight").half().float())


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "there is no such file"),
        (b"", "it is not a GGUF file"),
        (b"PK\x03\x04 something else", "it is not a GGUF file"),
        (b"GGUF", "the file is damaged or incomplete"),
        (b"GGUF" + b"\x03\0\0\0" + b"\xff" * 16, "the file is damaged or incomplete"),
    ],
)
def test_what_is_no_gguf_file_is_refused_and_leaves_nothing(content: bytes | None, why: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Refusal, match=why):
        load(path)
    assert caches() == []


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused_and_leaves_nothing(share: float, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(Refusal, match="the file is damaged or incomplete") as refusal:
        load(path)
    assert refusal.value.instead == "download or copy it again"
    assert caches() == []


def test_an_architecture_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "odd.gguf", "oddity")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.zeros((4, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(Refusal, match="transformers cannot read this architecture from GGUF.*open the model's safetensors"):
        load(tmp_path / "odd.gguf")
    assert caches() == []


def test_without_the_extra_the_command_that_installs_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setattr(gguf.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Refusal, match=r"needs gguf and accelerate, not installed here; run: pip install 'microtome\[gguf\]'"):
        load(path)
