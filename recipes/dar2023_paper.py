"""Dar et al. 2022, arXiv:2209.02535: what is published for GPT-2 medium, and ours beside it.

Numbers are the paper's own, or read off the plots and outputs that are stored with the authors' code; which, is said at each. The
experiments are those of `dar2023_measures`, the tables that print them belong in `dar2023`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from microtome.model import Model
from microtome.vocabulary.circuits import Kind
from microtome.vocabulary.overlap import Overlap, chosen_tokens
from microtome.vocabulary.parameters import block_of, group_named
from microtome.vocabulary.subject import Subject
from microtome.vocabulary.truncation import Kept
from microtome.vocabulary.words import spelling
from recipes.dar2023_measures import pairs_of_head
from recipes.song2023_paper import Check

__all__ = [
    "ACTIVATED",
    "GOLDEN_HEADS",
    "GOLDEN_UNITS",
    "KEPT",
    "KEPT_HEADLINE",
    "SIMILAR",
    "GoldenHead",
    "acceptance",
    "golden_share",
    "is_gpt2_medium",
    "kept_checks",
    "report",
    "similar_checks",
]

KEPT_HEADLINE: Final = (0.83, 0.10)
"""E^T and E^+ for 300 normal vectors at k = 1,000, as the paper says."""
KEPT: Final[Mapping[int, Mapping[str, tuple[float, float]]]] = {
    512: {"normal": (0.70, 0.04), "values": (0.62, 0.12), "states": (0.88, 0.73)},
    1024: {"normal": (0.66, 0.07), "values": (0.64, 0.13), "states": (0.88, 0.79)},
    2048: {"normal": (0.57, 0.14), "values": (0.61, 0.17), "states": (0.87, 0.87)},
    4096: {"normal": (0.44, 0.25), "values": (0.54, 0.23)},
    30000: {"normal": (0.16, 0.96), "values": (0.32, 0.90)},
}
"""E^T and E^+ by k and kind for 1,000 vectors, off a stored plot. Fewer vectors give more: their squares weigh more."""
SIMILAR: Final[Mapping[str, str]] = {
    "K-V": "0.007 in layer 0, 0.081 in 1, 0.063 in 2, 0.023 to 0.040 in 3 to 20, 0.037 in 23; shuffled about 0.003",
    "W_V-W_O": "0.008 to 0.058, most in layer 21; shuffled about 0.0025",
    "W_Q-W_K": "0.005 to 0.012, shuffled 0.002 to 0.005; in layer 0 the other way round: 0.017, shuffled 0.024",
}
ACTIVATED: Final[Mapping[str, Mapping[int, tuple[float, float]]]] = {
    "K": {0: (0.096, 0.059), 5: (0.034, 0.028), 10: (0.074, 0.062), 14: (0.131, 0.104), 18: (0.090, 0.021), 23: (0.053, 0.011)},
    "V": {0: (0.113, 0.042), 6: (0.169, 0.153), 10: (0.138, 0.068), 16: (0.237, 0.112), 20: (0.249, 0.132), 23: (0.242, 0.192)},
    "W_V": {3: (0.200, 0.198), 17: (0.03, 0.02)},
    "W_O": {
        0: (0.062, 0.041),
        8: (0.173, 0.172),
        14: (0.053, 0.032),
        18: (0.124, 0.078),
        21: (0.165, 0.132),
        23: (0.206, 0.202),
    },
}
"""R_50 by layer with the parameters that a token activates and with those of another, off a stored plot."""


@dataclass(frozen=True)
class GoldenHead:
    """Pairs of tokens that the paper lists for a head; `pairs` "different" where it leaves out a token with itself."""

    kind: Kind
    layer: int
    head: int
    pairs: Literal["all", "different"]
    listed: tuple[tuple[str, str], ...]


def _listed(text: str) -> tuple[tuple[str, str], ...]:
    """Pairs as `a>b c>d`."""
    pairs = (pair.partition(">") for pair in text.split())
    return tuple((token, other) for token, _, other in pairs)


GOLDEN_HEADS: Final = (
    GoldenHead("ov", 18, 1, "all", _listed("Anne>woman Marie>women Elizabeth>women women>women")),
    GoldenHead("ov", 18, 9, "all", _listed("Winnipeg>Winnipeg Edmonton>Winnipeg Ottawa>CBC Toronto>Canadian RCMP>Winnipeg")),
    GoldenHead("ov", 16, 6, "different", _listed("Mumbai>Chennai Scotland>England Ireland>Scotland Kerala>Chennai")),
    GoldenHead(
        "ov", 19, 4, "all", _listed("Whilst>realise Whilst>organise Whilst>recognise Whilst>civilisation Whilst>analyse")
    ),
    GoldenHead("ov", 19, 13, "all", _listed("senal>R vernment>G nesday>W lace>N ruary>F Mandela>N")),
    GoldenHead("qk", 17, 6, "different", _listed("legally>legal legal>sentencing marketing>advertising recruited>recruit")),
    GoldenHead("qk", 0, 2, "all", _listed("East>Middle al>et Eastern>Middle 121>Avg")),
)
"""Source: Dar et al. 2022, arXiv:2209.02535, appendix C; layers and heads from 0."""
GOLDEN_UNITS: Final[Mapping[tuple[str, int, int], tuple[str, ...]]] = {
    ("W_in", 21, 400): ("July", "February", "January", "November"),
    ("W_out", 10, 8): ("Makoto", "Jin", "Shin"),
    ("W_in", 23, 907): ("hands", "fingers", "paws"),
    ("W_out", 23, 907): ("hands", "fingers", "paws"),
}
_FIRST: Final = 100
_GPT2_VOCABULARY: Final = 50_257
_SIMILAR_LAYERS: Final = {0: 0.007, 1: 0.081, 2: 0.063, 23: 0.037}
_SIMILAR_RANGES: Final[Mapping[tuple[str, str], tuple[range, float, float]]] = {
    ("W_in", "W_out"): (range(3, 21), 0.023, 0.040),
    ("W_V", "W_O"): (range(24), 0.008, 0.058),
    ("W_Q", "W_K"): (range(1, 24), 0.005, 0.012),
}
_SIMILAR_TOLERANCE: Final = 0.01
_KEPT_TOLERANCE: Final = 0.03


def is_gpt2_medium(model: Model) -> bool:
    """Whether a model has the shape whose published values are known."""
    shape = model.shape
    size = (shape.layers, shape.d_model, shape.vocab) == (24, 1024, _GPT2_VOCABULARY)
    return size and shape.causal and shape.learned_positions


def acceptance(subject: Subject, kept: Sequence[Kept], similar: Sequence[Overlap]) -> list[Check]:
    """Everything of the weights that is published for GPT-2 medium: keep-k, Sim_100 by layer, and the lists of its appendix C.

    A list holds where at least half of it is among our first 100, which is a check of ours: 1 give or take 0.5.
    """
    lists = [
        Check(f"{golden.kind} pairs of layer {golden.layer}, head {golden.head}", golden_share(subject, golden), 1.0, 0.5)
        for golden in GOLDEN_HEADS
    ]
    for (group, layer, index), words in GOLDEN_UNITS.items():
        row = block_of(subject.weights, group_named(group), layer, folding=subject.folding).rows[[index]]
        reader = subject.read if group_named(group).end == "read" else subject.write
        ids = chosen_tokens(row, reader, _FIRST, "top")[0].tolist()
        found = {spelling(subject.texts[int(token)]) for token in ids}
        share = sum(spelling(word) in found for word in words) / len(words)
        lists.append(Check(f"tokens of {group}.{layer}/{index}", share, 1.0, 0.5))
    return [*kept_checks(kept), *similar_checks(similar), *lists]


def kept_checks(kept: Sequence[Kept]) -> list[Check]:
    """The headline of appendix A."""
    by_basis = {each.basis: each.score for each in kept if (each.kind, each.part, each.k) == ("normal", "all", 1000)}
    return [
        Check(f"keep-k of normal vectors, {basis}", by_basis.get(basis, float("nan")), paper, _KEPT_TOLERANCE)
        for basis, paper in zip(("transpose", "pseudo-inverse"), KEPT_HEADLINE, strict=True)
    ]


def similar_checks(similar: Sequence[Overlap]) -> list[Check]:
    """Sim_100 of every layer: beside its number where there is one, or else beside the range that is read off the plot."""
    checks = []
    for each in sorted(similar, key=lambda each: (each.left, each.layer)):
        partners = (each.left, each.right)
        name = f"Sim of {each.left} and {each.right}, layer {each.layer}"
        if partners == ("W_in", "W_out") and each.layer in _SIMILAR_LAYERS:
            checks.append(Check(name, each.mean, _SIMILAR_LAYERS[each.layer], _SIMILAR_TOLERANCE))
        layers, low, high = _SIMILAR_RANGES.get(partners, (range(0), 0.0, 0.0))
        if each.layer in layers:
            checks.append(Check(name, each.mean, (low + high) / 2, (high - low) / 2 + _SIMILAR_TOLERANCE))
    return checks


def golden_share(subject: Subject, golden: GoldenHead) -> float:
    """How many of the listed pairs are among the head's first 100, whatever the spaces and cases."""
    found = pairs_of_head(subject, golden.kind, golden.layer, golden.head, pairs=golden.pairs, k=_FIRST)
    texts = subject.texts
    there = {
        (spelling(texts[int(token)]), spelling(texts[int(other)]))
        for token, other in zip(found.token[0].tolist(), found.other[0].tolist(), strict=True)
        if token >= 0
    }
    return sum((spelling(token), spelling(other)) in there for token, other in golden.listed) / len(golden.listed)


def report(checks: Sequence[Check]) -> str:
    """The checks, one a line."""
    heads = f"{'GPT-2 medium':>40}{'ours':>10}{'paper':>10}{'tolerance':>11}"
    said = ("FAILS", "holds")
    return "\n".join(
        [heads, *(f"{c.name:>40}{c.ours:>10.3f}{c.paper:>10.3f}{c.tolerance:>11.3f}  {said[c.holds]}" for c in checks)]
    )
