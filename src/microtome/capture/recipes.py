"""How the work of a stage is made in another process, which has opened the same model.

What is sent is pickled, from one process of a build to another of the same versions, and never kept. The model, its parts and the corpus
are not sent: they stand for themselves, and are found or opened on the other side. Running belongs in `run`.
"""

import functools
import io
import pickle
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from microtome.capture.execution import execution_class
from microtome.capture.lens import Run, Stage
from microtome.core import Fold, Refusal, RowFold
from microtome.corpus import Corpus, Extras, open_corpus
from microtome.engine import Work
from microtome.model import Checkpoint, Model, Opening, load
from microtome.store import Place

__all__ = ["TABLES", "ModelSubject", "packed", "require_same_model", "subject_of", "workers_class"]

TABLES: Final = "tables"
"""What an execution class says of the process that computes tables, where that is another one than run the stages."""
_NOT_CLASS: Final = ("model", "python")
_INSTEAD: Final = "leave --engine out: then this process does it"


@dataclass(frozen=True)
class ModelSubject:
    """A model that workers open by its name. `memory` is in bytes: its parameters, half as much again, and a gigabyte for libraries.

    `devices` is how many it is spread over, none where it was asked for on the CPU.
    """

    opening: Opening
    memory: int
    devices: int = 1

    def open(self, devices: Sequence[int]) -> Model:
        """The model, on the worker's own GPUs where there are any, or on the one device that was named.

        Errors: `Refusal` as of `load`.
        """
        device = self.opening.device
        if torch.cuda.is_available() and (device in ("auto", "cuda") or "," in device):
            there = max(len(devices), torch.cuda.device_count())
            device = ",".join(f"cuda:{each % there}" for each in devices)
        return load(self.opening.source, dtype=self.opening.dtype, device=device, remote_code=self.opening.remote_code)

    def identity(self, opened: Model) -> Mapping[str, str]:
        """The weights, the execution class, and the Python that pickles must be of."""
        return {"model": opened.fingerprint, "python": platform.python_version(), **execution_class(opened)}


def subject_of(model: Model) -> ModelSubject:
    """How workers open a model.

    Errors: `Refusal` for one that is there as a module only.
    """
    if model.opening is None:
        raise Refusal(
            f"model {model.name} in other processes",
            why="it was given as a module, which they cannot open",
            instead="save it by save_pretrained and name the folder, or let this process do the work",
        )
    size = sum(each.numel() * each.element_size() for each in model.module.parameters())
    asked = model.opening.device
    devices = 0 if asked == "cpu" else max(len(model.devices), asked.count(",") + 1)
    return ModelSubject(model.opening, round(1.5 * size) + (1 << 30), devices)


def require_same_model(model: Model, identity: Mapping[str, str]) -> None:
    """Refuse workers that have opened other weights."""
    if identity.get("model", model.fingerprint) != model.fingerprint:
        raise Refusal(
            f"model {model.name}",
            why="its files on the workers' machines are not those that are here",
            instead="copy them there, or name a folder that all machines share",
        )


def workers_class(model: Model | Checkpoint, identity: Mapping[str, str]) -> dict[str, str] | None:
    """The execution class of a run whose stages run in workers of this identity; None where this process runs them.

    What is computed of the merged states is computed here: where this process is of another class, that is part of it.
    """
    if not identity or not isinstance(model, Model):
        return None
    workers = {key: value for key, value in identity.items() if key not in _NOT_CLASS}
    own = {key: value for key, value in execution_class(model).items() if workers.get(key) != value}
    return workers | ({TABLES: ", ".join(f"{key} {value}" for key, value in sorted(own.items()))} if own else {})


@dataclass(frozen=True)
class _StageRecipe:
    payload: bytes
    text: Place | None

    def work(self, opened: Model) -> Work:
        return _Unpickler(io.BytesIO(self.payload), opened, self.text).load()


def packed(
    run: Run, stage: Stage, folds: Mapping[str, Fold | RowFold], make: Callable[..., Work], text: Place | None = None
) -> _StageRecipe:
    """A recipe that calls `make` with the run, the stage and the folds; `text` is where tables of the corpus are, for those who do not see its files.

    Errors: `Refusal` where a fold holds what cannot be sent: another model, say, or a class that only this program defines.
    """
    assert isinstance(run.model, Model), "a stage is run on a model that was built"
    buffer = io.BytesIO()
    try:
        _Pickler(buffer, run.model).dump(_Call(make, (replace(run, workers=None), stage, dict(folds))))
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise Refusal(
            f"stage {stage.name} in other processes", why=f"its folds cannot be sent: {error}", instead=_INSTEAD
        ) from error
    return _StageRecipe(buffer.getvalue(), text)


@dataclass(frozen=True)
class _Call:
    """Pickles as what the call gives."""

    make: Callable[..., Work]
    arguments: tuple[Any, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        return self.make, self.arguments


class _Pickler(pickle.Pickler):
    """Pickles values of a run; the model and its parts by their names, a corpus by where its tables are."""

    def __init__(self, file: io.BytesIO, model: Model) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        parts = {id(each): ("module", name) for name, each in model.module.named_modules()}
        parts |= {id(each): ("parameter", name) for name, each in model.module.named_parameters()}
        for name in ("tokenizer", "processor", "weights"):
            parts[id(getattr(model, name))] = (name, "")
        self._parts = parts | {id(model): ("model", ""), id(None): None}

    def persistent_id(self, obj: Any) -> Any:
        """What stands for an object; None for those that are pickled."""
        if (named := self._parts.get(id(obj))) is not None:
            return named
        if isinstance(obj, Model | nn.Module):
            raise pickle.PicklingError("one holds a model that is not the run's")
        if isinstance(obj, Corpus):
            return "corpus", (*(path.absolute() for path in obj.paths), obj.name, obj.window, obj.extras)
        if isinstance(obj, Tensor) and obj.device.type != "cpu":
            return "tensor", obj.detach().cpu()
        return None


class _Unpickler(pickle.Unpickler):
    """Gives the worker's own model, its parts and its device for what stands for them."""

    def __init__(self, file: io.BytesIO, model: Model, text: Place | None) -> None:
        super().__init__(file)
        self._model, self._text = model, text

    def persistent_load(self, pid: tuple[str, Any]) -> Any:
        """What an id stands for here."""
        kind, what = pid
        if kind == "model":
            return self._model
        if kind == "corpus":
            return _opened(self._text, *what)
        if kind == "tensor":
            return what.to(self._model.device)
        if kind == "module":
            return self._model.module.get_submodule(what)
        return self._model.module.get_parameter(what) if kind == "parameter" else getattr(self._model, kind)


@functools.lru_cache(maxsize=2)
def _opened(text: Place | None, documents: Path, windows: Path, name: str, window: int, extras: Extras | None) -> Corpus:
    """The corpus of a run, opened once for all its stages.

    Errors: `Refusal` where its tables are not there.
    """
    return open_corpus(_there(text, documents), _there(text, windows), name=name, window=window, extras=extras)


def _there(text: Place | None, path: Path) -> Path:
    """A table of the corpus: the file itself, or a copy of what is in the place of the atlas."""
    if path.exists():
        return path
    try:
        if text is not None:
            return text.inside("tables").inside(path.parent.name).local(path.name)
    except FileNotFoundError:
        pass
    raise Refusal(
        f"the text, on machine {platform.node()}",
        why=f"{path} is not there",
        instead="build into a folder that all machines share, or at an address such as s3://bucket/atlas",
    )
