"""Adapters (LoRA, as the package peft saves them) read as they are, beside the checkpoint that they change.

An adapter folder holds what is added to some tensors of a base model, as two thin factors each, and some tensors whole. Here both are
brought to the names of the base model, so that an adapted model is a `Checkpoint` like any other, and nothing is merged on disk. What
the change means belongs in `vocabulary.changes`.

Axes of this module: `rank` is the inner one of two factors, `input` and `output` are those of the layer they change.
"""

import copy
import json
import logging
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from microtome.core import Refusal
from microtome.model.checkpoint import Files
from microtome.model.disk import DiskTensors
from microtome.model.opening import Checkpoint
from microtome.model.quiet import quiet
from microtome.model.weights import Fetch, Weights

__all__ = ["AdaptedWeights", "Adapter", "LowRank", "adapted", "holds_adapter", "open_adapter"]

_log = logging.getLogger(__name__)

_CONFIG: Final = "adapter_config.json"
_FILES: Final = ("adapter_model.safetensors", "adapter_model.bin")
_MERGE: Final = "merge it into its base model with the program that made it, save that, and name its folder"

_FACTOR: Final = re.compile(r"(?P<module>.+)\.lora_(?P<of>embedding_)?(?P<side>[AB])(?:\.weight)?")
_WHOLE: Final = re.compile(r"(?P<module>.+?)(?:\.base_layer|\.modules_to_save)?\.(?P<leaf>[^.]+)")

_NOT_READ: Final = {
    "use_dora": "it is a DoRA adapter, which also changes lengths",
    "use_qalora": "it is a QA-LoRA adapter, whose inputs are pooled",
    "lora_bias": "its factors have biases of their own",
    "layer_replication": "it repeats layers of its base model",
    "target_parameters": "it changes parameters that are no layer's",
    "trainable_token_indices": "it changes single tokens",
    "alora_invocation_tokens": "it is at work behind some tokens only",
    "megatron_config": "it is of a Megatron model",
    "arrow_config": "it chooses among other adapters",
    "monteclora_config": "its factors are drawn anew each time",
    "velora_config": "its factors are not plain ones",
    "use_bdlora": "its factors are made of blocks",
    "kasa_config": "its factors are weighted",
}
"""Settings that, where they are on, make the change something else than a product of two factors, and what they say."""

_PLAIN_STARTS: Final = frozenset({"gaussian", "eva", "orthogonal"})
"""Ways to start that leave the base model's weights alone."""


@dataclass(frozen=True, eq=False)
class LowRank:
    """What an adapter adds to a stored tensor: writes @ reads, or its transpose where the layer keeps inputs as rows.

    The adapter's scale is in `writes`. Rows of `reads` take inner products with the layer's input, columns of `writes` are added to its
    output; of an embedding the input is the token.
    """

    reads: Float[Tensor, "rank input"]
    writes: Float[Tensor, "output rank"]
    inputs_as_rows: bool

    @property
    def rank(self) -> int:
        """The most singular values that are not zero."""
        return len(self.reads)

    @property
    def dense(self) -> Float[Tensor, "row column"]:
        """In the shape of the tensor. Cost: 2 rank row column FLOP."""
        product = self.writes @ self.reads
        return product.T if self.inputs_as_rows else product


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter, by the names that parameters have in the built base model: factors that are added, tensors that take the place of others.

    `unread` are the names of its tensors that the base model has no place for: a classifier beside a language model, say. `doubt` says
    that its configuration names another base model than the one it is read for, None where it names that or none: no more than a doubt,
    since a folder and a hub id may be one model.
    """

    name: str
    file: Path
    config: Mapping[str, Any]
    factors: Mapping[str, LowRank]
    replaced: Mapping[str, Tensor]
    unread: tuple[str, ...]
    doubt: str | None


@dataclass(frozen=True, eq=False)
class AdaptedWeights(Weights):
    """Weights of a base model with an adapter's changes; what is changed comes in float32, and is computed each time it is asked for."""

    base: Weights
    adapter: Adapter
    prefix: str

    def has(self, name: str, layer: int | None = None) -> bool:
        """As the base model: adapters add to tensors that are there."""
        return self.base.has(name, layer)

    def rank(self, name: str, layer: int | None = None) -> int | None:
        """The largest rank that the change of a weight can have, 0 where it has none; None where a part of it is another tensor."""
        row = {**self.family.weights, **(self.head.weights if self.head else {})}.get(name)
        parts = {part for way in row.sources for part in way.names} if row else ()
        full = [_full(path, self.prefix) for part in parts for path in self._paths(part, name, layer)]
        if any(part in self.adapter.replaced for part in full):
            return None
        return sum(self.adapter.factors[part].rank for part in full if part in self.adapter.factors)


