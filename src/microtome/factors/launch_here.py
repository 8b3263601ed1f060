"""The processes of a training on this machine: torch's own launcher starts them, and starts them again.

What each of them does belongs in `rank`, what all launchers have in common in `spread`.
"""

import logging
import os
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from microtome.core import Interrupted, Refusal

__all__ = ["ThisMachine"]

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_OWN_STORES: Final = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"


@dataclass(frozen=True)
class ThisMachine:
    """All processes are of this machine, one for each device where they train on devices; what they print is kept in the folder."""

    def require_room(self, processes: int, device: str) -> None:
        """As `spread.Launcher.require_room`."""
        if device.startswith("cuda") and processes > (there := torch.cuda.device_count()):
            why = f"each has one to itself, and there are {there}"
            raise Refusal(f"{processes} processes on GPUs", why=why, instead="name fewer processes, or --device cpu")

    def run(self, folder: Path, processes: int, restarts: int) -> None:
        """As `spread.Launcher.run`."""
        from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, Std
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        logs = folder / "output"
        logs.mkdir(exist_ok=True)
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=folder.name,
            rdzv_backend="c10d",
            rdzv_endpoint=str(Path(tempfile.mkdtemp(dir=logs)) / "meeting"),
            rdzv_configs={"store_type": "file"},
            local_addr="127.0.0.1",
            max_restarts=restarts,
            logs_specs=DefaultLogsSpecs(log_dir=str(logs), redirects=Std.ALL),
        )
        died = ""
        with _interruptible(), _silent(), _with_stores_of_their_own():
            try:
                elastic_launch(config, sys.executable)(
                    "-m", "microtome.factors.rank", str(folder), "--parent", str(os.getpid())
                )
            except ChildFailedError as error:
                rank, failure = error.get_first_failure()
                ended = failure.signal_name() if failure.exitcode < 0 else f"status {failure.exitcode}"
                died = f"process {rank} ended by {ended}"
        if died:
            raise Interrupted(
                f"training over {processes} processes",
                why=f"{died}, after {restarts} new beginnings",
                instead=f"read {logs}, and run the same command again: it goes on from the last checkpoint",
            )


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
