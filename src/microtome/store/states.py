"""Fold states in files: safetensors, a checksum, and a marker that is written last.

A state file without its marker does not exist; a state file that does not match its marker is damaged and is not used.
Which states there are, and when they are merged, belongs in `engine`; where files are, in `places`.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from microtome.core import State
from microtome.store.files import digest
from microtome.store.places import Place

__all__ = ["Damaged", "Shelf", "StoredStates"]

_SEPARATOR = "|"
_DATA, _MARKER = ".safetensors", ".json"


@dataclass(frozen=True)
class Damaged:
    """A state file whose bytes are not those that were written, or that are of other work."""

    path: str


@dataclass(frozen=True)
class StoredStates(Mapping[str, State]):
    """States of folds in a file of a place, by fold name: a state is mapped into memory when it is asked for, and gone with its tensors."""

    place: Place
    name: str
    path: Path
    keys_of: Mapping[str, tuple[str, ...]]

    def __getitem__(self, fold: str) -> State:
        """The tensors of one fold."""
        path = self.path if self.path.exists() else self.place.local(self.name)  # copies of remote files may have been removed
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(f"{fold}{_SEPARATOR}{key}") for key in self.keys_of[fold]}

    def __iter__(self) -> Iterator[str]:
        """Names of the folds."""
        return iter(self.keys_of)

    def __len__(self) -> int:
        """How many folds there are."""
        return len(self.keys_of)


@dataclass(frozen=True)
class Shelf:
    """The states in a place that belong together, by stem: a file `stem`.safetensors with its marker `stem`.json each.

    `work` is the fingerprint of the work that they are of. It is in every marker, as "of": what a process that has outlived its own work still writes
    is then not taken for states of the next.
    """

    place: Place
    work: str = ""

    def write(self, stem: str, states: Mapping[str, State]) -> None:
        """Commit the states of several folds, by fold name."""
        tensors = {
            f"{fold}{_SEPARATOR}{key}": tensor.detach().cpu().contiguous()
            for fold, state in sorted(states.items())
            for key, tensor in sorted(state.items())
        }
        with self.place.committing(stem + _DATA) as temporary:
            save_file(tensors, temporary)
            written = digest(temporary)
        with self.place.committing(stem + _MARKER) as temporary:
            temporary.write_text(json.dumps({"sha256": written, "folds": sorted(states), "of": self.work}))

    def stems(self) -> list[str]:
        """Of what there is a marker or data, in order."""
        names = self.place.names()
        return sorted({name.removesuffix(end) for end in (_DATA, _MARKER) for name in names if name.endswith(end)})

    def committed(self) -> set[str]:
        """Stems of what was committed: of which there are both."""
        names = set(self.place.names())
        return {stem for name in names if (stem := name.removesuffix(_MARKER)) != name and stem + _DATA in names}

    def read(self, stem: str) -> StoredStates | Damaged:
        """The states committed under `stem`, or word that they are damaged or of other work.

        Cost: one read of the file; states come when asked for.
        """
        marker = self._marker(stem)
        if marker is None:
            return Damaged(f"{self.place.address}/{stem}{_MARKER}")
        try:
            data = self.place.local(stem + _DATA)
            if digest(data) != marker["sha256"]:
                return Damaged(f"{self.place.address}/{stem}{_DATA}")
            return self._mapped(stem + _DATA, data, marker["folds"])
        except FileNotFoundError:
            return Damaged(f"{self.place.address}/{stem}{_DATA}")
        except KeyError:
            return Damaged(f"{self.place.address}/{stem}{_MARKER}")

    def marked(self, stem: str) -> bool:
        """Whether what is committed under `stem` is of this work. Its bytes are looked at when it is read. Cost: one read of the marker."""
        return self._marker(stem) is not None

    def _marker(self, stem: str) -> dict[str, Any] | None:
        """What the marker says, or None where it is not one of this work."""
        written = self.place.read(stem + _MARKER) or b""  # a refusal of the place is none of the marker
        try:
            recorded = json.loads(written)
            whole = isinstance(recorded["sha256"], str) and isinstance(recorded["folds"], list)
        except (ValueError, KeyError, TypeError):
            return None
        return recorded if whole and recorded.get("of") == self.work else None

    def map(self, stem: str) -> StoredStates:
        """The states committed under `stem`, whose bytes have been looked at before. Cost: one read of the file's header."""
        marker = self._marker(stem)
        if marker is None:
            raise FileNotFoundError(f"{self.place.address}/{stem}{_MARKER}")
        return self._mapped(stem + _DATA, self.place.local(stem + _DATA), marker["folds"])

    def delete(self, stem: str) -> None:
        """Remove what `write` wrote, marker first."""
        self.place.delete(stem + _MARKER)
        self.place.delete(stem + _DATA)

    def _mapped(self, name: str, data: Path, folds: list[str]) -> StoredStates:
        keys: dict[str, list[str]] = {fold: [] for fold in folds}
        with safe_open(data, "pt") as file:
            for full in file.keys():  # noqa: SIM118  # it is no mapping
                fold, _, key = full.rpartition(_SEPARATOR)
                keys[fold].append(key)
        return StoredStates(self.place, name, data, {fold: tuple(names) for fold, names in keys.items()})
