"""The Ray engine on nodes that are processes of their own: whichever part of it dies, the same bytes, or one line that says why not."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from microtome.core import Refusal
from microtome.engine import States, run
from microtome.engine.cluster import Cluster
from microtome.engine.nodes import joined
from microtome.store import Folder, Place
from tests.tree import ROOT
from tests.unit.engine.networks import inside, why_not
from tests.unit.engine.partition import UNITS
from tests.unit.engine.ray_nodes import Nodes, started
from tests.unit.engine.toy_work import Concatenation, Private, ToySubject, assert_said_once

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning"),
]


def _by(
    nodes: Nodes,
    work: Concatenation,
    place: Place,
    *,
    subject: ToySubject | None = None,
    meanwhile: Callable[[], None] | None = None,
) -> States:
    """Run work on the nodes; what happens meanwhile happens once a unit has been done."""
    happened = threading.Event()

    def advance(windows: int, tokens: int) -> None:
        if meanwhile is not None and not happened.is_set():
            happened.set()
            meanwhile()

    with Cluster(nodes.address).started(subject or ToySubject()) as crew:
        return run(work, place, crew=crew, advance=advance)


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".part"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process writes."""
    folder = tmp_path_factory.mktemp("whole")
    run(Concatenation(40, appended=frozenset({"rows"})), Folder(folder))
    return _files(folder)


def _waiting() -> int:
    """Actors that have no place on a node, as the cluster sees them."""
    from ray._private import state

    return sum(actor["State"] in ("DEPENDENCIES_UNREADY", "PENDING_CREATION") for actor in state.actors().values())


class Other:
    """Somebody else's, who has a place on a node."""

    def there(self) -> None:
        """It has begun."""


def _work(faults: Path | None = None, seconds: float = 0.0) -> Concatenation:
    return Concatenation(40, appended=frozenset({"rows"}), faults=faults, seconds=seconds)


