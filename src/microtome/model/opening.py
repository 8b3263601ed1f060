"""Opening models: from a folder, a GGUF file, a hub id or a model already built, to a `Model` or to its parts on disk.

Everything that can be wrong with a checkpoint is refused here, before anything is computed with it. What its files are is
`checkpoint`'s and `disk`'s business, making a `Model` of a module and certifying it `model`'s.
"""

import copy
import functools
import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from microtome.core import Refusal
from microtome.model.allocator import keep_freed_memory
from microtome.model.checkpoint import Files, digest_of, find_files, gguf_in
from microtome.model.checks import check_finite, check_headers, check_loaded
from microtome.model.disk import DiskTensors
from microtome.model.families import FAMILIES, Family, family_of
from microtome.model.gguf import converted
from microtome.model.hub import snapshot
from microtome.model.images import open_processor
from microtome.model.model import Model, Opening
from microtome.model.placement import devices_named, room_on, split
from microtome.model.precision import Stored, choose_dtype, stored_dtype
from microtome.model.quiet import quiet
from microtome.model.shape import Shape
from microtome.model.tokenizers import open_tokenizer
from microtome.model.weights import Weights, stored_tensors
from microtome.model.wrapping import wrap

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Checkpoint", "RemoteCode", "load", "open_checkpoint"]

RemoteCode = Literal["refuse", "allow"]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint that is open but not built: what weights-only work needs.

    `weights` are mapped from the files, `config` is the transformers configuration, `architecture` the model class it names.
    `stored` is the dtype most weights are stored in, or that they were quantised.
    """

    name: str
    files: Files
    config: Any
    architecture: type
    family: Family
    shape: Shape
    weights: Weights
    tokenizer: Any
    processor: Any
    stored: Stored

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the configuration and the weight files. Cost: one read of the weights, the first time."""
        return digest_of(self.files)

    def require_finite(self) -> None:
        """Check the numbers in the files, as `load` does for those of the model it builds.

        Errors: `Refusal` naming the first tensor that holds NaN or infinity. Cost: one read of the weights.
        """
        tensors = DiskTensors(self.files.weights)
        check_finite(self.name, ((name, tensors[name]) for name in tensors))


def load(
    source: "str | Path | PreTrainedModel",
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    remote_code: RemoteCode = "refuse",
) -> Model:
    """Open a model: a folder, a .gguf file, a hub id (`owner/name`, `owner/name@revision`), or a transformers model.

    The class that the checkpoint's configuration names is built, with its head. `dtype` and `device`: see
    `precision.choose_dtype` and `placement.room_on` (several devices: `cuda:0,cuda:1`); a model already built keeps its own. `remote_code` is only asked for where the
    checkpoint brings its own class.

    Errors: `Refusal` for everything that cannot be opened, is damaged, contradicts itself, or is of an unknown architecture.
    Cost: two reads of the weights (one is the fingerprint's); a GGUF file is converted the first time. On a CPU the process
    keeps the memory it frees from then on (`allocator.keep_freed_memory`).
    """
    from transformers import PreTrainedModel

    if isinstance(source, PreTrainedModel):
        return _adopt(source, dtype, device)
    if devices_named(device)[0].type == "cpu":
        keep_freed_memory()
    checkpoint = open_checkpoint(source, remote_code=remote_code)
    chosen = choose_dtype(dtype, devices_named(device)[0], checkpoint.stored)
    elements = DiskTensors(checkpoint.files.weights).elements().values()
    module = _placed(checkpoint, chosen, room_on(device, sum(elements) * chosen.itemsize))
    model = wrap(
        module,
        checkpoint.tokenizer,
        processor=checkpoint.processor,
        name=checkpoint.name,
        fingerprint=checkpoint.fingerprint,
        stored=checkpoint.weights.fetch,
    )
    path = Path(source).expanduser()
    named = str(path.absolute()) if path.exists() else str(source)
    return replace(model, opening=Opening(named, str(dtype).removeprefix("torch."), str(device), remote_code))