def holds_adapter(folder: str | Path) -> bool:
    """Whether a folder is that of an adapter."""
    return (Path(folder) / _CONFIG).is_file()


def adapted(checkpoint: Checkpoint, folder: str | Path) -> Checkpoint:
    """The checkpoint with the adapter of `folder`: its weights are W + scale B A, in float32, wherever the adapter has factors.

    scale is lora_alpha / r, or lora_alpha / sqrt(r) where the adapter says so (use_rslora), with the r and alpha of the layer. Its
    fingerprint is that of both. Errors: `Refusal` as `open_adapter`. Cost: that of a product of factors each time a weight is asked for.
    Source: Hu et al. 2021, arXiv:2106.09685, section 4.1.
    """
    adapter = open_adapter(folder, checkpoint)
    if adapter.doubt:
        _log.warning("%s", adapter.doubt)
    if adapter.unread:
        _log.warning("%s holds %s, which %s has no place for", adapter.name, ", ".join(adapter.unread[:3]), checkpoint.name)
    base, prefix = checkpoint.weights, _prefix(_described(checkpoint))
    weights = AdaptedWeights(
        base.family, base.shape, base.config, base.head, _fetch(base.fetch, adapter, prefix), base, adapter, prefix
    )
    files = checkpoint.files
    merged = {
        **files.config,
        "adapter": {key: value for key, value in adapter.config.items() if key != "base_model_name_or_path"},
    }
    both = Files(files.folder, merged, (*files.weights, adapter.file), files.stored)
    return replace(checkpoint, name=f"{checkpoint.name}+{adapter.name}", files=both, weights=weights)


def open_adapter(folder: str | Path, checkpoint: Checkpoint) -> Adapter:
    """The adapter of a folder that `save_pretrained` of peft wrote, for the checkpoint it was trained on.

    Errors: `Refusal` for what is no LoRA adapter of linear layers and embeddings (DoRA and others), is damaged, or does not fit.
    """
    folder = Path(folder)
    config = _read_config(folder)
    file = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if file is None:
        raise _refusal(folder, f"it has no {_FILES[0]}", "copy or download the whole folder again")
    module, tensors = _described(checkpoint), DiskTensors((file,))
    modules, prefix = dict(module.named_modules()), _prefix(module)
    pairs, whole = _sorted_out(folder, tensors)
    factors = {}
    for path, (a, b, embeds) in pairs.items():
        name = _place(path, modules, prefix)
        if name is None:
            why = f"it changes {path}, and {checkpoint.name} has no such layer"
            raise _refusal(folder, why, "name the model it was trained on as base")
        factors[f"{name}.weight"] = _low_rank(folder, config, path, (a, b), modules[name], embeds=embeds)
    replaced, unread = {}, []
    for path, tensor in whole.items():
        match = _WHOLE.fullmatch(path)
        name = None if match is None else _place(match["module"], modules, prefix)
        if match is None or name is None:
            unread.append(path)
        else:
            replaced[f"{name}.{match['leaf']}"] = tensor
    name = folder.absolute().name
    found = Adapter(name, file, config, factors, replaced, tuple(unread), _doubt(name, config, checkpoint.name))
    _require_fitting(folder, found, checkpoint, prefix)
    _require_untied(folder, found, module)
    return found


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / _CONFIG
    if not path.is_file():
        raise _refusal(folder, f"it has no {_CONFIG}", "name the folder that save_pretrained of peft wrote")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _refusal(folder, f"its {_CONFIG} is not JSON: {error}", "copy or download it again") from error
    if not isinstance(config, dict):
        raise _refusal(folder, f"its {_CONFIG} is no mapping", "copy or download it again")
    kind = config.get("peft_type")
    if kind != "LORA":
        raise _refusal(folder, f"it is of the kind {kind}, and LORA is the one that is read", _MERGE)
    if not all(isinstance(config.get(key), int | float) and config[key] > 0 for key in ("r", "lora_alpha")):
        raise _refusal(folder, f"its {_CONFIG} gives no rank and scale (r, lora_alpha)", "copy or download it again")
    for key, why in _NOT_READ.items():
        if config.get(key):
            raise _refusal(folder, f"{why} ({key})", _MERGE)
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start not in _PLAIN_STARTS:
        raise _refusal(folder, f"it is a change of other weights than its base model's: it began as {start}", _MERGE)
    return config


