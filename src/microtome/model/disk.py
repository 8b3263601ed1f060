"""A checkpoint's tensors on disk, by memory map: nothing is read until it is asked for.

The names are those in the files. What a name means belongs in `families`, finding the files in `checkpoint`.
"""

import json
import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from microtome.core import Refusal

__all__ = ["DiskTensors"]

_DTYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class DiskTensors(Mapping[str, Tensor]):
    """Named tensors of some files, each mapped from its file when it is looked up.

    `shapes` and `dtypes` are known from the files' headers. Tensors are on the CPU in the dtype stored; they must not be
    written to.

    Errors: `Refusal` on construction for a file that is damaged, incomplete, or a pickle that is more than tensors.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = tuple(files)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self._file: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        for file in self.files:
            if file.suffix == ".safetensors":
                self._index_safetensors(file)
            else:
                self._index_pickle(file)

    def __getitem__(self, name: str) -> Tensor:
        handle = self._open[self._file[name]]
        return handle[name] if isinstance(handle, dict) else handle.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def __len__(self) -> int:
        return len(self._file)

    def rows(self, name: str, first: int, last: int) -> Tensor:
        """Rows `first` to `last` (exclusive) of a tensor; the other rows are not read."""
        handle = self._open[self._file[name]]
        return handle[name][first:last] if isinstance(handle, dict) else handle.get_slice(name)[first:last]

    def elements(self) -> dict[torch.dtype, int]:
        """How many numbers are stored in each dtype."""
        counts: dict[torch.dtype, int] = {}
        for name, shape in self.shapes.items():
            counts[self.dtypes[name]] = counts.get(self.dtypes[name], 0) + torch.Size(shape).numel()
        return counts

    def _index_safetensors(self, file: Path) -> None:
        header = _header(file)
        try:
            self._open[file] = safe_open(file, framework="pt")
        except (SafetensorError, OSError) as error:
            raise _damaged(file, str(error)) from error
        for name, entry in header.items():
            if entry["dtype"] not in _DTYPES:
                raise Refusal(
                    f"tensor {name} in {file.name}",
                    why=f"it is stored as {entry['dtype']}, a compressed format",
                    instead="open the uncompressed checkpoint, or a GGUF file of the model",
                )
            self._file[name] = file
            self.shapes[name] = tuple(entry["shape"])
            self.dtypes[name] = _DTYPES[entry["dtype"]]

    def _index_pickle(self, file: Path) -> None:
        self._open[file] = content = _unpickled(file)
        for name, tensor in content.items():
            self._file[name] = file
            self.shapes[name] = tuple(tensor.shape)
            self.dtypes[name] = tensor.dtype


def _header(file: Path) -> dict[str, Any]:
    """The header of a safetensors file, once it is known that the file has all the bytes its header counts."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise _damaged(file, f"its header should be {length} bytes and the file has {size}")
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            needed = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        except ValueError as error:
            raise _damaged(file, "its header is not JSON") from error
        except (AttributeError, KeyError, IndexError, TypeError) as error:
            raise _damaged(file, "its header does not describe tensors") from error
    if size != needed:
        raise _damaged(file, f"it has {size} bytes and its header counts {needed}")
    return header


def _unpickled(file: Path) -> dict[str, Tensor]:
    """The tensors of a `torch.save` file, by the unpickler that runs no code."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of another kind, which are refused below
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        raise Refusal(
            f"weights {file}",
            why="this pickle holds more than tensors, and opening it would run code",
            instead="where you trust it, load it with the program that wrote it and save it by save_pretrained (safetensors)",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise _damaged(file, str(error).partition("\n")[0] or "it ends too early") from error
    if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise Refusal(
            f"weights {file}",
            why="it does not hold tensors by name",
            instead="save the model by save_pretrained, which writes safetensors",
        )
    return content


def _damaged(file: Path, detail: str) -> Refusal:
    return Refusal(f"weights {file}", why=f"the file is damaged or incomplete: {detail}", instead="download or copy it again")
