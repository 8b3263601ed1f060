"""Whether the files of a checkpoint hold what its configuration describes: every tensor, of the right shape, and only numbers.

Once by the files' headers, and once more by what transformers says of the model it has built: it fills what a file lacks with
random numbers and goes on; here it is refused, and the tensor is named. Identities between sites are the certificate's.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from microtome.core import Refusal
from microtome.model.weights import Weights, built_tensors, stored_tensors

__all__ = ["check_finite", "check_headers", "check_loaded"]

_UNREAD: Final = re.compile(r"(^|\.)pooler\.")
"""Parameters that no site, weight or head reads: a checkpoint may lack them."""

_RIGHT_CONFIG: Final = "use the config.json that was saved with these weights"

_LAYER: Final = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block|groups)\.(\d+)\.")


def check_headers(name: str, shapes: Mapping[str, tuple[int, ...]], weights: Weights, module: nn.Module) -> None:
    """Refuse files whose tensors are not the parameters of `module`, which is what the configuration describes, on `meta`.

    Looks at names and shapes alone. Tensors that the model has no place for are no contradiction, but for those of a layer too
    many. Tied parameters need be there once; what a file keeps in other pieces must make the same weights.
    """
    shape = weights.shape
    if shape.context is not None and shape.context < 1:
        raise Refusal(f"model {name}", why=f"its config.json allows {shape.context} positions", instead=_RIGHT_CONFIG)
    _refuse_layers(name, shapes, shape.layers)
    trunk = getattr(module, "base_model", module)
    prefix = "" if trunk is module else f"{getattr(module, 'base_model_prefix', weights.family.prefix)}."
    fetch = stored_tensors({key: torch.empty(size, device="meta") for key, size in shapes.items()}, weights.family)
    stored, built = replace(weights, fetch=fetch), replace(weights, fetch=built_tensors(module, prefix))
    pieces = dict(_in_pieces(weights))
    missing = []
    for keys, expected in _parameters(module):
        paths = [key.removeprefix(prefix) if key.startswith(prefix) else f"/{key}" for key in keys]
        found = next((tensor for tensor in map(fetch, paths) if tensor is not None), None)
        if found is not None:
            _require_same(name, keys[0], found, expected)
        elif not _made_of_pieces(name, [weight for path in paths for weight in pieces.get(path, ())], stored, built):
            missing.append(keys[0])
    ignored = getattr(module, "_keys_to_ignore_on_load_missing", None) or ()
    _refuse_missing(name, [key for key in missing if not any(re.search(pattern, key) for pattern in ignored)])


def _parameters(module: nn.Module) -> Iterator[tuple[list[str], Tensor]]:
    """Every parameter with its names: those that are tied have several."""
    names: dict[int, list[str]] = {}
    tensors = {}
    for key, tensor in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(tensor), []).append(key)
        tensors[id(tensor)] = tensor
    return ((keys, tensors[place]) for place, keys in names.items())


def _in_pieces(weights: Weights) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """Parameters of a layer that files may keep in other pieces, as they keep experts, and the weights to compare instead."""
    for layer in range(weights.shape.layers):
        found: dict[str, list[tuple[str, int]]] = {}
        for name, row in weights.family.weights.items():
            parts = {part for way in row.sources for part in way.names} if len(row.sources) > 1 else set()
            for part in parts:
                found.setdefault(part, []).append((name, layer))
        block = weights.family.at(weights.config, layer).block
        yield from ((f"{block}.{part}", rows) for part, rows in found.items())


def _made_of_pieces(name: str, wanted: list[tuple[str, int]], stored: Weights, built: Weights) -> bool:
    """Whether files hold weights in other pieces than the model; these must have the model's sizes."""
    for weight, layer in wanted:
        what = f"{weight} of layer {layer}"
        try:
            if not stored.has(weight, layer):
                return False
            found = stored.get(weight, layer)
        except (RuntimeError, AssertionError) as error:  # pieces that do not fit together; older torch asserts
            raise Refusal(f"model {name}", why=f"{what} is no weight in its files: {error}", instead=_RIGHT_CONFIG) from error
        _require_same(name, what, found, built.get(weight, layer))
    return bool(wanted)


def _require_same(name: str, what: str, stored: Tensor, built: Tensor) -> None:
    if stored.shape != built.shape:
        why = f"{what} is {_by(stored.shape)} in its weights and {_by(built.shape)} by its config.json"
        raise Refusal(f"model {name}", why=why, instead=_RIGHT_CONFIG)


def _refuse_missing(name: str, keys: Iterable[str]) -> None:
    missing = sorted(key for key in keys if not _UNREAD.search(key))
    if missing:
        raise Refusal(
            f"model {name}",
            why=f"its weights lack {len(missing)} tensors that its config.json asks for: {', '.join(missing[:3])}",
            instead="download the weights again, or use the config.json (its architectures, too) saved with these weights",
        )


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
    _refuse_missing(name, info["missing_keys"])
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
