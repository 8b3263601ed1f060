"""Training of one sparse autoencoder by one process and by two of one thread each, at the same global batch.

usage: python -m benchmarks.factors_distributed [--rounds N] [--steps N] [--write yes|no]
Batches of 2048 planted states of width 576, 4096 units, 32 codes a state, float32. Two processes on the loopback take turns: one of them alone while the other waits, both with half of the rows each (data),
both with half of the units each (units). A round has a few steps of each layout, so that a busy machine slows all of them; on two cores that others
use as well, what is said of two processes is a lower bound. `collective_share` is the part of the first process's time in collectives, the waiting
for the other one in them included; `megabytes` is what a process keeps: parameters, Adam's moments and counts.
"""

import argparse
import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.interleaved import contest, write_results
from microtome.factors import training
from microtome.factors.autoencoder import Autoencoder
from microtome.factors.mesh import ALONE, mesh_of
from microtome.factors.mixing import part_of
from microtome.factors.training import Trainer, Training
from microtome.factors.variant import Variant
from microtome.factors.variants import BatchTopK, TopK

RESULTS = Path(__file__).with_name("results.json")
ROWS, WIDTH, UNITS, K = 2048, 576, 4096, 32
VARIANTS: dict[str, Variant] = {"TopK": TopK(K), "BatchTopK": BatchTopK(K)}


def states() -> Tensor:
    """States made of 32 of 4096 directions each, four batches of them."""
    generator = torch.Generator().manual_seed(0)
    factors = torch.nn.functional.normalize(torch.randn(UNITS, WIDTH, generator=generator), dim=1)
    chosen = torch.randint(UNITS, (4 * ROWS, K), generator=generator)
    return (torch.rand(4 * ROWS, K, 1, generator=generator) * factors[chosen]).sum(1)[:, None] * 4


class Clock:
    """Seconds spent in collectives."""

    def __init__(self) -> None:
        self.seconds, self._inside = 0.0, False

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same, timed; what is called from inside counts once."""

        def measured(*given: Any, **named: Any) -> Any:
            if self._inside:
                return call(*given, **named)
            self._inside, begin = True, time.perf_counter()
            try:
                return call(*given, **named)
            finally:
                self._inside = False
                self.seconds += time.perf_counter() - begin

        return measured


def in_group(rank: int, folder: str, given: argparse.Namespace) -> None:
    """One of two processes."""
    import torch.distributed as distributed

    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    store = distributed.FileStore(f"{folder}/store", 2)  # pyright: ignore[reportPrivateImportUsage]
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    clock = Clock()
    for name in ("all_reduce", "all_gather", "barrier"):
        setattr(distributed, name, clock.timed(getattr(distributed, name)))
    setattr(training, "sum_gradients", clock.timed(training.sum_gradients))  # noqa: B010  # it waits for what it began
    data = states()
    for name, variant in VARIANTS.items():
        measured(name, variant, data, clock, given)
    distributed.destroy_process_group()


def measured(kind: str, variant: Variant, data: Tensor, clock: Clock, given: argparse.Namespace) -> None:
    """Rounds of all layouts; the first process tells."""
    import torch.distributed as distributed

    meshes = {"one process": ALONE, "two, data": mesh_of(1, "cpu"), "two, units": mesh_of(2, "cpu")}
    settings = Training(10**6, ROWS, rate=1e-3)
    trainers = {name: Trainer([Autoencoder(variant, UNITS, WIDTH, mesh=mesh)], settings) for name, mesh in meshes.items()}
    shares: dict[str, list[float]] = {name: [] for name in meshes}

    def run(name: str) -> float:
        mesh, trainer = meshes[name], trainers[name]
        distributed.barrier()
        begin, clock.seconds = time.perf_counter(), 0.0
        if mesh.ranks > 1 or distributed.get_rank() == 0:
            for _ in range(given.steps):
                x = data[ROWS * (trainer.done % 4) :][:ROWS]
                trainer.step(x[part_of(ROWS, mesh.row_rank, mesh.data)])
        seconds = time.perf_counter() - begin
        shares[name].append(clock.seconds / seconds)
        distributed.barrier()
        return seconds

    result = contest(
        {name: (lambda name=name: run(name)) for name in meshes},
        baseline="one process",
        tokens=given.steps * ROWS,
        rounds=given.rounds,
    )
    if distributed.get_rank():
        return
    rows = result.rows()
    for row in rows:
        name = str(row["name"])
        row["collective_share"] = round(statistics.median(shares[name][1:]), 3)
        row["megabytes"] = round(sum(each.nbytes for each in trainers[name].state().values()) / 2**20, 1)
        row["explained"] = round(trainers[name].latest[0].explained, 4)
        print(kind, row)
    if given.write == "yes":
        write_results(RESULTS, f"factors_distributed {kind}", rows)


def main() -> None:
    """Both kinds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2, help="of each layout in a round")
    parser.add_argument("--write", choices=["yes", "no"], default="yes")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        processes = [context.Process(target=in_group, args=(rank, folder, given)) for rank in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()


if __name__ == "__main__":
    main()