def open_checkpoint(source: str | Path, *, remote_code: RemoteCode = "refuse") -> Checkpoint:
    """Open a checkpoint without building the model: configuration, sizes, weights by memory map, tokenizer or image processor, fingerprint.

    Errors: as `load`, except that the numbers in the weights are not looked at. Cost: headers and the tokenizer only, and the
    model's modules without numbers (on `meta`).
    """
    folder, name = _folder(source, remote_code)
    files = find_files(folder)
    if files.model_type not in FAMILIES:
        raise Refusal(
            f"model {name}",
            why=f"microtome does not know the architecture {files.model_type}",
            instead=f"use a model of {', '.join(sorted(FAMILIES))}, or add a row to microtome.model.families",
        )
    tensors = DiskTensors(files.weights)
    with quiet():
        architecture = _architecture(files, name, remote_code)
        config = _config(files, name, remote_code)
        family = family_of(config)
        head = family.head(architecture.__name__)
        shape = family.shape(config, head.kind if head else "none")
        weights = Weights(family, shape, config, head, stored_tensors(tensors, family))
        check_headers(name, tensors.shapes, weights, _described(architecture, config, name))
        tokenizer = open_tokenizer(folder, shape.vocab) if family.inputs == "text" else None
        processor = open_processor(folder) if family.inputs == "image" else None
    stored = files.stored or stored_dtype(tensors.elements())
    return Checkpoint(name, files, config, architecture, family, shape, weights, tokenizer, processor, stored)


def _folder(source: str | Path, remote_code: RemoteCode) -> tuple[Path, str]:
    """The folder that `source` stands for, and the model's name."""
    path = Path(source).expanduser()
    if path.suffix == ".gguf":
        return converted(path), path.stem
    if path.is_file():
        raise Refusal(f"model {source}", why="it is a single file", instead="name the folder that holds it and its config.json")
    if not path.is_dir() and _may_be_hub_id(source):
        return snapshot(str(source), remote_code), str(source)
    inside = gguf_in(path)
    if inside is not None:
        return converted(inside), inside.stem
    return path, path.absolute().name


def _may_be_hub_id(source: str | Path) -> bool:
    return isinstance(source, str) and source.count("/") <= 1 and not source.startswith((".", "/", "~")) and "\\" not in source


def _architecture(files: Files, name: str, remote_code: RemoteCode) -> type:
    """The model class that config.json names: transformers' own, or, where allowed, the checkpoint's."""
    import transformers

    named = files.config.get("architectures") or []
    if not named:
        raise Refusal(
            f"model {name}",
            why="its config.json does not name the class of the model (architectures)",
            instead='add it, for example "architectures": ["LlamaForCausalLM"]',
        )
    found = getattr(transformers, named[0], None)
    if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
        return found
    ways = [way for way in (files.config.get("auto_map") or {}).values() if str(way).endswith(f".{named[0]}")]
    if not ways:
        raise Refusal(
            f"model {name}",
            why=f"transformers {transformers.__version__} has no class {named[0]}, which its config.json names",
            instead="correct architectures in config.json, or install the version of transformers that it was saved with",
        )
    if remote_code == "refuse":
        raise Refusal(
            f"model {name}",
            why=f"its class {named[0]} is code inside the checkpoint, and running it is off",
            instead="read that code, and if you trust it pass remote_code='allow'",
        )
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    return get_class_from_dynamic_module(ways[0], str(files.folder))


def _config(files: Files, name: str, remote_code: RemoteCode) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(files.folder, local_files_only=True, trust_remote_code=remote_code == "allow")
    except Exception as error:  # validation errors of many classes
        raise _contradiction(name, error) from error


def _described(architecture: type, config: Any, name: str) -> Any:
    """The model that a configuration describes, without numbers."""
    kind = getattr(architecture, "config_class", None)
    if kind is not None and not isinstance(config, kind):
        raise Refusal(
            f"model {name}",
            why=f"its config.json names the class {architecture.__name__} and the architecture {config.model_type}",
            instead="use the config.json that was saved with these weights",
        )
    try:
        with torch.device("meta"):
            return architecture(copy.deepcopy(config))
    except Exception as error:  # whatever a model class makes of a configuration that contradicts itself
        raise _contradiction(name, error) from error


