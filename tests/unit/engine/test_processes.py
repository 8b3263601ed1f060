"""Worker processes: whatever ends them, the same bytes; what cannot work is refused in a line before it begins."""

import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from microtome.core import Interrupted, Refusal
from microtome.engine import Node, Processes, States, run
from microtome.engine.tasks import Task
from microtome.engine.worker import Worker, beacon
from microtome.store import DiskFull, Folder, Shelf
from tests.tree import IMPORTABLE, ROOT
from tests.unit.engine.toy_work import Concatenation, ToySubject, assert_said_once, content


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toys are of this folder, and workers are told where it is as any program tells them of its modules."""
    monkeypatch.setenv("PYTHONPATH", IMPORTABLE)


@pytest.fixture
def faults(tmp_path: Path) -> Path:
    folder = tmp_path / "faults"
    folder.mkdir()
    return folder


def _by(count: int, work: Concatenation, folder: Path, subject: ToySubject | None = None) -> States:
    with Processes(count, threads=1).started(subject or ToySubject()) as crew:
        return run(work, Folder(folder), crew=crew)


def _children() -> set[int]:
    """Processes that this one has started and that live."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid() and fields[0] != "Z":
            found.add(int(path.parent.name))
    return found


@contextmanager
def _striking(folder: Path, units: int, seed: int) -> Iterator[list[int]]:
    """Kill a worker of this process at random moments, each time when so many units more are done."""
    stop, struck, chance = threading.Event(), list[int](), random.Random(seed)
    before = _children()

    def strike() -> None:
        while not stop.wait(chance.uniform(0, 0.3)):
            if len(list(folder.glob("rows-*.json"))) < units * (1 + len(struck)):
                continue
            for pid in sorted(_children() - before)[:1]:
                os.kill(pid, signal.SIGKILL)
                struck.append(pid)

    thread = threading.Thread(target=strike)
    thread.start()
    try:
        yield struck
    finally:
        stop.set()
        thread.join()


def test_two_processes_give_the_bytes_of_one_and_leave_nothing_behind(tmp_path: Path) -> None:
    rows, before = frozenset({"rows"}), _children()
    heard: list[tuple[int, int]] = []
    alone = run(Concatenation(37, appended=rows), Folder(tmp_path / "one"))
    with Processes(2, threads=1).started(ToySubject()) as crew:
        work = Concatenation(37, appended=rows)
        both = run(work, Folder(tmp_path / "two"), crew=crew, advance=lambda windows, tokens: heard.append((windows, tokens)))
        assert crew.identity == {"model": "toy"}
        second = run(Concatenation(5, name="next"), Folder(tmp_path / "next"), crew=crew)
    assert content(both) == content(alone)
    assert work.ran == [], "nothing is computed here"
    assert heard == [(1, 10)] * 37
    assert second["fold"]["order"].tolist() == list(range(5))
    files = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()} == files
    assert _children() == before


