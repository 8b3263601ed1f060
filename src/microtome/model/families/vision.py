"""Rows of the image encoders: ViT and DINOv2. A token is the class token or a patch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from microtome.model.families.attention import scaled
from microtome.model.families.parts import attention, gated_mlp, own_scale, plain_mlp, pre_stream
from microtome.model.families.rows import Facts, Family, Part, Recipe, Source, Tap, Variant, WeightRow, source, taken
from microtome.model.shape import Dims, Patches, Shape

__all__ = ["VISION"]


def _with_class_token(facts: Facts, patches: Tensor) -> Tensor:
    """Embedded patches behind the class token."""
    token = facts.at("embeddings").cls_token
    return torch.cat((token.expand(len(patches), -1, -1), patches), dim=1)


def _positions(facts: Facts, patches: Tensor, pixels: Tensor) -> Tensor:
    """The position embeddings for images of this size, interpolated where the model does that."""
    module = facts.at("embeddings")
    found = module.interpolate_pos_encoding(_with_class_token(facts, patches), *pixels.shape[-2:])
    return found.expand(len(patches), -1, -1)


def _without_window(shape: Shape, value: Tensor) -> Tensor:
    return value[0]


def _side(size: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _patches(*, stretches: bool) -> Callable[[Any], Patches]:
    """Patches behind a class token, for the picture size of the configuration."""

    def read(config: Any) -> Patches:
        (height, width), (tall, wide) = _side(config.patch_size), _side(config.image_size)
        return Patches(height, width, tall // height, wide // width, before=1, stretches=stretches)

    return read


def _context(config: Any) -> int:
    patches = _patches(stretches=False)(config)
    return patches.before + patches.rows * patches.columns


_PATCHES = Tap("embeddings.patch_embeddings", "out")
_IMAGES = Part(
    {
        "embed": Recipe((_PATCHES,), _with_class_token),
        "pos_embed": Recipe((_PATCHES, Tap("embeddings", "in", 0)), _positions),
    },
    {"W_E": "images have no vocabulary: a patch is embedded by a convolution"},
    {"W_pos": source(_without_window, "embeddings.position_embeddings")},
)
_DIMS: Dims = {"vocab": lambda config: 0, "context": _context}
_LAYOUT = {"norm": "pre", "causal": False, "learned_positions": True}
_QKV = "attention.q_proj attention.k_proj attention.v_proj"
_OLD_ATTENTION = (
    (r"attention\.q_proj\.", "attention.attention.query."),
    (r"attention\.k_proj\.", "attention.attention.key."),
    (r"attention\.v_proj\.", "attention.attention.value."),
    (r"attention\.o_proj\.", "attention.output.dense."),
)

VIT = Family(
    name="vit",
    prefix="vit",
    block="layers.{i}",
    parts=(
        _IMAGES,
        *attention("attention", _QKV, "attention.o_proj", score=(scaled(own_scale("attention")), (Tap("attention", "in", 1),))),
        plain_mlp("mlp.fc1", "mlp.fc2"),
        pre_stream("layernorm_before", "layernorm_after", "layernorm", "layer", "layer_norm_eps"),
    ),
    layout=_LAYOUT,
    heads={},
    dims={**_DIMS, "patches": _patches(stretches=False)},
    final=("layernorm",),
    disk=(
        (r"(^|\.)layers\.(\d+)\.", r"\1encoder.layer.\2."),
        *_OLD_ATTENTION,
        (r"mlp\.fc1\.", "intermediate.dense."),
        (r"mlp\.fc2\.", "output.dense."),
    ),
    inputs="image",
)


def _half_rows(index: int) -> Source:
    """One half of the gate and up branches that checkpoints keep together."""
    return Source(("mlp.weights_in.weight",), lambda shape, value: value.chunk(2, dim=0)[index].T)


def _half_bias(index: int) -> Source:
    return Source(("mlp.weights_in.bias",), lambda shape, value: value.chunk(2, dim=0)[index])


def _gated() -> Part:
    part = gated_mlp("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    stored = {"W_gate": _half_rows(0), "W_up": _half_rows(1), "b_gate": _half_bias(0), "b_up": _half_bias(1)}
    weights = {name: WeightRow((*row.sources, stored[name])) if name in stored else row for name, row in part.weights.items()}
    return Part(part.sites, part.absent, weights)


def _swiglu_units(hidden: int) -> int:
    return (int(hidden * 2 / 3) + 7) // 8 * 8


def _units(config: object) -> int:
    hidden = int(config.hidden_size * config.mlp_ratio)  # type: ignore[attr-defined]
    return _swiglu_units(hidden) if config.use_swiglu_ffn else hidden  # type: ignore[attr-defined]


DINOV2 = Family(
    name="dinov2",
    prefix="dinov2",
    block="encoder.layer.{i}",
    parts=(
        _IMAGES,
        *attention("attention", _QKV, "attention.o_proj"),
        plain_mlp("mlp.fc1", "mlp.fc2"),
        pre_stream("norm1", "norm2", "layernorm", "layer", "layer_norm_eps"),
        Part({"attn_out_post": taken("layer_scale1", "out"), "mlp_out_post": taken("layer_scale2", "out")}),
    ),
    layout=_LAYOUT,
    heads={},
    dims={**_DIMS, "patches": _patches(stretches=True), "d_mlp": _units},
    final=("layernorm",),
    variants=(
        Variant(
            lambda config: config.use_swiglu_ffn,
            (
                _gated(),
                Part({"mlp_out_post": taken("layer_scale2", "out")}, {"W_in": "the MLP is gated", "b_in": "the MLP is gated"}),
            ),
            {"gated": True},
        ),
    ),
    disk=(*_OLD_ATTENTION, (r"mlp\.down_proj\.", "mlp.weights_out.")),
    inputs="image",
)

VISION = (VIT, DINOV2)
