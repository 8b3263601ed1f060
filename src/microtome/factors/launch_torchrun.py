"""The processes of a training on machines where you start them, by torchrun: for a scheduler such as SLURM, or by hand.

This process says how, and waits until one of them has written the dictionary, or what it refuses. What they do belongs in `rank`.
"""

import logging
import platform
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from microtome.factors.job import DICTIONARY, REFUSED, STEP

__all__ = ["Torchrun", "command"]

_PORT: Final = 29400
"""Where processes of several machines meet, if nothing else is said: torchrun's own."""
_LOOKED: Final = 0.5
"""Seconds after which the folder is looked at again."""
_LONG: Final = 600.0
"""Seconds without a step after which somebody should look at the processes."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Torchrun:
    """Processes are of machines that see the folder of the states; a command that is logged starts them, on each."""

    def require_room(self, processes: int, device: str) -> None:
        """As `spread.Launcher.require_room`; which machines there will be is not known."""
        del processes, device

    def run(self, folder: Path, processes: int, restarts: int) -> None:
        """As `spread.Launcher.run`: say what starts them, and wait. A dictionary that they have finished meanwhile is taken."""
        if (folder / DICTIONARY).exists():
            return
        _log.warning(
            "%d processes are to train a dictionary. Run this on each machine, of MACHINES that there are, with the name of one of them as HOST; "
            "this command waits, and can be stopped and run again:\n%s",
            processes,
            command(folder, processes, restarts),
        )
        latest, since, said = _step(folder), time.monotonic(), False
        while not (folder / DICTIONARY).exists() and not (folder / REFUSED).exists():
            time.sleep(_LOOKED)
            if (step := _step(folder)) != latest:
                latest, since, said = step, time.monotonic(), False
            elif step and not said and time.monotonic() - since > _LONG:
                said = True
                _log.warning(
                    "no step has been taken for %.0f minutes, %s is the last; if the processes have ended, start them again as above: they go on "
                    "at the last checkpoint",
                    _LONG / 60,
                    step,
                )


def _step(folder: Path) -> str:
    """How many steps were taken; nothing where none was."""
    return (folder / STEP).read_text() if (folder / STEP).exists() else ""


def command(folder: Path, processes: int, restarts: int) -> str:
    """What starts them on a machine, as a shell reads it.

    The first variable of torch's: or processes that begin anew would find the addresses of those that died.
    """
    run = [shlex.quote(sys.executable), "-m", "torch.distributed.run", "--nnodes", "$MACHINES"]
    run += ["--nproc-per-node", f"$(({processes} / MACHINES))", "--max-restarts", str(restarts), "--rdzv-id", folder.name]
    run += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"$HOST:{_PORT}"]
    run += ["-m", "microtome.factors.rank", shlex.quote(str(folder.resolve()))]
    return f"MACHINES=1 HOST={platform.node()}; TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 {' '.join(run)}"
