"""Where a build writes: a folder, or an address of which a folder here is the copy that it works in.

At an address the states of folds are written by whoever computes them, tables when they are whole, and the manifest after the
tables that it names: with it they are there, and without it they are not. What is in the files belongs in `build`, how they come to
an address in `publishing`, which files there are at one in `store.mirrors`.
"""

import contextlib
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from microtome.atlas.publishing import MadeFiles, Publication
from microtome.capture import Progress
from microtome.core import Interrupted, Refusal
from microtome.store import (
    Bucket,
    Folder,
    Mirror,
    Place,
    leased,
    mirror_of,
    place_of,
    read_manifest,
)
from microtome.store.leases import LEASE, Held, Lease
from microtome.store.manifest import manifest_of
from microtome.store.mirrors import MANIFEST, PARTS

__all__ = ["Home", "home_of", "require_usable_address", "seen"]


@runtime_checkable
class Home(Protocol):
    """What an atlas is written to."""

    @property
    def folder(self) -> Path:
        """Where its files are made."""
        ...

    @property
    def place(self) -> Place:
        """Where the files are in the end."""
        ...

    def states(self, run: str) -> Place:
        """Where the states of the folds of a run are kept, those of each stage in a place within."""
        ...

    def keep(self, files: Iterable[Path]) -> None:
        """Take files in the folder that are whole: tables, or the manifest when all is there that it names."""
        ...

    def drop_states(self, run: str) -> None:
        """Remove the states of a run, whose tables are kept."""
        ...

    def watched(self, progress: Progress) -> Progress:
        """What is to be told of progress so that the build ends where it may no longer write."""
        ...


@contextlib.contextmanager
def home_of(output: str | Path, run: str) -> Iterator[Home]:
    """Hold the right to write `run` at an address, with a folder of what is there; a folder is its own home, and `claimed` holds it.

    What is in the folder at the end is at the address then, also after a refusal, of which the folder has been cleared. After an error
    of another kind, a full disk, or where the address can no longer be reached or be written, what is there stays, and running again continues it.
    """
    place = place_of(output)
    if isinstance(place, Folder):
        yield _Local(place.path)
        return
    mirror = mirror_of(place)
    with leased(place, mirror.lease) as lease:
        with mirror.alone():
            mirror.bring()
        home = _Remote(mirror, lease, run)
        try:
            yield home
        except Interrupted:
            raise
        except Refusal as refusal:
            home.settle()
            raise _renamed(refusal, mirror) from refusal
        home.settle()


def seen(output: str | Path) -> Path:
    """A folder with what is at `output`, to be looked at and not written in; it need not exist.

    Errors: `Refusal` where an address cannot be reached.
    """
    place = place_of(output)
    if isinstance(place, Folder):
        return place.path
    mirror = mirror_of(place)
    with mirror.alone():
        if not mirror.building:
            mirror.bring()
    return mirror.folder


def require_usable_address(bucket: Bucket) -> None:
    """Refuse an address that cannot be written, or has files of somebody else where an atlas has its own.

    Cost: six requests, two of which write, and remove again, an object of a few bytes.
    """
    content = bucket.read(MANIFEST)
    if content is not None:
        manifest_of(content, bucket.address)
    else:
        others = [name for name in bucket.names() if name != LEASE and not name.startswith("probe-")]
        if others or any(bucket.inside(part).below() for part in PARTS):
            raise Refusal(bucket.address, why="there are files but no atlas.json", instead="name a new address for the atlas")
    probe = f"probe-{secrets.token_hex(4)}"
    with bucket.committing(probe) as temporary:
        temporary.write_text("microtome looks whether it may write here\n")
    bucket.delete(probe)


@dataclass(frozen=True)
class _Local:
    """A folder, in which all is where it belongs as soon as it is written."""

    folder: Path

    @property
    def place(self) -> Place:
        """The folder."""
        return Folder(self.folder)

    def states(self, run: str) -> Place:
        """In the folder."""
        return Folder(self.folder / "work" / run)

    def keep(self, files: Iterable[Path]) -> None:
        """They are."""

    def drop_states(self, run: str) -> None:
        """The build removes them with its other work."""

    def watched(self, progress: Progress) -> Progress:
        """As it is: a lock on a folder is not lost."""
        return progress


class _Remote:
    """An address, held by a lease: what is made in the copy is published, what is dear to make is kept beside the states."""

    def __init__(self, mirror: Mirror, lease: Lease, run: str) -> None:
        self._bucket, self._lease, self._run = mirror.bucket, lease, run
        self.folder = mirror.folder
        self._publication = Publication(mirror.bucket, mirror.folder, lease)
        self._made = MadeFiles(mirror.bucket.inside("work").inside(run), self.folder / "work" / run / "made", lease)
        self._made.bring()

    @property
    def place(self) -> Place:
        """The address."""
        return self._bucket

    def states(self, run: str) -> Place:
        """At the address, as long as the lease is held."""
        return Held(self._bucket, self._lease).inside("work").inside(run)

    def keep(self, files: Iterable[Path]) -> None:
        """Send what is new, each as `Publication` does."""
        for path in files:
            name = path.relative_to(self.folder).as_posix()
            if name == MANIFEST:
                self._publication.publish()
            else:
                self._publication.send_unnamed(name)

    def drop_states(self, run: str) -> None:
        """Remove what is below the place of the states, and what stages have made."""
        assert run == self._run, "of another run this build has no states"
        self._made.drop()

    def watched(self, progress: Progress) -> Progress:
        """Ends the build when the lease is lost, and keeps what stages have made."""
        return _Guarded(progress, self._lease, self._made)

    def settle(self) -> None:
        """Make what is at the address what is in the folder; states stay only of a run that is not complete."""
        self._publication.publish()
        self._publication.remove_unnamed()
        runs = read_manifest(self.folder).runs if self._publication.exists else {}
        if self._run not in runs or runs[self._run].status == "complete":
            self._made.drop()


class _Guarded:
    """Progress of a build at an address."""

    def __init__(self, inner: Progress, lease: Lease, made: MadeFiles) -> None:
        self._inner, self._lease, self._made = inner, lease, made

    def begin(self, stage: str, windows: int) -> None:
        """A stage begins: what it was made from is kept."""
        self._lease.require()
        self._made.keep()
        self._inner.begin(stage, windows)

    def found(self, windows: int) -> None:
        """Windows of an earlier run."""
        self._inner.found(windows)

    def advance(self, windows: int, tokens: int) -> None:
        """A batch."""
        self._lease.require()
        self._inner.advance(windows, tokens)

    def step(self, what: str) -> None:
        """Something without a count."""
        self._lease.require()
        self._inner.step(what)


def _renamed(refusal: Refusal, mirror: Mirror) -> Refusal:
    """A refusal that names the address where it named the folder in the cache."""
    what, why, instead = (
        said.replace(str(mirror.folder), mirror.bucket.address) for said in (refusal.what, refusal.why, refusal.instead)
    )
    return type(refusal)(what, why=why, instead=instead)