def _doubt(adapter: str, config: Mapping[str, Any], base: str) -> str | None:
    """What `Adapter.doubt` says. Owner and name are compared where both models have just these two, as on the hub, and else the last name."""
    named = config.get("base_model_name_or_path")
    if not named or not isinstance(named, str):
        return None
    one, other = (re.split(r"[/\\]", re.sub(r"@[^/\\]*$", "", each.casefold()).rstrip("/\\")) for each in (named, base))
    count = 2 if len(one) == len(other) == 2 else 1
    if one[-count:] == other[-count:]:
        return None
    return f"{adapter} says that it was trained on {named}, and is read here as a change of {base}"


def _sorted_out(
    folder: Path, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, tuple[Tensor, Tensor, bool]], dict[str, Tensor]]:
    """The pairs of factors by the path of their layer, with whether it is an embedding; and the whole tensors by their path."""
    halves: dict[str, dict[str, Tensor]] = {}
    kinds: dict[str, bool] = {}
    whole = {}
    for name in tensors:
        path = name.removeprefix("base_model.model.")
        match = _FACTOR.fullmatch(path)
        if match is not None:
            halves.setdefault(match["module"], {})[match["side"]] = tensors[name]
            kinds[match["module"]] = match["of"] is not None
        elif any("lora_" in part for part in path.split(".")[-2:]):
            raise _refusal(folder, f"it holds {name}, which is no factor of a LoRA adapter", _MERGE)
        else:
            whole[path] = tensors[name]
    single = [path for path, sides in halves.items() if len(sides) < 2]
    if single:
        raise _refusal(folder, f"{single[0]} has one factor of two", "copy or download it again")
    if not halves and not whole:
        raise _refusal(folder, "it holds no tensor", "copy or download it again")
    return {path: (sides["A"], sides["B"], kinds[path]) for path, sides in halves.items()}, whole


def _low_rank(
    folder: Path, config: Mapping[str, Any], path: str, pair: tuple[Tensor, Tensor], module: nn.Module, *, embeds: bool
) -> LowRank:
    """The factors of a layer with the scale that its adapter has there."""
    a, b = (tensor.to("cpu", torch.float32) for tensor in pair)
    if a.ndim != 2 or b.ndim != 2:
        raise _refusal(folder, f"{path} is a convolution", _MERGE)
    rank = int(_of_layer(config, "rank_pattern", path, config.get("r")))
    if a.shape[0] != rank or b.shape[1] != rank:
        why = f"{path} has factors of rank {a.shape[0]} and {b.shape[1]} where its {_CONFIG} says {rank}"
        raise _refusal(folder, why, f"use the {_CONFIG} that was saved with it")
    alpha = float(_of_layer(config, "alpha_pattern", path, config.get("lora_alpha")))
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return LowRank(a, b * scale, embeds or type(module).__name__ == "Conv1D")


