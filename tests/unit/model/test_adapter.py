"""Adapters: an adapted checkpoint has the weights of the model into which the adapter was merged by hand."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from microtome.core import Refusal
from microtome.model import open_checkpoint
from microtome.model.adapter import AdaptedWeights, adapted, holds_adapter, open_adapter
from tests import toys
from tests.unit.model.adapters import linear, save_adapter

LAYER = "model.layers.1"
Q = f"{LAYER}.self_attn.q_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.save_checkpoint(tmp_path_factory.mktemp("adapter") / "base")


def untied() -> PreTrainedModel:
    torch.manual_seed(8)
    config = LlamaConfig(
        vocab_size=60, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=4, tie_word_embeddings=False, attention_bias=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def gpt2() -> PreTrainedModel:
    torch.manual_seed(9)
    return GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=4, n_positions=16)).eval()


def require_same_weights(module: PreTrainedModel, changes: dict[str, Tensor], folder: Path, adapter: Path) -> None:
    """Every weight of the adapted checkpoint is that of the module with `changes` added by hand, saved and opened."""
    module.save_pretrained(folder / "base")
    with torch.no_grad():
        for name, change in changes.items():
            module.get_parameter(name).add_(change)
    module.save_pretrained(folder / "merged")
    found = adapted(open_checkpoint(folder / "base"), adapter).weights
    expected = open_checkpoint(folder / "merged").weights
    for layer in (None, *range(found.shape.layers)):
        assert found.names(layer) == expected.names(layer)
        for name in found.names(layer):
            torch.testing.assert_close(found.get(name, layer), expected.get(name, layer), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("named", "doubted"),
    [
        ("base", False),
        ("/models/models/base/", False),
        ("C:\\models\\base", False),
        ("owner/base@main", False),
        ("", False),
        (None, False),
        ("owner/base-1B", True),
        ("/models/base/other", True),
    ],
)
def test_a_base_model_of_another_name_is_a_doubt_and_no_refusal(
    base: Path, tmp_path: Path, named: str | None, doubted: bool
) -> None:
    adapter = save_adapter(tmp_path / "mine", linear(f"{LAYER}.self_attn.q_proj", 24, 32), base_model_name_or_path=named)
    found = open_adapter(adapter, open_checkpoint(base)).doubt
    assert found == (f"mine says that it was trained on {named}, and is read here as a change of base" if doubted else None)


def test_of_two_names_on_the_hub_the_owner_counts(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "mine", linear(f"{LAYER}.self_attn.q_proj", 24, 32), base_model_name_or_path="one/model")
    opened = open_checkpoint(base)
    doubts = [open_adapter(adapter, replace(opened, name=name)).doubt for name in ("one/model@main", "other/model", "model")]
    assert [doubt is None for doubt in doubts] == [True, False, True]


def test_linear_layers_get_scale_times_b_a_with_their_own_rank_and_scale(tmp_path: Path) -> None:
    tensors = {
        **linear(Q, 16, 16, seed=1),
        **linear(f"{LAYER}.self_attn.v_proj", 16, 8, rank=3, seed=2),
        **linear("model.layers.0.mlp.down_proj", 24, 16, seed=3),
    }
    pattern = {"rank_pattern": {"v_proj": 3}, "alpha_pattern": {r"layers\.1\.self_attn\.v_proj": 12, "proj": 99}}
    adapter = save_adapter(tmp_path / "a", tensors, r=2, lora_alpha=6, **pattern)

    def change(path: str, scale: float) -> Tensor:
        return scale * tensors[f"{path}.lora_B.weight"] @ tensors[f"{path}.lora_A.weight"]

    changes = {
        f"{Q}.weight": change(Q, 3.0),
        f"{LAYER}.self_attn.v_proj.weight": change(f"{LAYER}.self_attn.v_proj", 4.0),
        "model.layers.0.mlp.down_proj.weight": change("model.layers.0.mlp.down_proj", 3.0),
    }
    require_same_weights(untied(), changes, tmp_path, adapter)


def test_rank_stabilised_scale_is_alpha_over_the_root_of_the_rank(base: Path, tmp_path: Path) -> None:
    tensors = linear(Q, 24, 32, rank=4)
    adapter = save_adapter(tmp_path / "a", tensors, r=4, lora_alpha=6, use_rslora=True)
    factors = open_adapter(adapter, open_checkpoint(base)).factors[f"{Q}.weight"]
    torch.testing.assert_close(factors.dense, 3.0 * tensors[f"{Q}.lora_B.weight"] @ tensors[f"{Q}.lora_A.weight"])


def test_layers_that_keep_inputs_as_rows_are_known_by_their_kind_even_where_they_are_square(tmp_path: Path) -> None:
    paths = {
        "transformer.h.0.attn.c_proj": (16, 16),
        "transformer.h.1.attn.c_attn": (16, 48),
        "transformer.h.1.mlp.c_proj": (64, 16),
    }
    tensors = {name: t for seed, (path, size) in enumerate(paths.items()) for name, t in linear(path, *size, seed=seed).items()}
    adapter = save_adapter(tmp_path / "a", tensors, fan_in_fan_out=False)
    changes = {
        f"{path}.weight": 3.0 * (tensors[f"{path}.lora_B.weight"] @ tensors[f"{path}.lora_A.weight"]).T for path in paths
    }
    require_same_weights(gpt2(), changes, tmp_path, adapter)


def test_embeddings_biases_and_whole_layers(tmp_path: Path) -> None:
    a, b = torch.randn(2, 60), torch.randn(16, 2)
    module = untied()
    norm, bias, head = torch.rand(16), torch.rand(8), torch.randn(60, 16)
    tensors = {
        "model.embed_tokens.lora_embedding_A": a,
        "model.embed_tokens.lora_embedding_B": b,
        f"{LAYER}.input_layernorm.weight": norm,
        f"{LAYER}.self_attn.k_proj.base_layer.bias": bias,
        "lm_head.modules_to_save.weight": head,
        "score.weight": torch.randn(2, 16),
    }
    adapter = save_adapter(tmp_path / "a", tensors)
    changes = {
        "model.embed_tokens.weight": 3.0 * (b @ a).T,
        f"{LAYER}.input_layernorm.weight": norm - 1,
        f"{LAYER}.self_attn.k_proj.bias": bias - module.get_parameter(f"{LAYER}.self_attn.k_proj.bias").detach(),
        "lm_head.weight": head - module.get_parameter("lm_head.weight").detach(),
    }
    require_same_weights(module, changes, tmp_path, adapter)
    checkpoint = open_checkpoint(tmp_path / "base")
    assert open_adapter(adapter, checkpoint).unread == ("score.weight",)
    torch.testing.assert_close(adapted(checkpoint, adapter).weights.norm("attn_norm", 1).gain, norm)


def test_paths_may_begin_at_the_trunk(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "a", linear("layers.1.self_attn.q_proj", 24, 32))
    assert list(open_adapter(adapter, open_checkpoint(base)).factors) == [f"{Q}.weight"]


def test_what_is_not_changed_is_the_bases_own_and_the_model_has_a_fingerprint_of_its_own(base: Path, tmp_path: Path) -> None:
    one, other = (save_adapter(tmp_path / name, linear(Q, 24, 32, seed=seed)) for seed, name in enumerate(("a", "b")))
    assert holds_adapter(one)
    assert not holds_adapter(base)
    checkpoint = open_checkpoint(base)
    found = [adapted(checkpoint, folder) for folder in (one, other)]
    assert torch.equal(found[0].weights.get("W_K", 1), checkpoint.weights.get("W_K", 1))
    assert len({checkpoint.fingerprint, *(each.fingerprint for each in found)}) == 3
    assert found[0].name == "base+a"
    weights = found[0].weights
    assert isinstance(weights, AdaptedWeights)
    assert [weights.rank("W_Q", 1), weights.rank("W_Q", 0), weights.rank("W_K", 1), weights.rank("W_E")] == [2, 0, 0, 0]
    broken = save_adapter(tmp_path / "c", {**linear(Q, 24, 32), f"{Q}.lora_A.weight": torch.full((2, 24), torch.nan)})
    with pytest.raises(Refusal, match=r"lora_A.weight holds 48 of 48 numbers that are NaN"):
        adapted(checkpoint, broken).require_finite()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"peft_type": "IA3"}, "of the kind IA3, and LORA is the one that is read; merge it"),
        ({"use_dora": True}, "DoRA adapter"),
        ({"trainable_token_indices": [3]}, "changes single tokens"),
        ({"init_lora_weights": "pissa_niter_4"}, "began as pissa_niter_4"),
        ({"r": None}, "gives no rank and scale"),
        ({"r": 3}, r"q_proj has factors of rank 2 and 2 where its adapter_config.json says 3"),
    ],
)
def test_other_kinds_of_adapters_are_refused_with_a_reason(
    config: dict[str, Any], says: str, base: Path, tmp_path: Path
) -> None:
    adapter = save_adapter(tmp_path / "a", linear(Q, 24, 32), **config)
    with pytest.raises(Refusal, match=says):
        open_adapter(adapter, open_checkpoint(base))


def test_adapters_that_do_not_fit_or_are_damaged_are_refused(base: Path, tmp_path: Path) -> None:
    checkpoint, both = open_checkpoint(base), linear(Q, 24, 32)
    half = {name: tensor for name, tensor in both.items() if "lora_A" in name}
    cases: list[tuple[dict[str, Tensor], str]] = [
        (linear("model.layers.9.self_attn.q_proj", 24, 32), "changes model.layers.9.self_attn.q_proj, and base has no such layer"),
        (linear(Q, 24, 40), "its change of model.layers.1.self_attn.q_proj.weight is 40 x 24, and that of base is 32 x 24"),
        (half, "has one factor of two"),
        ({**both, f"{Q}.lora_magnitude_vector": torch.ones(32)}, "which is no factor of a LoRA adapter"),
        ({"model.embed_tokens.lora_embedding_A": torch.ones(2, checkpoint.shape.vocab),
          "model.embed_tokens.lora_embedding_B": torch.ones(24, 2)}, "uses for its input and its output"),
    ]  # fmt: skip
    for number, (tensors, says) in enumerate(cases):
        adapter = save_adapter(tmp_path / str(number), tensors)
        with pytest.raises(Refusal, match=says):
            open_adapter(adapter, checkpoint)
    adapter = save_adapter(tmp_path / "x", both)
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(Refusal, match="is not JSON"):
        open_adapter(adapter, checkpoint)
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(Refusal, match=r"it has no adapter_model.safetensors"):
        open_adapter(adapter, checkpoint)
