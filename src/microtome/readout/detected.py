"""Units of any basis that detect a token, in words: findings and labels.

The tests are in `examples.detectors`; here they get a sentence each, the most telling first.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float64

from microtome.core import Basis
from microtome.examples.detectors import CONTROL, Detectors
from microtome.examples.findings import Finding, foremost
from microtome.examples.labels import UnitLabel
from microtome.readout.words import named

__all__ = ["AT_MOST", "LARGEST_Q", "SMALLEST_SHARE", "Detected", "detector_findings", "token_labels"]

AT_MOST: Final = 200
"""Findings of a kind."""
PER_TOKEN: Final = 1
"""Detectors of one token, per layer and end, among the findings; `unit_stats` has them all."""
LARGEST_Q: Final = 0.01
SMALLEST_SHARE: Final = 0.5
TOKEN: Final = "token detector"
NEXT: Final = "next-token detector"


@dataclass(frozen=True, eq=False)
class Detected:
    """Tests of a basis for single tokens that its contexts are at, or before, with q-values over all bases."""

    basis: Basis
    tokens: Detectors
    following: Detectors
    token_q: Float64[np.ndarray, "... unit"]
    following_q: Float64[np.ndarray, "... unit"]


def detector_findings(found_of: Sequence[Detected], texts: Sequence[str]) -> list[Finding]:
    """Units whose confirm contexts are at, or before, the token that their discover contexts chose: at least half, q at most 0.01.

    A unit that passes both tests at one end is a detector of what more of its contexts share, and its sentence has both; of the
    token that it is at where they are as many, because what follows a word is then the text's doing (`New York`).
    Each kind comes in turns: the foremost of every layer, then the second of every layer. The first layer reads embeddings, and
    its many detectors of single tokens would leave no room for others.
    """
    found = []
    for kind in (TOKEN, NEXT):
        layers = []
        for each in found_of:
            same: dict[tuple[int, int], list[Finding]] = {}
            for end, token, finding in _of_kind(each, kind, texts):
                same.setdefault((token, end), []).append(finding)
            layers.append(foremost([finding for few in same.values() for finding in foremost(few, PER_TOKEN)], AT_MOST))
        turns = [foremost([layer[turn] for layer in layers if turn < len(layer)], AT_MOST) for turn in range(AT_MOST)]
        found += [finding for turn in turns for finding in turn][:AT_MOST]
    return found


def _of_kind(detected: Detected, kind: str, texts: Sequence[str]) -> Iterator[tuple[int, int, Finding]]:
    """End, token and finding of the units of a basis that are detectors of this kind rather than of the other."""
    sides = [(detected.tokens, detected.token_q), (detected.following, detected.following_q)]
    (tests, q), (other, other_q) = sides if kind == TOKEN else sides[::-1]
    share, rivals = tests.share.numpy(), _passed(other, other_q)
    for end, unit in np.argwhere(_passed(tests, q)):
        place = (int(end), int(unit))
        if other.ends and rivals[place]:
            more = int(tests.hits[place]) - int(other.hits[place])
            if more < 0 or (more == 0 and kind == NEXT):
                continue
        aside = _aside(kind, other, place, texts) if other.ends else ""
        address = str(detected.basis.address(place[1]))
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


def token_labels(found_of: Sequence[Detected], texts: Sequence[str]) -> Iterator[UnitLabel]:
    """Words that at least half of a unit's held-out contexts are at (kind token), or before (kind next token)."""
    for each in found_of:
        sides = (
            (each.tokens, each.token_q, "token", ""),
            (each.following, each.following_q, "next token", "before "),
        )
        for tests, q, kind, before in sides:
            share = tests.share.numpy()
            for end, unit in np.argwhere((share >= SMALLEST_SHARE) & (q <= LARGEST_Q)).tolist():
                text = before + named(texts[int(tests.token[end, unit])])
                address, side = str(each.basis.address(unit)), tests.ends[end]
                value, beside = float(share[end, unit]), float(q[end, unit])
                yield UnitLabel(address, side, kind, text, value, tests.chance, CONTROL, beside)