def _of_layer(config: Mapping[str, Any], pattern: str, path: str, default: Any) -> Any:
    """A setting of a layer: that of the first pattern that ends its path (whole names), or the default."""
    for key, value in (config.get(pattern) or {}).items():
        if re.match(rf"(.*\.)?({key})$", path):
            return value
    return default


def _require_fitting(folder: Path, adapter: Adapter, checkpoint: Checkpoint, prefix: str) -> None:
    for name, shape in _shapes(adapter):
        found = checkpoint.weights.fetch(name.removeprefix(prefix) if name.startswith(prefix) else f"/{name}")
        if found is None and name in adapter.replaced:
            continue  # of a head that is tied, or of a part that files keep in other pieces
        if found is None or tuple(found.shape) != shape:
            size = "not there" if found is None else " x ".join(map(str, found.shape))
            why = f"its change of {name} is {' x '.join(map(str, shape))}, and that of {checkpoint.name} is {size}"
            raise _refusal(folder, why, "name the model it was trained on as base")


def _shapes(adapter: Adapter) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, each in adapter.factors.items():
        size = (each.writes.shape[0], each.reads.shape[1])
        yield name, size[::-1] if each.inputs_as_rows else size
    for name, tensor in adapter.replaced.items():
        yield name, tuple(tensor.shape)


def _require_untied(folder: Path, adapter: Adapter, module: nn.Module) -> None:
    """Refuse what changes one of two tied tensors: the model that runs with the adapter and the merged one differ."""
    if not getattr(module.config, "tie_word_embeddings", False):
        return
    ends = [getattr(module, way)() for way in ("get_input_embeddings", "get_output_embeddings")]
    tied = [f"{name}.weight" for end in ends for name, each in module.named_modules() if end is not None and each is end]
    changed = [name for name in tied if name in adapter.factors or name in adapter.replaced]
    same = len(changed) == len(tied) and all(
        name in adapter.replaced and torch.equal(adapter.replaced[name], adapter.replaced[changed[0]]) for name in changed
    )
    if changed and len(tied) > 1 and not same:
        why = f"it changes {changed[0]}, which the base model uses for its input and its output"
        raise _refusal(folder, why, _MERGE)


def _fetch(base: Fetch, adapter: Adapter, prefix: str) -> Fetch:
    def fetch(name: str) -> Tensor | None:
        full = _full(name, prefix)
        tensor = adapter.replaced[full] if full in adapter.replaced else base(name)
        if tensor is None or full not in adapter.factors:
            return tensor
        return tensor.float() + adapter.factors[full].dense

    return fetch


def _full(name: str, prefix: str) -> str:
    """A parameter's name in the built model, of one relative to the trunk (or, after a slash, to the model)."""
    return name[1:] if name.startswith("/") else f"{prefix}{name}"


def _described(checkpoint: Checkpoint) -> Any:
    """The built model without numbers: how its layers are called, and of which kind they are."""
    with quiet(), torch.device("meta"):
        return checkpoint.architecture(copy.deepcopy(checkpoint.config))


def _prefix(module: Any) -> str:
    trunk = getattr(module, "base_model", module)
    return "" if trunk is module else f"{module.base_model_prefix}."


def _place(path: str, modules: Mapping[str, nn.Module], prefix: str) -> str | None:
    """A layer's path in the model, of one that counts from the model or from its trunk."""
    return next((each for each in (path, f"{prefix}{path}", path.removeprefix(prefix)) if each in modules), None)


def _refusal(folder: Path, why: str, instead: str) -> Refusal:
    return Refusal(f"adapter {folder}", why=why, instead=instead)
