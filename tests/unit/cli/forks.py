"""Commands in processes of their own that begin in a moment: forked from one that has imported everything already.

`python forks.py` reads requests from standard input, a line of JSON each, and answers with the exit status. It holds no threads,
so that its children may do what they like: be killed, run out of disk, lose their input.
"""

import contextlib
import dataclasses
import importlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]


@dataclasses.dataclass(frozen=True)
class Request:
    """A command, and what happens to it.

    `commit` is the file at which the process kills itself, the `occurrence`th time that it is committed: when it is written and
    not yet in place, or `placed`. `seconds` is when it is killed from outside. `file_size` limits the bytes of any file.
    `stdin` None means closed. What it prints goes to the files `out` and `err` of `folder`; `commits` there lists the files.
    """

    arguments: list[str]
    folder: str
    stdin: str | None = os.devnull
    encoding: str = "utf-8"
    file_size: int | None = None
    commit: str = ""
    occurrence: int = 1
    placed: bool = False
    seconds: float | None = None


@dataclasses.dataclass(frozen=True)
class Done:
    """How a command ended: its status (minus the signal that killed it) and what it printed."""

    status: int
    out: bytes
    err: str


class Forks:
    """The process that forks, as seen from a test."""

    def __init__(self, folder: Path) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, *arguments: object, **options: object) -> Done:
        """Run `microtome` with these arguments; options are the fields of `Request`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"arguments": [str(argument) for argument in arguments], "folder": str(self._folder), **options}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        status = int(self._process.stdout.readline())
        return Done(status, (self._folder / "out").read_bytes(), (self._folder / "err").read_text())

    def commits(self) -> list[Path]:
        """The files that the last command committed, in order."""
        return [Path(line) for line in (self._folder / "commits").read_text().splitlines()]

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def _serve() -> None:
    import microtome.capture.lens
    import microtome.cli.verbs
    from microtome.model import load
    from microtome.model.quiet import quiet
    from tests import toys

    answers = os.fdopen(os.dup(1), "w")
    for descriptor in (1, 2):  # training a tokenizer writes to both
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    with tempfile.TemporaryDirectory() as folder, quiet():
        load(toys.save_checkpoint(Path(folder)))  # what is imported and compiled for it need not be again
    assert threading.active_count() == 1, "a fork has no other threads"
    microtome.capture.lens.windows_per_unit = lambda *_: 120  # a toy's unit of work would be the whole text
    for line in sys.stdin:
        request = Request(**json.loads(line))
        child = os.fork()
        if not child:
            _become(request)
        if request.seconds is not None:
            threading.Event().wait(request.seconds)
            os.kill(child, signal.SIGKILL)
        answers.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        answers.flush()


def _become(request: Request) -> None:
    """Run the command in this process, and end it."""
    from microtome.cli import main

    folder = Path(request.folder)
    os.close(0)
    sys.stdin = None if request.stdin is None else open(request.stdin)  # noqa: SIM115 - the process's own
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb"), request.encoding)
    sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb"), "utf-8")
    _hook(request, (folder / "commits").open("w"))
    if request.file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request.file_size, request.file_size))
    sys.argv = ["microtome", *request.arguments]
    status = 1
    try:
        main()
        status = 0
    except SystemExit as ended:
        status = int(ended.code or 0)
    finally:
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _hook(request: Request, log: io.TextIOWrapper) -> None:
    """Count the files that are committed, and kill this process at one of them."""
    from microtome.store import files, manifest, states, tables

    real, count = files.committed, 0

    @contextlib.contextmanager
    def committed(path: Path) -> Iterator[Path]:
        nonlocal count
        count += str(path) == request.commit
        here = str(path) == request.commit and count == request.occurrence
        log.write(f"{path}\n")
        log.flush()
        with real(path) as temporary:
            yield temporary
            if here and not request.placed:
                os.kill(os.getpid(), signal.SIGKILL)
        if here:
            os.kill(os.getpid(), signal.SIGKILL)

    making = [importlib.import_module(f"microtome.{name}") for name in ("atlas.build", "capture.lens")]
    for module in (manifest, states, tables, *making):
        vars(module)["committed"] = committed


if __name__ == "__main__":
    _serve()
