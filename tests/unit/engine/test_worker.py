"""What a worker answers, in whichever process: errors that reach a person as one line that says on which machine it was."""

import errno
import os
import pickle
import platform
from pathlib import Path

import pytest

from microtome.core import Refusal
from microtome.engine.worker import Worker, answered, beacon
from microtome.store import Folder, Shelf
from tests.unit.engine.toy_work import Concatenation, Private, ToySubject


def _told(error: Exception) -> Exception:
    """What comes of an error on the other side."""

    def fail() -> None:
        raise error

    return pickle.loads(pickle.dumps(answered(fail).outcome))


def test_what_a_file_system_refuses_says_on_which_machine() -> None:
    told = _told(PermissionError(errno.EACCES, "Permission denied", Path("/models/toy")))
    assert isinstance(told, PermissionError)
    assert told.filename == "/models/toy"
    assert told.strerror == f"Permission denied, on machine {platform.node()}"
    assert "in a worker process:" in told.__notes__[0], "where it was in the program, for those who read a traceback"
    assert str(_told(OSError("no such bucket"))) == f"no such bucket, on machine {platform.node()}"


def test_a_connection_that_a_worker_lost_is_not_taken_for_one_of_the_readers_own() -> None:
    told = _told(BrokenPipeError(errno.EPIPE, "Broken pipe"))
    assert type(told) is OSError, "a broken pipe ends the command without a word"
    assert str(told) == f"Broken pipe, on machine {platform.node()}"


@pytest.mark.parametrize(("others", "may_not"), [("shut out", "read"), ("reading", "write")])
def test_a_place_that_a_worker_may_not_use_is_refused(tmp_path: Path, others: str, may_not: str) -> None:
    (worker := Worker(0)).open(ToySubject(), [0])
    work = Concatenation(2)
    sign = beacon(Folder(tmp_path))
    shelf = Shelf(Private(tmp_path, owner=-os.getpid(), others=others), "a")
    with pytest.raises(
        Refusal, match=f"machine .* may not {may_not} there: Permission denied; give workers the right to {may_not}"
    ):
        worker.begin(work.recipe, shelf, sign)
