"""Every family as a tiny random model of its real configuration class, and batches for them."""

import functools
from collections.abc import Callable
from typing import Any, Final

import torch
import transformers as tf

from microtome.core import Batch, Role
from microtome.model import Model, wrap

_SIZES: Final[dict[str, Any]] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
_LONG: Final[dict[str, Any]] = {
    **_SIZES,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_GROUPED: Final[dict[str, Any]] = {**_LONG, "num_key_value_heads": 2}
_WIDE: Final[dict[str, Any]] = {**_GROUPED, "head_dim": 6}
_ENDS: Final[dict[str, Any]] = {"bos_token_id": 0, "eos_token_id": 1}
_OPT: Final[dict[str, Any]] = {
    **_ENDS,
    "vocab_size": 50,
    "hidden_size": 16,
    "ffn_dim": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
_GEMMA: Final[dict[str, Any]] = {**_WIDE, "sliding_window": 3, "query_pre_attn_scalar": 10, "final_logit_softcapping": 1.5}
_IMAGE: Final[dict[str, Any]] = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 8,
    "patch_size": 4,
}
_MODERN: Final[dict[str, Any]] = {
    **_LONG,
    "cls_token_id": 2,
    "sep_token_id": 3,
    "local_attention": 4,
    "global_attn_every_n_layers": 2,
}
_NEO_LAYERS: Final = [[["global", "local"], 1]]

TINY: Final[dict[str, Callable[[], Any]]] = {
    "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=50, n_embd=16, n_layer=3, n_head=4, n_positions=64, **_ENDS)),
    "gpt_neo": lambda: tf.GPTNeoForCausalLM(
        tf.GPTNeoConfig(
            vocab_size=50, hidden_size=16, num_layers=2, num_heads=4, attention_types=_NEO_LAYERS, window_size=3, **_ENDS
        )
    ),
    "gptj": lambda: tf.GPTJForCausalLM(
        tf.GPTJConfig(vocab_size=50, n_embd=16, n_layer=3, n_head=2, n_positions=64, rotary_dim=4, **_ENDS)
    ),
    "gpt_neox": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**{**_LONG, "num_attention_heads": 2, "rotary_pct": 0.5})),
    "gpt_neox-sequential": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**_LONG, use_parallel_residual=False)),
    "opt": lambda: tf.OPTForCausalLM(tf.OPTConfig(**_OPT, max_position_embeddings=64, word_embed_proj_dim=16)),
    "opt-postnorm": lambda: tf.OPTForCausalLM(
        tf.OPTConfig(**_OPT, max_position_embeddings=64, word_embed_proj_dim=8, do_layer_norm_before=False)
    ),
    "opt-unnormed": lambda: tf.OPTForCausalLM(
        tf.OPTConfig(**_OPT, max_position_embeddings=64, word_embed_proj_dim=16, _remove_final_layer_norm=True)
    ),
    "bloom": lambda: tf.BloomForCausalLM(tf.BloomConfig(vocab_size=50, hidden_size=24, n_layer=3, n_head=6)),
    "phi": lambda: tf.PhiForCausalLM(tf.PhiConfig(**{**_GROUPED, "partial_rotary_factor": 0.5})),
    "phi-normed": lambda: tf.PhiForCausalLM(tf.PhiConfig(**_GROUPED, qk_layernorm=True)),
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**_WIDE)),
    "llama-tied": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**_WIDE, tie_word_embeddings=True, attention_bias=True)),
    "llama-headless": lambda: tf.LlamaModel(tf.LlamaConfig(**_WIDE)),
    "llama-classifier": lambda: tf.LlamaForSequenceClassification(tf.LlamaConfig(**{**_WIDE, "num_labels": 3})),
    "mistral": lambda: tf.MistralForCausalLM(tf.MistralConfig(**_WIDE, sliding_window=3)),
    "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**_GROUPED)),
    "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**_WIDE)),
    "phi3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**_GROUPED)),
    "olmo2": lambda: tf.Olmo2ForCausalLM(tf.Olmo2Config(**_GROUPED)),
    "gemma": lambda: tf.GemmaForCausalLM(tf.GemmaConfig(**_WIDE)),
    "gemma2": lambda: tf.Gemma2ForCausalLM(tf.Gemma2Config(**_GEMMA, attn_logit_softcapping=2.0)),
    "gemma3_text": lambda: tf.Gemma3ForCausalLM(
        tf.Gemma3TextConfig(**_GEMMA, layer_types=["sliding_attention", "full_attention", "sliding_attention"])
    ),
    "gemma3_text-bidirectional": lambda: tf.Gemma3ForCausalLM(
        tf.Gemma3TextConfig(
            **_GEMMA, layer_types=["sliding_attention", "full_attention", "full_attention"], use_bidirectional_attention=True
        )
    ),
    "mixtral": lambda: tf.MixtralForCausalLM(tf.MixtralConfig(**_WIDE, num_local_experts=4, num_experts_per_tok=2)),
    "bert": lambda: tf.BertForMaskedLM(tf.BertConfig(**_LONG)),
    "bert-pretraining": lambda: tf.BertForPreTraining(tf.BertConfig(**_LONG)),
    "bert-headless": lambda: tf.BertModel(tf.BertConfig(**_LONG)),
    "bert-decoder": lambda: tf.BertLMHeadModel(tf.BertConfig(**_LONG, is_decoder=True)),
    "bert-classifier": lambda: tf.BertForSequenceClassification(tf.BertConfig(**{**_LONG, "num_labels": 3})),
    "roberta": lambda: tf.RobertaForMaskedLM(tf.RobertaConfig(**_LONG)),
    "distilbert": lambda: tf.DistilBertForMaskedLM(
        tf.DistilBertConfig(vocab_size=50, dim=16, hidden_dim=24, n_layers=3, n_heads=4, max_position_embeddings=64)
    ),
    "electra": lambda: tf.ElectraForMaskedLM(tf.ElectraConfig(**_LONG, embedding_size=8)),
    "electra-unfactorised": lambda: tf.ElectraForMaskedLM(tf.ElectraConfig(**_LONG, embedding_size=16)),
    "albert": lambda: tf.AlbertForMaskedLM(
        tf.AlbertConfig(**{**_LONG, "num_hidden_layers": 4}, embedding_size=8, num_hidden_groups=2)
    ),
    "albert-inner": lambda: tf.AlbertForMaskedLM(
        tf.AlbertConfig(**{**_LONG, "num_hidden_layers": 2}, embedding_size=16, num_hidden_groups=1, inner_group_num=2)
    ),
    "modernbert": lambda: tf.ModernBertForMaskedLM(tf.ModernBertConfig(**_MODERN)),
    "vit": lambda: tf.ViTModel(tf.ViTConfig(**_IMAGE, intermediate_size=24)),
    "vit-classifier": lambda: tf.ViTForImageClassification(tf.ViTConfig(**_IMAGE, intermediate_size=24)),
    "dinov2": lambda: tf.Dinov2Model(tf.Dinov2Config(**_IMAGE, mlp_ratio=2, layerscale_value=0.5)),
    "dinov2-gated": lambda: tf.Dinov2Model(tf.Dinov2Config(**_IMAGE, mlp_ratio=2, use_swiglu_ffn=True)),
}
"""By family name, with `-variant` where a family has several."""


