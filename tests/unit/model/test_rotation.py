"""Rotary embeddings against multiplication by complex numbers, and head splits against slicing by hand."""

import pytest
import torch

from microtome.core import Site
from microtome.model import capture
from tests.unit.model.tiny import batch_for, opened

ROTATED = {"llama": 6, "gpt_neox": 4, "phi": 2, "gptj": 4}
"""How many coordinates of a head turn: all of Llama's, half of GPT-NeoX's and Phi's, `rotary_dim` of GPT-J's."""


@pytest.mark.parametrize("name", ROTATED)
def test_queries_turn_by_position_times_frequency(name: str) -> None:
    model = opened(name)
    q, turned = capture(model, batch_for(model), [Site("q", 1), Site("q_rot", 1)]).values()
    width = ROTATED[name]
    frequencies = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.arange(q.shape[1], dtype=torch.float64)[:, None] * frequencies
    phase = torch.polar(torch.ones_like(angles), angles)[None, :, None, :]
    part = q[..., :width].double()
    if name == "gptj":
        spun = torch.view_as_real(torch.view_as_complex(part.unflatten(-1, (-1, 2)).contiguous()) * phase).flatten(-2)
    else:
        first, second = part.chunk(2, dim=-1)
        product = torch.complex(first, second) * phase
        spun = torch.cat((product.real, product.imag), dim=-1)
    torch.testing.assert_close(turned[..., :width].double(), spun, rtol=1e-5, atol=1e-6)
    assert torch.equal(turned[..., width:], q[..., width:])


def test_norms_over_heads_come_before_the_turn() -> None:
    model = opened("qwen3")
    k, turned = capture(model, batch_for(model), [Site("k", 0), Site("k_rot", 0)]).values()
    norm = model.weights.norm("k_norm", 0)
    expected = k / (k.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.gain
    torch.testing.assert_close(turned[:, 0], expected[:, 0])  # position 0 does not turn
    torch.testing.assert_close(turned.norm(dim=-1), expected.norm(dim=-1))


def test_a_model_without_rotation_scores_its_queries_as_they_are() -> None:
    model = opened("bert")
    q, turned = capture(model, batch_for(model), [Site("q", 2), Site("q_rot", 2)]).values()
    assert torch.equal(q, turned)


def test_gpt_neox_keeps_q_k_v_of_a_head_together() -> None:
    model = opened("gpt_neox")
    fused = model.module.gpt_neox.layers[1].attention.query_key_value.weight
    assert torch.equal(model.weights.get("W_K", 1)[1], fused[24 + 8 : 24 + 16].T)
    assert torch.equal(model.weights.get("W_V", 1)[0], fused[16:24].T)


def test_phi3_keeps_all_queries_before_the_shared_keys() -> None:
    model = opened("phi3")
    fused = model.module.model.layers[0].self_attn.qkv_proj.weight
    assert torch.equal(model.weights.get("W_Q", 0)[3], fused[12:16].T)
    assert torch.equal(model.weights.get("W_K", 0)[1], fused[20:24].T)
    assert torch.equal(model.weights.get("W_V", 0)[1], fused[28:32].T)
    assert model.weights.get("W_K", 0).shape == (2, 16, 4)


def test_gpt2_keeps_all_heads_of_q_then_of_k_then_of_v() -> None:
    model = opened("gpt2")
    fused = model.module.transformer.h[2].attn.c_attn
    assert torch.equal(model.weights.get("W_V", 2)[1], fused.weight[:, 36:40])
    assert torch.equal(model.weights.get("b_K", 2)[3], fused.bias[28:32])
    assert torch.equal(model.weights.get("W_O", 2)[1], model.module.transformer.h[2].attn.c_proj.weight[4:8])
