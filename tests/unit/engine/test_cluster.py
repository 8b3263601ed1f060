"""The Ray engine on nodes that are processes of their own: whichever part of it dies, the same bytes, or one line that says why not."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from microtome.core import Refusal
from microtome.engine import States, run
from microtome.engine.cluster import Cluster
from microtome.store import Folder, Place
from tests.tree import IMPORTABLE, ROOT
from tests.unit.engine.toy_work import Concatenation, ToySubject, assert_said_once

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning"),
]

_LOCAL = "127.0.0.1"


@dataclass
class _Nodes:
    """A head without room for workers, and the nodes that tests add to it."""

    cluster: Any
    added: list[Any] = field(default_factory=list)

    @property
    def address(self) -> str:
        return self.cluster.address

    def add(self, cores: int = 1) -> Any:
        node = self.cluster.add_node(num_cpus=cores, node_ip_address=_LOCAL)
        self.added.append(node)
        return node

    def processes(self, node: Any) -> list[int]:
        """Ray's own on a node, and those that they have started."""
        own = [info.process.pid for infos in node.all_processes.values() for info in infos]
        return [*own, *_below(own)]

    def kill(self, node: Any) -> None:
        """As when the power of a machine goes: all of its processes at once."""
        self.added.remove(node)
        for pid in reversed(self.processes(node)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.cluster.remove_node(node, allow_graceful=False)

    def stop(self, node: Any, how: signal.Signals) -> None:
        """Have a node stand still, or go on: from outside as when the network to it is cut."""
        for pid in self.processes(node):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, how)

    def clear(self) -> None:
        for node in list(self.added):
            self.kill(node)


def _below(parents: list[int]) -> list[int]:
    """All processes that these have started, and those in turn."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(path.read_text().rsplit(")", 1)[1].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found, queue = [], list(parents)
    while queue:
        queue += (new := children.get(queue.pop(), []))
        found += new
    return found


@pytest.fixture(scope="module")
def _head() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # loopback stays loopback
        patch.setenv("PYTHONPATH", IMPORTABLE)
        patch.setenv("RAY_health_check_period_ms", "500")
        patch.setenv("RAY_health_check_timeout_ms", "1000")
        patch.setenv("RAY_health_check_failure_threshold", "10")
        from ray.cluster_utils import Cluster as Nodes

        cluster = Nodes(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "node_ip_address": _LOCAL, "include_dashboard": False},
        )
        try:
            yield cluster
        finally:
            cluster.shutdown()


@pytest.fixture
def nodes(_head: Any) -> Iterator[_Nodes]:
    found = _Nodes(_head)
    try:
        yield found
    finally:
        found.clear()


def _by(
    nodes: _Nodes,
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


def _work(faults: Path | None = None, seconds: float = 0.0) -> Concatenation:
    return Concatenation(40, appended=frozenset({"rows"}), faults=faults, seconds=seconds)


def test_two_nodes_write_the_files_of_one_process_and_what_they_say_is_said_here_once(
    nodes: _Nodes, tmp_path: Path, whole: dict[str, bytes], caplog: pytest.LogCaptureFixture
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


def test_a_worker_that_dies_costs_only_its_units(nodes: _Nodes, tmp_path: Path, whole: dict[str, bytes]) -> None:
    nodes.add(2)
    (faults := tmp_path / "faults").mkdir()
    for unit in (3, 17, 39):
        (faults / f"{unit}-kill").touch()
    _by(nodes, _work(faults), Folder(tmp_path / "a"))
    assert _files(tmp_path / "a") == whole
    assert list(faults.glob("[0-9]*")) == []


def test_a_node_that_dies_costs_only_its_units_and_one_that_joins_late_works(
    nodes: _Nodes, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    first = nodes.add()
    (faults := tmp_path / "faults").mkdir()

    def meanwhile() -> None:
        nodes.add()
        nodes.kill(first)

    _by(nodes, _work(faults, 0.05), Folder(tmp_path / "a"), meanwhile=meanwhile)
    assert _files(tmp_path / "a") == whole
    assert len(list(faults.glob("by-*"))) >= 2, "the first node's worker, and the second's"


def test_what_a_node_has_that_is_cut_off_is_done_by_others_and_what_it_answers_late_does_not_count(
    nodes: _Nodes, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("microtome.engine.running._SOON", 0.5)
    first, _ = nodes.add(), nodes.add(2)
    (faults := tmp_path / "faults").mkdir()
    (faults / "39-hold").touch()  # so that the run lasts until late answers have come
    heard: list[int] = []
    moments = iter(("cut off", "all done by others", "answers late", "over"))
    moment = next(moments)

    def advance(windows: int, tokens: int) -> None:
        nonlocal moment
        heard.append(windows)
        if moment == "cut off" and any((faults / f"by-{pid}").exists() for pid in nodes.processes(first)):
            nodes.stop(first, signal.SIGSTOP)
        elif moment == "all done by others" and all((tmp_path / "a" / f"rows-{unit:08d}.json").exists() for unit in range(39)):
            nodes.stop(first, signal.SIGCONT)
        elif moment == "answers late" and windows < 0:
            (faults / "go").touch()
        else:
            return
        moment = next(moments)

    with Cluster(nodes.address).started(ToySubject()) as crew:
        run(_work(faults, 0.05), Folder(tmp_path / "a"), crew=crew, advance=advance)
    assert moment == "over"
    assert sum(heard) == 40, "what came late was taken back"
    assert _files(tmp_path / "a") == whole


_DRIVER = """
from pathlib import Path
from microtome.engine import run
from microtome.engine.cluster import Cluster
from microtome.store import Folder
from tests.unit.engine.toy_work import Concatenation, ToySubject
with Cluster(ADDRESS).started(ToySubject()) as crew:
    print("started", flush=True)
    run(Concatenation(40, appended=frozenset({"rows"}), seconds=0.1), Folder(Path(FOLDER)), crew=crew)
