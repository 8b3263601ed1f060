"""Ranks of a group as processes that a test starts and waits for, and what they do in it."""

import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from microtome.core import Half, Site
from microtome.engine import Parts
from microtome.engine.work import rows_of
from microtome.factors.autoencoder import REPLICATED, Autoencoder
from microtome.factors.checkpoints import read_checkpoint, write_checkpoint
from microtome.factors.dictionary import Arrangement
from microtome.factors.harvest import Harvest, Harvested
from microtome.factors.job import Job
from microtome.factors.mesh import ALONE, Mesh, Over, mesh_of
from microtome.factors.mixing import Mixing, part_of
from microtome.factors.scaling import identity
from microtome.factors.training import Trained, Trainer, Training
from microtome.factors.variant import Variant
from microtome.factors.variants import TopK
from microtome.factors.whole import whole
from microtome.store import Folder, Shelf
from tests.unit.factors.planted_states import Planted

STEPS, ROWS, UNITS, WIDTH = 24, 66, 96, 16
SETTINGS = Training(STEPS, ROWS, dead_after=3 * ROWS, rate=3e-3, average=0.9)
PLANTED = Planted.of(64, WIDTH, 3)
HALF, IDENTITY = 12, {"seed": "3"}


@dataclass(frozen=True)
class Case:
    """An autoencoder that is trained by so many shards."""

    variant: Variant
    arrangement: Arrangement = "shared"
    shards: int = 1

    def __str__(self) -> str:
        return f"{self.variant} {self.arrangement} {self.shards}"

    def autoencoder(self, mesh: Mesh = ALONE) -> Autoencoder:
        """With every third unit silent at first."""
        found = Autoencoder(
            self.variant,
            UNITS,
            WIDTH,
            arrangement=self.arrangement,
            places=2 if self.arrangement == "crosscoder" else 1,
            skip="linear" if self.arrangement == "transcoder" else "none",
            seed=1,
            mesh=mesh,
        )
        with torch.no_grad():
            found.bias[torch.arange(UNITS)[found.own] % 3 == 0] -= 3
        return found

    def batches(self) -> Iterator[Tensor]:
        places = 1 if self.arrangement == "shared" else 2
        for seed in range(STEPS):
            yield PLANTED.draw(ROWS * places, seed)[1].view(ROWS, places, WIDTH)

    def trained(self, mesh: Mesh = ALONE) -> Trained:
        """By this rank's rows of every batch."""
        trainer = Trainer([self.autoencoder(mesh)], SETTINGS, seed=3)
        for x in self.batches():
            trainer.step(x[part_of(ROWS, mesh.row_rank, mesh.data)])
        return trainer.finished()[0]


def begun(do: Callable[..., None], rank: int, ranks: int, store: Path, *given: Any) -> None:
    """In a process of its own: join the group, and do something."""
    import torch.distributed as distributed

    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    distributed.init_process_group("gloo", store=distributed.FileStore(str(store), ranks), rank=rank, world_size=ranks)  # pyright: ignore[reportPrivateImportUsage]
    try:
        do(*given)
    finally:
        distributed.destroy_process_group()


def together(ranks: int, folder: Path, do: Callable[..., None], *given: Any) -> None:
    """Run `do(*given)` in so many processes that are a group, on the loopback, and wait until they have ended well."""
    context = multiprocessing.get_context("spawn")
    store = folder / f"store-{ranks}-{do.__name__}"
    processes = [context.Process(target=begun, args=(do, rank, ranks, store, *given)) for rank in range(ranks)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0] * ranks
    finally:
        for process in processes:
            process.kill()
            process.join()


def require_near(found: Tensor, expected: Tensor) -> None:
    """All to 1e-5 of themselves (1e-6 where they are small), but for one in twenty.

    Rounding can bring an entry over an edge: a gate opens, or another one is the k-th largest. What follows for some units is not wrong, and small.
    """
    near = torch.isclose(found, expected, rtol=1e-5, atol=1e-6).float().mean()
    assert float((found - expected).norm()) <= 1e-3 * float(expected.norm()) + 1e-6
    assert expected.numel() < 100 or float(near) > 0.95


def as_two(cases: Sequence[Case], stopped: Sequence[Case], folder: Path) -> None:
    """Train some cases, and stop others half way."""
    train_cases(cases, folder)
    interrupt(stopped, folder)


def as_four(cases: Sequence[Case], stopped: Sequence[Case], begun_in: Path, folder: Path) -> None:
    """Train some cases, and go on with those that were stopped."""
    train_cases(cases, folder)
    finish(stopped, begun_in, folder)


