"""Checkpoints of a training, each whole or absent: written by all ranks at once, resumed by as many or by others, laid out so or otherwise.

Tensors are written by torch.distributed.checkpoint, a rank's own units by that rank, who says what its files' SHA-256 are; then a marker says of which
step they are, and of which training. What a state consists of belongs in `training`.
"""

import json
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from microtome.core import Interrupted, Refusal
from microtome.factors.autoencoder import REPLICATED
from microtome.factors.mesh import Mesh
from microtome.factors.training import Trainer
from microtome.store import committed, differences, digest

__all__ = ["checkpoints_in", "read_checkpoint", "write_checkpoint"]

_SEAL: Final = "sealed-"
_LAG: Final = 60
"""Seconds for which machines may see different files of a shared folder."""
_WHOLE: Final = ("done", "step", "curve", *REPLICATED)
"""Parts of the names of those tensors of a state that all ranks have. Of all others each has the rows of its own units."""


def checkpoints_in(folder: Path) -> list[int]:
    """Steps of the checkpoints that are whole, the earliest first."""
    return sorted(int(marker.stem.removeprefix("step-")) for marker in folder.glob("step-*.json"))


def write_checkpoint(folder: Path, trainer: Trainer, identity: Mapping[str, str]) -> None:
    """Commit the state of a trainer; all ranks call this. Earlier checkpoints go when this one is there.

    Memory: a copy of the rank's own state. Cost: what a rank writes it reads once, for its checksum.
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
    _seal(folder / name, mesh)
    mesh.wait()
    if mesh.first:
        with committed(folder / f"{name}.json") as temporary:
            temporary.write_text(json.dumps({"identity": dict(identity), "ranks": mesh.ranks, "curves": curves}))
        for step in checkpoints_in(folder):
            if step < trainer.done:
                (folder / f"step-{step:08d}.json").unlink()
                shutil.rmtree(folder / f"step-{step:08d}")
    mesh.wait()


def read_checkpoint(folder: Path, trainer: Trainer, identity: Mapping[str, str]) -> None:
    """Go on from the last checkpoint, if there is one; all ranks call this.

    Errors: `Refusal` for a checkpoint of another training, `Interrupted` for one that is not as it was written.
    """
    from torch.distributed.checkpoint.state_dict_loader import load

    newest = _newest(folder, trainer.mesh)
    if newest < 0:
        return
    name = f"step-{newest:08d}"
    marker = _marker(folder / f"{name}.json")
    _require_same(folder / name, marker["identity"], identity)
    _require_sound(folder / name, marker["ranks"], trainer.mesh)
    state = {name: each for name, each in trainer.state().items() if not name.endswith(".curve")}
    with _one_process_is_meant():
        load(_placed(state, trainer.mesh), checkpoint_id=folder / name, no_dist=trainer.mesh.ranks == 1)
    curves = {name: torch.tensor(rows, dtype=torch.float64).view(-1, 6) for name, rows in marker["curves"].items()}
    trainer.restore(state | curves)


def _newest(folder: Path, mesh: Mesh) -> int:
    """The step of the last checkpoint, or -1. Errors: `Interrupted` where machines go on seeing different ones."""
    seen: list[int] = []
    for _ in range(_LAG):
        steps = checkpoints_in(folder)
        seen = mesh.counts(steps[-1] if steps else -1, "all")
        if min(seen) == max(seen):
            return seen[0]
        time.sleep(1)
    why = f"some machines see step {max(seen)} there and others not"
    raise Interrupted(f"going on from {folder}", why=why, instead="let all have the same folder, and run again")


def _seal(folder: Path, mesh: Mesh) -> None:
    """Write down what this rank has written."""
    own = [*folder.glob(f"__{_number(mesh)}_*"), *([folder / ".metadata"] if mesh.first else [])]
    with committed(folder / f"{_SEAL}{_number(mesh)}.json") as temporary:
        temporary.write_text(json.dumps({path.name: digest(path) for path in own}))


def _require_sound(folder: Path, ranks: int, mesh: Mesh) -> None:
    """Look at what some of the ranks had written, others at the rest."""
    for number in range(_number(mesh), ranks, mesh.ranks):
        for name, expected in _marker(folder / f"{_SEAL}{number}.json").items():
            if not (folder / name).exists() or digest(folder / name) != expected:
                raise _damaged(folder / name)


def _number(mesh: Mesh) -> int:
    """This rank's among all, as torch counts them."""
    return mesh.row_rank * mesh.shards + mesh.unit_rank


def _marker(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> Interrupted:
    whole = next(each for each in path.parents if not each.name.startswith("step-"))
    why = "it is not there, or its bytes are not those that were written"
    return Interrupted(
        f"checkpoint {path}", why=why, instead=f"delete {whole} and run again: the training begins anew, from the same states"
    )


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
