"""Findings of the neurons lens: sentences about single units, most telling first, each with what it was compared with.

Token detectors, next-token detectors and peaked units are chosen in one half of the documents and tested in the other; they have
a null and a q-value. Dead units are compared with the units of their block, which is a reference and not a null, and have none.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from microtome.examples.rows import word_column
from microtome.neurons.detectors import CONTROL, Detectors
from microtome.neurons.statistics import PEERS, Judged
from microtome.readout.words import named

__all__ = ["DEAD", "Finding", "dead_units", "detectors", "findings_table", "judged_findings", "peaked_units"]

AT_MOST: Final = 200
"""Findings of a kind."""
PER_TOKEN: Final = 1
"""Detectors of one token, per layer and end, among the findings; `unit_stats` has them all."""
LARGEST_Q: Final = 0.01
PEAK_Q: Final = 0.05
"""Of peaked units: a null of a block's n units has no p below 1 / n, so that fewer than all chosen ones leave no q of 0.01."""
SMALLEST_SHARE: Final = 0.5
DEAD: Final = 1e-3
TOKEN: Final = "token detector"
NEXT: Final = "next-token detector"


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


def judged_findings(judged: Sequence[Judged], texts: Sequence[str]) -> list[Finding]:
    """What statistics of activations say: the foremost of each kind, kinds one after the other."""
    return [*detectors(judged, texts), *peaked_units(judged), *dead_units(judged)]


def findings_table(found: Sequence[Finding], run: str, lens: str = "neurons") -> pa.Table:
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
            "control": pa.array([finding.control for finding in found], pa.float64()),
            "control_kind": word_column(controls, np.array([controls.index(f.control_kind) for f in found], np.int16)),
            "q": pa.array([finding.q for finding in found], pa.float64()),
        }
    )


def detectors(judged: Sequence[Judged], texts: Sequence[str]) -> list[Finding]:
    """Units whose confirm contexts are at, or before, the token that their discover contexts chose: at least half, q at most 0.01.

    A unit that passes both tests at one end is a detector of what more of its contexts share, and its sentence has both; of the
    token that it is at where they are as many, because what follows a word is then the text's doing (`New York`).
    Each kind comes in turns: the foremost of every layer, then the second of every layer. The first layer reads embeddings, and
    its many detectors of single tokens would leave no room for others.
    """
    found = []
    for kind in (TOKEN, NEXT):
        layers = []
        for each in judged:
            same: dict[tuple[int, int], list[Finding]] = {}
            for end, token, finding in _detectors(each, kind, texts):
                same.setdefault((token, end), []).append(finding)
            layers.append(_foremost([finding for few in same.values() for finding in _foremost(few, PER_TOKEN)], AT_MOST))
        turns = [_foremost([layer[turn] for layer in layers if turn < len(layer)], AT_MOST) for turn in range(AT_MOST)]
        found += [finding for turn in turns for finding in turn][:AT_MOST]
    return found


def _detectors(judged: Judged, kind: str, texts: Sequence[str]) -> Iterator[tuple[int, int, Finding]]:
    """End, token and finding of the units of a basis that are detectors of this kind rather than of the other."""
    sides = [(judged.found.tokens, judged.token_q), (judged.found.following, judged.following_q)]
    (tests, q), (other, other_q) = sides if kind == TOKEN else sides[::-1]
    share, rivals = tests.share.numpy(), _passed(other, other_q)
    for end, unit in np.argwhere(_passed(tests, q)):
        place = (int(end), int(unit))
        if other.ends and rivals[place]:
            more = int(tests.hits[place]) - int(other.hits[place])
            if more < 0 or (more == 0 and kind == NEXT):
                continue
        aside = _aside(kind, other, place, texts) if other.ends else ""
        address = str(judged.found.basis.address(place[1]))
        sentence = f"{address} {_said(kind, tests, place, texts)}{aside}"
        value, control, q_value, p = float(share[place]), tests.chance, float(q[place]), float(tests.p[place])
        yield place[0], int(tests.token[place]), Finding(kind, address, sentence, value, control, CONTROL, q_value, p)


def _passed(tests: Detectors, q: np.ndarray) -> np.ndarray:
    return (tests.share.numpy() >= SMALLEST_SHARE) & (q <= LARGEST_Q)


def _said(kind: str, tests: Detectors, place: tuple[int, int], texts: Sequence[str]) -> str:
    """What a detector does, with its numbers."""
    end, word = tests.ends[place[0]], named(texts[int(tests.token[place])])
    hits, tried, places = (int(count[place]) for count in (tests.hits, tests.tried, tests.places))
    verb = "fires" if end == "top" else "is most negative"
    chance = f"(chance {tests.chance * tried:.1f} of them)"
    if kind == TOKEN:
        return f"{verb} on {word}: {hits} of {tried} {end} contexts in held-out documents {chance}"
    after = f"{places} different tokens" if places > 1 else "the same token each time"
    return f"{verb} before {word}: {hits} of {tried} {end} contexts in held-out documents are followed by it, after {after} {chance}"


def _aside(kind: str, other: Detectors, place: tuple[int, int], texts: Sequence[str]) -> str:
    """What the other test found of the same contexts, where at least half of them agree."""
    hits, tried = int(other.hits[place]), int(other.tried[place])
    if hits < max(1, SMALLEST_SHARE * tried):
        return ""
    word = named(texts[int(other.token[place])])
    what = f"followed by {word}" if kind == TOKEN else f"at {word}"
    return f"; {hits} of {tried} are {what}"


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
    return _foremost(found, AT_MOST)


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


def _foremost(found: list[Finding], count: int) -> list[Finding]:
    return sorted(found, key=lambda finding: (-finding.value, finding.p, finding.subject))[:count]
