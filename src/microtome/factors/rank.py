"""One process of a training that is spread: `python -m microtome.factors.rank FOLDER`, started by `spread` or, over several machines, by torchrun.

    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --nnodes 4 --nproc-per-node 8 --max-restarts 3 --rdzv-backend c10d
        --rdzv-endpoint HOST:PORT -m microtome.factors.rank FOLDER

(the variable: or processes that begin anew would find the addresses of those that died). Every machine sees FOLDER, which `job.write_job` has written
and `spread.begun_in` has laid out, and the states that it names. Ranks go on from the last checkpoint in it; the first one writes the dictionary there.
"""

import argparse
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Literal

import torch

from microtome.core import Refusal
from microtome.factors.checkpoints import read_checkpoint, write_checkpoint
from microtome.factors.job import CHECKPOINTS, DICTIONARY, LAYOUT, REFUSED, STEP, identity_of, read_job
from microtome.factors.mesh import Mesh, mesh_of
from microtome.factors.stored import save_dictionary
from microtome.factors.training import Trained, Trainer
from microtome.factors.whole import whole
from microtome.store import committed

__all__ = ["learn", "main"]


def learn(folder: Path, mesh: Mesh, device: torch.device, every: int) -> None:
    """Train what the folder says, with a checkpoint after `every` so many steps; all ranks call this, the first writes the dictionary.

    Errors: `Refusal` as of `Trainer` and `read_checkpoint`.
    """
    job, parent = read_job(folder), os.getppid()
    trainer, identity = Trainer([job.autoencoder(mesh).to(device)], job.training, job.seed), identity_of(job)
    read_checkpoint(folder / CHECKPOINTS, trainer, identity)
    steps = job.training.steps
    for x in islice(job.batches(mesh, trainer.done), steps - trainer.done):
        trainer.step(x.to(device))
        if trainer.done % every == 0 or trainer.done == steps:
            write_checkpoint(folder / CHECKPOINTS, trainer, identity)
        if mesh.first:
            _tell(folder, trainer.done)
        if os.getppid() != parent:
            raise SystemExit("who started this process is gone")
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


@contextmanager
def _grouped(folder: Path, shards: int, kind: Literal["cpu", "cuda"]) -> Iterator[Mesh]:
    """All processes that were started together, by the environment that torchrun makes.

    On one machine they meet by a file, of each beginning another one, and talk over the loopback: nothing listens to others.
    """
    import torch.distributed as distributed

    told, backend = os.environ, "gloo" if kind == "cpu" else "cpu:gloo,cuda:nccl"
    if "RANK" not in told:
        why = "nobody told it which of how many it is"
        raise Refusal("a process of a training", why=why, instead="start it by torchrun, with one process if that is enough")
    if told.get("LOCAL_WORLD_SIZE") == told.get("WORLD_SIZE"):
        loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
        told.setdefault("GLOO_SOCKET_IFNAME", loopback)
        told.setdefault("NCCL_SOCKET_IFNAME", loopback)
        beginning = f"{os.getppid()}-{told['MASTER_PORT']}-{told.get('TORCHELASTIC_RESTART_COUNT', 0)}"
        rank, world = int(told["RANK"]), int(told["WORLD_SIZE"])
        store = distributed.FileStore(str(folder / f"meeting-{beginning}"), world)  # pyright: ignore[reportPrivateImportUsage]
        distributed.init_process_group(backend, store=store, rank=rank, world_size=world)
    else:
        distributed.init_process_group(backend)
    yield mesh_of(shards, kind)
    distributed.destroy_process_group()


def main(folder: Path) -> None:
    """Take part in the training of a folder. A refusal is written there, and ends this process; those that begin anew then find it, and end well."""
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        if os.environ.get("RANK") == "0":
            (folder / REFUSED).unlink(missing_ok=True)
    elif (folder / REFUSED).exists():
        if os.environ.get("TORCHELASTIC_RUN_ID") != folder.name:  # by torchrun: whoever has started it sees that it failed
            raise SystemExit(1)
        return
    layout, kind = json.loads((folder / LAYOUT).read_bytes()), "cuda" if read_job(folder).device.startswith("cuda") else "cpu"
    local, beside = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    device = torch.device("cpu") if kind == "cpu" else torch.device("cuda", local)
    if kind == "cuda":
        torch.cuda.set_device(device)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // beside))
    try:
        with _grouped(folder, layout["shards"], kind) as mesh:
            learn(folder, mesh, device, layout["every"])
    except Refusal as refusal:
        with committed(folder / REFUSED) as temporary:
            temporary.write_text(json.dumps({"what": refusal.what, "why": refusal.why, "instead": refusal.instead}))
        raise SystemExit(str(refusal)) from refusal


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m microtome.factors.rank", description="One process of a training.")
    parser.add_argument("folder", type=Path, help="of the training")
    main(parser.parse_args().folder)
