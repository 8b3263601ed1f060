"""How many processes train a dictionary: in this one, or in several of this machine, which torch's own launcher starts and starts again.

What each of them does belongs in `rank`, what they tell each other in `mesh`. Several machines are started by torchrun, see there.
"""

import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from microtome.core import Interrupted, Refusal
from microtome.factors.autoencoder import require_shards
from microtome.factors.dictionary import Dictionary
from microtome.factors.job import DICTIONARY, LAYOUT, REFUSED, STEP, Job, folder_of, read_job, write_job
from microtome.factors.mesh import Mesh
from microtome.factors.mixing import part_of
from microtome.factors.stored import open_dictionary
from microtome.factors.training import train
from microtome.store import committed

__all__ = ["Progress", "Spread", "begun_in", "launched", "learnt"]

Progress = Callable[[int, int], None]
"""Hears how many steps were taken, and how many there are."""

_SAVED: Final = 20
"""Checkpoints of a run, at least."""
_APART: Final = 1000
"""Steps from one checkpoint to the next, at most."""
_LOOKED: Final = 0.5
"""Seconds after which the steps that were taken are looked at again."""

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_OWN_STORES: Final = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"


@dataclass(frozen=True)
class Spread:
    """`processes` of this machine train a dictionary, of which groups of `shards` have a part of its units each, and every group a part of the rows.

    It changes what a training costs, and its result by rounding alone. A group of processes of which one dies begins again at the last checkpoint,
    `restarts` times.
    Errors: `Refusal` for numbers that do not go together.
    """

    processes: int = 1
    shards: int = 1
    restarts: int = 3

    def __post_init__(self) -> None:
        if self.processes < 1 or self.shards < 1 or self.restarts < 0 or self.processes % self.shards:
            why = f"{self.processes} processes are not so many groups of {self.shards}"
            raise Refusal(f"{self.shards} shards", why=why, instead="name a number of shards that divides the processes")


def learnt(job: Job, spread: Spread, progress: Progress | None = None) -> Dictionary:
    """The dictionary of a training. Of several processes their folder is beside the states: a training that was ended goes on where it was.

    Errors: `Refusal` as of `train`, and as of `launched`.
    """
    steps = job.training.steps
    if spread.processes == 1:

        def batches() -> Iterator[Tensor]:
            for x in job.batches():
                yield x.to(job.device)

        told = None if progress is None else lambda done, _: progress(done, steps)
        autoencoder = job.autoencoder().to(job.device)
        (found,) = train([autoencoder], islice(batches(), steps), job.training, job.seed, told)
        return job.dictionary(found)
    folder = begun_in(job, spread)
    found = launched(folder, spread, progress)
    shutil.rmtree(folder)
    return found


def begun_in(job: Job, spread: Spread) -> Path:
    """The folder of a training, beside its states; what is there of the same training stays.

    Errors: `Refusal` where the units or the states cannot be spread so.
    """
    _require_fit(job, spread)
    folder = folder_of(job)
    write_job(job, folder)
    every = max(1, min(_APART, job.training.steps // _SAVED))
    with committed(folder / LAYOUT) as temporary:
        temporary.write_text(json.dumps({"shards": spread.shards, "every": every}))
    return folder


def launched(folder: Path, spread: Spread, progress: Progress | None = None) -> Dictionary:
    """Train what a folder says in several processes of this machine, whose output is kept in it.

    Errors: `Refusal` where one of them refuses, and where one died more often than it may.
    """
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    (folder / REFUSED).unlink(missing_ok=True)
    logs = folder / "output"
    logs.mkdir(exist_ok=True)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=spread.processes,
        run_id=folder.name,
        rdzv_backend="c10d",
        rdzv_endpoint=str(Path(tempfile.mkdtemp(dir=logs)) / "meeting"),
        rdzv_configs={"store_type": "file"},
        local_addr="127.0.0.1",
        max_restarts=spread.restarts,
        logs_specs=DefaultLogsSpecs(log_dir=str(logs), redirects=Std.ALL),
    )
    died = ""
    with _interruptible(), _silent(), _with_stores_of_their_own(), _followed(folder, read_job(folder).training.steps, progress):
        try:
            elastic_launch(config, sys.executable)("-m", "microtome.factors.rank", str(folder))
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            died = f"process {rank} ended by {failure.signal_name() if failure.exitcode < 0 else f'status {failure.exitcode}'}"
    if (folder / REFUSED).exists():
        raise Refusal(**json.loads((folder / REFUSED).read_bytes()))
    if died:
        raise Interrupted(
            f"training over {spread.processes} processes",
            why=f"{died}, after {spread.restarts} new beginnings",
            instead=f"read {logs}, and run the same command again: it goes on from the last checkpoint",
        )
    return open_dictionary(folder / DICTIONARY)


def _require_fit(job: Job, spread: Spread) -> None:
    """What processes would find out, said before they are started."""
    if job.device.startswith("cuda") and spread.processes > (there := torch.cuda.device_count()):
        why = f"each has one to itself, and there are {there}"
        raise Refusal(f"{spread.processes} processes on GPUs", why=why, instead="name fewer processes, or --device cpu")
    mesh = Mesh(shards=spread.shards)
    require_shards(job.variant, mesh)
    mesh.shard(job.units)
    part_of(job.mixing.rows, 0, spread.processes // spread.shards)


@contextmanager
def _followed(folder: Path, steps: int, progress: Progress | None) -> Iterator[None]:
    """Tell meanwhile how many steps were taken."""
    if progress is None:
        yield
        return
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(_LOOKED):
            if (folder / STEP).exists():
                progress(int((folder / STEP).read_text()), steps)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    progress(steps, steps)


@contextmanager
def _interruptible() -> Iterator[None]:
    """The launcher ends its processes on signals, by handlers that it leaves behind; who sent one hears of it as ever."""
    from torch.distributed.elastic.multiprocessing.api import SignalException

    mine = _SIGNALS if threading.current_thread() is threading.main_thread() else ()
    before = {each: signal.getsignal(each) for each in mine}
    try:
        yield
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(128 + error.sigval) from None
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def _with_stores_of_their_own() -> Iterator[None]:
    """The launcher hosts none for ranks: they meet by files."""
    before = os.environ.get(_OWN_STORES)
    os.environ[_OWN_STORES] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_OWN_STORES]
        else:
            os.environ[_OWN_STORES] = before


@contextmanager
def _silent() -> Iterator[None]:
    """What the launcher logs of processes that die is said by the error, if it comes to that; and it leaves it to others to close its files."""
    logger = logging.getLogger("torch.distributed.elastic")
    before, nowhere = logger.propagate, logging.NullHandler()
    logger.propagate = False
    logger.addHandler(nowhere)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            yield
    finally:
        logger.propagate = before
        logger.removeHandler(nowhere)
