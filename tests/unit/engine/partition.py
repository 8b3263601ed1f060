"""A node that is cut off while it computes, and goes on: run by a test in a network of its own, since a cable must be pulled.

usage: python -m tests.unit.engine.partition FOLDER
It says what has become of each side, a line of JSON. What must be so, the test says.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from microtome.engine import run
from microtome.engine.cluster import Cluster
from microtome.store import Folder
from tests.unit.engine.networks import HERE, Cable
from tests.unit.engine.ray_nodes import Nodes, started
from tests.unit.engine.toy_work import Concatenation, ToySubject

UNITS = 12


@dataclass(frozen=True)
class Watched(Folder):
    """A folder that notes who has come to the end of committing something, and whether it was let in."""

    notes: Path = Path()

    @contextlib.contextmanager
    def committing(self, name: str) -> Iterator[Path]:
        outcome = "refused"
        try:
            with super().committing(name) as temporary:
                yield temporary
            outcome = "written"
        finally:
            (self.notes / f"{outcome} {name}").touch()


def wait(until: Callable[[], object], seconds: float = 60.0) -> None:
    """Until it is so, or for so long."""
    deadline = time.monotonic() + seconds
    while not until() and time.monotonic() < deadline:
        time.sleep(0.05)


def cut_off(nodes: Nodes, cable: Cable, place: Path) -> dict[str, object]:
    """Pull the cable while the far node's worker is in a unit; have it come to the unit's end when the build is over."""
    (notes := place / "notes").mkdir()
    (faults := place / "faults").mkdir()
    near, far = nodes.add(), nodes.add_at(cable)
    for unit in range(UNITS):
        (faults / f"{unit}-hold-{cable.network}").touch()

    def works(node: object) -> bool:
        return any((faults / f"by-{pid}").exists() for pid in nodes.processes(node))

    pulled: list[float] = []

    def advance(windows: int, tokens: int) -> None:
        if not pulled and works(far):
            cable.pull()
            pulled.append(time.monotonic())

    work = Concatenation(UNITS, appended=frozenset({"rows"}), faults=faults, seconds=0.2)
    with Cluster(nodes.address, workers=2).started(ToySubject()) as crew:
        run(work, Watched(place / "a", notes=notes), crew=crew, advance=advance)
        found = {"pulled": len(pulled), "both worked": works(near) and works(far), "far node lives": far.poll() is None}
        before = _names(notes)
        (faults / "go").touch()
        wait(lambda: _names(notes) - before)
        return {**found, "late": sorted(_names(notes) - before)}


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


if __name__ == "__main__":
    laid = Cable.laid()
    with started(HERE) as cluster:
        sys.stdout.write(json.dumps(cut_off(cluster, laid, Path(sys.argv[1]))) + "\n")
    laid.close()
