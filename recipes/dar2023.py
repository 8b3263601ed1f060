"""Dar et al. 2022, arXiv:2209.02535: every experiment of the paper that needs one model, with our numbers beside those of GPT-2 medium.

usage: python -m recipes.dar2023 MODEL [TEXT] [--only keep,pairs,overlap,search,activated] [--layers 0,5,10] [--heads N] [--topic WORD,WORD] [--seed N]

Weights and token vectors are taken as they are stored, as the paper does; every number has its control. What differs from the paper is
printed below, so that no number is read as a reproduction that is none. For GPT-2 medium the published numbers and lists are asked for,
and where one is off the exit status is 1. TEXT is the packaged sample if none is given. The experiments on two models are
`dar2023_models`.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from microtome.model import load
from microtome.numerics import benjamini_hochberg, permutation_p
from microtome.vocabulary.activated import Activated
from microtome.vocabulary.overlap import Overlap
from microtome.vocabulary.subject import subject_of
from microtome.vocabulary.topics import Search
from microtome.vocabulary.truncation import Kept
from recipes.dar2023_measures import BASES, EXPERIMENTS, TOPIC, Experiments, Ranked, experiments
from recipes.dar2023_paper import acceptance, is_gpt2_medium, report
from recipes.dar2023_tables import active_table, kept_table, pairs_table, plain, similar_table

__all__ = ["DIFFERENCES", "Conclusion", "conclusions", "describe"]

DIFFERENCES: Final = (
    "states are of windows of 256 tokens of the text that is given; the paper's are of 60 film reviews (IMDB) of up to 1,024 tokens",
    "R_k is over about 1,000 tokens of all documents; the authors' code has the first 1,000 tokens, of three or four reviews",
    "its control is the mean over all other tokens, with an interval over documents; the paper has one random token, and no interval",
    "heads are chosen by how far their first pairs stand out beyond heads rotated inside; the paper's are chosen by hand",
    "best pairs are exact, and spellings of one word are left out before they are selected; the paper's selection is approximate, "
    "and filters come after it",
    "a gated block has two keys a unit, its gate and its amplitude; GPT-2 has one",
    "heads that share keys and values are paired with each of the heads that use them; GPT-2's heads share none",
    "gains of the norms are left out, as in the paper; in models without biases they hold what is lost with them",
)
_SURE: Final = 0.01
_LARGE: Final = 10_000
"""Tokens from which on bases are compared at the paper's k = 1,000; below, at the smallest."""
_LITTLE: Final = 0.2
"""Of what W_out has beyond other tokens: less is next to nothing."""


@dataclass(frozen=True)
class Conclusion:
    """Something that the paper concludes, whether it holds here, and the numbers that say so."""

    says: str
    holds: bool
    numbers: str


def conclusions(found: Experiments) -> list[Conclusion]:
    """What the paper concludes, as far as it was measured, each decided beyond its control."""
    made = [*_of_bases(found.kept), *_of_heads(found.heads), *_of_partners(found.similar), *_of_topic(found.searched)]
    return [*made, *_of_active(found.active)]


def _of_bases(kept: Sequence[Kept]) -> list[Conclusion]:
    scores = {(each.kind, each.part, each.k, each.basis): each for each in kept if each.undefined is None}
    ks = sorted({k for _, _, k, basis in scores if basis == BASES[1]})
    if not ks:
        return []
    k = 1000 if ks[-1] > _LARGE else ks[0]

    def both(kind: str, part: str, at: int) -> tuple[Kept, Kept]:
        transpose, inverse = (scores[kind, part, at, basis] for basis in BASES)
        return transpose, inverse

    made = []
    for part, without in (("all", ""), ("offdiag", ", the squares of the directions left out")):
        transpose, inverse = both("normal", part, k)
        says = (
            f"the transpose keeps more of the inner products of random directions than the pseudo-inverse, at k = {k}{without}"
        )
        crossed = [each for each in ks if both("normal", part, each)[1].score > both("normal", part, each)[0].score]
        order = f"; the pseudo-inverse keeps more from k = {crossed[0]} on" if crossed else ""
        numbers = f"{_spread(transpose)} against {_spread(inverse)}{order}"
        made.append(Conclusion(says, transpose.low > inverse.high, numbers))
    for kind, says in (("normal", "random directions"), ("values", "feed-forward values")):
        transpose, inverse = both(kind, "all", ks[-1])
        says = f"it is the other way round at k = {ks[-1]}, of {says}"
        made.append(Conclusion(says, inverse.low > transpose.high, f"{_spread(transpose)} against {_spread(inverse)}"))
    return made


