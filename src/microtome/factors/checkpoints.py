"""Checkpoints of a training, each whole or absent: written by all ranks at once, resumed by as many or by others, laid out so or otherwise.

Tensors are written by torch.distributed.checkpoint, a rank's own units by that rank; then a marker says of which step they are, and of which
training. What a state consists of belongs in `training`.
"""

import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from microtome.core import Refusal
from microtome.factors.autoencoder import REPLICATED
from microtome.factors.mesh import Mesh
from microtome.factors.training import Trainer
from microtome.store import committed, differences

__all__ = ["checkpoints_in", "read_checkpoint", "write_checkpoint"]

_WHOLE: Final = ("done", "step", "curve", *REPLICATED)
"""Parts of the names of those tensors of a state that all ranks have. Of all others each has the rows of its own units."""


def checkpoints_in(folder: Path) -> list[int]:
    """Steps of the checkpoints that are whole, the earliest first."""
    return sorted(int(marker.stem.removeprefix("step-")) for marker in folder.glob("step-*.json"))


def write_checkpoint(folder: Path, trainer: Trainer, identity: Mapping[str, str]) -> None:
    """Commit the state of a trainer; all ranks call this. Earlier checkpoints go when this one is there.

    Memory: a copy of the rank's own state.
    """
    from torch.distributed.checkpoint.state_dict_saver import save

    mesh, name, state = trainer.mesh, f"step-{trainer.done:08d}", trainer.state()
    if mesh.first:
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True)
    mesh.wait()
    curves = {name: state.pop(name).tolist() for name in [*state] if name.endswith(".curve")}
    with _one_process_is_meant():
        save(_placed(state, mesh), checkpoint_id=folder / name, no_dist=mesh.ranks == 1)
    mesh.wait()
    if mesh.first:
        with committed(folder / f"{name}.json") as temporary:
            temporary.write_text(json.dumps({"identity": dict(identity), "curves": curves}))
        for step in checkpoints_in(folder):
            if step < trainer.done:
                (folder / f"step-{step:08d}.json").unlink()
                shutil.rmtree(folder / f"step-{step:08d}")
    mesh.wait()


def read_checkpoint(folder: Path, trainer: Trainer, identity: Mapping[str, str]) -> None:
    """Go on from the last checkpoint, if there is one; all ranks call this.

    Errors: `Refusal` for a checkpoint of another training.
    """
    from torch.distributed.checkpoint.state_dict_loader import load

    steps = checkpoints_in(folder)
    newest = min(trainer.mesh.counts(steps[-1] if steps else -1, "all"))  # machines may not see the same files yet
    if newest < 0:
        return
    name = f"step-{newest:08d}"
    marker = json.loads((folder / f"{name}.json").read_bytes())
    _require_same(folder / name, marker["identity"], identity)
    state = {name: each for name, each in trainer.state().items() if not name.endswith(".curve")}
    with _one_process_is_meant():
        load(_placed(state, trainer.mesh), checkpoint_id=folder / name, no_dist=trainer.mesh.ranks == 1)
    curves = {name: torch.tensor(rows, dtype=torch.float64).view(-1, 6) for name, rows in marker["curves"].items()}
    trainer.restore(state | curves)


@contextmanager
def _one_process_is_meant() -> Iterator[None]:
    """Torch warns of a single process also where it was told."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


def _placed(state: Mapping[str, Tensor], mesh: Mesh) -> dict[str, Tensor]:
    """The same tensors, of which those of units say that they are parts of larger ones."""
    return {name: each if _is_whole(name) else _of_units(each, mesh) for name, each in state.items()}


def _of_units(x: Tensor, mesh: Mesh) -> Tensor:
    """A rank's units of a tensor, as torch says it: a `DTensor` that shares its memory, sharded over units and the same for all rows."""
    if mesh.devices is None:
        return x
    from torch.distributed.tensor import DTensor, Replicate, Shard

    return DTensor.from_local(x, mesh.devices, [Replicate(), Shard(0)], run_check=False)


def _is_whole(name: str) -> bool:
    return not set(_WHOLE).isdisjoint(name.split("."))


def _require_same(path: Path, written: Mapping[str, str], identity: Mapping[str, str]) -> None:
    if changed := differences(written, identity):
        raise Refusal(
            f"going on from checkpoint {path}",
            why="; ".join(changed),
            instead="go back to what it was, or name another folder to begin anew",
        )