def _placed(checkpoint: Checkpoint, dtype: torch.dtype, devices: tuple[torch.device, ...]) -> "PreTrainedModel":
    """The model where it is to be, with numbers that are finite."""
    try:
        if len(devices) == 1:
            module = _build(checkpoint, dtype)
            check_finite(checkpoint.name, module.named_parameters())
            return module.to(devices[0])  # pyright: ignore[reportArgumentType]
        _require_accelerate(checkpoint.name)
        module = _build(checkpoint, dtype, _split(checkpoint, devices))
        check_finite(checkpoint.name, module.named_parameters())
    except torch.OutOfMemoryError as error:
        raise Refusal(
            f"model {checkpoint.name}",
            why=f"it does not fit on {', '.join(map(str, devices))}",
            instead="use more devices (cuda:0,cuda:1), dtype='bfloat16', or device='cpu'",
        ) from error
    return module


def _require_accelerate(name: str) -> None:
    if importlib.util.find_spec("accelerate") is None:
        raise Refusal(
            f"model {name} on several devices", why="accelerate is not installed", instead="pip install 'microtome[devices]'"
        )


def _split(checkpoint: Checkpoint, devices: tuple[torch.device, ...]) -> dict[str, str]:
    """Which part of a model goes to which device."""
    module = _described(checkpoint.architecture, checkpoint.config, checkpoint.name)
    trunk = getattr(module, "base_model", module)
    prefix = "" if trunk is module else f"{module.base_model_prefix}."
    places = (checkpoint.family.at(checkpoint.config, layer) for layer in range(checkpoint.shape.layers))
    return split(module, [prefix + place.block for place in places], devices)


def _build(checkpoint: Checkpoint, dtype: torch.dtype, device_map: dict[str, str] | None = None) -> "PreTrainedModel":
    try:
        with quiet():
            module, info = checkpoint.architecture.from_pretrained(
                checkpoint.files.folder,
                config=checkpoint.config,
                dtype=dtype,
                device_map=device_map,
                local_files_only=True,
                use_safetensors=checkpoint.files.weights[0].suffix == ".safetensors",
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a model class makes of a configuration that contradicts itself
        raise _contradiction(checkpoint.name, error) from error
    check_loaded(checkpoint.name, info, checkpoint.shape.layers)
    return module.eval()


def _contradiction(name: str, error: Exception) -> Refusal:
    detail = " ".join(str(error).split())
    return Refusal(
        f"model {name}",
        why=f"transformers cannot build what its config.json describes: {detail[:300]}",
        instead="use the config.json that was saved with these weights",
    )


def _is_there(asked: str | torch.device, present: torch.device) -> bool:
    """Whether a model is on the device that is asked for, or, spread over several, begins on one of them."""
    devices = map(torch.device, str(asked).split(","))
    return any(each.type == present.type and each.index in (None, present.index) for each in devices)


def _adopt(module: "PreTrainedModel", dtype: str | torch.dtype, device: str | torch.device) -> Model:
    """A model that is already built; its dtype and device are its owner's business."""
    named = str(module.name_or_path or "")
    stays = dtype == "auto" or choose_dtype(dtype, module.device, module.dtype) == module.dtype
    there = device == "auto" or _is_there(device, module.device)
    if any(each.is_meta for each in module.parameters()):
        raise Refusal(
            f"model {named or type(module).__name__}",
            why="some of its parameters are offloaded, so that they cannot be read",
            instead="name its checkpoint, and devices that hold it together: cuda:0,cuda:1",
        )
    if not (stays and there):
        raise Refusal(
            f"model {named or type(module).__name__}",
            why=f"it is already built, as {module.dtype} on {module.device}",
            instead="convert it with module.to(...) before, or leave dtype and device at auto",
        )
    check_finite(named or type(module).__name__, module.named_parameters())
    embeddings = module.get_input_embeddings()
    tokenizer = processor = None
    if named and Path(named).is_dir():
        with quiet():
            if isinstance(embeddings, torch.nn.Embedding):
                tokenizer = open_tokenizer(Path(named), embeddings.num_embeddings)
            else:
                processor = open_processor(Path(named))
    return wrap(module, tokenizer, processor=processor, name=Path(named).name or type(module).__name__)