def test_two_nodes_write_the_files_of_one_process_and_what_they_say_is_said_here_once(
    nodes: Nodes, tmp_path: Path, whole: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    nodes.add()
    nodes.add()
    (faults := tmp_path / "faults").mkdir()
    for unit in range(40):
        (faults / f"{unit}-say").touch()
    work = _work(faults)
    waiting = []
    with Cluster(nodes.address).started(ToySubject()) as crew:
        with pytest.warns(RuntimeWarning) as warned:
            run(work, Folder(tmp_path / "a"), crew=crew, advance=lambda *_: waiting.append(_waiting()))
        deadline = time.monotonic() + 30
        while _waiting() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not _waiting(), "nobody more is asked for when all is given"
    assert max(waiting) == 1, "one more than there are"
    assert _files(tmp_path / "a") == whole
    assert work.ran == []
    assert_said_once(warned, caplog)


def test_a_worker_that_dies_costs_only_its_units(nodes: Nodes, tmp_path: Path, whole: dict[str, bytes]) -> None:
    nodes.add(2)
    (faults := tmp_path / "faults").mkdir()
    for unit in (3, 17, 39):
        (faults / f"{unit}-kill").touch()
    _by(nodes, _work(faults), Folder(tmp_path / "a"))
    assert _files(tmp_path / "a") == whole
    assert list(faults.glob("[0-9]*")) == []


def test_a_node_that_dies_costs_only_its_units_and_one_that_joins_late_works(
    nodes: Nodes, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    first = nodes.add()
    (faults := tmp_path / "faults").mkdir()

    def meanwhile() -> None:
        nodes.add()
        nodes.kill(first)

    _by(nodes, _work(faults, 0.05), Folder(tmp_path / "a"), meanwhile=meanwhile)
    assert _files(tmp_path / "a") == whole
    assert len(list(faults.glob("by-*"))) >= 2, "the first node's worker, and the second's"


@pytest.fixture
def patient() -> Iterator[Nodes]:
    """A cluster that takes no node for dead that stands still, however slow the machine: what it answers late is heard."""
    with started(unheard=1000) as nodes:
        yield nodes


def test_what_a_node_has_that_is_cut_off_is_done_by_others_and_what_it_answers_late_does_not_count(
    patient: Nodes, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("microtome.engine.running._SOON", 0.5)
    first, _ = patient.add(), patient.add(2)
    (faults := tmp_path / "faults").mkdir()
    (faults / "39-hold").touch()  # so that the run lasts until late answers have come
    heard: list[int] = []
    moments = iter(("cut off", "all done by others", "answers late", "over"))
    moment = next(moments)

    def advance(windows: int, tokens: int) -> None:
        nonlocal moment
        heard.append(windows)
        if moment == "cut off" and any((faults / f"by-{pid}").exists() for pid in patient.processes(first)):
            patient.stop(first, signal.SIGSTOP)
        elif moment == "all done by others" and all((tmp_path / "a" / f"rows-{unit:08d}.json").exists() for unit in range(39)):
            patient.stop(first, signal.SIGCONT)
        elif moment == "answers late" and windows < 0:
            (faults / "go").touch()
        else:
            return
        moment = next(moments)

    with Cluster(patient.address).started(ToySubject()) as crew:
        run(_work(faults, 0.05), Folder(tmp_path / "a"), crew=crew, advance=advance)
    assert moment == "over"
    assert sum(heard) == 40, "what came late was taken back"
    assert _files(tmp_path / "a") == whole


@pytest.mark.skipif(bool(why_not()), reason=f"no network of its own can be made: {why_not()}")
def test_a_node_behind_a_cut_cable_that_goes_on_computing_changes_nothing(tmp_path: Path) -> None:
    program = inside([sys.executable, "-m", "tests.unit.engine.partition", str(tmp_path)])
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    late = found.pop("late")
    assert found == {"pulled": 1, "both worked": True, "far node lives": True}
    assert len(late) == 1, "the far worker has come to the end of its unit"
    assert late[0].startswith("refused "), "when the build was over"
    run(Concatenation(UNITS, appended=frozenset({"rows"})), Folder(tmp_path / "whole"))
    assert _files(tmp_path / "a") == _files(tmp_path / "whole")


_DRIVER = """
from pathlib import Path
from microtome.engine import run
from microtome.engine.cluster import Cluster
from microtome.engine.nodes import joined
from microtome.store import Folder
from tests.unit.engine.ray_nodes import Nodes
from tests.unit.engine.toy_work import Concatenation, Private, ToySubject
with Cluster(ADDRESS).started(ToySubject()) as crew:
    print("started", flush=True)
    run(Concatenation(40, appended=frozenset({"rows"}), seconds=0.1), Folder(Path(FOLDER)), crew=crew)
"""


def test_a_driver_that_dies_is_taken_up_by_the_next(nodes: Nodes, tmp_path: Path, whole: dict[str, bytes]) -> None:
    nodes.add(2)
    code = _DRIVER.replace("ADDRESS", repr(nodes.address)).replace("FOLDER", repr(str(tmp_path / "a")))
    driver = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    assert "started\n" in iter(driver.stdout.readline, ""), "after what Ray may say of other nodes"
    deadline = time.monotonic() + 60
    while not list((tmp_path / "a").glob("[0-9]*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    driver.stdout.close()
    found: list[int] = []
    with Cluster(nodes.address).started(ToySubject()) as crew:
        run(_work(seconds=0.1), Folder(tmp_path / "a"), crew=crew, found=found.append)
    assert found, "what was finished is not computed again"
    assert _files(tmp_path / "a") == whole


def test_what_workers_cannot_write_they_return(nodes: Nodes, tmp_path: Path, whole: dict[str, bytes]) -> None:
    nodes.add(2)
    (faults := tmp_path / "faults").mkdir()
    (faults / "5-kill").touch()
    _by(nodes, _work(faults), Private(tmp_path / "a", owner=os.getpid()))
    assert _files(tmp_path / "a") == whole


def test_a_place_that_workers_see_and_may_not_write_to_is_refused(nodes: Nodes, tmp_path: Path) -> None:
    nodes.add()
    with pytest.raises(Refusal, match=r"machine \S+ may not write there: Permission denied; give workers the right"):
        _by(nodes, _work(), Private(tmp_path / "a", owner=os.getpid(), others="reading"))


class _Heard(logging.Handler):
    """Does what is next when it hears of workers that are waited for."""

    def __init__(self, *then: Callable[[], None]) -> None:
        super().__init__()
        self.sentences: list[str] = []
        self.then = list(then)

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() not in self.sentences:
            self.sentences.append(record.getMessage())
            self.then.pop(0)()


def test_who_waits_for_a_place_or_for_a_worker_that_opens_is_told(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("microtome.engine.waiting._SILENT", 0.0)
    monkeypatch.setattr("microtome.engine.waiting._AGAIN", 0.0)
    nodes.add()
    gate = tmp_path / "gate"
    with joined(nodes.address) as ray:
        ray.get((other := ray.remote(Other).options(num_cpus=1).remote()).there.remote())
        heard = _Heard(lambda: ray.kill(other), gate.touch)
        (logger := logging.getLogger("microtome.engine.waiting")).addHandler(heard)
        try:
            with Cluster(nodes.address).started(ToySubject(f"wait for {gate}")) as crew:
                assert crew.identity == {"model": "toy"}
        finally:
            logger.removeHandler(heard)
    assert [sentence.split(";")[0] for sentence in heard.sentences] == [
        "1 worker is waited for, and none has a place yet: others use the cluster",
        "1 worker is waited for: 1 has a place, and has not opened the model yet",
    ]


def test_what_cannot_work_is_refused_before_it_begins(nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refusal, match="Ray cluster at 127.0.0.1:9: nobody answers there .*; start one with `ray start --head`"):
        _by(Nodes(type("Nothing", (), {"address": "127.0.0.1:9"})), _work(), Folder(tmp_path / "a"))
    with pytest.raises(Refusal, match="Ray cluster at nonsense: Invalid address format"):
        _by(Nodes(type("Nothing", (), {"address": "nonsense"})), _work(), Folder(tmp_path / "a"))
    with joined(local := nodes.address.replace("127.0.0.1", "localhost")), joined(local):
        with pytest.raises(Refusal, match=f"Ray cluster at 127.0.0.1:9: this process is in the one at {nodes.address}, and"):
            _by(Nodes(type("Another", (), {"address": "127.0.0.1:9"})), _work(), Folder(tmp_path / "a"))
        with pytest.raises(
            Refusal, match="a worker: it takes 1 cores, 0 devices and 0.0 GB of memory, and no node has as much"
        ):
            _by(nodes, _work(), Folder(tmp_path / "a"))
        nodes.add()
        with pytest.raises(Refusal, match="no node has as much; add a node that has, or ask for less"):
            _by(nodes, _work(), Folder(tmp_path / "a"), subject=ToySubject(memory=1 << 50))
        with pytest.raises(Refusal, match="model toy: there is no such folder"):
            _by(nodes, _work(), Folder(tmp_path / "a"), subject=ToySubject("refuse"))
        with pytest.raises(Refusal, match="worker 0: its name is ab, not a"):
            _by(nodes, _work(), Folder(tmp_path / "b"), subject=ToySubject("other work"))
    monkeypatch.setattr("microtome.engine.nodes._versions", lambda: {"microtome": "9.9"})
    with pytest.raises(Refusal, match=r"node 127.0.0.1 \(.*\): its microtome is .*, not 9.9; .*let all have the same versions"):
        _by(nodes, _work(), Folder(tmp_path / "a"))
    assert not (tmp_path / "a").exists()
