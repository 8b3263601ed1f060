"""Findings of the neurons lens: sentences about single units, most telling first, each with what it was compared with.

Token detectors have a null and a q-value. Peaked and dead units are compared with the units of their layer, which is a reference
and not a null: they have no q-value.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from microtome.examples.rows import word_column
from microtome.neurons.detectors import CONTROL
from microtome.neurons.statistics import Surveyed, detector_q
from microtome.neurons.words import named

__all__ = ["DEAD", "Finding", "dead_units", "detectors", "findings_table", "peaked_units"]

AT_MOST: Final = 200
"""Findings of a kind."""
PER_TOKEN: Final = 1
"""Detectors of one token, per layer and end, among the findings; `unit_stats` has them all."""
LARGEST_Q: Final = 0.01
DEAD: Final = 1e-3
LAYER: Final = "median of the layer"


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


def findings_table(surveyed: Sequence[Surveyed], texts: Sequence[str], run: str) -> pa.Table:
    """Rows of the table `findings`: the foremost of each kind, kinds one after the other."""
    found = [*detectors(surveyed, texts), *peaked_units(surveyed), *dead_units(surveyed)]
    zeros = np.zeros(len(found), np.int16)
    kinds = list(dict.fromkeys(finding.kind for finding in found))
    controls = list(dict.fromkeys(finding.control_kind for finding in found))
    return pa.table(
        {
            "run": word_column([run], zeros),
            "rank": pa.array(np.arange(len(found), dtype=np.int32)),
            "lens": word_column(["neurons"], zeros),
            "kind": word_column(kinds, np.array([kinds.index(finding.kind) for finding in found], np.int16)),
            "subject": pa.array([finding.subject for finding in found], pa.string()),
            "sentence": pa.array([finding.sentence for finding in found], pa.string()),
            "value": pa.array([finding.value for finding in found], pa.float64()),
            "control": pa.array([finding.control for finding in found], pa.float64()),
            "control_kind": word_column(controls, np.array([controls.index(f.control_kind) for f in found], np.int16)),
            "q": pa.array([finding.q for finding in found], pa.float64()),
        }
    )


def detectors(surveyed: Sequence[Surveyed], texts: Sequence[str]) -> list[Finding]:
    """Units whose confirm contexts are at the token that their discover contexts chose: at least half of them, q at most 0.01.

    In turns: the foremost of every layer, then the second of every layer. The first layer reads embeddings, and its many
    detectors of single tokens would leave no room for others.
    """
    layers = []
    for each, q in zip(surveyed, detector_q(surveyed), strict=True):
        found: dict[tuple[int, int], list[Finding]] = {}
        tests = each.detectors
        share = tests.share.numpy()
        for end, unit in np.argwhere((share >= 0.5) & (q <= LARGEST_Q)):
            token, address = int(tests.token[end, unit]), str(each.basis.address(int(unit)))
            verb = "fires on" if tests.ends[end] == "top" else "is most negative on"
            sentence = (
                f"{address} {verb} {named(texts[token])}: {int(tests.hits[end, unit])} of {int(tests.tried[end, unit])} "
                f"{tests.ends[end]} contexts in held-out documents (chance {tests.chance * int(tests.tried[end, unit]):.1f} of them)"
            )
            finding = Finding(
                "token detector", address, sentence, float(share[end, unit]), tests.chance, CONTROL,
                float(q[end, unit]), float(tests.p[end, unit]),
            )  # fmt: skip
            found.setdefault((token, int(end)), []).append(finding)
        layers.append(_foremost([finding for same in found.values() for finding in _foremost(same, PER_TOKEN)], AT_MOST))
    turns = [_foremost([layer[turn] for layer in layers if turn < len(layer)], AT_MOST) for turn in range(AT_MOST)]
    return [finding for turn in turns for finding in turn][:AT_MOST]


def peaked_units(surveyed: Sequence[Surveyed]) -> list[Finding]:
    """Units of the highest excess kurtosis: almost always near their mean, rarely very far from it."""
    found = []
    for each in surveyed:
        kurtosis = each.moments.kurtosis.numpy()
        if np.isnan(kurtosis).all():
            continue
        median = float(np.nanmedian(kurtosis))
        for unit in np.argsort(-np.nan_to_num(kurtosis, nan=-np.inf), kind="stable")[:AT_MOST]:
            if np.isnan(kurtosis[unit]):
                continue
            address = str(each.basis.address(int(unit)))
            sentence = f"{address} is silent but for rare peaks: excess kurtosis {kurtosis[unit]:,.0f} (median of its layer {median:,.0f})"
            found.append(Finding("peaked unit", address, sentence, float(kurtosis[unit]), median, LAYER))
    return _foremost(found, AT_MOST)


def dead_units(surveyed: Sequence[Surveyed]) -> list[Finding]:
    """Units whose largest write, max |h| |v|, is below a thousandth of the median of their layer.

    The product and not max |h| alone, because a unit's activation can be scaled if its row of W_out is scaled back. N tokens
    without an event leave a rate of at most 3 / N (95 %).
    Source: Voita et al. 2023, arXiv:2309.04827, section 4.
    """
    found = []
    for each in surveyed:
        largest = np.maximum(each.moments.maximum.abs().numpy(), each.moments.minimum.abs().numpy()) * each.norm.numpy()
        median = float(np.median(largest))
        for unit in np.flatnonzero(largest < DEAD * median):
            address, tokens = str(each.basis.address(int(unit))), int(each.moments.count[unit])
            sentence = (
                f"{address} is dead: over {tokens:,} tokens it never wrote more than {largest[unit] / median:.1e} of the median "
                f"largest write of its layer (so on at most {3 / tokens:.1e} of tokens, 95 %)"
            )
            found.append(Finding("dead unit", address, sentence, float(largest[unit]), median, LAYER))
    return sorted(found, key=lambda finding: (finding.value, finding.subject))[:AT_MOST]


def _foremost(found: list[Finding], count: int) -> list[Finding]:
    return sorted(found, key=lambda finding: (-finding.value, finding.p, finding.subject))[:count]
