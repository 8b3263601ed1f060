"""Statistics of units and heads as rows of the table `unit_stats`. What they mean is said where they are computed."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import UnitAddress
from microtome.numerics import benjamini_hochberg
from microtome.store.schemas import TABLES
from microtome.vocabulary.findings import COMPOSED, ROTATED
from microtome.vocabulary.heads import HeadScores, tail_chance

__all__ = ["corrected", "head_rows", "stat_table"]

_OTHER_HEADS: Final = {"k_composition": COMPOSED}
"""Scores whose control are other heads of earlier layers, not the head itself rotated inside."""

_Column = Float[Tensor, " unit"] | float | None


def stat_table(
    units: Sequence[str],
    stat: str,
    value: Float[Tensor, " unit"],
    against: tuple[_Column, str],
    run: str,
    q: _Column = None,
    interval: tuple[_Column, _Column] = (None, None),
) -> pa.Table:
    """One statistic of many units; `against` is its control with what that is. None and NaN become empty."""
    control, kind = against
    count = len(units)
    columns = {
        "unit": pa.DictionaryArray.from_arrays(np.arange(count, dtype=np.int32), pa.array(units, pa.string())),
        "site": pa.nulls(count, pa.string()),
        "stat": pa.array([stat] * count),
        "value": _numbers(value, count),
        "control": _numbers(control, count),
        "control_kind": pa.array([kind] * count),
        "lo": _numbers(interval[0], count),
        "hi": _numbers(interval[1], count),
        "q": _numbers(q, count),
        "run": pa.array([run] * count),
    }
    return pa.table(columns).cast(TABLES["unit_stats"].schema)


def head_rows(scores: Mapping[str, Sequence[HeadScores]], q: Mapping[str, Sequence[Tensor]], run: str) -> pa.Table:
    """Rows of `unit_stats` for heads.

    `control` is the mean of the head's own draws; `lo` and `hi` are empty: weights are known without error.
    """
    rows = [
        {
            "unit": str(UnitAddress("heads", head, layer=each.layer)),
            "stat": stat,
            "value": float(each.values[head]),
            "control": float(each.control[head]),
            "control_kind": _OTHER_HEADS.get(stat, ROTATED),
            "q": float(quality[head]),
            "run": run,
        }
        for stat, layers in scores.items()
        for each, quality in zip(layers, q[stat], strict=True)
        for head in range(len(each.values))
    ]
    return pa.Table.from_pylist(rows, TABLES["unit_stats"].schema)


def corrected(layers: Sequence[HeadScores]) -> list[Tensor]:
    """q-values of one statistic over all heads of the model, layer by layer."""
    p = tail_chance(layers)
    return list(benjamini_hochberg(torch.cat(p)).split([len(part) for part in p]))


def _numbers(values: _Column, count: int) -> pa.Array:
    if values is None:
        return pa.nulls(count, pa.float64())
    numbers = torch.as_tensor(values, dtype=torch.float64).expand(count).numpy(force=True)
    return pa.array(numbers, mask=np.isnan(numbers))