"""


def test_a_driver_that_dies_is_taken_up_by_the_next(nodes: _Nodes, tmp_path: Path, whole: dict[str, bytes]) -> None:
    nodes.add(2)
    code = _DRIVER.replace("ADDRESS", repr(nodes.address)).replace("FOLDER", repr(str(tmp_path / "a")))
    driver = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    assert driver.stdout.readline() == "started\n"
    deadline = time.monotonic() + 60
    while not list((tmp_path / "a").glob("rows-*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    driver.stdout.close()
    found: list[int] = []
    with Cluster(nodes.address).started(ToySubject()) as crew:
        run(_work(seconds=0.1), Folder(tmp_path / "a"), crew=crew, found=found.append)
    assert found, "what was finished is not computed again"
    assert _files(tmp_path / "a") == whole


@dataclass(frozen=True)
class _Private(Folder):
    """A folder of one process: others do not see it, as on other machines; or see it, and may not write."""

    owner: int = 0
    others: str = "blind"

    def read(self, name: str) -> bytes | None:
        return None if self.others == "blind" and os.getpid() != self.owner else super().read(name)

    def committing(self, name: str) -> "contextlib._GeneratorContextManager[Path]":
        if os.getpid() != self.owner:
            raise PermissionError(13, "Permission denied")
        return super().committing(name)


def test_what_workers_cannot_write_they_return(nodes: _Nodes, tmp_path: Path, whole: dict[str, bytes]) -> None:
    nodes.add(2)
    (faults := tmp_path / "faults").mkdir()
    (faults / "5-kill").touch()
    _by(nodes, _work(faults), _Private(tmp_path / "a", owner=os.getpid()))
    assert _files(tmp_path / "a") == whole


def test_a_place_that_workers_see_and_may_not_write_to_is_refused(nodes: _Nodes, tmp_path: Path) -> None:
    nodes.add()
    with pytest.raises(Refusal, match=r"machine \S+ may not write there: Permission denied; give workers the right"):
        _by(nodes, _work(), _Private(tmp_path / "a", owner=os.getpid(), others="reading"))


def test_what_cannot_work_is_refused_before_it_begins(nodes: _Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refusal, match="Ray cluster at 127.0.0.1:9: nobody answers there .*; start one with `ray start --head`"):
        _by(_Nodes(type("Nothing", (), {"address": "127.0.0.1:9"})), _work(), Folder(tmp_path / "a"))
    with pytest.raises(Refusal, match="Ray cluster at nonsense: Invalid address format"):
        _by(_Nodes(type("Nothing", (), {"address": "nonsense"})), _work(), Folder(tmp_path / "a"))
    with pytest.raises(Refusal, match="a worker: it takes 1 cores, 0 devices and 0.0 GB of memory, and no node has as much"):
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