@pytest.mark.parametrize("told", [["3-kill", "8-kill"], ["3-stop", "8-kill"]])
def test_a_worker_that_dies_or_stands_still_costs_only_its_units(
    tmp_path: Path, faults: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("microtome.engine.running._SOON", 0.5)
    whole = run(Concatenation(12), Folder(tmp_path / "whole"))
    for fault in told:
        (faults / fault).touch()
    states = _by(2, Concatenation(12, faults=faults), tmp_path / "a")
    assert content(states) == content(whole)
    assert list(faults.glob("[0-9]*")) == []


def test_the_only_unit_of_a_worker_that_stands_still_is_done_by_another(
    tmp_path: Path, faults: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("microtome.engine.running._UNKNOWN", 0.5)
    (faults / "0-stop").touch()
    assert content(_by(2, Concatenation(1, faults=faults), tmp_path / "a")) == content(
        run(Concatenation(1), Folder(tmp_path / "b"))
    )


def test_a_worker_that_stands_still_does_not_hold_up_the_next_stage(tmp_path: Path) -> None:
    before, large = _children(), "a" * (1 << 22)  # more than a socket holds that nobody reads
    with Processes(2, threads=1).started(ToySubject()) as crew:
        stopped = max(_children() - before)
        os.kill(stopped, signal.SIGSTOP)
        states = run(Concatenation(6, name=large), Folder(tmp_path / "a"), crew=crew)
    assert states["fold"]["order"].tolist() == list(range(6))
    assert _children() == before


def test_a_worker_that_never_opens_again_is_not_started_for_ever(
    tmp_path: Path, faults: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (faults / "1-kill").touch()
    (faults / "2-hold").touch()  # so that the run lasts until it is known
    told: list[str] = []

    def warning(line: str, *given: object) -> None:
        told.append(line % given)
        (faults / "go").touch()

    monkeypatch.setattr(logging.getLogger("microtome.engine.processes"), "warning", warning)
    with Processes(2, threads=1).started(ToySubject()) as crew:
        crew.subject = ToySubject("die")  # pyright: ignore[reportAttributeAccessIssue]
        states = run(Concatenation(4, faults=faults), Folder(tmp_path / "a"), crew=crew)
    assert states["fold"]["order"].tolist() == list(range(4))
    assert [line for line in told if "the others go on without it" in line]


def test_what_workers_warn_of_and_log_is_said_here_once(tmp_path: Path, faults: Path, caplog: pytest.LogCaptureFixture) -> None:
    for unit in range(8):
        (faults / f"{unit}-say").touch()
    with pytest.warns(RuntimeWarning) as warned:
        _by(2, Concatenation(8, faults=faults), tmp_path / "a")
    assert_said_once(warned, caplog)


def test_a_unit_that_ends_every_worker_is_named(tmp_path: Path, faults: Path) -> None:
    (faults / "2-always").touch()
    with pytest.raises(Refusal, match="unit 2 of 4: 3 workers have ended over it, .*SIGKILL"):
        _by(2, Concatenation(4, faults=faults), tmp_path)


def test_a_refusal_in_a_worker_is_a_refusal_here_and_an_error_says_where(tmp_path: Path, faults: Path) -> None:
    (faults / "1-refuse").touch()
    with pytest.raises(Refusal, match="unit 1: it was told so; take the file away"):
        _by(2, Concatenation(4, faults=faults), tmp_path)
    (faults / "1-break").touch()
    with pytest.raises(RuntimeError, match=r"(?s)in a worker process:.*toy_work.*ZeroDivisionError: it was told so"):
        _by(2, Concatenation(4, faults=faults), tmp_path)
    assert content(_by(2, Concatenation(4, faults=faults), tmp_path)) == content(run(Concatenation(4), Folder(tmp_path / "w")))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("die", "worker processes: they end before they have opened the model: it was ended by SIGKILL"),
        (
            "one lives",
            "worker processes: they end before they have opened the model: it was ended by SIGKILL; use fewer of them",
        ),
        ("refuse", "model toy: there is no such folder; name a model folder"),
        ("differ", "worker 1: its model is toy1, not toy; let all have the same versions"),
    ],
)
def test_workers_that_cannot_work_are_refused_before_anything_is_written(tmp_path: Path, fault: str, message: str) -> None:
    before = _children()
    with pytest.raises(Refusal, match=message):
        _by(2, Concatenation(4), tmp_path / "a", ToySubject(fault))
    assert not (tmp_path / "a").exists()
    assert _children() == before


def test_a_worker_has_as_many_devices_as_its_subject_needs(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="worker 1: its model is toy2, not toy"):
        _by(2, Concatenation(4), tmp_path, ToySubject(fault="differ", devices=2))


def test_who_is_late_commits_nothing_to_a_build_that_is_over(tmp_path: Path) -> None:
    work, place = Concatenation(4, appended=frozenset({"rows"})), Folder(tmp_path)
    shelf, sign = Shelf(place, "this"), beacon(place)
    worker = Worker(0)
    worker.open(ToySubject(), [0])
    worker.begin(work.recipe, shelf, sign)
    worker.do(Task("compute", Node(0, 0), Node(0, 0)), lambda *_: None)
    before = place.names()
    place.delete(sign)
    with pytest.raises(Interrupted, match="the build that this was for has ended"):
        worker.do(Task("compute", Node(0, 1), Node(0, 1)), lambda *_: None)
    assert place.names() == [name for name in before if name != sign]
    assert not list(tmp_path.glob("*.part"))


def test_signs_of_builds_that_were_killed_are_taken_down_before_the_next_begins(tmp_path: Path) -> None:
    place = Folder(tmp_path)
    sign, there = beacon(place), []
    work = Concatenation(2)
    run(work, place, advance=lambda *_: there.append(sign in place.names()))
    assert there == [False, False]


def test_a_worker_that_would_do_other_work_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="worker process 0: its name is ab, not a"):
        _by(1, Concatenation(4), tmp_path, ToySubject("other work"))


