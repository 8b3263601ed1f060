"""Fingerprints: one hash for the same parameters, in any process, on any machine.

A stage is resumed only where the fingerprint of all that determines its bytes is unchanged. Hashing of files belongs in
`files`, hashing of tokens for sampling in `numerics.hashing`.
"""

import dataclasses
import enum
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = ["Fingerprinted", "differences", "fingerprint"]


@runtime_checkable
class Fingerprinted(Protocol):
    """An object that knows its own identity (a model, a corpus): its `fingerprint` stands for it."""

    @property
    def fingerprint(self) -> str:
        """Hex digest of everything that makes this object what it is."""
        ...


def fingerprint(value: object) -> str:
    """SHA-256, in hex, of a canonical form of `value`.

    Values are builtins, enums, tensors, mappings, sequences, sets, frozen dataclasses and `Fingerprinted` objects, nested. Of
    a dataclass the fields that take part in comparison count (`field(compare=False)` leaves one out), and its `kind` and
    `version` where it has them. Anything else is a programming error.
    """
    text = json.dumps(_canonical(value), separators=(",", ":"), allow_nan=True)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """What differs between two identities, a sentence each, by name.

    >>> differences({"dtype": "float32", "threads": "1"}, {"threads": "2"})
    ['dtype was float32 and is now absent', 'threads was 1 and is now 2']
    """
    changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    return [f"{key} was {before.get(key, 'absent')} and is now {now.get(key, 'absent')}" for key in changed]


def _canonical(value: object) -> Any:
    if isinstance(value, enum.Enum):
        return [type(value).__name__, value.name]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return ["float", value.hex()]
    if isinstance(value, bytes):
        return ["bytes", hashlib.sha256(value).hexdigest()]
    if isinstance(value, torch.dtype | torch.device):
        return str(value)
    if isinstance(value, Path):
        return ["path", value.name]
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, Fingerprinted):
        return [type(value).__name__, value.fingerprint]
    return _compound(value)


def _compound(value: object) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _canonical(getattr(value, f.name)) for f in dataclasses.fields(value) if f.compare}
        kind, version = getattr(type(value), "kind", type(value).__name__), getattr(type(value), "version", 0)
        return [str(kind), int(version), fields]
    if isinstance(value, Mapping):
        return ["map", sorted([json.dumps(_canonical(k)), _canonical(v)] for k, v in value.items())]
    if isinstance(value, set | frozenset):
        return ["set", sorted(json.dumps(_canonical(v)) for v in value)]
    if isinstance(value, list | tuple | range):
        return [_canonical(v) for v in value]
    raise AssertionError(f"no canonical form for {type(value).__name__}")


def _tensor(value: Tensor) -> list[Any]:
    plain = value.detach().cpu().contiguous()
    data = plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""
    return ["tensor", str(plain.dtype), list(plain.shape), hashlib.sha256(data).hexdigest()]
