"""Whether a model that transformers has built holds what its files say: every tensor, of the right shape, and only numbers.

transformers fills what a file lacks with random numbers and goes on; here it is refused, and the tensor is named. Identities
between sites are the certificate's.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import torch
from torch import Tensor

from microtome.core import Refusal
from microtome.model.shape import Shape
from microtome.model.weights import Weights

__all__ = ["check_finite", "check_headers", "check_loaded"]

_UNREAD: Final = re.compile(r"(^|\.)pooler\.")
"""Parameters that no site, weight or head reads: a checkpoint may lack them."""

_RIGHT_CONFIG: Final = "use the config.json that was saved with these weights"

_LAYER: Final = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block|groups)\.(\d+)\.")


def check_headers(name: str, keys: Iterable[str], weights: Weights) -> None:
    """Refuse weights on disk whose layers, or whose sizes in the first and last layer, are not those of the configuration.

    Looks at headers and the pages of a few tensors only; `check_loaded` is complete, but needs the model built.
    """
    shape = weights.shape
    if shape.context is not None and shape.context < 1:
        raise Refusal(f"model {name}", why=f"its config.json allows {shape.context} positions", instead=_RIGHT_CONFIG)
    _refuse_layers(name, keys, shape.layers)
    for weight, expected in _expected(shape).items():
        for layer in (None,) if weight in ("W_E", "W_pos") else (0, shape.layers - 1):
            _check_size(name, weights, weight, layer, expected)


def _check_size(name: str, weights: Weights, weight: str, layer: int | None, expected: tuple[int, ...]) -> None:
    what = weight if layer is None else f"{weight} of layer {layer}"
    if weight not in weights.family.weights:
        return
    if not weights.has(weight, layer):
        raise Refusal(f"model {name}", why=f"its weights lack {what}", instead=_RIGHT_CONFIG)
    try:
        found = tuple(weights.get(weight, layer).shape)
    except RuntimeError as error:  # a view that the configuration's sizes make impossible
        raise Refusal(
            f"model {name}", why=f"{what} does not divide as its config.json says: {error}", instead=_RIGHT_CONFIG
        ) from error
    if found != expected:
        raise Refusal(
            f"model {name}",
            why=f"{what} is {_by(found)} in its weights and {_by(expected)} by its config.json",
            instead=_RIGHT_CONFIG,
        )


def _expected(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Sizes by the configuration of weights that every family has in this form; experts are left to `check_loaded`."""
    sizes: dict[str, tuple[int, ...]] = {
        "W_Q": (shape.heads, shape.d_model, shape.d_head),
        "W_K": (shape.heads_kv, shape.d_model, shape.d_head),
        "W_V": (shape.heads_kv, shape.d_model, shape.d_head),
        "W_O": (shape.heads, shape.d_head, shape.d_model),
    }
    if shape.vocab:
        sizes["W_E"] = (shape.vocab, shape.d_model)
    if not shape.experts:
        sizes["W_out"] = (shape.d_mlp, shape.d_model)
    return sizes


def check_loaded(name: str, info: Mapping[str, Any], layers: int) -> None:
    """Refuse what transformers' report on loading (`output_loading_info`) says is missing, of another shape, or of a layer too many.

    Other tensors that the model has no place for (heads of other tasks, old buffers) are no contradiction.
    """
    for key, stored, built in sorted(info["mismatched_keys"]):
        raise Refusal(
            f"model {name}",
            why=f"{key} is {_by(stored)} in its weights and {_by(built)} by its config.json",
            instead=_RIGHT_CONFIG,
        )
    missing = sorted(key for key in info["missing_keys"] if not _UNREAD.search(key))
    if missing:
        raise Refusal(
            f"model {name}",
            why=f"its weights lack {len(missing)} tensors that its config.json asks for: {', '.join(missing[:3])}",
            instead="download the weights again, or use the config.json (its architectures, too) saved with these weights",
        )
    _refuse_layers(name, info["unexpected_keys"], layers)
    if info["error_msgs"]:
        raise Refusal(f"model {name}", why=str(info["error_msgs"][0]), instead="download the weights and config.json again")


def _refuse_layers(name: str, keys: Iterable[str], layers: int) -> None:
    for key in sorted(keys):
        match = _LAYER.search(key)
        if match and int(match[1]) >= layers:
            why = f"its weights hold {key}, and its config.json counts {layers} layers"
            raise Refusal(f"model {name}", why=why, instead=_RIGHT_CONFIG)


def check_finite(name: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse a model that has a NaN or an infinity among its weights. Cost: one read of the weights."""
    for key, tensor in tensors:
        if not tensor.is_floating_point() or tensor.numel() == 0:
            continue
        low, high = torch.aminmax(tensor.detach())
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            wrong = int((~torch.isfinite(tensor)).sum())
            raise Refusal(
                f"model {name}",
                why=f"{key} holds {wrong} of {tensor.numel()} numbers that are NaN or infinite",
                instead="download the weights again; if they were trained so, or overflow in this dtype, open them as float32",
            )


def _by(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape)) or "a single number"
