"""Atlases at addresses: a folder of the cache that is what the manifest at the address says, so that all that reads files can.

Of the files only those are fetched whose SHA-256 is not there yet. The manifest is what marks an atlas: files that it does not
name do not exist. Who may write belongs in `leases`, building in `atlas`.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from microtome.core import Refusal
from microtome.core.cache import MARK, cache_root
from microtome.store.buckets import Bucket, place_of
from microtome.store.files import committed, digest
from microtome.store.manifest import Manifest, manifest_of, manifest_path
from microtome.store.places import Folder

__all__ = ["MANIFEST", "PARTS", "Mirror", "folder_of", "mirror_of"]

MANIFEST: Final = "atlas.json"
PARTS: Final = ("tables", "dictionaries")
"""Folders of an atlas whose files the manifest names."""

_TRIES: Final = 5
_AT_ONCE: Final = 8
_log = logging.getLogger(__name__)


def folder_of(address: str | Path) -> Path:
    """Where the files of the atlas that a person names are to be read: its folder, or that of a copy which is now what is at the address.

    Cost: at an address one request for the manifest (the first time two), one for each file that has changed, and one read of all files that have not.
    Errors: `Refusal` where there is no atlas at the address, or it cannot be reached. A file that is damaged there is missing in the copy.
    """
    place = place_of(address)
    if isinstance(place, Folder):
        return place.path
    if not _root(place).exists() and place.read(MANIFEST) is None:  # nothing is made here for what is not there
        raise _no_atlas(place)
    mirror = mirror_of(place)
    with mirror.alone():
        if not mirror.building and mirror.bring() is None:
            raise _no_atlas(place)
    return mirror.folder


@dataclass(frozen=True)
class Mirror:
    """What is known here of the atlas at an address: `folder` is the atlas, `lease` the file of `leases.leased`."""

    bucket: Bucket
    root: Path

    @property
    def folder(self) -> Path:
        """Where its files are: a folder that is called as the address is, since pages call atlases by their folders."""
        return self.root / "copy" / self.bucket.address.rsplit("/", 1)[-1]

    @property
    def lease(self) -> Path:
        """Locked by a build of this machine."""
        return self.root / "lease"

    @property
    def building(self) -> bool:
        """Whether a build of this machine writes in the folder: then that is newer than what is at the address."""
        with self.lease.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
        return False

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other process brings the folder up to date, and keep others from it."""
        with (self.root / "bringing").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def bring(self) -> Manifest | None:
        """Make the folder what the manifest at the address says; None, and an empty folder, where there is none.

        Files that are damaged at the address, or missing, are missing in the folder.
        """
        content = self.bucket.read(MANIFEST)
        for _ in range(_TRIES):
            if content is None:
                shutil.rmtree(self.folder, ignore_errors=True)
                return None
            manifest = manifest_of(content, self.bucket.address)
            wrong = self._fetched(manifest)
            now = self.bucket.read(MANIFEST) if wrong else content
            if now == content:
                break
            content = now  # a build has replaced files and their digests in the meantime
        else:
            raise Refusal(self.bucket.address, why="it changes all the time", instead="wait for the build there to end")
        for file in wrong:
            _log.warning("%s/%s is missing or damaged (not the bytes that were written)", self.bucket.address, file)
        self._prune(manifest)
        if not manifest_path(self.folder).is_file() or manifest_path(self.folder).read_bytes() != content:
            self.folder.mkdir(parents=True, exist_ok=True)
            with committed(manifest_path(self.folder)) as temporary:
                temporary.write_bytes(content)
        return manifest

    def _fetched(self, manifest: Manifest) -> list[str]:
        """Fetch what is not there as the manifest says; names of what could not be, sorted."""
        digests = manifest.digests()
        for file in digests:
            _require_inside(file, self.bucket.address)
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            right = list(threads.map(self._one, digests, digests.values()))
        return sorted(file for file, found in zip(digests, right, strict=True) if not found)

    def _one(self, file: str, digests: set[str]) -> bool:
        """Whether a file is there as it was written, now or already."""
        path = self.folder / file
        if path.is_file() and digest(path) in digests:
            return True
        path.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(2):  # what was damaged on the way comes right the second time
            try:
                with committed(path) as temporary:
                    self.bucket.fetch(file, temporary)
                    if digest(temporary) not in digests:
                        raise FileNotFoundError(file)
            except FileNotFoundError:
                path.unlink(missing_ok=True)
            else:
                return True
        return False

    def _prune(self, manifest: Manifest) -> None:
        """Remove what the manifest does not name: readers take every file of a table."""
        named = manifest.digests()
        for part in PARTS:
            for path in (self.folder / part).rglob("*"):
                if path.is_file() and path.relative_to(self.folder).as_posix() not in named:
                    path.unlink()


def mirror_of(bucket: Bucket) -> Mirror:
    """The mirror of an address, made where there is none. Errors: `Refusal` where the cache cannot be written."""
    root = _root(bucket)
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not (root / MARK).is_file():
            with committed(root / MARK) as temporary:
                temporary.write_text(json.dumps({"what": f"copy of the atlas at {bucket.address}"}) + "\n")
        for name in ("lease", "bringing"):
            os.close(os.open(root / name, os.O_CREAT | os.O_WRONLY, 0o600))
    except OSError as error:
        raise Refusal(
            f"copying {bucket.address}",
            why=f"{error.strerror or error} ({error.filename or root})",
            instead="name a folder you can write by MICROTOME_CACHE",
        ) from error
    return Mirror(bucket, root)


def _root(bucket: Bucket) -> Path:
    """The folder of the cache for an address."""
    key = hashlib.sha256(bucket.address.encode()).hexdigest()[:16]
    return cache_root() / "atlases" / f"{bucket.address.rsplit('/', 1)[-1]}-{key}"


def _no_atlas(bucket: Bucket) -> Refusal:
    return Refusal(
        bucket.address, why="there is no atlas.json in it", instead="name an address that `microtome build` has written to"
    )


def _require_inside(file: str, address: str) -> None:
    """Refuse names that lead out of the atlas: a manifest may come from anybody."""
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts or path.parts[0] not in PARTS:
        raise Refusal(
            f"{address}/{MANIFEST}", why=f"it names the file {file!r}, which no atlas has", instead="name another atlas"
        )
