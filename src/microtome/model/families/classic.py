"""Rows of the decoders with plain MLPs: GPT-2 and its relatives, GPT-NeoX, OPT, BLOOM, Phi."""

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from microtome.model.families.attention import (
    alibi_scores,
    headwise_thirds,
    local_scores,
    rotate_halves,
    rotate_pairs,
    scaled,
    thirds,
)
from microtome.model.families.decoders import ROTARY, TURN
from microtome.model.families.parts import (
    attention,
    embeddings,
    linear_head,
    parallel_stream,
    plain_mlp,
    post_stream,
    pre_stream,
    same,
    transposed,
)
from microtome.model.families.rows import (
    Facts,
    Family,
    Head,
    NormRow,
    Part,
    Recipe,
    Source,
    Tap,
    Variant,
    WeightRow,
    source,
    taken,
)
from microtome.model.shape import Shape

__all__ = ["CLASSIC"]

_GPT2_EPS = "layer_norm_epsilon"

GPT2 = Family(
    name="gpt2",
    prefix="transformer",
    block="h.{i}",
    parts=(
        embeddings("wte", "wpe"),
        *attention("attn", "attn.c_attn", "attn.c_proj", split=thirds, turn=same),
        plain_mlp("mlp.c_fc", "mlp.c_proj", turn=same),
        pre_stream("ln_1", "ln_2", "ln_f", "layer", _GPT2_EPS),
    ),
    layout={"norm": "pre", "causal": True, "learned_positions": True},
    heads={
        "LMHeadModel": linear_head("causal", "lm_head", "wte"),
        "DoubleHeadsModel": linear_head("causal", "lm_head", "wte"),
    },
    dims={"d_mlp": lambda config: config.n_inner or 4 * config.hidden_size},
    final=("ln_f",),
)

_NEO = "attn.attention"

GPT_NEO = Family(
    name="gpt_neo",
    prefix="transformer",
    block="h.{i}",
    parts=(
        embeddings("wte", "wpe"),
        *attention(
            _NEO,
            f"{_NEO}.q_proj {_NEO}.k_proj {_NEO}.v_proj",
            f"{_NEO}.out_proj",
            score=(local_scores, (Tap(_NEO, "in", "attention_mask"),)),
        ),
        plain_mlp("mlp.c_fc", "mlp.c_proj"),
        pre_stream("ln_1", "ln_2", "ln_f", "layer", _GPT2_EPS),
    ),
    layout={"norm": "pre", "causal": True, "learned_positions": True},
    heads={"ForCausalLM": linear_head("causal", "lm_head", "wte")},
    dims={"d_mlp": lambda config: config.intermediate_size or 4 * config.hidden_size},
    final=("ln_f",),
)

GPTJ = Family(
    name="gptj",
    prefix="transformer",
    block="h.{i}",
    parts=(
        embeddings("wte", why=ROTARY),
        *attention(
            "attn",
            "attn.q_proj attn.k_proj attn.v_proj",
            "attn.out_proj",
            rotate=(rotate_pairs, Tap("attn", "in", "position_ids")),
            score=(scaled(lambda facts: 1.0 / facts.at("attn").scale_attn), (Tap("attn", "in", "attention_mask"),)),
        ),
        plain_mlp("mlp.fc_in", "mlp.fc_out"),
        parallel_stream("ln_1", "ln_1", "ln_f", _GPT2_EPS),
    ),
    layout={"norm": "parallel", "causal": True, "rotary": True},
    heads={"ForCausalLM": linear_head("causal", "lm_head", "wte")},
    dims={"d_mlp": lambda config: config.n_inner or 4 * config.hidden_size},
    final=("ln_f",),
)

_NEOX_NORMS = ("input_layernorm", "post_attention_layernorm", "final_layer_norm")

