"""Weight views: what they refuse, Gemma's gains, what checkpoints of other ages look like."""

import pytest
import torch

from microtome.core import Refusal, Site
from microtome.model import Model, Weights, capture
from microtome.model.weights import stored_tensors
from tests.unit.model.tiny import batch_for, built, opened


def _stored(model: Model, tensors: dict[str, torch.Tensor]) -> Weights:
    return Weights(model.family, model.shape, model.config, model.head, stored_tensors(tensors, model.family))


def test_grouped_heads_share_keys() -> None:
    weights = opened("llama").weights
    assert weights.get("W_Q", 0).shape == (4, 16, 6)
    assert weights.get("W_K", 0).shape == weights.get("W_V", 0).shape == (2, 16, 6)
    assert weights.get("W_O", 0).shape == (4, 6, 16)


def test_views_copy_nothing() -> None:
    model = opened("gpt2")
    block = model.module.transformer.h[0]
    assert model.weights.get("W_in", 0).data_ptr() == block.mlp.c_fc.weight.data_ptr()
    assert model.weights.get("W_Q", 0).untyped_storage().data_ptr() == block.attn.c_attn.weight.untyped_storage().data_ptr()


@pytest.mark.parametrize("name", ["gemma", "gemma2", "gemma3_text"])
def test_gemma_gains_have_their_one_and_its_embeddings_their_scale(name: str) -> None:
    model = opened(name)
    norm = model.weights.norm("attn_norm", 1)
    assert norm.kind == "rms"
    assert torch.equal(norm.gain, 1.0 + model.trunk.layers[1].input_layernorm.weight)
    batch = batch_for(model)
    embed = capture(model, batch, [Site("embed")])[Site("embed")]
    assert torch.equal(embed, model.weights.get("W_E")[batch.ids])
    assert torch.equal(embed, model.trunk.embed_tokens.weight[batch.ids] * 4.0)


@pytest.mark.parametrize(("name", "unused"), [("roberta", 2), ("opt", 2), ("bert", 0)])
def test_position_0_is_row_0_of_w_pos(name: str, unused: int) -> None:
    model = opened(name)
    table = next(value for key, value in model.module.state_dict().items() if "position" in key and key.endswith("weight"))
    assert torch.equal(model.weights.get("W_pos"), table[unused:])
    assert model.weights.get("W_pos").shape[0] == model.shape.context
    seen = capture(model, batch_for(model), [Site("pos_embed")])[Site("pos_embed")]
    assert torch.equal(seen[0], model.weights.get("W_pos")[:7])


def test_the_first_modernbert_block_has_no_attention_norm() -> None:
    weights = opened("modernbert").weights
    assert not weights.has("attn_norm", 0)
    assert weights.has("attn_norm", 1)
    with pytest.raises(Refusal, match=r"norm attn_norm\.0 of modernbert: the model has no such norm; use one of .*mlp_norm"):
        weights.norm("attn_norm", 0)


def test_opt_350_projects_its_embeddings_in_and_out() -> None:
    model = opened("opt-postnorm")
    decoder = model.module.model.decoder
    assert torch.equal(model.weights.get("W_E"), decoder.embed_tokens.weight @ decoder.project_in.weight.T)
    expected = decoder.project_out.weight.T @ model.module.lm_head.weight.T
    assert torch.equal(model.weights.get("W_U"), expected)
    assert set(model.family.norms) == {"attn_norm_post", "mlp_norm_post"}