def train_cases(cases: Sequence[Case], folder: Path) -> None:
    """Train all of them one after another; what the first rank has in the end is left in the folder."""
    meshes = {shards: mesh_of(shards, "cpu") for shards in sorted({case.shards for case in cases})}
    for case in cases:
        mesh = meshes[case.shards]
        trained = case.trained(mesh)
        require_replicas(trained.autoencoder)
        found = whole(trained.autoencoder)
        kept = {name: len(value) for name, value in trained.autoencoder.named_parameters()}
        if found is not None:
            curve = [[*vars(point).values()] for point in trained.curve]
            torch.save({"state": found.state_dict(), "curve": curve, "kept": kept}, folder / f"{case}.pt")
    if 1 in meshes:
        found = recovering(meshes[1])
        if meshes[1].first:
            torch.save(found, folder / "planted.pt")


def recovering(mesh: Mesh) -> Tensor:
    """The directions of an autoencoder that learns long enough to find what was planted."""
    steps, rows = 120, 256
    autoencoder = Autoencoder(TopK(3), UNITS, WIDTH, mesh=mesh)
    trainer = Trainer([autoencoder], Training(steps, rows, rate=1e-2))
    for seed in range(steps):
        trainer.step(PLANTED.draw(rows, seed)[1][part_of(rows, mesh.row_rank, mesh.data), None])
    return autoencoder.directions.detach()


def require_replicas(autoencoder: Autoencoder) -> None:
    """What several ranks have is the same to the bit."""
    mesh = autoencoder.mesh
    for name, value in autoencoder.state_dict().items():
        over: Over = "all" if name in REPLICATED else "rows"
        assert torch.equal(mesh.reduced(value, over, "min"), mesh.reduced(value, over, "max")), name


def interrupt(cases: Sequence[Case], folder: Path) -> None:
    """Stop half way, with a checkpoint; then go on, and go on from the checkpoint."""
    meshes = {shards: mesh_of(shards, "cpu") for shards in sorted({case.shards for case in cases})}
    for case in cases:
        mesh = meshes[case.shards]
        unbroken = Trainer([case.autoencoder(mesh)], SETTINGS, seed=3)
        run(unbroken, case, HALF)
        write_checkpoint(folder / str(case), unbroken, IDENTITY)
        resumed = Trainer([case.autoencoder(mesh)], SETTINGS, seed=3)
        read_checkpoint(folder / str(case), resumed, IDENTITY)
        for name, trainer in (("whole", unbroken), ("resumed", resumed)):
            run(trainer, case, STEPS)
            keep(trainer, folder / f"{name} {case}.pt")


def finish(cases: Sequence[Case], begun_in: Path, folder: Path) -> None:
    """Go on in two groups of two shards from checkpoints of others."""
    mesh = mesh_of(2, "cpu")
    for case in cases:
        trainer = Trainer([case.autoencoder(mesh)], SETTINGS, seed=3)
        read_checkpoint(begun_in / str(case), trainer, IDENTITY)
        run(trainer, case, STEPS)
        keep(trainer, folder / f"finished {case}.pt")


def run(trainer: Trainer, case: Case, last: int) -> None:
    """Steps up to the last."""
    mesh = trainer.mesh
    for x in islice(case.batches(), trainer.done, last):
        trainer.step(x[part_of(ROWS, mesh.row_rank, mesh.data)])


def keep(trainer: Trainer, path: Path) -> None:
    """What was learnt, by the first rank."""
    found = whole(trainer.finished()[0].autoencoder)
    if found is not None:
        torch.save(found.state_dict(), path)


PARTS, BLOCK = 6, 200


def planted_states(folder: Path) -> Parts:
    """States of a planted dictionary as a harvest leaves them: parts of different sizes, all of the discover half."""
    shelf = Shelf(Folder(folder))
    for part in range(PARTS):
        rows = BLOCK + 30 * part
        states = PLANTED.draw(rows, 1000 + part)[1].to(torch.bfloat16)
        of = {name: torch.arange(rows) for name in ("id", "window", "position")}
        half = torch.full((rows,), int(Half.DISCOVER), dtype=torch.uint8)
        state = {
            "blocks": torch.tensor(1),
            "0.0.codes": states,
            "0.half": half,
            **{f"0.{name}": each for name, each in of.items()},
        }
        state |= {name: torch.zeros((), dtype=torch.float64) for name in ("noise", "energy")}
        shelf.write(rows_of(part), {"states": state})
    return Parts(shelf, "states", PARTS)


def planted_job(folder: Path, variant: Variant, steps: int = STEPS, streams: int = 4) -> Job:
    """A training on `planted_states`, which are put into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return Job(
        name="planted",
        units=UNITS,
        variant=variant,
        arrangement="shared",
        harvested=Harvested(Harvest((Site("resid_pre", 0),)), planted_states(folder)),
        massive="kept",
        scaling=identity(1, WIDTH),
        training=replace(SETTINGS, steps=steps, average=None),
        mixing=Mixing(ROWS, 600, 3, 0, streams),
        seed=3,
        model="none",
        learnt={"seed": 3},
    )
