"""Fold states on disk: safetensors, a checksum, and a marker that is written last.

A state file without its marker does not exist; a state file that does not match its marker is damaged and is not used.
Which states there are, and when they are merged, belongs in `engine`.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from microtome.core import State
from microtome.store.files import committed, digest

__all__ = ["Damaged", "StoredStates", "delete_states", "has_states", "map_states", "read_states", "write_states"]

_SEPARATOR = "|"


@dataclass(frozen=True)
class Damaged:
    """A state file whose bytes are not those that were written."""

    path: Path


@dataclass(frozen=True)
class StoredStates(Mapping[str, State]):
    """States of folds in a file, by fold name: a state is mapped into memory when it is asked for, and gone with its tensors."""

    path: Path
    keys_of: Mapping[str, tuple[str, ...]]

    def __getitem__(self, fold: str) -> State:
        """The tensors of one fold."""
        with safe_open(self.path, "pt") as file:
            return {key: file.get_tensor(f"{fold}{_SEPARATOR}{key}") for key in self.keys_of[fold]}

    def __iter__(self) -> Iterator[str]:
        """Names of the folds."""
        return iter(self.keys_of)

    def __len__(self) -> int:
        """How many folds there are."""
        return len(self.keys_of)


def _files(stem: Path) -> tuple[Path, Path]:
    return stem.with_name(f"{stem.name}.safetensors"), stem.with_name(f"{stem.name}.json")


def write_states(stem: Path, states: Mapping[str, State]) -> None:
    """Commit the states of several folds, by fold name, as one file `stem`.safetensors with its marker `stem`.json."""
    data, marker = _files(stem)
    tensors = {
        f"{fold}{_SEPARATOR}{key}": tensor.detach().cpu().contiguous()
        for fold, state in sorted(states.items())
        for key, tensor in sorted(state.items())
    }
    with committed(data) as temporary:
        save_file(tensors, temporary)
    with committed(marker) as temporary:
        temporary.write_text(json.dumps({"sha256": digest(data), "folds": sorted(states)}))


def has_states(stem: Path) -> bool:
    """Whether `stem` was committed."""
    data, marker = _files(stem)
    return marker.exists() and data.exists()


def read_states(stem: Path) -> StoredStates | Damaged:
    """The states committed under `stem`, or word that the file is damaged. Cost: one read of the file; states come when asked for."""
    data, marker = _files(stem)
    try:
        recorded = json.loads(marker.read_bytes())
        written = recorded["sha256"]
        list(recorded["folds"])
    except (ValueError, KeyError, TypeError):
        return Damaged(marker)
    if digest(data) != written:
        return Damaged(data)
    try:
        return map_states(stem)
    except KeyError:
        return Damaged(marker)


def map_states(stem: Path) -> StoredStates:
    """The states committed under `stem`, whose bytes have been looked at before. Cost: one read of the file's header."""
    data, marker = _files(stem)
    keys: dict[str, list[str]] = {fold: [] for fold in json.loads(marker.read_bytes())["folds"]}
    with safe_open(data, "pt") as file:
        for name in file.keys():  # noqa: SIM118  # it is no mapping
            fold, _, key = name.rpartition(_SEPARATOR)
            keys[fold].append(key)
    return StoredStates(data, {fold: tuple(names) for fold, names in keys.items()})


def delete_states(stem: Path) -> None:
    """Remove what `write_states` wrote, marker first."""
    data, marker = _files(stem)
    marker.unlink(missing_ok=True)
    data.unlink(missing_ok=True)