GPT_NEOX = Family(
    name="gpt_neox",
    prefix="gpt_neox",
    block="layers.{i}",
    parts=(
        embeddings("embed_in", why=ROTARY),
        *attention(
            "attention",
            "attention.query_key_value",
            "attention.dense",
            split=headwise_thirds,
            rotate=(rotate_halves, Tap("attention", "in", "position_embeddings")),
        ),
        plain_mlp("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        parallel_stream(*_NEOX_NORMS, "layer_norm_eps"),
    ),
    layout={"norm": "parallel", "causal": True, "rotary": True},
    heads={"ForCausalLM": linear_head("causal", "lm_head", "embed_in")},
    final=("final_layer_norm",),
    variants=(
        Variant(
            lambda config: not config.use_parallel_residual,
            (pre_stream(*_NEOX_NORMS, "layer", "layer_norm_eps"),),
            {"norm": "pre"},
        ),
    ),
    disk=((r"^lm_head\.", "embed_out."),),
)


def _windowed(facts: Facts, value: Tensor) -> Tensor:
    """OPT flattens windows and positions into rows for its MLP; this sees them apart again."""
    return value.unflatten(0, (facts.windows, facts.tokens)) if value.dim() == 2 else value


def _all_windowed(part: Part) -> Part:
    return replace(part, sites={name: Recipe(recipe.taps, _windowed) for name, recipe in part.sites.items()})


def _opt_head(module: nn.Module, value: Tensor) -> Tensor:
    project: Any = module.get_submodule("model.decoder").project_out
    return module.get_submodule("lm_head")(value if project is None else project(value))


def _through(shape: Shape, first: Tensor, second: Tensor) -> Tensor:
    """Two linear layers in a row as one (in, out)."""
    return first.T @ second.T


def _projected_rows(shape: Shape, table: Tensor, project: Tensor) -> Tensor:
    """Embeddings of fewer coordinates, through the layer that brings them to d_model."""
    return table @ project.T


_OPT_PROJECTED = Part(
    {"embed": taken("decoder.project_in", "out")},
    weights={"W_E": source(_projected_rows, "decoder.embed_tokens.weight", "decoder.project_in.weight")},
)
_OPT_UNEMBED = WeightRow(
    (
        Source(("decoder.project_out.weight", "/lm_head.weight"), _through),
        Source(("decoder.project_out.weight", "decoder.embed_tokens.weight"), _through),
        Source(("/lm_head.weight",), transposed),
        Source(("decoder.embed_tokens.weight",), transposed),
    )
)

OPT = Family(
    name="opt",
    prefix="model",
    block="decoder.layers.{i}",
    parts=(
        embeddings("decoder.embed_tokens", "decoder.embed_positions"),
        *attention("self_attn", "self_attn.q_proj self_attn.k_proj self_attn.v_proj", "self_attn.out_proj"),
        _all_windowed(plain_mlp("fc1", "fc2")),
        _all_windowed(pre_stream("self_attn_layer_norm", "final_layer_norm", "decoder.final_layer_norm", "layer", 1e-5)),
    ),
    layout={"norm": "pre", "causal": True, "learned_positions": True},
    heads={"ForCausalLM": Head("causal", _opt_head, {"W_U": _OPT_UNEMBED})},
    dims={"d_mlp": lambda config: config.ffn_dim},
    final=("decoder.final_layer_norm",),
    variants=(
        Variant(lambda config: config.word_embed_proj_dim != config.hidden_size, (_OPT_PROJECTED,)),
        Variant(
            lambda config: config._remove_final_layer_norm,
            (Part({"final_norm": taken("{last}", "out")}, without=frozenset({"final_norm"})),),
            final=(),
        ),
        Variant(
            lambda config: not config.do_layer_norm_before,
            (_all_windowed(post_stream("self_attn_layer_norm", "final_layer_norm", 1e-5)),),
            {"norm": "post"},
            final=(),
        ),
    ),
)

_BLOOM = "self_attention"

BLOOM = Family(
    name="bloom",
    prefix="transformer",
    block="h.{i}",
    parts=(
        embeddings(
            "word_embeddings", why="positions enter as ALiBi, a slope added to attn_scores: no vector is added to the stream"
        ),
        Part(norms={"embed_norm": NormRow("word_embeddings_layernorm", "layer", _GPT2_EPS)}),
        *attention(
            _BLOOM,
            f"{_BLOOM}.query_key_value",
            f"{_BLOOM}.dense",
            split=headwise_thirds,
            score=(alibi_scores, (Tap(_BLOOM, "in", "attention_mask"), Tap(_BLOOM, "in", "alibi"))),
        ),
        plain_mlp("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        pre_stream("input_layernorm", "post_attention_layernorm", "ln_f", "layer", _GPT2_EPS),
    ),
    layout={"norm": "pre", "causal": True},
    heads={"ForCausalLM": linear_head("causal", "lm_head", "word_embeddings")},
    dims={"d_mlp": lambda config: 4 * config.hidden_size, "context": lambda config: None},
    final=("ln_f",),
)

_PHI_QKV = "self_attn.q_proj self_attn.k_proj self_attn.v_proj"
_PHI_NORMS = ("self_attn.q_layernorm", "self_attn.k_layernorm")

PHI = Family(
    name="phi",
    prefix="model",
    block="layers.{i}",
    parts=(
        embeddings("embed_tokens", why=ROTARY),
        *attention("self_attn", _PHI_QKV, "self_attn.dense", rotate=TURN),
        plain_mlp("mlp.fc1", "mlp.fc2"),
        parallel_stream("input_layernorm", "input_layernorm", "final_layernorm", "layer_norm_eps"),
    ),
    layout={"norm": "parallel", "causal": True, "rotary": True},
    heads={"ForCausalLM": linear_head("causal", "lm_head", "embed_tokens")},
    final=("final_layernorm",),
    variants=(
        Variant(
            lambda config: config.qk_layernorm,
            (
                *attention("self_attn", _PHI_QKV, "self_attn.dense", rotate=TURN, norms=(*_PHI_NORMS, "head")),
                Part(
                    norms={
                        n: NormRow(path, "layer", "layer_norm_eps")
                        for n, path in zip(("q_norm", "k_norm"), _PHI_NORMS, strict=True)
                    }
                ),
            ),
        ),
    ),
)

CLASSIC = (GPT2, GPT_NEO, GPTJ, GPT_NEOX, OPT, BLOOM, PHI)