def _spread(each: Kept) -> str:
    return f"{each.score:.3f} ({each.low:.3f} to {each.high:.3f})"


def _of_heads(heads: Sequence[Ranked]) -> list[Conclusion]:
    made = []
    for kind, says in (
        ("ov", "heads write certain tokens for certain tokens"),
        ("qk", "heads look from certain tokens for certain tokens"),
    ):
        mine = [head for head in heads if head.kind == kind]
        sure = [head for head in mine if head.q <= _SURE and head.strength > head.control]
        if mine:
            first = mine[0]
            numbers = (
                f"{len(sure)} of {len(mine)} heads; the first stands {first.strength:.1f} standard deviations out, "
                f"rotated heads of its layer {first.control:.1f}"
            )
            made.append(Conclusion(f"{says}, more than by chance", bool(sure), numbers))
    return made


def _of_partners(similar: Sequence[Overlap]) -> list[Conclusion]:
    made = []
    q = _q(similar)
    for left, right in dict.fromkeys((each.left, each.right) for each in similar):
        mine = [(each, quality) for each, quality in zip(similar, q, strict=True) if (each.left, each.right) == (left, right)]
        beyond = sum(quality <= _SURE for _, quality in mine)
        aligned, shuffled = (
            statistics.fmean(values) for values in ([e.mean for e, _ in mine], [float(e.draws.mean()) for e, _ in mine])
        )
        numbers = f"in {beyond} of {len(mine)} layers; Jaccard index {aligned:.4f}, shuffled {shuffled:.4f}"
        if mine[0][0].turned == mine[0][0].turned:
            numbers += f", in a random basis of each head {statistics.fmean(each.turned for each, _ in mine):.4f}"
        made.append(
            Conclusion(f"{left} and {right} that belong together speak of the same tokens", 2 * beyond > len(mine), numbers)
        )
    return made


def _q(similar: Sequence[Overlap]) -> list[float]:
    """Of each layer and pair of groups, over all of them."""
    p = [permutation_p(torch.tensor([each.mean], dtype=torch.float64), each.draws[:, None]) for each in similar]
    return benjamini_hochberg(torch.cat(p)).tolist() if p else []


def _of_topic(searched: Search | None) -> list[Conclusion]:
    if searched is None:
        return []
    sure = [each for each in searched.found if each.q <= _SURE]
    first = (sure or searched.found)[0]
    numbers = f"{searched.significant} of {searched.searched}; first {first.address}{first.end}: {first.score:.3f}, random topics {first.control:.3f}"
    return [
        Conclusion("feed-forward vectors are about a topic, more than about random words", searched.significant > 0, numbers)
    ]


def _of_active(active: Sequence[Activated]) -> list[Conclusion]:
    own = plain(active)
    if not own:
        return []
    k = max(each.k for each in own)
    by_group = {
        name: [each for each in own if (each.group, each.k) == (name, k)] for name in dict.fromkeys(e.group for e in own)
    }
    made = []
    for name in (name for name in by_group if name != "W_V"):
        mine = by_group[name]
        beyond = sum(_beyond(each) for each in mine)
        numbers = f"in {beyond} of {len(mine)} layers; R_{k} {_mean(mine)}"
        made.append(Conclusion(f"states speak of the tokens of the {name} that they activate", 2 * beyond > len(mine), numbers))
    if {"W_V", "W_out"} <= by_group.keys():
        little, much = (_excess(by_group[name]) for name in ("W_V", "W_out"))
        says = f"of W_V they hardly do: beyond other tokens' at most {_LITTLE:.0%} of what W_out has"
        made.append(Conclusion(says, much > 0 and little <= _LITTLE * much, f"{little:+.4f}, W_out {much:+.4f}"))
    return made


