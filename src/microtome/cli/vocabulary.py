"""What `microtome vocabulary` prints when it is asked about one thing, and which of its options that takes."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import typer

from microtome.cli.options import Way, require_used

if TYPE_CHECKING:
    from microtome.vocabulary.subject import Preset

__all__ = ["WAYS", "Lookup", "answer", "require_one_way"]

_READ: Final = frozenset({"model", "remote_code", "k", "preset", "basis", "tokens"})
_WRITTEN: Final = frozenset({"model", "remote_code", "output", "run", "depth", "seed", "dry_run"})
_OF_TEXT: Final = frozenset({"text", "window", "encoding", "text_column", "label_column", "dtype", "device"})
WAYS: Final = {
    "vector": Way("--vector", _READ | {"vector"}),
    "topic": Way("--topic", _READ | {"topic", "seed"}),
    "text": Way("a text", _WRITTEN | _OF_TEXT),
}
"""What the verb does, by the parameter that asks for it; what it does otherwise is `_WEIGHTS`."""
_WEIGHTS: Final = Way("", _WRITTEN)
_COUNT: Final = 20


@dataclass(frozen=True)
class Lookup:
    """Addresses or words, how many of what they say, and in which basis and tokens."""

    vector: Sequence[str]
    topic: Sequence[str]
    k: int | None
    preset: "Preset"
    basis: str
    tokens: str | None
    seed: int


def require_one_way(context: typer.Context) -> None:
    """Refuse options that what was asked for does not use."""
    asked = [way for name, way in WAYS.items() if context.params[name]]
    require_used(context, asked[0] if asked else _WEIGHTS, list(WAYS.values()))


def answer(model: str, remote_code: Literal["refuse", "allow"], asked: Lookup) -> str:
    """What the weights of a model say of the addresses, or else of the topic."""
    from microtome.model import open_checkpoint
    from microtome.vocabulary import read, search, subject_of

    opened = open_checkpoint(model, remote_code=remote_code)
    reading = {"preset": asked.preset, "basis": asked.basis, "tokens": asked.tokens}
    if asked.vector:
        return "\n\n".join(map(str, read(opened, asked.vector, k=asked.k, **reading)))
    subject = subject_of(opened, **reading)
    layers, count = range(subject.shape.layers), _COUNT if asked.k is None else asked.k
    return str(search(subject, _words(asked.topic), singular=layers, count=count, seed=asked.seed))


def _words(topic: Sequence[str]) -> list[str]:
    """Words between commas, and those of files."""
    from microtome.vocabulary.words import listed_words

    found = (listed_words(Path(each)) if os.path.isfile(each) else each.split(",") for each in topic)
    return [word for words in found for word in words]
