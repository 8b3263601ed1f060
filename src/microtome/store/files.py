"""Files that are either whole or absent: commit by temporary name, fsync, rename; checksums; one writer per folder.

What is in the files belongs to `tables`, `states` and `manifest`.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from microtome.core import Interrupted, Refusal

__all__ = ["DiskFull", "committed", "digest", "full", "locked", "sweep"]

_PART = ".part"

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFull(Interrupted):
    """No space is left to write to; what is finished stays, so that the same command continues it."""


def full(error: BaseException, what: str, folder: Path) -> DiskFull | None:
    """The refusal that `error` amounts to where it says that the disk of `folder` is full, or None."""
    said = (
        error.errno if isinstance(error, OSError) else next((code for code in _FULL if os.strerror(code) in str(error)), None)
    )
    if said not in _FULL:
        return None
    return DiskFull(
        f"writing {what}",
        why=f"no space is left in {folder}" if said != errno.EFBIG else f"the size of a file in {folder} is limited",
        instead="free some space and run the same command again: finished work is kept",
    )


@contextlib.contextmanager
def committed(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success its contents are on disk under `path`, on failure nothing is.

    The temporary name is no other's: several processes may commit the same file at the same time, and the last one counts.
    Errors: `Refusal` where the disk is full.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_PART}")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        refusal = full(error, path.name, path.parent)
        if refusal is None:
            raise
        raise refusal from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex. Cost: one read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sweep(folder: Path) -> None:
    """Remove what an interrupted `committed` left in `folder` and below."""
    for leftover in folder.rglob(f"*{_PART}"):
        leftover.unlink()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the only right to write in `folder`. The operating system lets go of it when the process ends, however it ends.

    Errors: `Refusal` where another process holds it.
    """
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Refusal(
                str(folder), why="another run is writing in it", instead="wait for that run to end, or name another folder"
            ) from error
        yield
