"""Rows of the text encoders: BERT and its relatives, ALBERT with its shared blocks, ModernBERT."""

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from microtome.model.families.attention import rotate_halves_fp32, scaled, thirds
from microtome.model.families.decoders import ROTARY
from microtome.model.families.parts import (
    attention,
    embeddings,
    gated_mlp,
    own_scale,
    plain_mlp,
    post_stream,
    pre_stream,
    same,
    transposed,
)
from microtome.model.families.rows import Family, Head, NormRow, Part, Place, Source, Tap, Variant, WeightRow, source

__all__ = ["ENCODERS"]


def _masked_head(steps: str, bias: str | None = None, tied: str = "embeddings.word_embeddings", output: str = "logits") -> Head:
    """A masked-language-model head: the modules `steps` one after another, the last with W_U, and a nonlinearity on the way.

    `act` among the steps is the activation that the model itself keeps.
    """
    *_, last = steps.split()

    def apply(model: Any, value: Tensor) -> Tensor:
        for step in steps.split():
            value = model.activation(value) if step == "act" else model.get_submodule(step)(value)
        return value

    return Head("masked", apply, _decoder_weights(last, bias or f"{last}.bias", tied), output=output, transform=True)


def _decoder_weights(decoder: str, bias: str, tied: str) -> dict[str, WeightRow]:
    return {
        "W_U": WeightRow((Source((f"/{decoder}.weight",), transposed), Source((f"{tied}.weight",), transposed))),
        "b_U": WeightRow((Source((f"/{decoder}.bias",), same), Source((f"/{bias}",), same))),
    }


def _whole_head(module: str, decoder: str = "decoder", output: str = "logits") -> Head:
    """A masked-language-model head that is one module with its decoder and bias inside."""
    weights = _decoder_weights(f"{module}.{decoder}", f"{module}.bias", "embeddings.word_embeddings")
    return Head("masked", lambda model, value: model.get_submodule(module)(value), weights, output=output, transform=True)


def _embedding_norm(path: str, eps: float | str = "layer_norm_eps") -> Part:
    """The norm that an encoder applies to the sum of its embeddings, before the first block."""
    return Part(norms={"embed_norm": NormRow(path, "layer", eps)})


_SELF = "attention.self"
_TOKENS = embeddings("embeddings.word_embeddings", "embeddings.position_embeddings")
_TYPES = Part(weights={"W_type": source(same, "embeddings.token_type_embeddings.weight")})
_OLD_NORMS = ((r"LayerNorm\.weight$", "LayerNorm.gamma"), (r"LayerNorm\.bias$", "LayerNorm.beta"))

BERT = Family(
    name="bert",
    prefix="bert",
    block="encoder.layer.{i}",
    parts=(
        _TOKENS,
        _TYPES,
        _embedding_norm("embeddings.LayerNorm"),
        *attention(_SELF, f"{_SELF}.query {_SELF}.key {_SELF}.value", "attention.output.dense"),
        plain_mlp("intermediate.dense", "output.dense"),
        post_stream("attention.output.LayerNorm", "output.LayerNorm", "layer_norm_eps"),
    ),
    layout={"norm": "post", "causal": False, "learned_positions": True},
    heads={
        "ForMaskedLM": _whole_head("cls.predictions"),
        "LMHeadModel": _whole_head("cls.predictions"),
        "ForPreTraining": _whole_head("cls.predictions", output="prediction_logits"),
    },
    variants=(Variant(lambda config: config.is_decoder, layout={"causal": True}),),
    disk=_OLD_NORMS,
)

ROBERTA = replace(
    BERT,
    name="roberta",
    prefix="roberta",
    heads={"ForMaskedLM": _whole_head("lm_head"), "ForCausalLM": _whole_head("lm_head")},
    dims={"context": lambda config: config.max_position_embeddings - config.pad_token_id - 1},
)

