"""The fold contract: a statistic of a stream, as parameters (a value) and a mergeable state (named tensors).

A fold is a frozen dataclass: its fields are its parameters and, with `kind` and `version`, its identity on disk. Its state
is a dict of tensors that the fold creates, updates in place and merges; it is written as safetensors and never pickled.
Rows that have to be read again (states to train on) are no statistic: a `RowFold` appends them as shards, which are never held together.
Numerics of states belong in `numerics`, running folds over a model in `capture`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor

from microtome.core.bases import ExpertRows
from microtome.core.batches import Batch
from microtome.core.sites import Site

__all__ = ["Fold", "RowFold", "State"]

State = dict[str, Tensor]


@runtime_checkable
class Fold(Protocol):
    """A statistic of the tensors at `sites`, computed batch by batch.

    Laws, tested for every implementation (`tests/contract/test_folds.py`):
    the parts' states merged in order = one pass over the whole (bitwise for selections and counts, 1e-9 relative for sums);
    `update` neither keeps nor changes the tensors it is given; states are float64, integers or selected values. States are compared
    as merged with nothing: what a state puts off (sorting, rows that wait for others) is done by then.
    """

    kind: ClassVar[str]
    """Name of the statistic on disk."""
    version: ClassVar[int]
    """Raised whenever a state's meaning changes; states of another version are refused."""

    @property
    def sites(self) -> tuple[Site, ...]:
        """The tensors `update` needs, all from one forward pass; it is called as soon as the deepest is there."""
        ...

    def init(self) -> State:
        """The state of nothing seen."""
        ...

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Add a batch to `state`, in place. `values` are as the model computes them: dtype, device and padding included."""
        ...

    def merge(self, state: State, later: State) -> State:
        """The state of both streams, `later` being what came after. May reuse the memory of `state`."""
        ...

    def result(self, state: State) -> Any:
        """What the fold was made for: a frozen record."""
        ...


@runtime_checkable
class RowFold(Protocol):
    """Rows of the tensors at `sites` that are kept as they are: the parts of a stream stay apart, one file for each unit of work.

    Law: the parts' rows in order are those of one pass. `update` copies what it keeps.
    """

    kind: ClassVar[str]
    """Name of the rows on disk."""
    version: ClassVar[int]
    """Raised whenever a part's meaning changes."""

    @property
    def sites(self) -> tuple[Site, ...]:
        """The tensors `update` needs, all from one forward pass."""
        ...

    def init(self) -> State:
        """A part without rows."""
        ...

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Append the rows of a batch."""
        ...

    def appended(self, parts: Sequence[State]) -> Any:
        """What reads the rows. A part is mapped into memory when it is asked for, and gone with its tensors."""
        ...
