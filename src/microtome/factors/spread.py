"""How many processes train a dictionary, and who starts them: this one is enough, or a launcher does.

What each of them does belongs in `rank`, what they tell each other in `mesh`. Launchers have modules of their own: `launch_here`, `launch_cluster` and
`launch_torchrun`.
"""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from torch import Tensor

from microtome.core import Interrupted, Refusal
from microtome.factors.autoencoder import require_shards
from microtome.factors.dictionary import Dictionary
from microtome.factors.job import DICTIONARY, LAYOUT, REFUSED, STEP, Job, folder_of, read_job, write_job
from microtome.factors.launch_here import ThisMachine
from microtome.factors.mesh import Mesh
from microtome.factors.mixing import part_of
from microtome.factors.stored import open_dictionary
from microtome.factors.training import train
from microtome.store import committed

__all__ = ["Launcher", "Progress", "Spread", "begun_in", "launched", "learnt"]

Progress = Callable[[int, int], None]
"""Hears how many steps were taken, and how many there are."""

_SAVED: Final = 20
"""Checkpoints of a run, at least."""
_APART: Final = 1000
"""Steps from one checkpoint to the next, at most."""
_LOOKED: Final = 0.5
"""Seconds after which the steps that were taken are looked at again."""


@runtime_checkable
class Launcher(Protocol):
    """Who starts the processes of a training, as a value."""

    def require_room(self, processes: int, device: str) -> None:
        """Errors: `Refusal` where it is plain that so many cannot train on devices of that kind; said before there is anything to train on."""
        ...

    def run(self, folder: Path, processes: int, restarts: int) -> None:
        """Have so many processes train what the folder says, until they have ended; if one dies, all begin anew, so many times.

        Errors: `Refusal` where they cannot be started, `Interrupted` where one died more often than it may.
        """
        ...


@dataclass(frozen=True)
class Spread:
    """`processes` train a dictionary, of which groups of `shards` have a part of its units each, and every group a part of the rows.

    It changes what a training costs, and its result by rounding alone. A group of processes of which one dies begins again at the last checkpoint,
    `restarts` times. The `launcher` starts them: on this machine, on a cluster (`OnCluster`), or, on many machines, you do (`Torchrun`).
    Errors: `Refusal` for numbers that do not go together.
    """

    processes: int = 1
    shards: int = 1
    restarts: int = 3
    launcher: Launcher = ThisMachine()

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
    shutil.rmtree(folder, ignore_errors=True)  # processes of other machines may just be closing their files
    return found


def begun_in(job: Job, spread: Spread) -> Path:
    """The folder of a training, beside its states; what is there of the same training stays.

    Errors: `Refusal` where the units or the states cannot be spread so.
    """
    _require_fit(job, spread)
    folder = folder_of(job)
    made = folder / DICTIONARY
    if made.exists() and open_dictionary(made).name != job.name:  # what was learnt is the same, what it is called is not
        made.unlink()
    write_job(job, folder)
    every = max(1, min(_APART, job.training.steps // _SAVED))
    with committed(folder / LAYOUT) as temporary:
        temporary.write_text(json.dumps({"shards": spread.shards, "every": every}))
    return folder


def launched(folder: Path, spread: Spread, progress: Progress | None = None) -> Dictionary:
    """Train what a folder says in several processes.

    Errors: `Refusal` where one of them refuses, and as of `Launcher.run`.
    """
    (folder / REFUSED).unlink(missing_ok=True)
    with _followed(folder, read_job(folder).training.steps, progress):
        try:
            spread.launcher.run(folder, spread.processes, spread.restarts)
        except Interrupted as interrupted:
            raise _refusal_in(folder) or interrupted from None
    refusal = _refusal_in(folder)
    if refusal is not None:
        raise refusal
    return open_dictionary(folder / DICTIONARY)


def _refusal_in(folder: Path) -> Refusal | None:
    """What one of the processes has refused; `Interrupted` where what is finished stays."""
    if not (folder / REFUSED).exists():
        return None
    parts = json.loads((folder / REFUSED).read_bytes())
    return (Interrupted if parts.pop("stays") else Refusal)(**parts)


def _require_fit(job: Job, spread: Spread) -> None:
    """What processes would find out, said before they are started."""
    spread.launcher.require_room(spread.processes, job.device)
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
