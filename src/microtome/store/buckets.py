"""Files at an address that fsspec knows: S3 and what is compatible with it, Google Cloud Storage, memory.

A file is written here first and sent whole under its own name; object stores show nothing of it before all has arrived. What
files mean belongs in `states`, `manifest` and `mirrors`, what errors mean in `faults`.
"""

import contextlib
import hashlib
import os
import re
import tempfile
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from microtome.core import Refusal
from microtome.core.cache import MARK, cache_root
from microtome.store.connections import Connection, connected
from microtome.store.files import committed, digest, full
from microtome.store.places import Folder

__all__ = ["Bucket", "is_address", "place_of"]

_ADDRESS: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_LOCAL: Final = ("file://", "local://")

COPIES: Final = 8 << 30
"""Bytes that copies of objects may take in the cache; the last 64 used are kept in any case."""
_KEPT: Final = 64


def is_address(text: str | Path) -> bool:
    """Whether `text` is an address with a protocol, of another place than a folder on this machine."""
    return isinstance(text, str) and bool(_ADDRESS.match(text)) and not text.startswith(_LOCAL)


def place_of(address: str | Path) -> "Folder | Bucket":
    """The place that a person means: a folder for a path and file://, a bucket for any other protocol.

    >>> place_of("atlas").address, place_of("s3://bucket/atlas/").address
    ('atlas', 's3://bucket/atlas')

    Errors: `Refusal` for an address that became a path on the way, and so lost a slash.
    """
    if isinstance(address, Path):
        if re.fullmatch(r"[a-z0-9]{2,8}:", address.parts[0] if address.parts else ""):
            raise Refusal(
                str(address), why="a Path has no place for the // of an address", instead="pass the address as text (a str)"
            )
        return Folder(address)
    if is_address(address):
        return Bucket(address.rstrip("/"))
    for protocol in _LOCAL:
        address = address.removeprefix(protocol)
    return Folder(Path(address))


@dataclass(frozen=True)
class Bucket:
    """A prefix of names in object storage, as a `Place`.

    Cost: `committing` and `local` ask twice (one request to send or fetch, one to look at what is there), the others once; of a
    file above 100 MB s3fs sends or fetches parts of 50 MB, a request each. Copies that `local` makes are in `fetched/states` of the
    cache: `delete` removes those of its file, and beyond 8 GiB those go that were not used for longest.
    """

    address: str

    def inside(self, name: str) -> "Bucket":
        """The names below one."""
        return Bucket(f"{self.address}/{name}")

    def names(self) -> list[str]:
        """As `Place.names`, of now: listings are not remembered."""
        try:
            listed = self._there.asked(lambda: self._there.files.ls(self._there.path, detail=True))
        except FileNotFoundError:
            return []
        names = (str(each["name"]).rsplit("/", 1) for each in listed if each["type"] == "file")
        return sorted(last for above, last in names if above.strip("/") == self._there.path.strip("/") and last)

    def below(self) -> list[str]:
        """Names of all files in it and below, with / between, sorted."""
        try:
            found = self._there.asked(lambda: self._there.files.find(self._there.path))
        except FileNotFoundError:
            return []
        start = len(self._there.path.strip("/")) + 1
        names = (str(each).strip("/") for each in found)
        return sorted(name[start:] for name in names if len(name) > start)

    @contextlib.contextmanager
    def committing(self, name: str) -> Iterator[Path]:
        """As `Place.committing`: the file is a temporary one of this machine, and sent when the block ends well."""
        try:
            with tempfile.TemporaryDirectory(prefix="microtome-") as folder:
                temporary = Path(folder) / Path(name).name
                yield temporary
                self.send(temporary, name)
        except OSError as error:
            refusal = full(error, name, Path(tempfile.gettempdir()))
            if refusal is None:
                raise
            raise refusal from error

    def send(self, source: Path, name: str) -> None:
        """Put a file there under `name`, and look whether what arrived is what was sent.

        Errors: `Refusal` where it is not, twice; as of `patiently`.
        """
        for _ in range(2):
            self._there.asked(lambda: self._there.files.put_file(str(source), self._there.at(name)))
            if self._arrived(source, name):
                return
        raise Refusal(
            f"{self.address}/{name}", why="what arrived there is not what was sent", instead="check the storage and the network"
        )

    def _arrived(self, source: Path, name: str) -> bool:
        """Size, and the MD5 where the storage tells one; where that is another, the bytes decide (encryption by a key changes what is told)."""
        told = self._there.asked(lambda: self._there.files.info(self._there.at(name)))
        if told["size"] != source.stat().st_size:
            return False
        sums = _md5(told)
        with source.open("rb") as file:
            if sums is None or hashlib.file_digest(file, "md5").hexdigest() == sums:
                return True
        with tempfile.TemporaryDirectory(prefix="microtome-") as folder:
            back = Path(folder) / "back"
            self.fetch(name, back)
            return digest(back) == digest(source)

    def read(self, name: str) -> bytes | None:
        """As `Place.read`."""
        try:
            return self._there.asked(lambda: self._there.files.cat_file(self._there.at(name), **self._there.small))
        except FileNotFoundError:
            return None

    def fetch(self, name: str, path: Path) -> None:
        """Copy a file to `path`. Errors: `FileNotFoundError`."""
        self._there.asked(lambda: self._there.files.get_file(self._there.at(name), str(path)))

    def local(self, name: str) -> Path:
        """As `Place.local`: a copy in the cache, made once for what is there, whole or not at all."""
        told = self._there.asked(lambda: self._there.files.info(self._there.at(name)))
        version = [str(told.get(key)) for key in ("size", "ETag", "etag", "md5Hash", "mtime", "created", "LastModified")]
        path = self._copy(name, hashlib.sha256("|".join(version).encode()).hexdigest()[:8])
        if path.exists():
            os.utime(path)
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        if not (path.parent / MARK).exists():
            (path.parent / MARK).write_text('{"what": "copies of fold states that are kept at addresses"}\n')
        with committed(path) as temporary:
            self.fetch(name, temporary)
        _bound(path.parent)
        return path

    def _copy(self, name: str, version: str) -> Path:
        key = hashlib.sha256(f"{self.address}/{name}".encode()).hexdigest()[:32]
        return cache_root() / "fetched" / "states" / f"{key}-{version}"

    def delete(self, name: str) -> None:
        """As `Place.delete`; copies that were made of it here go too."""
        with contextlib.suppress(FileNotFoundError):
            self._there.asked(lambda: self._there.files.rm_file(self._there.at(name)))
        pattern = self._copy(name, "*")
        for copy in pattern.parent.glob(pattern.name):
            copy.unlink(missing_ok=True)

    @property
    def _there(self) -> Connection:
        return connected(self.address)


def _md5(told: dict[str, Any]) -> str | None:
    """The MD5 of an object in hex, where the storage says one: S3 of what was sent in one part, GCS always."""
    if isinstance(sums := told.get("md5Hash"), str):
        return b64decode(sums).hex()
    tag = str(told.get("ETag", "")).strip('"')
    return tag if re.fullmatch("[0-9a-f]{32}", tag) else None


def _bound(folder: Path) -> None:
    """Remove copies beyond what they may take, those first that were not used for longest."""
    taken = 0
    statuses = []
    for path in folder.glob("*-*"):
        with contextlib.suppress(FileNotFoundError):
            statuses.append((path.stat().st_mtime_ns, path.stat().st_size, path))
    for place, (_, size, path) in enumerate(sorted(statuses, reverse=True)):
        taken += size
        if taken > COPIES and place >= _KEPT:
            path.unlink(missing_ok=True)
