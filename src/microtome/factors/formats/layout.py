"""What the modules of formats share: files that are read without running anything in them, and what a format is.

Each tensor is taken by its name and must have a shape that fits; what is missing, damaged or unknown is refused in one sentence. No format is
known here.
"""

import contextlib
import json
import math
import pickle
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from microtome.core import Refusal, Site
from microtome.factors.dictionary import Dictionary
from microtome.factors.formats.folded import Folded, Told
from microtome.store import committed

__all__ = [
    "Config", "Format", "Found", "Stored", "arrays", "pickled", "plain", "refuse_to_write", "safetensors", "write_json", "write_safetensors",
    "written",
]  # fmt: skip

_AGAIN: Final = "copy or download it again"


@dataclass(frozen=True)
class Found:
    """An autoencoder in files, and what they say of it: the names of its places ("" where they say nothing), and all that is worth keeping.

    `writes` is None for an autoencoder, which writes what it reads.
    """

    folded: Folded
    reads: str
    writes: str | None = None
    told: Told = field(default_factory=dict)


@dataclass(frozen=True)
class Format:
    """A layout of files: a folder with all of `files` is one.

    `place` is what a folder is called that is written for a site, and `write` fills it; both refuse what the format cannot say.
    """

    name: str
    files: tuple[str, ...]
    read: Callable[[Path], Found]
    place: Callable[[Dictionary, Site], str]
    write: Callable[[Folded, Dictionary, Site, Path], None]


@dataclass(frozen=True)
class Config:
    """The JSON beside the tensors."""

    path: Path
    values: Mapping[str, Any]

    @classmethod
    def of(cls, path: Path) -> "Config":
        """Of a file. Errors: `Refusal` where it is missing or is no JSON object."""
        try:
            values = json.loads(path.read_text("utf-8"))
        except FileNotFoundError as error:
            raise Refusal(str(path), why="there is no such file", instead="name a folder that has it") from error
        except (ValueError, OSError) as error:
            raise Refusal(str(path), why="the file is not JSON, or is damaged", instead=_AGAIN) from error
        if not isinstance(values, dict):
            raise Refusal(str(path), why="it holds no settings", instead=_AGAIN)
        return cls(path, values)

    def inner(self, name: str) -> "Config":
        """Settings inside settings; none where there are none."""
        value = self.values.get(name)
        return Config(self.path, value if isinstance(value, dict) else {})

    def text(self, *names: str) -> str:
        """The first that is there under one of these names, as text; "" where none is."""
        return next((str(self.values[name]) for name in names if self.values.get(name) is not None), "")

    def count(self, name: str) -> int:
        """A whole number above 0.

        Errors: `Refusal`.
        """
        value = self.values.get(name)
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
        if not (math.isfinite(number) and number == int(number) and number >= 1):
            raise Refusal(f"{name} in {self.path}", why=f"it is {value}, and no whole number above 0", instead=_AGAIN)
        return int(number)


@dataclass(frozen=True)
class Stored:
    """The tensors of a file."""

    path: Path
    tensors: Mapping[str, Tensor]

    def take(self, name: str, *shape: int | None) -> Tensor:
        """One of them, in float32 (float64 stays); None in `shape` is a number of any size above 0.

        Errors: `Refusal` where it is missing, of another shape, or not finite.
        """
        if name not in self.tensors:
            why = f"it is missing; there are {', '.join(sorted(self.tensors)) or 'none'}"
            raise Refusal(f"tensor {name} in {self.path}", why=why, instead=_AGAIN)
        found = self.tensors[name]
        fits = found.ndim == len(shape) and all(
            size > 0 if wanted is None else size == wanted for size, wanted in zip(found.shape, shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            why = f"it is of shape {list(found.shape)}, and [{wanted}] fits the others"
            raise Refusal(f"tensor {name} in {self.path}", why=why, instead=_AGAIN)
        wide = found.to(torch.promote_types(found.dtype, torch.float32))
        if not bool(torch.isfinite(wide).all()):
            raise Refusal(f"tensor {name} in {self.path}", why="some numbers are not finite", instead=_AGAIN)
        return wide.contiguous()

    def require_only(self, *names: str) -> None:
        """Refuse tensors of other names: they would change codes in a way that is not known here."""
        if unknown := sorted(set(self.tensors) - set(names)):
            why = "nothing is known here about what it does to codes"
            raise Refusal(
                f"tensor {unknown[0]} in {self.path}", why=why, instead="save the dictionary without it in the tool it is of"
            )


def safetensors(path: Path) -> Stored:
    """A safetensors file.

    Errors: `Refusal` where it is damaged.
    """
    try:
        return Stored(path, load_file(path))
    except (SafetensorError, OSError) as error:
        raise Refusal(str(path), why="the file is damaged", instead=_AGAIN) from error


def pickled(path: Path) -> Stored:
    """What `torch.save` wrote, if it is tensors by name and nothing else: no code in the file is run.

    Errors: `Refusal` where the file holds anything else, or is damaged.
    """
    try:
        if not zipfile.is_zipfile(path):
            raise EOFError  # what is no archive is cut off, or of before 2020: whatever it unpickles to is not looked at
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        why = "it holds objects that run code when they are opened"
        raise Refusal(str(path), why=why, instead="save its state dict, which is tensors only, in the tool it is of") from error
    except (RuntimeError, EOFError, KeyError, ValueError, TypeError, OSError) as error:
        raise Refusal(str(path), why="the file is damaged, or is none that torch.save writes", instead=_AGAIN) from error
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise Refusal(str(path), why="it is no state dict", instead="save tensors by name")
    return Stored(path, {str(name): value.detach() for name, value in found.items()})


def arrays(path: Path) -> Stored:
    """An npz file; arrays of objects are refused, since they are pickles.

    Errors: `Refusal`, also where the file is damaged.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            return Stored(path, {name: torch.from_numpy(np.ascontiguousarray(found[name])) for name in found.files})
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, TypeError, AttributeError) as error:
        raise Refusal(str(path), why="the file is damaged, or holds more than numbers", instead=_AGAIN) from error


def plain(tensor: Tensor) -> Tensor:
    """A tensor as it is written: float32, on the CPU, in rows."""
    return tensor.detach().float().cpu().contiguous()


@contextlib.contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """A file to write into, in a folder that is made if need be: whole at the end, or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with committed(path) as temporary, temporary.open("wb") as file:
        yield file


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Settings."""
    with written(path) as file:
        file.write((json.dumps(values, indent=2, allow_nan=False) + "\n").encode())


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Tensors, as `plain` has them."""
    with written(path) as file:
        file.write(save({name: plain(tensor) for name, tensor in tensors.items()}))


def refuse_to_write(dictionary: Dictionary, tool: str, why: str) -> Refusal:
    """The refusal of what a format cannot say."""
    instead = "write it in another format, or as microtome's own file"
    return Refusal(f"dictionary {dictionary.name} for {tool}", why=why, instead=instead)
