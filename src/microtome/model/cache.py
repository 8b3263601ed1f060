"""The cache: folders that microtome made from other files and can make again.

Converted GGUF files and packaged weights and texts live here, each folder whole or absent: it is built under a temporary name
and renamed. Nothing that a user made belongs here, and no atlas does.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microtome.core import Refusal
from microtome.core.cache import MARK, cache_root

__all__ = ["MARK", "CacheEntry", "building", "cache_root", "caches", "mark_of", "remove_cache"]

_PART = ".part"
_LOCK = ".lock"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheEntry:
    """One folder of the cache: where, how large, and what it is."""

    path: Path
    bytes: int
    what: str


@contextlib.contextmanager
def building(folder: Path, mark: Mapping[str, Any]) -> Iterator[Path | None]:
    """Yield an empty folder that becomes `folder` when the block ends well, or None where `folder` is already there.

    One process builds at a time, others wait for it; what a killed process left is removed. `mark` is written as `MARK`.

    Errors: `Refusal` where the disk is full or the cache cannot be written.
    """
    if folder.is_dir():
        yield None
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _exclusive(folder.with_name(folder.name + _LOCK)):
            if folder.is_dir():
                yield None
                return
            with _renamed(folder, mark) as part:
                yield part
    except OSError as error:
        raise _refusal(folder, error) from error


def mark_of(folder: Path) -> dict[str, Any]:
    """What `MARK` in `folder` says; empty where the folder has none."""
    path = folder / MARK
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def caches() -> list[CacheEntry]:
    """Every folder of the cache in order of path, unfinished ones included."""
    found = []
    for folder in sorted(p for p in cache_root().glob("*/*") if p.is_dir()):
        unfinished = folder.name.endswith(_PART)
        what = "left by an interrupted run" if unfinished else str(mark_of(folder).get("what", "not made by microtome"))
        found.append(CacheEntry(folder, sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()), what))
    return found


def remove_cache(folder: Path) -> None:
    """Delete a folder of the cache, as `caches` lists it.

    Errors: `Refusal` for a folder that is not one of the cache's.
    """
    listed = [entry.path for entry in caches()]
    path = folder.expanduser().absolute()
    if path not in listed:
        raise Refusal(
            f"removing {folder}",
            why=f"it is no folder of the cache in {cache_root()}",
            instead=f"name one of {', '.join(map(str, listed))}" if listed else "there is nothing to remove",
        )
    shutil.rmtree(path)


@contextlib.contextmanager
def _renamed(folder: Path, mark: Mapping[str, Any]) -> Iterator[Path]:
    part = folder.with_name(folder.name + _PART)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        yield part
        (part / MARK).write_text(json.dumps(dict(mark), indent=1, sort_keys=True) + "\n", encoding="utf-8")
        for path in part.rglob("*"):
            _sync(path)
        part.rename(folder)
        _sync(folder.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("waiting for another process that is making %s", path.name.removesuffix(_LOCK))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refusal(folder: Path, error: OSError) -> Refusal:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        why, instead = f"no space is left in {cache_root()}", "free some space, or name another folder by MICROTOME_CACHE"
    else:
        why, instead = (
            f"{error.strerror or error} ({error.filename or folder})",
            "name a folder you can write by MICROTOME_CACHE",
        )
    return Refusal(f"caching {folder.name}", why=why, instead=instead)
