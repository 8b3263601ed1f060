"""What a unit can be called, as a value, and the rows of the table. The tests that give labels belong to the lenses and to `readout.detected`."""

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

from microtome.store import rows_of

__all__ = ["UnitLabel", "labels_table"]


@dataclass(frozen=True)
class UnitLabel:
    """A row of the table `unit_labels`; `end` is that of the unit's contexts, empty for labels of the whole unit."""

    unit: str
    end: str
    kind: str
    text: str
    value: float
    control: float
    control_kind: str
    q: float | None


def labels_table(found: Iterable[UnitLabel], run: str) -> pa.Table:
    """Rows of the table `unit_labels`."""
    return rows_of("unit_labels", ({**vars(label), "run": run} for label in found))
