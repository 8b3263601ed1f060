"""What answers are made of: numbers that JSON can hold, long columns of them packed, problems, named facts, statistics.

Numbers that are not finite become null: JSON has no NaN. In packed columns they stay what they are.
"""

import base64
import math
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, Field

__all__ = ["BasisCard", "Column", "Fact", "Matrix", "Number", "Packed", "Problem", "packed", "rounded"]


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_finite)]
Packed = Annotated[str, Field(description="numbers in little-endian order as base64: float32 where not said otherwise")]


def packed(values: "NDArray[Any] | Sequence[float | None]", kind: str = "<f4") -> str:
    """Numbers as base64 of little-endian values of a NumPy type; nothing becomes NaN."""
    return base64.b64encode(np.ascontiguousarray(np.asarray(values, dtype=kind)).tobytes()).decode()


def rounded(value: float | None) -> float | None:
    """A number to six digits, which is more than a picture shows."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


class Matrix(BaseModel):
    """A matrix of numbers, row by row."""

    rows: int
    columns: int
    values: Packed


class Problem(BaseModel):
    """Something that is not as it should be: what, why, and what to do."""

    what: str
    why: str
    instead: str


class Fact(BaseModel):
    """A named value of the model card; `mono` where it is an identifier."""

    name: str
    value: str
    mono: bool = False


class Column(BaseModel):
    """A statistic: its name in the table, a label, and what it says."""

    name: str
    label: str
    meaning: str


class BasisCard(BaseModel):
    """A basis of the atlas: how many units, in which layers, with which statistics."""

    basis: str
    label: str
    units: int
    layers: list[int]
    columns: list[Column]
