"""What a method says of units, as a value: rows, labels and findings that a lens puts together with those of other methods."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from microtome.capture.lens import Rows
from microtome.examples.findings import Finding
from microtome.examples.labels import UnitLabel

__all__ = ["Said", "together"]


@dataclass(frozen=True, eq=False)
class Said:
    """Rows of `unit_stats`, labels, findings, and rows of other tables."""

    stats: Sequence[pa.Table] = ()
    labels: Sequence[UnitLabel] = ()
    findings: Sequence[Finding] = ()
    tables: Mapping[str, Rows] = field(default_factory=dict)


def together(parts: Sequence[Said]) -> Said:
    """All of it, in order; rows of one table are joined, which must be whole."""
    tables: dict[str, Rows] = {}
    for part in parts:
        for name, rows in part.tables.items():
            tables[name] = pa.concat_tables([_whole(tables[name]), _whole(rows)]) if name in tables else rows
    return Said(
        [rows for part in parts for rows in part.stats],
        [label for part in parts for label in part.labels],
        [finding for part in parts for finding in part.findings],
        tables,
    )


def _whole(rows: Rows) -> pa.Table:
    assert isinstance(rows, pa.Table), "rows that come in pieces are of one part alone"
    return rows
