"""Where a build writes: a folder, or an address of which a folder here is the copy that it works in.

At an address the states of folds are written by whoever computes them, tables when they are whole, and the manifest after the
tables that it names: with it they are there, and without it they are not. What is in the files belongs in `build`, which files
there are at an address in `store.mirrors`.
"""

import contextlib
import json
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from microtome.capture import Progress
from microtome.core import Interrupted, Refusal
from microtome.store import (
    Bucket,
    Folder,
    Mirror,
    Place,
    Unreachable,
    committed,
    digest,
    leased,
    manifest_path,
    mirror_of,
    place_of,
    read_manifest,
)
from microtome.store.conditional import create, look, swap
from microtome.store.leases import LEASE, Lease
from microtome.store.manifest import manifest_of
from microtome.store.mirrors import MANIFEST, PARTS

__all__ = ["Home", "home_of", "require_usable_address", "seen"]

_MADE: Final = "made.json"
"""Beside the states of a run: the files that its stages have made, with their SHA-256."""


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
    """An address, held by a lease."""

    def __init__(self, mirror: Mirror, lease: Lease, run: str) -> None:
        self._mirror, self._lease, self._run = mirror, lease, run
        self._bucket = mirror.bucket
        self.folder = mirror.folder
        there = look(self._bucket, MANIFEST)
        self._content, self._mark = there or (b"", "")
        self._named = self._names(self._content)
        self._sent = _digests(self.folder)
        self._ever = set(self._named)
        self._made: dict[str, str] = {}
        self._bring_made()

    @property
    def place(self) -> Place:
        """The address."""
        return self._bucket

    def states(self, run: str) -> Place:
        """At the address."""
        return self._bucket.inside("work").inside(run)

    def keep(self, files: Iterable[Path]) -> None:
        """Send what is new. A file that the manifest there names waits for the next manifest: until then readers want the old one."""
        for path in files:
            name = path.relative_to(self.folder).as_posix()
            if name == MANIFEST:
                self._publish()
            elif name not in self._named:
                self._send(name)

    def drop_states(self, run: str) -> None:
        """Remove what is below the place of the states, and what stages have made: it is in the atlas."""
        self._lease.require()
        self._made = {}
        _empty(self._bucket.inside("work").inside(run))

    def watched(self, progress: Progress) -> Progress:
        """Ends the build when the lease is lost, and keeps what stages have made."""
        return _Guarded(progress, self)

    def settle(self) -> None:
        """Make what is at the address what is in the folder: files go that a manifest has named, or this build sent, and none names now."""
        self._publish()
        for name in sorted(self._ever - self._named):
            self._lease.require()
            self._bucket.delete(name)
        runs = read_manifest(self.folder).runs if self._content else {}
        if self._run not in runs or runs[self._run].status == "complete":
            self.drop_states(self._run)

    def check(self) -> None:
        """Refuse to go on where another may have begun to write."""
        self._lease.require()

    def keep_made(self) -> None:
        """Send files that stages have made, which are dear to make again: whoever continues finds them."""
        made, place = self.folder / "work" / self._run / "made", self.states(self._run)
        assert isinstance(place, Bucket), "states of an address are there"
        new = [path for path in sorted(made.rglob("*")) if path.is_file() and path.suffix != ".part"]
        new = [path for path in new if path.relative_to(made).as_posix() not in self._made]
        for path in new:
            name = path.relative_to(made).as_posix()
            self._lease.require()
            place.inside("made").send(path, name)
            self._made[name] = digest(path)
        if new:
            with place.committing(_MADE) as temporary:
                temporary.write_text(json.dumps(self._made, indent=1, sort_keys=True))

    def _bring_made(self) -> None:
        """Fetch what stages of this run have made elsewhere; what is damaged is made again."""
        place = self._bucket.inside("work").inside(self._run)
        written = place.read(_MADE) or b"{}"
        try:
            listed = dict(json.loads(written))
        except ValueError:
            return
        made = self.folder / "work" / self._run / "made"
        for name, sha in listed.items():
            path = made / name
            if ".." in Path(name).parts or Path(name).is_absolute():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                if not path.is_file() or digest(path) != sha:
                    path.unlink(missing_ok=True)
                    with committed(path) as temporary:
                        place.inside("made").fetch(name, temporary)
                        if digest(temporary) != sha:
                            raise FileNotFoundError(name)
                self._made[name] = sha

    def _names(self, content: bytes) -> set[str]:
        return set(manifest_of(content, self._bucket.address).digests()) if content else set()

    def _send(self, name: str) -> None:
        """Send a file of the folder, where it is not there yet."""
        path = self.folder / name
        sha = digest(path)
        if self._sent.get(name) != sha:
            self._lease.require()
            self._bucket.send(path, name)
            self._sent[name] = sha
            self._ever.add(name)

    def _publish(self) -> None:
        """Send what the manifest of the folder names, then the manifest."""
        path = manifest_path(self.folder)
        content = path.read_bytes() if path.is_file() else b""
        named = self._names(content)
        for name in sorted(named):
            if (self.folder / name).is_file():  # what is missing is named as such by whoever reads
                self._send(name)
        if content != self._content:
            self._lease.require()
            self._replace(content)
            self._content, self._named = content, named

    def _replace(self, content: bytes) -> None:
        """The manifest itself, where it is still the one that this build has read or written."""
        if not content:
            there = look(self._bucket, MANIFEST)
            if there is not None and there[1] == self._mark:
                self._bucket.delete(MANIFEST)
            return
        made = self._content and swap(self._bucket, MANIFEST, content, self._mark) or None
        mark = made if self._content else create(self._bucket, MANIFEST, content)
        if mark is None:
            raise Unreachable(
                self._bucket.address,
                why="its manifest is not the one that this build has read: another one has written there",
                instead="wait for that build to end, and run the same command again",
            )
        self._mark = mark


class _Guarded:
    """Progress of a build at an address."""

    def __init__(self, inner: Progress, home: _Remote) -> None:
        self._inner, self._home = inner, home

    def begin(self, stage: str, windows: int) -> None:
        """A stage begins: what it was made from is kept."""
        self._home.check()
        self._home.keep_made()
        self._inner.begin(stage, windows)

    def found(self, windows: int) -> None:
        """Windows of an earlier run."""
        self._inner.found(windows)

    def advance(self, windows: int, tokens: int) -> None:
        """A batch."""
        self._home.check()
        self._inner.advance(windows, tokens)

    def step(self, what: str) -> None:
        """Something without a count."""
        self._home.check()
        self._inner.step(what)


def _digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of what the manifest in a folder names, of which each file was found to be as it says, or is missing."""
    named = read_manifest(folder).digests() if manifest_path(folder).is_file() else {}
    return {
        name: next(iter(known)) if len(known) == 1 else digest(folder / name)
        for name, known in named.items()
        if (folder / name).is_file()
    }


def _empty(bucket: Bucket) -> None:
    """Remove all files in a place and below."""
    for name in bucket.below():
        inner, _, last = name.rpartition("/")
        (bucket.inside(inner) if inner else bucket).delete(last)


def _renamed(refusal: Refusal, mirror: Mirror) -> Refusal:
    """A refusal that names the address where it named the folder in the cache."""
    what, why, instead = (
        said.replace(str(mirror.folder), mirror.bucket.address) for said in (refusal.what, refusal.why, refusal.instead)
    )
    return type(refusal)(what, why=why, instead=instead)