_FACTORISED = "embeddings have fewer coordinates than the stream: they are normed first and then projected to d_model"
_NARROW = Part(
    absent=dict.fromkeys(("embed", "pos_embed", "W_E", "W_pos", "W_type"), _FACTORISED)
    | {"W_U": "the head goes through fewer coordinates than the stream has: W_U does not read d_model"}
)
_factorised = Variant(lambda config: config.embedding_size != config.hidden_size, (_NARROW,))


def _electra_generator(model: nn.Module, value: Tensor) -> Tensor:
    return model.get_submodule("generator_lm_head")(model.get_submodule("generator_predictions")(value))


ELECTRA = replace(
    BERT,
    name="electra",
    prefix="electra",
    heads={
        "ForMaskedLM": Head(
            "masked",
            _electra_generator,
            _decoder_weights("generator_lm_head", "generator_lm_head.bias", "embeddings.word_embeddings"),
            transform=True,
        )
    },
    variants=(_factorised, *BERT.variants),
)


def _albert_place(config: Any, layer: int) -> Place:
    """ALBERT runs groups of blocks over and over: which block a layer is, and the how-manieth call of it."""
    inner = config.inner_group_num
    step, member = divmod(layer, inner)
    groups = [int(each / (config.num_hidden_layers / config.num_hidden_groups)) for each in range(step + 1)]
    return Place(f"encoder.albert_layer_groups.{groups[step]}.albert_layers.{member}", groups[:step].count(groups[step]))


ALBERT = Family(
    name="albert",
    prefix="albert",
    block="encoder.albert_layer_groups.0.albert_layers.0",
    parts=(
        _TOKENS,
        _TYPES,
        _embedding_norm("embeddings.LayerNorm"),
        *attention(
            "attention",
            "attention.query attention.key attention.value",
            "attention.dense",
            score=(scaled(own_scale("attention")), (Tap("attention", "in", 1),)),
        ),
        plain_mlp("ffn", "ffn_output"),
        post_stream("attention.LayerNorm", "full_layer_layer_norm", "layer_norm_eps"),
    ),
    layout=BERT.layout,
    heads={"ForMaskedLM": _whole_head("predictions"), "ForPreTraining": _whole_head("predictions", output="prediction_logits")},
    dims={"layers": lambda config: config.num_hidden_layers * config.inner_group_num},
    variants=(_factorised,),
    disk=_OLD_NORMS,
    place=_albert_place,
)

DISTILBERT = Family(
    name="distilbert",
    prefix="distilbert",
    block="transformer.layer.{i}",
    parts=(
        _TOKENS,
        _embedding_norm("embeddings.LayerNorm", 1e-12),
        *attention("attention", "attention.q_lin attention.k_lin attention.v_lin", "attention.out_lin"),
        plain_mlp("ffn.lin1", "ffn.lin2"),
        post_stream("sa_layer_norm", "output_layer_norm", 1e-12),
    ),
    layout=BERT.layout,
    heads={"ForMaskedLM": _masked_head("vocab_transform act vocab_layer_norm vocab_projector")},
    dims={"d_mlp": lambda config: config.hidden_dim},
    disk=_OLD_NORMS,
)

MODERNBERT = Family(
    name="modernbert",
    prefix="model",
    block="layers.{i}",
    parts=(
        embeddings("embeddings.tok_embeddings", why=ROTARY),
        _embedding_norm("embeddings.norm", "norm_eps"),
        *attention(
            "attn",
            "attn.Wqkv",
            "attn.Wo",
            split=thirds,
            rotate=(rotate_halves_fp32, Tap("attn", "in", "position_embeddings")),
            score=(scaled(lambda facts: facts.shape.d_head**-0.5), (Tap("attn", "in", "attention_mask"),)),
        ),
        gated_mlp("mlp.Wi", "mlp.Wi", "mlp.Wo"),
        pre_stream("attn_norm", "mlp_norm", "final_norm", "layer", "norm_eps"),
    ),
    layout={"norm": "pre", "causal": False, "gated": True, "rotary": True},
    heads={"ForMaskedLM": _masked_head("head decoder", tied="embeddings.tok_embeddings")},
    final=("final_norm",),
)

ENCODERS = (BERT, ROBERTA, DISTILBERT, ELECTRA, ALBERT, MODERNBERT)
