"""Entry point: run a verb, turn refusals into one message and a status."""

import io
import logging
import os
import sys
from typing import Final

from microtome.core import Refusal

__all__ = ["main"]

_INTERRUPTED: Final = 130


def main() -> None:
    """Run `microtome` with the process's arguments. Exit status: 0 done, 2 refused, 130 interrupted."""
    # The models a user names are on this machine or named by hub id; a hub that is not reachable must not delay the former.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal has no letters for is written as \\u1234
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    from microtome.cli.verbs import app

    try:
        app()
    except Refusal as refusal:
        from microtome.cli.show import show_refusal

        show_refusal(refusal)
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as ended:
        if isinstance(ended, SystemExit) and ended.code != _INTERRUPTED:  # what typer makes of an interruption
            raise
        sys.stderr.write("\nStopped. Run the same command again to continue where it was.\n")
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        # What the file system refuses is no bug: a name that is too long, a folder that may not be read, a disk that fails.
        from microtome.cli.show import show_refusal

        show_refusal(
            Refusal(
                str(error.filename or "reading and writing files"),
                why=error.strerror or str(error),
                instead="check the path, its permissions and the disk",
            )
        )
        sys.exit(2)
