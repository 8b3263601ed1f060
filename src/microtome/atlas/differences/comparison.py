"""How two models are compared: what a user may ask for, and which kind of comparison two models get where nobody asks.

Each kind is a module beside this one.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa

from microtome.core import Refusal
from microtome.store.schemas import TABLES
from microtome.vocabulary.findings import Row
from microtome.vocabulary.subject import Preset

__all__ = ["Comparison", "Kind", "differing_sizes", "finding_rows", "require_draws", "require_idle"]

Kind = Literal["displacement", "alignment"]
"""`displacement`: how far every vector moved. `alignment`: which layers and units are alike, in the tokens both models have."""

_OF_NO_VECTOR: Final = frozenset({"vocab", "head", "context"})


@dataclass(frozen=True)
class Comparison:
    """How two models are compared.

    `kind` is displacement for two models of one shape and alignment for any others where it is None. `words` are one or two
    files of words to score displacements against, see `vocabulary.lists`; `groups` the parameters to compare, all where none is
    named. `most` vectors of each group and layer (None: all), or pairs of units of each group, have their tokens looked up.
    `draws` is how often lists of words, or the tokens of one model, are shuffled: 1000, and 20 to 100 as `operations` allow,
    where it is None. `operations` is how many floating-point operations each part of an alignment may take (5e13: two models of
    135 million parameters; a quarter of an hour of one core): where it would take more, some vectors of each layer stand for
    all, and units are not matched.

    What means nothing in the kind of comparison that is made is refused there: of displacements `operations`, and `draws` where
    there is no list; of an alignment `words`; of atlases all of it.
    """

    kind: Kind | None = None
    words: tuple[str | Path, ...] = ()
    groups: tuple[str, ...] = ()
    most: int | None = 64
    k: int = 20
    draws: int | None = None
    seed: int = 0
    preset: Preset = "folded"
    operations: float = 5e13

    def __post_init__(self) -> None:
        if not self.operations > 0:
            raise Refusal(f"{self.operations:g} operations", why="nothing could be computed", instead="use 5e13, or more")


def require_idle(comparison: Comparison, names: Iterable[str], why: str) -> None:
    """Errors: `Refusal` where one of these is asked for: it would change nothing."""
    usual, given = vars(Comparison()), vars(comparison)
    asked = [name for name in names if given[name] != usual[name] and (given[name] or usual[name])]
    if asked:
        raise Refusal(", ".join(asked), why=why, instead="leave it out")


def require_draws(comparison: Comparison, fewest: int) -> None:
    """Errors: `Refusal` for so few shuffles that no p-value is small."""
    if comparison.draws is not None and comparison.draws < fewest:
        raise Refusal(f"{comparison.draws} shuffles", why="no p-value could be small", instead=f"use {fewest} or more")


def differing_sizes(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names of what keeps vectors of two shapes from corresponding; the number of tokens does not."""
    return [size for size in one if size not in _OF_NO_VECTOR and one[size] != other.get(size)]


def finding_rows(findings: Sequence[Row], writer: str, run: str) -> pa.Table:
    """Rows of the store's table `findings`, in their order."""
    rows = [{"run": run, "lens": writer, "rank": rank, **row} for rank, row in enumerate(findings)]
    return pa.Table.from_pylist(rows, TABLES["findings"].schema)
