"""A finding as a value: a sentence about a unit or a layer, with its number, what it was compared with, and the rows of the table.

What is found, and how it is tested, is the business of each lens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from microtome.examples.rows import word_column

__all__ = ["Finding", "findings_table", "foremost"]


@dataclass(frozen=True)
class Finding:
    """A row of `findings` before it has a rank; of two the higher `value` comes first, then the lower `p`, then the subject."""

    kind: str
    subject: str
    sentence: str
    value: float
    control: float
    control_kind: str
    q: float | None = None
    p: float = 0.0


def findings_table(found: Sequence[Finding], run: str, lens: str) -> pa.Table:
    """Rows of the table `findings`, in this order."""
    zeros = np.zeros(len(found), np.int16)
    kinds = list(dict.fromkeys(finding.kind for finding in found))
    controls = list(dict.fromkeys(finding.control_kind for finding in found))
    return pa.table(
        {
            "run": word_column([run], zeros),
            "rank": pa.array(np.arange(len(found), dtype=np.int32)),
            "lens": word_column([lens], zeros),
            "kind": word_column(kinds, np.array([kinds.index(finding.kind) for finding in found], np.int16)),
            "subject": pa.array([finding.subject for finding in found], pa.string()),
            "sentence": pa.array([finding.sentence for finding in found], pa.string()),
            "value": pa.array([finding.value for finding in found], pa.float64()),
            "control": pa.array([finding.control for finding in found], pa.float64(), from_pandas=True),
            "control_kind": word_column(controls, np.array([controls.index(f.control_kind) for f in found], np.int16)),
            "q": pa.array([finding.q for finding in found], pa.float64()),
        }
    )


def foremost(found: list[Finding], count: int) -> list[Finding]:
    """The most telling ones: the highest value, of equal ones the lowest p, then by subject."""
    return sorted(found, key=lambda finding: (-finding.value, finding.p, finding.subject))[:count]
