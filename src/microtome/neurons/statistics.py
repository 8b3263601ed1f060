"""Statistics of units as rows of the table `unit_stats`, and the comparison of all units of a lens with their nulls.

A statistic without a control has no control here: null values and no kind.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Float
from torch import Tensor

from microtome.examples.rows import address_column, word_column
from microtome.model import Weights
from microtome.neurons.basis import Neurons
from microtome.neurons.detectors import CONTROL, Detectors, q_values
from microtome.numerics import Moments

__all__ = ["Surveyed", "detector_q", "unit_stats_table", "write_norms", "written_stats_table"]

_FREE = ("control", "lo", "hi", "q")


@dataclass(frozen=True, eq=False)
class Surveyed:
    """What a run found of a basis: moments, norms of the written vectors, and the test for token detectors."""

    basis: Neurons
    moments: Moments
    norm: Float[Tensor, " unit"]
    detectors: Detectors


def write_norms(weights: Weights, basis: Neurons) -> Float[Tensor, " unit"]:
    """Length of each unit's row of W_out, |v_i|: what one unit of activation adds to the block's output.

    Not: what reaches the stream where a norm follows the block (sandwich norms), which divides by the block's own size.
    """
    written = weights.get("W_out", basis.layer)
    return (written if basis.expert is None else written[basis.expert]).double().norm(dim=-1).cpu()


def detector_q(surveyed: Sequence[Surveyed]) -> list[Float[np.ndarray, "end unit"]]:
    """q-values of the detector tests of several bases, corrected over all their units and ends together."""
    shapes = [each.detectors.p.shape for each in surveyed]
    together = q_values(np.concatenate([each.detectors.p.reshape(-1) for each in surveyed]))
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    return [part.reshape(shape) for part, shape in zip(np.split(together, ends[:-1]), shapes, strict=True)]


def unit_stats_table(surveyed: Sequence[Surveyed], run: str) -> pa.Table:
    """Rows of `unit_stats`: moments, range, density (share of activations > 0), write_norm, and token_share per end.

    token_share is the share of confirm contexts at the unit's token, lo to hi its exact binomial 95 % interval; its control is the
    mean share of draws from the token counts, and q comes from the exact binomial tail.
    """
    tables = []
    for each, q in zip(surveyed, detector_q(surveyed), strict=True):
        moments, found = each.moments, each.detectors
        stats = {
            "mean": moments.mean,
            "std": moments.standard_deviation,
            "skewness": moments.skewness,
            "kurtosis": moments.kurtosis,
            "density": moments.density,
            "min": moments.minimum,
            "max": moments.maximum,
            "write_norm": each.norm,
        }
        tables.append(_free(each.basis, {name: values.numpy() for name, values in stats.items()}, run))
        low, high = found.interval
        for end, name in enumerate(found.ends):
            columns = {"control": np.full(each.basis.units, found.chance), "lo": low[end], "hi": high[end], "q": q[end]}
            tables.append(_rows(each.basis, f"token_share_{name}", found.share[end].numpy(), columns, run))
    return pa.concat_tables(tables)


def written_stats_table(bases: Sequence[Neurons], norms: Sequence[Float[Tensor, " unit"]], run: str) -> pa.Table:
    """Rows of `unit_stats` that need weights only: write_norm."""
    return pa.concat_tables(_free(basis, {"write_norm": norm.numpy()}, run) for basis, norm in zip(bases, norms, strict=True))


def _free(basis: Neurons, stats: Mapping[str, np.ndarray], run: str) -> pa.Table:
    """Statistics without a control."""
    return pa.concat_tables(_rows(basis, stat, values, {}, run) for stat, values in stats.items())


def _rows(basis: Neurons, stat: str, values: np.ndarray, control: Mapping[str, np.ndarray], run: str) -> pa.Table:
    units = np.arange(basis.units)
    zeros = np.zeros(len(units), np.int16)
    return pa.table(
        {
            "unit": address_column(basis, units),
            "site": word_column([str(basis.sites[0])], zeros),
            "stat": word_column([stat], zeros),
            "value": pa.array(values.astype(np.float64), mask=np.isnan(values)),
            "control_kind": word_column([CONTROL], zeros if control else zeros - 1),
            **{name: pa.array(control.get(name, zeros), pa.float64(), mask=zeros == (-1 if control else 0)) for name in _FREE},
            "run": word_column([run], zeros),
        }
    )