def test_a_slow_worker_does_not_hold_up_the_others(tmp_path: Path, faults: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("microtome.engine.running._SOON", 0.5)
    (faults / "0-sleep-600").touch()
    states = _by(2, Concatenation(9, faults=faults), tmp_path / "a")
    assert content(states) == content(run(Concatenation(9), Folder(tmp_path / "whole")))


def test_a_full_disk_ends_the_run_and_the_next_one_goes_on(tmp_path: Path, faults: Path) -> None:
    (faults / "3-limit").touch()
    with pytest.raises(DiskFull, match=r"the size of a file in .* is limited; free some space and run the same command again"):
        _by(2, Concatenation(8, faults=faults), tmp_path / "a")
    again = Concatenation(8)
    states = run(again, Folder(tmp_path / "a"))
    assert content(states) == content(run(Concatenation(8), Folder(tmp_path / "whole")))
    assert len(again.ran) < 8


def test_a_bit_that_flips_while_a_run_goes_on_is_noticed_and_mended_by_the_next(tmp_path: Path, faults: Path) -> None:
    (faults / "5-flip").touch()
    with pytest.raises(Refusal, match="its bytes changed while the run was going on; check the disk and run again"):
        _by(1, Concatenation(8, faults=faults), tmp_path / "a")
    states = _by(1, Concatenation(8), tmp_path / "a")
    assert content(states) == content(run(Concatenation(8), Folder(tmp_path / "whole")))


def test_no_clock_of_a_day_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(Concatenation(6), Folder(tmp_path / "whole"))
    chance = random.Random(0)
    monkeypatch.setattr(time, "time", lambda: chance.uniform(-1e9, 1e10))
    assert content(_by(2, Concatenation(6), tmp_path / "a")) == content(whole)
    for module in sorted((ROOT / "src" / "microtome" / "engine").glob("*.py")):
        assert "time.time(" not in module.read_text(), f"{module.name}: clocks of machines differ, and jump"


@pytest.mark.slow
def test_random_kills_of_workers_give_the_undisturbed_bytes(tmp_path: Path) -> None:
    rows = frozenset({"rows"})
    whole = run(Concatenation(60, appended=rows), Folder(tmp_path / "whole"))
    with _striking(tmp_path / "a", 10, seed=1) as struck:
        states = _by(2, Concatenation(60, appended=rows, seconds=0.25), tmp_path / "a")
    assert len(struck) >= 3
    assert content(states) == content(whole)
    files = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir() if path.suffix != ".part"} == files


_DRIVER = """
from pathlib import Path
from microtome.engine import Processes, run
from microtome.store import DiskFull, Folder
from tests.unit.engine.toy_work import Concatenation, ToySubject
with Processes(2, threads=1).started(ToySubject()) as crew:
    print("started", flush=True)
    run(Concatenation(40, appended=frozenset({"rows"}), seconds=0.1), Folder(Path(FOLDER)), crew=crew)
    print("done", flush=True)
"""


@pytest.mark.slow
def test_kills_of_the_driver_end_its_workers_and_the_next_one_goes_on(tmp_path: Path) -> None:
    whole = run(Concatenation(40, appended=frozenset({"rows"})), Folder(tmp_path / "whole"))
    command = [sys.executable, "-c", _DRIVER.replace("FOLDER", repr(str(tmp_path / "a")))]
    chance, kills = random.Random(2), 0
    while True:
        driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert driver.stdout is not None
        assert driver.stdout.readline() == "started\n"
        time.sleep(chance.uniform(0.2, 1.0))
        driver.kill()
        rest = driver.stdout.read()  # ends when the last worker has let go of nothing of it
        driver.stdout.close()
        driver.wait()
        if rest == "done\n":
            break
        kills += 1
    assert kills >= 2
    states = run(Concatenation(40, appended=frozenset({"rows"})), Folder(tmp_path / "a"))
    assert content(states) == content(whole)
    files = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir() if path.suffix != ".part"} == files
    deadline = time.monotonic() + 30
    while _workers_of(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _workers_of(tmp_path)


def _workers_of(folder: Path) -> list[int]:
    """Workers that live on though nobody has them."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command, fields = (path / "cmdline").read_bytes(), (path / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if b"microtome.engine.wire" in command and int(fields[1]) == 1 and fields[0] != "Z":
            found.append(int(path.name))
    return found


def test_a_number_of_processes_that_is_none_is_refused() -> None:
    with pytest.raises(Refusal, match="0 worker processes: nobody would work"):
        Processes(0)