def built(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """The transformers model, with every parameter away from its initial value: zero biases and unit gains would hide mistakes."""
    torch.manual_seed(sorted(TINY).index(name))
    module = TINY[name]()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return module.to(dtype).eval()


@functools.cache
def opened(name: str, dtype: torch.dtype = torch.float32) -> Model:
    """The model wrapped, once for all tests: a test that changes a model builds its own (`changed` finds those that do not)."""
    model = wrap(built(name, dtype), name=name)
    _opened.append((model, [(weight, weight._version, weight.detach().clone()) for weight in model.module.parameters()]))
    return model


_opened: list[tuple[Model, list[tuple[torch.nn.Parameter, int, torch.Tensor]]]] = []
"""Every shared model with its parameters, their versions and their values as built."""


def changed() -> list[str]:
    """The shared models that are no longer as built; they are built anew where they are asked for next.

    Versions tell what was written to, values whether it was put back: an edit that undoes itself changes nothing.
    """
    names = []
    for model, weights in _opened:
        written = any(weight._version != version for weight, version, _ in weights)
        if written and not all(torch.equal(weight, value) for weight, _, value in weights):
            names.append(model.name)
    if names:
        _opened.clear()
        opened.cache_clear()
    return names


def batch_for(model: Model, lengths: tuple[int, ...] = (7, 7)) -> Batch:
    """Random tokens, windows padded on the right to the longest; or random images."""
    seed = torch.Generator().manual_seed(5)
    extra = {}
    if model.family.inputs == "image":
        tokens = model.shape.context or 0
        extra["pixel_values"] = torch.randn(len(lengths), 3, 8, 8, generator=seed, dtype=torch.float32).to(model.dtype)
        lengths = (tokens,) * len(lengths)
    ids = torch.randint(5, 50, (len(lengths), max(lengths)), generator=seed)
    roles = torch.full(ids.shape, Role.CONTENT, dtype=torch.uint8)
    for row, length in enumerate(lengths):
        ids[row, length:] = 1
        roles[row, length:] = Role.PAD
    none = torch.zeros(len(lengths), dtype=torch.long)
    return Batch(ids, roles, torch.arange(len(lengths)), none, none, none.to(torch.uint8), none, extra)
