"""Rows of the decoders with rotary positions and RMS norms: Llama and its relatives."""

from dataclasses import replace

import torch
from torch import Tensor

from microtome.model.families.attention import ranges, rotate_halves, scaled
from microtome.model.families.parts import attention, embeddings, gated_mlp, linear_head, own_scale, pre_stream, sandwich_stream
from microtome.model.families.rows import Family, NormRow, Part, Tap, Variant, source
from microtome.model.shape import Shape

__all__ = ["DECODERS", "LLAMA", "ROTARY", "TURN"]

ROTARY = "positions enter by rotating queries and keys: no vector is added to the stream"
TURN = (rotate_halves, Tap("self_attn", "in", "position_embeddings"))
_QKV = "self_attn.q_proj self_attn.k_proj self_attn.v_proj"
_OUT = "self_attn.o_proj"
_QK_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
_EPS = "rms_norm_eps"


def _qk_norms(plus: float = 0.0) -> Part:
    names = zip(("q_norm", "k_norm"), _QK_NORMS, strict=True)
    return Part(norms={name: NormRow(path, "rms", _EPS, plus) for name, path in names})


def _scaled_rows(shape: Shape, value: Tensor) -> Tensor:
    """Gemma multiplies what it looks up by the square root of d_model, rounded to the dtype."""
    return value * torch.tensor(shape.d_model**0.5, dtype=value.dtype)


_PRE_NORM = pre_stream("input_layernorm", "post_attention_layernorm", "norm", "rms", _EPS)
_EMBEDDINGS = embeddings("embed_tokens", why=ROTARY)
_SCALED = Part(weights={"W_E": source(_scaled_rows, "embed_tokens.weight")})
_MLP = gated_mlp("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")

LLAMA = Family(
    name="llama",
    prefix="model",
    block="layers.{i}",
    parts=(_EMBEDDINGS, *attention("self_attn", _QKV, _OUT, rotate=TURN), _MLP, _PRE_NORM),
    layout={"norm": "pre", "causal": True, "gated": True, "rotary": True},
    heads={"ForCausalLM": linear_head("causal", "lm_head", "embed_tokens")},
    final=("norm",),
)

MISTRAL = replace(LLAMA, name="mistral")

QWEN2 = replace(LLAMA, name="qwen2")

QWEN3 = replace(
    LLAMA,
    name="qwen3",
    parts=(
        _EMBEDDINGS,
        *attention("self_attn", _QKV, _OUT, rotate=TURN, norms=(*_QK_NORMS, "head")),
        _qk_norms(),
        _MLP,
        _PRE_NORM,
    ),
)

PHI3 = replace(
    LLAMA,
    name="phi3",
    parts=(
        _EMBEDDINGS,
        *attention("self_attn", "self_attn.qkv_proj", _OUT, split=ranges, rotate=TURN),
        gated_mlp("mlp.gate_up_proj", "mlp.gate_up_proj", "mlp.down_proj"),
        _PRE_NORM,
    ),
)

OLMO2 = replace(
    LLAMA,
    name="olmo2",
    parts=(
        _EMBEDDINGS,
        *attention("self_attn", _QKV, _OUT, rotate=TURN, norms=(*_QK_NORMS, "model")),
        _qk_norms(),
        _MLP,
        sandwich_stream((None, "post_attention_layernorm"), (None, "post_feedforward_layernorm"), "norm", _EPS),
    ),
    layout={**LLAMA.layout, "norm": "sandwich"},
)

GEMMA = replace(
    LLAMA,
    name="gemma",
    parts=(
        _EMBEDDINGS,
        _SCALED,
        *attention("self_attn", _QKV, _OUT, rotate=TURN),
        _MLP,
        pre_stream("input_layernorm", "post_attention_layernorm", "norm", "rms", _EPS, plus=1.0),
    ),
    variants=(Variant(lambda config: bool(config.use_bidirectional_attention), layout={"causal": False}),),
)

_SANDWICH = sandwich_stream(
    ("input_layernorm", "post_attention_layernorm"),
    ("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    "norm",
    _EPS,
    plus=1.0,
)
_CAPPED = scaled(own_scale("self_attn"), lambda facts: facts.config.attn_logit_softcapping)

GEMMA2 = replace(
    GEMMA,
    name="gemma2",
    parts=(
        _EMBEDDINGS,
        _SCALED,
        *attention("self_attn", _QKV, _OUT, rotate=TURN, score=(_CAPPED, (Tap("self_attn", "in", "attention_mask"),))),
        _MLP,
        _SANDWICH,
    ),
    layout={**LLAMA.layout, "norm": "sandwich"},
    heads={"ForCausalLM": linear_head("causal", "lm_head", "embed_tokens", cap="final_logit_softcapping")},
)

GEMMA3_TEXT = replace(
    GEMMA2,
    name="gemma3_text",
    parts=(
        _EMBEDDINGS,
        _SCALED,
        *attention("self_attn", _QKV, _OUT, rotate=TURN, norms=(*_QK_NORMS, "head")),
        _qk_norms(plus=1.0),
        _MLP,
        _SANDWICH,
    ),
)

DECODERS = (LLAMA, MISTRAL, QWEN2, QWEN3, PHI3, OLMO2, GEMMA, GEMMA2, GEMMA3_TEXT)
