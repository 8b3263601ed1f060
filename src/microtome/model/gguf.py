"""GGUF files: converted once into a folder of safetensors in the cache, and then opened like any checkpoint.

The quantised weights are unpacked to float32 by transformers: the folder is exactly the network that the file describes,
which is not the checkpoint that was quantised. Numbers from it are not to be compared with published ones.
"""

import contextlib
import hashlib
import importlib.util
import io
import logging
import struct
from pathlib import Path
from typing import Any, Final

import torch

from microtome.core import Refusal
from microtome.model.cache import building, cache_root
from microtome.model.precision import stored_dtype
from microtome.model.quiet import quiet

__all__ = ["converted"]

_VERSION: Final = 1
"""Raised when the conversion changes what it writes."""

_FLOATS: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_log = logging.getLogger(__name__)


def converted(path: Path) -> Path:
    """The folder of safetensors that `path` was converted to, made now if it is not in the cache.

    The folder is named by the hash of the file's bytes, and its mark says how the weights were stored in the file.

    Errors: `Refusal` for a file that is missing, damaged, or of an architecture that transformers cannot read from GGUF, and
    where gguf or accelerate are not installed. Cost: a read of the file; the first time the whole model in float32 in memory.
    """
    if not path.is_file():
        raise Refusal(f"model {path}", why="there is no such file", instead="name a .gguf file, a model folder or a hub id")
    with path.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise Refusal(f"model {path}", why="it is not a GGUF file", instead="name a .gguf file, or a folder of safetensors")
        stream.seek(0)
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    folder = cache_root() / "gguf" / f"{path.stem}-{digest[:16]}-v{_VERSION}"
    if folder.is_dir():
        return folder
    _require_extra(path)
    mark: dict[str, Any] = {"what": f"{path.name} as safetensors", "source_sha256": digest, "stored": _stored(path)}
    with building(folder, mark) as part:
        if part is not None:
            _log.info("converting %s to safetensors, once", path.name)
            with quiet(), contextlib.redirect_stderr(io.StringIO()):  # a bar that cannot be turned off
                _convert(path, part)
    return folder


def _require_extra(path: Path) -> None:
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise Refusal(
            f"model {path}",
            why=f"reading GGUF files needs {' and '.join(missing)}, not installed here",
            instead="run: pip install 'microtome[gguf]'",
        )


def _stored(path: Path) -> str:
    """The float type of most elements in the file, or `quantised`."""
    from gguf import GGUFReader

    try:
        tensors = GGUFReader(path).tensors
    except (struct.error, ValueError, IndexError, KeyError, OSError) as error:
        raise _damaged(path, error) from error
    elements: dict[torch.dtype, int] = {}
    for tensor in tensors:
        dtype = _FLOATS.get(tensor.tensor_type.name)
        if dtype is None:
            return "quantised"
        elements[dtype] = elements.get(dtype, 0) + int(tensor.n_elements)
    return str(stored_dtype(elements)).removeprefix("torch.")


def _convert(path: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **source)
        model = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **source)
    except NotImplementedError as error:
        raise _unreadable(path, error) from error
    except (struct.error, ValueError, IndexError, KeyError, RuntimeError, OSError) as error:
        if "not supported" in str(error):
            raise _unreadable(path, error) from error
        raise _damaged(path, error) from error
    # save_pretrained refuses a model that came from GGUF; the same tensors in a model made from the plain configuration it saves.
    config = model.config
    vars(config).pop("quantization_config", None)
    with torch.device("meta"):
        plain = type(model)._from_config(config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _unreadable(path: Path, error: Exception) -> Refusal:
    return Refusal(
        f"model {path}",
        why=f"transformers cannot read this architecture from GGUF: {str(error).partition(chr(10))[0]}",
        instead="open the model's safetensors folder or hub id",
    )


def _damaged(path: Path, error: Exception) -> Refusal:
    detail = str(error).partition("\n")[0]
    return Refusal(f"model {path}", why=f"the file is damaged or incomplete: {detail}", instead="download or copy it again")