def _beyond(each: Activated) -> bool:
    return each.p <= _SURE and (each.excess is None or each.excess[0] > 0)


def _excess(mine: Sequence[Activated]) -> float:
    return statistics.fmean(each.mean - each.control for each in mine)


def _mean(mine: Sequence[Activated]) -> str:
    own, others = (statistics.fmean(values) for values in ([each.mean for each in mine], [each.control for each in mine]))
    return f"{own:.3f}, other tokens' {others:.3f}"


def describe(found: Experiments, texts: Sequence[str]) -> str:
    """All tables with the paper's numbers, the conclusions, and what differs from the paper."""
    parts: list[tuple[str, bool, Callable[[], list[str]]]] = [
        (
            "Keep-k (appendix A): how much of inner products is left, E^T / E^+",
            bool(found.kept),
            lambda: kept_table(found.kept),
        ),
        ("Pairs of tokens of heads (appendix C)", bool(found.read), lambda: pairs_table(found, texts)),
        (
            "Vectors that belong together (appendix B.1): Sim_100, shuffled",
            bool(found.similar),
            lambda: similar_table(found, texts),
        ),
        (
            "Search for a topic (appendix C)",
            found.searched is not None,
            lambda: [f"  {line}" for line in str(found.searched).split("\n")],
        ),
        (
            f"States and activated parameters (section 4.2), {found.documents} documents",
            bool(found.active),
            lambda: active_table(found.active),
        ),
    ]
    lines: list[str] = []
    for title, there, rows in parts:
        if there:
            lines += [title, *rows(), ""]
    said = [f"  {'yes' if each.holds else 'no ':3}  {each.says}: {each.numbers}" for each in conclusions(found)]
    return "\n".join(
        [
            *lines,
            "What the paper concludes:",
            *said,
            "",
            "What differs from the paper:",
            *(f"  - {each}" for each in DIFFERENCES),
        ]
    )


def main() -> int:
    """Measure and print; 1 where a published value is known and ours is another."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("text", nargs="?", default="sample")
    parser.add_argument("--only", default=",".join(EXPERIMENTS), help=f"some of {', '.join(EXPERIMENTS)}")
    parser.add_argument("--layers", help="some layers: 0,5,10; all if none are named")
    parser.add_argument("--heads", type=int, default=2, help="heads of each kind of circuit whose pairs are printed")
    parser.add_argument("--topic", default=",".join(TOPIC), help="words of a topic to search for")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    only = options.only.split(",")
    if unknown := [name for name in only if name not in EXPERIMENTS]:
        parser.error(f"there is no experiment {unknown[0]}; there are {', '.join(EXPERIMENTS)}")
    model = load(options.model)
    layers = [int(layer) for layer in options.layers.split(",")] if options.layers else None
    if layers and not 0 <= min(layers) <= max(layers) < model.shape.layers:
        parser.error(f"layers are 0 to {model.shape.layers - 1}")
    subject = subject_of(model, preset="paper")
    topic = options.topic.split(",")
    found = experiments(
        model, subject, options.text, only=only, layers=layers, heads=options.heads, topic=topic, seed=options.seed
    )
    sys.stdout.write(describe(found, subject.texts) + "\n")
    whole = is_gpt2_medium(model) and layers is None and {"keep", "overlap"} <= set(only)
    checks = acceptance(subject, found.kept, found.similar) if whole else []
    if checks:
        sys.stdout.write(f"\n{report(checks)}\n")
    return int(not all(each.holds for each in checks))


if __name__ == "__main__":
    sys.exit(main())
