"""Fold states on disk: safetensors, a checksum, and a marker that is written last.

A state file without its marker does not exist; a state file that does not match its marker is damaged and is not used.
Which states there are, and when they are merged, belongs in `engine`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file

from microtome.core import State
from microtome.store.files import committed, digest

__all__ = ["Damaged", "delete_states", "has_states", "read_states", "write_states"]

_SEPARATOR = "|"


@dataclass(frozen=True)
class Damaged:
    """A state file whose bytes are not those that were written."""

    path: Path


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


def read_states(stem: Path) -> dict[str, State] | Damaged:
    """The states committed under `stem`, or word that the file is damaged. Cost: two reads of the file."""
    data, marker = _files(stem)
    try:
        recorded = json.loads(marker.read_bytes())
        written, folds = recorded["sha256"], list(recorded["folds"])
    except (ValueError, KeyError, TypeError):
        return Damaged(marker)
    if digest(data) != written:
        return Damaged(data)
    states: dict[str, State] = {fold: {} for fold in folds}
    for name, tensor in load_file(data).items():
        fold, _, key = name.rpartition(_SEPARATOR)
        if fold not in states:
            return Damaged(marker)
        states[fold][key] = tensor
    return states


def delete_states(stem: Path) -> None:
    """Remove what `write_states` wrote, marker first."""
    data, marker = _files(stem)
    marker.unlink(missing_ok=True)
    data.unlink(missing_ok=True)
