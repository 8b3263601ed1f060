"""The certificate: models that break an identity are refused with it, lower dtypes are measured, records go to JSON."""

import json
from typing import Any

import pytest
import torch
from torch import nn

from microtome.core import Refusal, Site
from microtome.model import Certificate, capture, inputs_of, wrap
from microtome.model.certificate import probe_batch
from microtome.model.families import FAMILIES
from microtome.model.reference import fp32_states
from microtome.model.weights import stored_tensors
from tests.unit.model.tiny import batch_for, built, opened


class _Scaled(nn.Linear):
    """A linear layer whose output is not what its weight says."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 1.001


def _replace(module: nn.Module, path: str) -> None:
    layer: Any = module.get_submodule(path)
    other = _Scaled(layer.in_features, layer.out_features, bias=layer.bias is not None)
    other.load_state_dict(layer.state_dict())
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, other)


@pytest.mark.parametrize(
    ("path", "identity"),
    [
        ("model.layers.1.mlp.down_proj", "mlp_out = sum over units of mlp_act W_out + b_out"),
        ("model.layers.1.self_attn.o_proj", "attn_out = sum over heads of z W_O + b_O"),
        ("model.layers.1.self_attn.k_proj", "k = attn_in W_K + b_K"),
        ("model.layers.1.mlp.up_proj", "mlp_pre_linear = mlp_in W_up + b_up"),
    ],
)
def test_a_layer_that_is_not_its_weights_is_refused(path: str, identity: str) -> None:
    module = built("llama")
    _replace(module, path)
    with pytest.raises(Refusal) as refusal:
        wrap(module, name="crooked")
    assert refusal.value.what == "model crooked"
    assert refusal.value.why.startswith(f"{identity!r} fails in layer 1: relative error ")
    assert "allowed 1e-05" in refusal.value.why


def test_a_block_that_adds_something_else_is_refused() -> None:
    module = built("gpt2")
    block = module.transformer.h[2]
    original = block.mlp.forward
    block.mlp.forward = lambda value: original(value) + 0.01
    with pytest.raises(Refusal, match=r"resid_post = resid_mid \+ mlp_out_post.* fails in layer 2"):
        wrap(module)


def test_a_wrong_epsilon_is_refused() -> None:
    module = built("llama")
    module.model.layers[0].input_layernorm.variance_epsilon = 0.1
    with pytest.raises(Refusal, match=r"attn_in = attn_norm\(resid_pre\).* fails in layer 0"):
        wrap(module)


def test_attention_by_another_formula_is_refused() -> None:
    module = built("gpt2")
    module.transformer.h[1].attn.scaling = 0.9
    model = wrap(module)  # the scale is the module's own: this is a consistent model
    assert model.certificate.passed
    module = built("bloom")
    module.transformer.h[1].self_attention.inv_norm_factor = 0.9
    with pytest.raises(Refusal, match=r"z = attn_probs v.* fails in layer 1"):
        wrap(module)


def test_nan_in_weights_is_refused() -> None:
    module = built("bert")
    with torch.no_grad():
        module.bert.encoder.layer[1].output.dense.weight[0, 0] = torch.nan
    with pytest.raises(Refusal, match="check the weights for NaN"):
        wrap(module)


def test_checking_leaves_the_model_as_it_was() -> None:
    module = built("llama")
    before = module.config._attn_implementation
    model = wrap(module)
    assert module.config._attn_implementation == before == "sdpa"
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert not model.module.training


def test_a_certificate_goes_to_json_and_back() -> None:
    certificate = opened("llama", torch.bfloat16).certificate
    assert Certificate.from_json(json.loads(json.dumps(certificate.to_json()))) == certificate
    assert certificate.dtype == "bfloat16"
    assert len(certificate.dtypes) == 3
    assert not Certificate("", "", (), ()).passed


@pytest.mark.parametrize("name", ["gpt2", "opt-postnorm", "llama", "gemma2", "mixtral", "bert", "albert", "modernbert", "vit"])
def test_the_fp32_reference_is_the_fp32_model(name: str) -> None:
    low = opened(name, torch.bfloat16)
    batch = batch_for(low, (7, 5))
    states = fp32_states(low, batch)
    wide = built(name, torch.bfloat16).float()
    exact = wide(**inputs_of(low, batch), output_hidden_states=True).hidden_states
    assert len(states) == low.shape.layers
    assert low.dtype == torch.bfloat16
    for state, expected in zip(states[:-1], exact[1:-1], strict=True):
        torch.testing.assert_close(state, expected, rtol=2e-3, atol=2e-3)


def test_the_reference_takes_the_checkpoint_s_own_values() -> None:
    exact = built("llama")
    stored = {name.removeprefix("model."): value.clone() for name, value in exact.state_dict().items()}
    low = wrap(built("llama", torch.bfloat16))
    batch = probe_batch(low)
    # The embedding stays the model's own: the reference starts from the stream that the model starts from.
    exact.model.embed_tokens.weight.data.copy_(low.module.model.embed_tokens.weight)
    expected = exact(**inputs_of(low, batch), output_hidden_states=True).hidden_states
    states = fp32_states(low, batch, stored.get)
    rounded = fp32_states(low, batch)
    assert (rounded[0] - expected[1]).abs().max() > 1e-4
    torch.testing.assert_close(states[0], expected[1], rtol=1e-4, atol=2e-5)


def test_a_file_with_other_weights_than_the_built_model_is_refused() -> None:
    module = built("llama")
    tensors = {name: value.clone() for name, value in module.state_dict().items()}
    stored = stored_tensors(tensors, FAMILIES["llama"])
    certified = wrap(module, stored=stored).certificate
    assert certified.identities[0].identity == "weights by memory map = weights of the built model"
    assert certified.identities[0].worst_error == 0.0
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] += 0.01
    with pytest.raises(Refusal, match="weights by memory map = weights of the built model' fails in layer 1"):
        wrap(module, stored=stored)


def test_dtype_rows_measure_the_observed_stream() -> None:
    model = opened("gpt2", torch.bfloat16)
    batch = probe_batch(model)
    states = fp32_states(model, batch)
    for row in model.certificate.dtypes:
        seen = capture(model, batch, [Site("resid_post", row.layer)])[Site("resid_post", row.layer)]
        exact = states[row.layer]
        assert row.relative_error == pytest.approx(float((seen.float() - exact).norm() / exact.norm()))
        assert 0.001 < row.relative_error < 0.05
        assert 0.99 < row.worst_cosine <= 1.0
