"""What papers say beside what is measured here: one row for each claim, with its control, and whether ours agrees.

Numbers of a paper that nobody has looked up again for this table are marked, so that none is cited from here.
"""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from jaxtyping import Bool, Float
from scipy.stats import binomtest
from torch import Tensor

__all__ = ["RECALLED", "Claim", "Estimate", "claims_table", "layers_table", "mean_of", "page", "share_of"]

RECALLED: Final = "* as remembered, to be verified in the paper"
_WIDTHS: Final = (46, 40, 46, 34)
_SAID: Final = {True: "agrees", False: "not shown", None: "-"}


@dataclass(frozen=True)
class Claim:
    """A claim, the paper's numbers for it, ours with their interval, those of the control, and whether ours agrees (None: it is not decided).

    `recalled` numbers of the paper are marked.
    """

    says: str
    paper: str
    ours: str
    control: str
    agrees: bool | None
    recalled: bool = True


def claims_table(claims: Sequence[Claim]) -> str:
    """The claims, one below the other, and what the mark means."""
    lines = [_line(("claim", "paper", "ours", "control"), "")]
    for each in claims:
        cells = (each.says, each.paper + ("*" if each.recalled else ""), each.ours, each.control)
        wrapped = [textwrap.wrap(cell, width) or [""] for cell, width in zip(cells, _WIDTHS, strict=True)]
        for number in range(max(map(len, wrapped))):
            row = [cell[number] if number < len(cell) else "" for cell in wrapped]
            lines.append(_line(row, _SAID[each.agrees] if number == 0 else ""))
    return "\n".join([*lines, RECALLED] if any(each.recalled for each in claims) else lines)


def page(title: str, claims: Sequence[Claim], parts: Sequence[str], differences: Sequence[str]) -> str:
    """The claims, further parts, and what differs from the paper."""
    differs = "\n".join(["What differs from the paper:", *(f"  - {each}" for each in differences)])
    return "\n\n".join([title, claims_table(claims), *parts, differs])


def _line(cells: Sequence[str], last: str) -> str:
    padded = (cell.ljust(width) for cell, width in zip(cells, _WIDTHS, strict=True))
    return ("  ".join(padded) + "  " + last).rstrip()


def layers_table(heads: Sequence[str], rows: Sequence[tuple[int, Sequence[str]]]) -> str:
    """A row for each layer."""
    columns = [f"{head:>22}" for head in heads]
    return "\n".join(
        ["layer" + "".join(columns), *(f"{layer:>5}" + "".join(f"{cell:>22}" for cell in cells) for layer, cells in rows)]
    )


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval; NaN where there is none."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"

    @property
    def percent(self) -> str:
        """As a share in per cent."""
        return f"{100 * self.value:.3g} % ({100 * self.low:.3g} to {100 * self.high:.3g})"

    def above(self, other: "Estimate | float") -> bool:
        """The whole interval is above another, or above a number."""
        return self.low > (other.high if isinstance(other, Estimate) else other)


def share_of(true: Bool[Tensor, "..."]) -> Estimate:
    """The share of what is true, with Wilson's interval, as if one had nothing to do with another."""
    count, hits = true.numel(), int(true.sum())
    if not count:
        return Estimate(math.nan, math.nan, math.nan)
    found = binomtest(hits, count).proportion_ci(method="wilson")
    return Estimate(hits / count, float(found.low), float(found.high))


def mean_of(values: Float[Tensor, "..."]) -> Estimate:
    """The mean of what is a number, give or take 1.96 standard errors."""
    known = values[values.isfinite()].double()
    if len(known) < 2:
        return Estimate(float(known.mean()), math.nan, math.nan)
    error = 1.96 * float(known.std()) / len(known) ** 0.5
    return Estimate(float(known.mean()), float(known.mean()) - error, float(known.mean()) + error)