@pytest.mark.parametrize(
    ("name", "weight", "layer", "message"),
    [
        ("llama", "W_in", 0, "weight W_in.0 of llama: llama models have no weight of this name; use one of W_Q, "),
        ("llama", "b_Q", 0, "weight b_Q.0 of llama: the model has no such weight"),
        ("llama", "W_pos", None, "positions enter by rotating"),
        ("llama", "W_O", None, "weight W_O: it exists once per layer; name a layer below 3"),
        ("llama", "W_O", 3, "weight W_O.3: it exists once per layer; name a layer below 3"),
        ("llama", "W_E", 1, "weight W_E.1: it exists once per model; ask for W_E"),
        ("llama-headless", "W_U", None, "opened without a head"),
        ("albert", "W_E", None, "fewer coordinates than the stream"),
        ("albert", "W_U", None, "W_U does not read d_model"),
        ("vit", "W_E", None, "images have no vocabulary"),
    ],
)
def test_a_weight_that_is_not_there_is_refused(name: str, weight: str, layer: int | None, message: str) -> None:
    with pytest.raises(Refusal) as refusal:
        opened(name).weights.get(weight, layer)
    assert message in str(refusal.value).replace("W_O, ", "")


def test_tied_embeddings_are_found_where_the_file_keeps_them_once() -> None:
    model = opened("llama-tied")
    tensors = {name: value for name, value in model.module.state_dict().items() if name != "lm_head.weight"}
    assert torch.equal(_stored(model, tensors).get("W_U"), model.module.model.embed_tokens.weight.T)


def test_files_without_the_trunk_s_name_are_read() -> None:
    model = opened("gpt2")
    tensors = {name.removeprefix("transformer."): value for name, value in model.module.state_dict().items()}
    assert torch.equal(_stored(model, tensors).get("W_in", 1), model.weights.get("W_in", 1))


def test_the_oldest_names_of_norms_are_read() -> None:
    model = opened("bert")
    tensors = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in model.module.state_dict().items()
    }
    ours, theirs = model.weights.norm("mlp_norm_post", 2), _stored(model, tensors).norm("mlp_norm_post", 2)
    assert ours.bias is not None
    assert theirs.bias is not None
    assert torch.equal(ours.gain, theirs.gain)
    assert torch.equal(ours.bias, theirs.bias)


def test_mixtral_experts_are_read_one_by_one_as_checkpoints_keep_them() -> None:
    model = opened("mixtral")
    fused = {name: value for name, value in built("mixtral").state_dict().items() if ".experts." not in name}
    for expert in range(4):
        at = f"model.layers.1.block_sparse_moe.experts.{expert}"
        fused[f"{at}.w1.weight"] = torch.full((24, 16), 1.0 + expert)
        fused[f"{at}.w2.weight"] = torch.full((16, 24), 2.0 + expert)
        fused[f"{at}.w3.weight"] = torch.full((24, 16), 3.0 + expert)
    weights = _stored(model, fused)
    assert weights.get("W_gate", 1).shape == weights.get("W_up", 1).shape == (4, 16, 24)
    assert weights.get("W_out", 1).shape == (4, 24, 16)
    assert weights.get("W_gate", 1)[2].unique().tolist() == [3.0]
    assert weights.get("W_out", 1)[2].unique().tolist() == [4.0]
    assert weights.get("W_up", 1)[2].unique().tolist() == [5.0]
    assert not weights.has("W_up", 0)


@pytest.mark.parametrize(
    ("name", "plus", "width"), [("qwen3", 0.0, 6), ("gemma3_text", 1.0, 6), ("olmo2", 0.0, 16), ("phi-normed", 0.0, 4)]
)
def test_norms_of_queries_and_keys_are_named(name: str, plus: float, width: int) -> None:
    """Per head, or (OLMo 2) over all heads; Gemma's gain is 1 + w."""
    model = opened(name)
    attention = model.block(1).get_submodule("self_attn")
    layernorm = "layernorm" if name == "phi-normed" else "norm"
    for part in ("q", "k"):
        norm = model.weights.norm(f"{part}_norm", 1)
        parameter = attention.get_parameter(f"{part}_{layernorm}.weight")
        assert norm.kind == ("layer" if name == "phi-normed" else "rms")
        torch.testing.assert_close(norm.gain, parameter.detach() + plus)
    assert model.weights.norm("q_norm", 1).gain.shape == (width,)
