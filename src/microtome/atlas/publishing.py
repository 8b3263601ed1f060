"""What a build that holds the lease of an address puts there: the atlas, as its manifest names it, and what stages of its run have made.

When that is done, and by whom, belongs in `homes`; the lease in `store.leases`.
"""

import contextlib
import json
from pathlib import Path
from typing import Final

from microtome.store import Bucket, Unreachable, committed, digest, manifest_path, read_manifest
from microtome.store.conditional import create, look, swap
from microtome.store.leases import Lease
from microtome.store.manifest import manifest_of
from microtome.store.mirrors import MANIFEST

__all__ = ["MadeFiles", "Publication"]

_MADE: Final = "made.json"
"""Beside the states of a run: the files that its stages have made, with their SHA-256."""


class Publication:
    """The manifest at an address and the files that it names, brought there from a folder.

    Errors: `Unreachable` of each method that writes, where the lease is lost, or another has written the manifest.
    """

    def __init__(self, bucket: Bucket, folder: Path, lease: Lease) -> None:
        self._bucket, self._folder, self._lease = bucket, folder, lease
        self._content, self._mark = look(bucket, MANIFEST) or (b"", "")
        self._named = self._names(self._content)
        self._sent = _digests(folder)
        self._ever = set(self._named)

    @property
    def exists(self) -> bool:
        """Whether there is a manifest."""
        return bool(self._content)

    def send_unnamed(self, name: str) -> None:
        """Send a file of the folder. One that the manifest there names waits for the next manifest: until then readers want the old one."""
        if name not in self._named:
            self._send(name)

    def publish(self) -> None:
        """Send what the manifest of the folder names, then the manifest."""
        path = manifest_path(self._folder)
        content = path.read_bytes() if path.is_file() else b""
        named = self._names(content)
        for name in sorted(named):
            if (self._folder / name).is_file():  # what is missing is named as such by whoever reads
                self._send(name)
        if content != self._content:
            self._lease.require()
            self._replace(content)
            self._content, self._named = content, named

    def remove_unnamed(self) -> None:
        """Remove files that a manifest has named, or this build sent, and that none names now."""
        for name in sorted(self._ever - self._named):
            self._lease.require()
            self._bucket.delete(name)

    def _names(self, content: bytes) -> set[str]:
        return set(manifest_of(content, self._bucket.address).digests()) if content else set()

    def _send(self, name: str) -> None:
        """Send a file of the folder, where it is not there yet."""
        path = self._folder / name
        sha = digest(path)
        if self._sent.get(name) != sha:
            self._lease.require()
            self._bucket.send(path, name)
            self._sent[name] = sha
            self._ever.add(name)

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


class MadeFiles:
    """Files that stages of a run have made, which are dear to make again: beside the run's states until its tables are kept."""

    def __init__(self, states: Bucket, folder: Path, lease: Lease) -> None:
        self._states, self._folder, self._lease = states, folder, lease
        self._kept: dict[str, str] = {}

    def bring(self) -> None:
        """Fetch what was made elsewhere; what is damaged is made again."""
        written = self._states.read(_MADE) or b"{}"
        try:
            listed = dict(json.loads(written))
        except ValueError:
            return
        for name, sha in listed.items():
            path = self._folder / name
            if ".." in Path(name).parts or Path(name).is_absolute():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                if not path.is_file() or digest(path) != sha:
                    path.unlink(missing_ok=True)
                    with committed(path) as temporary:
                        self._states.inside("made").fetch(name, temporary)
                        if digest(temporary) != sha:
                            raise FileNotFoundError(name)
                self._kept[name] = sha

    def keep(self) -> None:
        """Send what is new: whoever continues finds it."""
        files = {
            path.relative_to(self._folder).as_posix(): path
            for path in sorted(self._folder.rglob("*"))
            if path.is_file() and path.suffix != ".part"
        }
        new = [name for name in files if name not in self._kept]
        for name in new:
            self._lease.require()
            self._states.inside("made").send(files[name], name)
            self._kept[name] = digest(files[name])
        if new:
            self._lease.require()
            with self._states.committing(_MADE) as temporary:
                temporary.write_text(json.dumps(self._kept, indent=1, sort_keys=True))

    def drop(self) -> None:
        """Remove them, and all states of the run: they are in the atlas."""
        self._kept = {}
        for name in self._states.below():
            self._lease.require()
            inner, _, last = name.rpartition("/")
            (self._states.inside(inner) if inner else self._states).delete(last)


def _digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of what the manifest in a folder names, of which each file was found to be as it says, or is missing."""
    named = read_manifest(folder).digests() if manifest_path(folder).is_file() else {}
    return {
        name: next(iter(known)) if len(known) == 1 else digest(folder / name)
        for name, known in named.items()
        if (folder / name).is_file()
    }
