"""Where committed files are kept: one contract for a folder on a disk and for object storage.

A place holds files by name, each whole or absent. What is in them belongs to `states` and `tables`; object storage has its own module.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from microtome.store.files import committed

__all__ = ["Folder", "Place"]


@runtime_checkable
class Place(Protocol):
    """Files by name, which other processes may write and delete at the same time. A place is a value: it can be sent to them."""

    @property
    def address(self) -> str:
        """What a person calls it."""
        ...

    def inside(self, name: str) -> "Place":
        """A place within it."""
        ...

    def names(self) -> list[str]:
        """Names of the files directly in it, sorted; those that are being written are not among them."""
        ...

    def committing(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """Yield a file to write to; on success it is there under `name`, in the place of what was, on failure nothing is.

        Errors: `Refusal` where the place is full, or cannot be written to.
        """
        ...

    def read(self, name: str) -> bytes | None:
        """All of a small file as it is now; None where there is none."""
        ...

    def local(self, name: str) -> Path:
        """A file with the bytes of `name`, to be mapped: itself, or a copy of what was there when it was first asked for.

        Errors: `FileNotFoundError`.
        """
        ...

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        ...


@dataclass(frozen=True)
class Folder:
    """A folder on a disk, made when something is committed to it."""

    path: Path

    @property
    def address(self) -> str:
        """The path."""
        return str(self.path)

    def inside(self, name: str) -> "Folder":
        """A folder within it."""
        return Folder(self.path / name)

    def names(self) -> list[str]:
        """As `Place.names`."""
        if not self.path.is_dir():
            return []
        return sorted(each.name for each in self.path.iterdir() if each.suffix != ".part" and each.is_file())

    @contextlib.contextmanager
    def committing(self, name: str) -> Iterator[Path]:
        """As `Place.committing`."""
        self.path.mkdir(parents=True, exist_ok=True)
        with committed(self.path / name) as temporary:
            yield temporary

    def read(self, name: str) -> bytes | None:
        """As `Place.read`."""
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

    def local(self, name: str) -> Path:
        """The file itself."""
        path = self.path / name
        if not path.exists():
            raise FileNotFoundError(path)
        return path

    def delete(self, name: str) -> None:
        """As `Place.delete`."""
        (self.path / name).unlink(missing_ok=True)
