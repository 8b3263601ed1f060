"""One process of a training that is spread: `take_part` of a group that is there; or `python -m microtome.factors.rank FOLDER` by torchrun.

Every machine sees FOLDER, which `spread.begun_in` has written, and the states that it names. Ranks go on from the last checkpoint in it; the first one
writes the dictionary there. Who starts them belongs in the launchers, see `spread`.
"""

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Final, Literal

import torch

from microtome.core import Interrupted, Refusal
from microtome.engine.gang import loopback
from microtome.factors.checkpoints import read_checkpoint, write_checkpoint
from microtome.factors.job import CHECKPOINTS, DICTIONARY, LAYOUT, REFUSED, STEP, identity_of, read_job
from microtome.factors.mesh import Mesh, mesh_of
from microtome.factors.stored import save_dictionary
from microtome.factors.training import Trained, Trainer
from microtome.factors.whole import whole
from microtome.store import committed

__all__ = ["learn", "main", "take_part"]

_LOOKED: Final = 1.0
"""Seconds after which it is looked again whether the parent lives."""


def learn(folder: Path, mesh: Mesh, device: torch.device, every: int) -> None:
    """Train what the folder says, with a checkpoint after `every` so many steps; all ranks call this, the first writes the dictionary.

    Errors: `Refusal` as of `Trainer` and `read_checkpoint`.
    """
    job = read_job(folder)
    trainer, identity = Trainer([job.autoencoder(mesh).to(device)], job.training, job.seed), identity_of(job)
    read_checkpoint(folder / CHECKPOINTS, trainer, identity)
    steps = job.training.steps
    for x in islice(job.batches(mesh, trainer.done), steps - trainer.done):
        trainer.step(x.to(device))
        if trainer.done % every == 0 or trainer.done == steps:
            write_checkpoint(folder / CHECKPOINTS, trainer, identity)
        if mesh.first:
            _tell(folder, trainer.done)
    (trained,) = trainer.finished()
    found = whole(trained.autoencoder)
    if found is not None:
        save_dictionary(job.dictionary(Trained(found, trained.curve)), folder / DICTIONARY)
    mesh.wait()


def _tell(folder: Path, done: int) -> None:
    """How many steps were taken, for whoever looks; it need not outlive anything."""
    temporary = folder / f"{STEP}.part"
    temporary.write_text(str(done))
    temporary.replace(folder / STEP)


def take_part(folder: Path) -> None:
    """Train what a folder says as one of a process group that is there, on the device that this process has chosen; a refusal is written there as well.

    Errors: `Refusal` as of `learn`. Where one of the group has refused before, it has nothing to do.
    """
    if (folder / REFUSED).exists():
        return
    try:
        layout, kind = json.loads((folder / LAYOUT).read_bytes()), _kind(folder)
        device = torch.device("cpu") if kind == "cpu" else torch.device("cuda", torch.cuda.current_device())
        learn(folder, mesh_of(layout["shards"], kind), device, layout["every"])
    except Refusal as refusal:
        parts = {"what": refusal.what, "why": refusal.why, "instead": refusal.instead}
        with committed(folder / REFUSED) as temporary:
            temporary.write_text(json.dumps({"stays": isinstance(refusal, Interrupted), **parts}))
        raise


def _kind(folder: Path) -> Literal["cpu", "cuda"]:
    return "cuda" if read_job(folder).device.startswith("cuda") else "cpu"


@contextmanager
def _grouped(folder: Path, kind: Literal["cpu", "cuda"]) -> Iterator[None]:
    """All processes that were started together, by the environment that torchrun makes.

    On one machine they meet by a file, of each beginning another one, and talk over the loopback.
    """
    import torch.distributed as distributed

    told, backend = os.environ, "gloo" if kind == "cpu" else "cpu:gloo,cuda:nccl"
    if "RANK" not in told:
        why = "nobody told it which of how many it is"
        raise Refusal("a process of a training", why=why, instead="start it by torchrun, with one process if that is enough")
    if told.get("LOCAL_WORLD_SIZE") == told.get("WORLD_SIZE"):
        for name, value in loopback().items():
            told.setdefault(name, value)
        beginning = f"{os.getppid()}-{told['MASTER_PORT']}-{told.get('TORCHELASTIC_RESTART_COUNT', 0)}"
        rank, world = int(told["RANK"]), int(told["WORLD_SIZE"])
        store = distributed.FileStore(str(folder / f"meeting-{beginning}"), world)  # pyright: ignore[reportPrivateImportUsage]
        distributed.init_process_group(backend, store=store, rank=rank, world_size=world)
    else:
        distributed.init_process_group(backend)
    yield
    distributed.destroy_process_group()


def _end_with(parent: int) -> None:
    """End when who started this process is gone, also while it waits for others."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOKED)
        sys.stderr.write("who started this process is gone\n")
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


def main(folder: Path, parent: int) -> None:
    """Take part in the training of a folder, as one of those that torchrun has started.

    A refusal is written there, and ends this process; those that begin anew then find it, and end well.
    """
    _end_with(parent)
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        if os.environ.get("RANK") == "0":
            (folder / REFUSED).unlink(missing_ok=True)
    elif (folder / REFUSED).exists():
        if os.environ.get("TORCHELASTIC_RUN_ID") != folder.name:  # by torchrun: whoever has started it sees that it failed
            raise SystemExit(1)
        return
    local, beside = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    kind = _kind(folder)
    if kind == "cuda":
        torch.cuda.set_device(local)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // beside))
    try:
        with _grouped(folder, kind):
            take_part(folder)
    except Refusal as refusal:
        raise SystemExit(str(refusal)) from refusal


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m microtome.factors.rank", description="One process of a training.")
    parser.add_argument("folder", type=Path, help="of the training")
    parser.add_argument("--parent", type=int, default=os.getppid(), help="the process with which this one ends")
    told = parser.parse_args()
    main(told.folder, told.parent)
