"""Findings of the neurons lens: sentences about single units, most telling first, each with what it was compared with.

Token detectors, next-token detectors and peaked units are chosen in one half of the documents and tested in the other; they have
a null and a q-value. Dead units are compared with the units of their block, which is a reference and not a null, and have none.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from microtome.examples.findings import Finding, foremost
from microtome.neurons.statistics import PEERS, Judged
from microtome.readout.detected import AT_MOST, detector_findings

__all__ = ["DEAD", "dead_units", "judged_findings", "peaked_units"]

PEAK_Q: Final = 0.05
"""Of peaked units: a null of a block's n units has no p below 1 / n, so that fewer than all chosen ones leave no q of 0.01."""
DEAD: Final = 1e-3


def judged_findings(judged: Sequence[Judged], texts: Sequence[str]) -> list[Finding]:
    """What statistics of activations say: the foremost of each kind, kinds one after the other."""
    return [*detector_findings([each.detected for each in judged], texts), *peaked_units(judged), *dead_units(judged)]


def peaked_units(judged: Sequence[Judged]) -> list[Finding]:
    """Units of the highest excess kurtosis, almost always near their mean and rarely very far from it: q at most 0.05."""
    found = []
    for each in judged:
        peaks, units = each.found.peaks, int((~np.isnan(each.found.peaks.kurtosis)).sum())
        for unit in np.flatnonzero(each.peak_q <= PEAK_Q):
            address, kurtosis = str(each.found.basis.address(int(unit))), float(peaks.kurtosis[unit])
            sentence = (
                f"{address} is silent but for rare peaks: excess kurtosis {kurtosis:,.0f} in held-out documents, where 95 % of "
                f"the {units:,} units of its block have {peaks.low:,.0f} to {peaks.high:,.0f}"
            )
            q, p = float(each.peak_q[unit]), float(peaks.p[unit])
            found.append(Finding("peaked unit", address, sentence, kurtosis, peaks.median, PEERS, q, p))
    return foremost(found, AT_MOST)


def dead_units(judged: Sequence[Judged]) -> list[Finding]:
    """Units whose largest write, max |h| |v|, is below a thousandth of the median of their block, in all documents.

    The product and not max |h| alone, because a unit's activation can be scaled if its row of W_out is scaled back. N confirm
    tokens without an event leave a rate of at most 3 / N (95 %, were tokens independent); the discover tokens have chosen the
    unit and prove nothing.
    Source: Voita et al. 2023, arXiv:2309.04827.
    """
    found = []
    for each in judged:
        moments, tokens = each.found.moments, each.found.confirm.count
        largest = np.maximum(moments.maximum.abs().numpy(), moments.minimum.abs().numpy()) * each.found.norm.numpy()
        median = float(np.median(largest))
        for unit in np.flatnonzero((largest < DEAD * median) & (tokens.numpy() > 0)):
            address, held_out = str(each.found.basis.address(int(unit))), int(tokens[unit])
            sentence = (
                f"{address} is dead: over {int(moments.count[unit]):,} tokens it never wrote more than {largest[unit] / median:.1e} "
                f"of the median largest write of its block ({held_out:,} of them held out: on at most {3 / held_out:.1e} of tokens, 95 %)"
            )
            found.append(Finding("dead unit", address, sentence, float(largest[unit]), median, f"{PEERS}, no null"))
    return sorted(found, key=lambda finding: (finding.value, finding.subject))[:AT_MOST]
