"""Rows that several writers of the lens make: of a dictionary, and statistics of factors where they are strongest, or of no one site."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
from jaxtyping import Int
from torch import Tensor

from microtome.examples.rows import stat_rows
from microtome.factors.basis import Factors
from microtome.factors.dictionary import Dictionary, Encoder
from microtome.factors.evaluation import Stat
from microtome.factors.evaluation import stat_rows as dictionary_rows

__all__ = ["OTHER_HALF", "anywhere", "by_place", "dictionary_row", "undefined_rows"]

OTHER_HALF: Final = "the same in the other half of the documents"


def by_place(
    bases: Sequence[Factors],
    peak: Int[Tensor, " unit"],
    stat: str,
    values: np.ndarray,
    run: str,
    columns: Mapping[str, np.ndarray],
    control: str,
) -> list[pa.Table]:
    """Rows of every factor, at that of the places where it is strongest; a factor that is never active has none but at the first."""
    rows = []
    for place, basis in enumerate(bases):
        there = (peak.clamp(min=0) == place).numpy()
        rows.append(stat_rows(basis, stat, values, run, columns, control).filter(pa.array(there)))
    return rows


def anywhere(rows: pa.Table) -> pa.Table:
    """Rows of no one site."""
    place = rows.column_names.index("site")
    empty = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(rows), np.int16)), pa.array([""], pa.string()))
    return rows.set_column(place, "site", empty)


def dictionary_row(dictionary: Dictionary, run: str, file: str) -> dict[str, object]:
    """A row of `dictionaries`; the atlas keeps the numbers in `file`."""
    coder = dictionary.coder
    return {
        "run": run,
        "name": dictionary.name,
        "file": file,
        "arrangement": dictionary.arrangement,
        "reads": [str(site) for site in dictionary.reads],
        "writes": [str(site) for site in dictionary.writes],
        "units": dictionary.units,
        "width": dictionary.width,
        "coder": f"{type(coder.rule).__name__} of an encoder" if isinstance(coder, Encoder) else str(coder),
        "learnt": json.dumps(dict(dictionary.learnt), sort_keys=True),
    }


def undefined_rows(run: str, name: str, reasons: Mapping[str, str]) -> pa.Table:
    """Rows of `dictionary_stats` of what there is not, and why."""
    return dictionary_rows(run, name, "", {stat: Stat(math.nan, undefined=why) for stat, why in reasons.items()}, {})
