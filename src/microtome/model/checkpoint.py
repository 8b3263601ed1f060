"""A checkpoint folder: which files it is made of, and whether they can be a model.

Everything here reads names, headers and JSON. Opening what was found belongs in `opening`, the tensors in `disk`.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from microtome.core import Refusal
from microtome.model.cache import mark_of
from microtome.model.precision import DTYPES, Stored

__all__ = ["Files", "digest_of", "find_files", "gguf_in"]

_WHOLE: Final = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Names of weights in the order in which they are looked for."""

_PICKLES: Final = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".bin")

_ASIDE: Final = frozenset({"training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt"})

_VOLATILE: Final = frozenset({"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache"})
"""Keys of a configuration that may differ between copies of one model."""


@dataclass(frozen=True)
class Files:
    """The files of a checkpoint: its folder, what config.json says, its weights.

    `stored` is how the weights were stored in the file that this folder was converted from; None where it was not converted.
    """

    folder: Path
    config: Mapping[str, Any]
    weights: tuple[Path, ...]
    stored: Stored | None

    @property
    def model_type(self) -> str:
        """The architecture's name in config.json."""
        return str(self.config["model_type"])


def find_files(folder: Path) -> Files:
    """The files of the checkpoint in `folder`.

    Errors: `Refusal` where the folder, its config.json or its weights are missing, or are of a kind that is not opened.
    """
    if not folder.is_dir():
        raise Refusal(f"model {folder}", why="there is no such folder", instead="name a model folder, a .gguf file or a hub id")
    config = _read_config(folder)
    quantised = config.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method", "quantised") if isinstance(quantised, dict) else "quantised"
        raise Refusal(
            f"model {folder}",
            why=f"its weights are stored compressed ({method})",
            instead="open the full-precision checkpoint, or a GGUF file of the model",
        )
    stored = str(mark_of(folder).get("stored"))
    return Files(folder, config, _find_weights(folder), "quantised" if stored == "quantised" else DTYPES.get(stored))


def gguf_in(folder: Path) -> Path | None:
    """The GGUF file of a folder that holds one and no config.json.

    Errors: `Refusal` where there are several.
    """
    if not folder.is_dir() or (folder / "config.json").exists():
        return None
    found = sorted(folder.glob("*.gguf"))
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise Refusal(f"model {folder}", why=f"it holds several GGUF files: {names}", instead="name one of them")
    return found[0] if found else None


def digest_of(files: Files) -> str:
    """SHA-256 over the configuration and the bytes of the weights. Cost: one read of the weights."""
    whole = hashlib.sha256()
    whole.update(json.dumps({k: v for k, v in files.config.items() if k not in _VOLATILE}, sort_keys=True).encode())
    for path in files.weights:
        with path.open("rb") as stream:
            whole.update(hashlib.file_digest(stream, "sha256").digest())
    return whole.hexdigest()


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        adapter = (folder / "adapter_config.json").is_file()
        raise Refusal(
            f"model {folder}",
            why="it holds an adapter and not a model" if adapter else "it has no config.json",
            instead="name it beside its base model (microtome diff BASE ADAPTER), or merge the adapter into that and save it"
            if adapter
            else "name the folder that save_pretrained wrote",
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Refusal(f"configuration {path}", why=f"it is not JSON: {error}", instead="download or copy it again") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise Refusal(
            f"configuration {path}",
            why="it does not say which architecture the model is (model_type)",
            instead="add its model_type, as the model's own documentation gives it",
        )
    named = config.get("architectures") or []
    if not (isinstance(named, list) and all(isinstance(name, str) for name in named)):
        raise Refusal(
            f"configuration {path}",
            why="its architectures are not a list of names",
            instead='correct it, for example "architectures": ["LlamaForCausalLM"]',
        )
    if not isinstance(config.get("auto_map") or {}, dict):
        raise Refusal(f"configuration {path}", why="its auto_map is no mapping", instead="download or copy it again")
    return config


def _find_weights(folder: Path) -> tuple[Path, ...]:
    for name in _WHOLE:
        path = folder / name
        if path.is_file():
            return _shards(path) if name.endswith(".json") else (path,)
    others = sorted(p.name for p in folder.iterdir() if p.suffix == ".safetensors")
    if others:
        raise Refusal(
            f"model {folder}",
            why=f"it has no model.safetensors, only {', '.join(others)}",
            instead="rename the file that holds the model to model.safetensors",
        )
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES and p.name not in _ASIDE)
    if pickles:
        raise Refusal(
            f"model {folder}",
            why=f"its only weights are in {', '.join(pickles)}, a format whose opening can run code",
            instead="load it with the program that wrote it, if you trust it, and save it by save_pretrained (safetensors)",
        )
    raise Refusal(
        f"model {folder}",
        why="it holds no weights",
        instead="download model.safetensors of this model into it, or name another folder",
    )


def _shards(index: Path) -> tuple[Path, ...]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refusal(
            f"index {index}", why="it does not list the shards of the weights", instead="download it again"
        ) from error
    shards = tuple(index.parent / name for name in names)
    missing = [path.name for path in shards if not path.is_file()]
    if missing:
        raise Refusal(
            f"model {index.parent}",
            why=f"{len(missing)} of {len(shards)} shards of its weights are missing: {', '.join(missing[:4])}",
            instead="download them, or the whole model again",
        )
    return shards
