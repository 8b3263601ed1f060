"""What `dar2023` prints of each experiment: our numbers beside the paper's.

Every function gives the lines of a table. What is measured is said in `dar2023_measures`, what it comes to in `dar2023`.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from microtome.readout import named
from microtome.vocabulary.activated import Activated
from microtome.vocabulary.overlap import Overlap
from microtome.vocabulary.truncation import Kept
from recipes.dar2023_measures import BASES, Experiments
from recipes.dar2023_paper import ACTIVATED, KEPT, KEPT_HEADLINE, SIMILAR

__all__ = ["active_table", "kept_table", "pairs_table", "plain", "similar_table"]

_GROUPS: Final[Mapping[str, str]] = {"W_in": "K", "W_gate": "K", "W_up": "K", "W_out": "V"}
_SHOWN: Final = 8


def kept_table(kept: Sequence[Kept]) -> list[str]:
    """Keep-k by k: for each kind of vectors both parts, and the paper's."""
    scores = {(each.kind, each.part, each.k, each.basis): each.score for each in kept}
    kinds = list(dict.fromkeys(each.kind for each in kept))
    count = max(each.vectors for each in kept)
    columns = [(kind, part) for kind in kinds for part in ("all", "offdiag")]
    heads = [f"{kind}, {part}" for kind, part in columns] + [f"paper, {kind}" for kind in kinds]
    lines = [f"{'k':>7}" + "".join(f"{head:>17}" for head in heads)]
    for k in sorted({each.k for each in kept}):
        cells = [_two(*(scores[kind, part, k, basis] for basis in BASES)) for kind, part in columns]
        cells += [_two(*KEPT.get(k, {})[kind]) if kind in KEPT.get(k, {}) else "-" for kind in kinds]
        lines.append(f"{k:>7}" + "".join(f"{cell:>17}" for cell in cells))
    headline = f"{KEPT_HEADLINE[0]} / {KEPT_HEADLINE[1]}"
    return [
        *lines,
        f"  ours: {count} vectors; paper: GPT-2 medium, 1,000 vectors, part all; for 300 normal ones it has {headline} at k = 1,000",
    ]


def _two(one: float, other: float) -> str:
    return f"{one:.2f} / {other:.2f}"


def pairs_table(found: Experiments, texts: Sequence[str]) -> list[str]:
    """The best pairs of the heads that were read."""
    lines = []
    for kind in ("ov", "qk"):
        read = [each for each in found.read if each.kind == kind]
        heads = [head for head in found.heads if head.kind == kind]
        for each, head in zip(read, heads, strict=False):
            shown = [
                f"{named(texts[int(token)])}→{named(texts[int(other)])}"
                for token, other in zip(each.token[0].tolist(), each.other[0].tolist(), strict=True)
                if token >= 0
            ]
            stands = f"{head.strength:.1f} sd, rotated {head.control:.1f}, q = {head.q:.2g}"
            lines.append(
                f"  {kind} layer {head.layer}, head {head.head} ({stands}): {', '.join(list(dict.fromkeys(shown))[:_SHOWN])}"
            )
    return [
        *lines,
        "  paper: ov of layer 18, head 1: Anne→woman, Marie→women; qk of layer 17, head 6: legally→legal, legal→sentencing",
    ]


def similar_table(found: Experiments, texts: Sequence[str]) -> list[str]:
    """Sim_100 by layer, what the paper has, and how many pairs have 15 % in common."""
    lines = []
    for left, right in dict.fromkeys((each.left, each.right) for each in found.similar):
        mine = [each for each in found.similar if (each.left, each.right) == (left, right)]
        lines += _series(f"{left}-{right}", [(each.layer, each.mean, float(each.draws.mean())) for each in mine], 4)
        paper = "-".join(dict.fromkeys(_GROUPS.get(name, name) for name in (left, right)))
        lines.append(f"    paper, {paper}: {SIMILAR[paper]}")
        pairs = sum(len(each.similarity) for each in mine)
        listed = sum(len(each.listed) for each in mine)
        lines.append(
            f"    {listed} of {pairs} pairs ({100 * listed / pairs:.1f} %) have 15 % of their tokens in common"
            + _example(mine, texts)
        )
    return [*lines, "  paper: about 5 % of all pairs of keys and values have 15 % in common"]


def _example(mine: Sequence[Overlap], texts: Sequence[str]) -> str:
    """The pair with most in common, and some of that."""
    listed = [(float(each.similarity[pair]), each, place) for each in mine for place, pair in enumerate(each.listed.tolist())]
    if not listed:
        return ""
    _, each, place = max(listed, key=lambda entry: entry[0])
    tokens = [texts[int(token)] for token in each.tokens[place].tolist() if token >= 0]
    words = ", ".join(list(dict.fromkeys(named(text) for text in tokens))[:5])
    return f"; most {' and '.join(map(str, each.addresses[int(each.listed[place])]))}: {words}"


def active_table(active: Sequence[Activated]) -> list[str]:
    """R_k by layer, and what the paper has for k = 50."""
    lines, own = [], plain(active)
    for name, k in dict.fromkeys((each.group, each.k) for each in own):
        mine = [each for each in own if (each.group, each.k) == (name, k)]
        lines += _series(f"{name}, R_{k}, other tokens'", [(each.layer, each.mean, each.control) for each in mine], 3)
        if k == min(each.k for each in own):
            paper = _GROUPS.get(name, name)
            lines += _series(
                f"  paper, {paper}, R_50, other tokens'", [(layer, *both) for layer, both in ACTIVATED[paper].items()], 3
            )
    return lines


def _series(name: str, values: Sequence[tuple[int, float, float]], places: int, across: int = 8) -> list[str]:
    """Values by layer, beside their control, some a line."""
    cells = [f"{layer}: {value:.{places}f} / {control:.{places}f}" for layer, value, control in values]
    rows = ["   ".join(cells[start : start + across]) for start in range(0, len(cells), across)]
    return [f"  {name}", *(f"      {row}" for row in rows)]


def plain(active: Sequence[Activated]) -> list[Activated]:
    """R_k as the paper has it: of a layer's own states, by the largest coefficients."""
    return [each for each in active if each.state == "own" and each.ranking == "largest"]
