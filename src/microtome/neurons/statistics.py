"""Statistics of units as rows of the table `unit_stats`, and what all units of a lens together make of their tests.

A statistic without a control has no control here: null values and no kind.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Float64
from torch import Tensor

from microtome.core import Half
from microtome.examples import UnitSurveyRecord
from microtome.examples.detectors import CONTROL, Detectors, q_values
from microtome.examples.rows import stat_rows
from microtome.model import Weights
from microtome.neurons.basis import Neurons
from microtome.neurons.peaks import Peaks, peaks_of
from microtome.numerics import Moments
from microtome.readout.detected import Detected

__all__ = ["PEERS", "Judged", "Surveyed", "judge", "survey_of", "unit_stats_table", "write_norms", "written_stats_table"]

PEERS: Final = "median unit of the block"


@dataclass(frozen=True, eq=False)
class Surveyed:
    """What a run found of a basis: moments in all and in the confirm half, norms of the written vectors, and the tests."""

    basis: Neurons
    moments: Moments
    confirm: Moments
    norm: Float[Tensor, " unit"]
    tokens: Detectors
    following: Detectors
    peaks: Peaks


@dataclass(frozen=True, eq=False)
class Judged:
    """What was found of a basis, with the q-values of its tests."""

    found: Surveyed
    token_q: Float64[np.ndarray, "... unit"]
    following_q: Float64[np.ndarray, "... unit"]
    peak_q: Float64[np.ndarray, " unit"]

    @property
    def detected(self) -> Detected:
        """The tests for tokens, as they are told."""
        return Detected(self.found.basis, self.found.tokens, self.found.following, self.token_q, self.following_q)


def survey_of(
    basis: Neurons, record: UnitSurveyRecord, norm: Float[Tensor, " unit"], tokens: Detectors, following: Detectors
) -> Surveyed:
    """What a survey's record and its contexts' tests say of a basis."""
    confirm = record.by_half[Half.CONFIRM]
    peaks = peaks_of(record.by_half[Half.DISCOVER], confirm)
    return Surveyed(basis, record.moments, confirm, norm, tokens, following, peaks)


def judge(found: Sequence[Surveyed]) -> list[Judged]:
    """The q-values of all bases' tests, Benjamini-Hochberg within a statistic, over all units of all of them.

    Both ends of a statistic are pooled: a unit may be reversed without changing the model, so top and bottom are one family of
    tests. Tests of the same texts depend on each other, mostly positively, which the procedure allows.
    """
    tokens, following = q_values([each.tokens.p for each in found]), q_values([each.following.p for each in found])
    peaks = q_values([each.peaks.p for each in found])
    return [Judged(*parts) for parts in zip(found, tokens, following, peaks, strict=True)]


def write_norms(weights: Weights, basis: Neurons) -> Float[Tensor, " unit"]:
    """Length of each unit's row of W_out, |v_i|: what one unit of activation adds to the block's output.

    Not: what reaches the stream where a norm follows the block (sandwich norms), which divides by the block's own size.
    """
    written = weights.get("W_out", basis.layer)
    return (written if basis.expert is None else written[basis.expert]).double().norm(dim=-1).cpu()


def unit_stats_table(judged: Sequence[Judged], run: str) -> pa.Table:
    """Rows of `unit_stats`: moments, range, density (share of activations > 0), write_norm, and what was tested.

    token_share is the share of confirm contexts at the unit's token, and next_share of those before one, per end; lo to hi is the
    exact binomial 95 % interval, the control is the mean share of draws from the token counts, and q comes from the exact binomial
    tail. kurtosis_confirm is the excess kurtosis in the confirm half beside its median over the block's units; q where the
    discover half chose the unit to be tested.
    """
    tables = []
    for each in judged:
        basis, moments, peaks = each.found.basis, each.found.moments, each.found.peaks
        stats = {
            "mean": moments.mean,
            "std": moments.standard_deviation,
            "skewness": moments.skewness,
            "kurtosis": moments.kurtosis,
            "density": moments.density,
            "min": moments.minimum,
            "max": moments.maximum,
            "write_norm": each.found.norm,
        }
        tables.append(_free(basis, {name: values.numpy() for name, values in stats.items()}, run))
        columns = {"control": np.full(basis.units, peaks.median), "q": each.peak_q}
        tables.append(stat_rows(basis, "kurtosis_confirm", peaks.kurtosis, run, columns, PEERS))
        for name, tests, q in (("token", each.found.tokens, each.token_q), ("next", each.found.following, each.following_q)):
            low, high = tests.interval
            for end, side in enumerate(tests.ends):
                columns = {"control": np.full(basis.units, tests.chance), "lo": low[end], "hi": high[end], "q": q[end]}
                tables.append(stat_rows(basis, f"{name}_share_{side}", tests.share[end].numpy(), run, columns, CONTROL))
    return pa.concat_tables(tables)


def written_stats_table(bases: Sequence[Neurons], norms: Sequence[Float[Tensor, " unit"]], run: str) -> pa.Table:
    """Rows of `unit_stats` that need weights only: write_norm."""
    return pa.concat_tables(_free(basis, {"write_norm": norm.numpy()}, run) for basis, norm in zip(bases, norms, strict=True))


def _free(basis: Neurons, stats: Mapping[str, np.ndarray], run: str) -> pa.Table:
    """Statistics without a control."""
    return pa.concat_tables(stat_rows(basis, stat, values, run, {}, "") for stat, values in stats.items())
