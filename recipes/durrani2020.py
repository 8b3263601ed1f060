"""Durrani et al. 2020, arXiv:2010.02695: which units know a word's part of speech, and how few of them do; rankings are judged by other probes.

usage: python -m recipes.durrani2020 [--quick] [--models smollm2,minilm] [--bases outputs,h] [--brown FOLDER] [--seed N]

Words of the Brown corpus with their classes, read from what layers put out and from the activation space (h). Models are packaged ones or
checkpoints. Units are ranked, chosen and learnt from in one half of the documents; every accuracy is of the other. Rankings are crossed with
probes as in Antverg and Belinkov 2022, arXiv:2110.07483.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.cli.packaged import fetch
from microtome.core import Half, Site
from microtome.model import Model
from microtome.numerics import hash_parts
from microtome.probes import (
    PROBES,
    RANKERS,
    Cases,
    Crossed,
    Kept,
    LabelledText,
    Minimal,
    Ranking,
    Redundancy,
    Selectivity,
    aligned,
    class_moments,
    crossed,
    elastic_probe,
    f_statistic,
    kept_units,
    minimal_set,
    probe_ranking,
    redundancy,
    selectivity,
    word_vectors,
)
from recipes.brown import tagged_texts
from recipes.claims import Claim, claims_table, mean_of
from recipes.windows import opened, some_layers

__all__ = ["CLOSED", "DIFFERENCES", "FULL", "OPEN", "QUICK", "Found", "Size", "claims", "describe", "measure"]

DIFFERENCES: Final = (
    "words are of the Brown corpus by their coarse classes, thousands of them; the paper's are of the Penn Treebank (150 thousand, 44 tags), and "
    "there are tasks besides",
    "models are SmolLM2 (135 M) and MiniLM (a sentence encoder); the paper's are BERT, RoBERTa, XLNet and ELMo",
    "probes go to the minimum of their loss, or as near as some hundred steps come, and units are standardised; the paper's are trained by Adam",
    "of h the units of each layer that differ most between classes in the half that is learnt from are kept",
    "the smallest set is found inside the half that is learnt from, and judged on the other; the paper's is found on what it is judged on",
)
CLOSED: Final = frozenset(
    {"conjunction", "determiner", "modal", "negation", "particle", "preposition", "pronoun", "to", "wh-word"}
)
OPEN: Final = frozenset({"adjective", "adverb", "name", "noun", "verb"})
_FEWEST: Final = 30
_SHARES: Final = (0.01, 0.1, 0.25)
_MASS: Final = 0.5


@dataclass(frozen=True)
class Size:
    """Documents and parts of 150 words, layers (None: all), units of h that a layer keeps, steps of probes, draws, and units that are clustered."""

    documents: int
    parts: int
    layers: int | None
    kept: int
    steps: int
    draws: int
    clustered: int


QUICK: Final = Size(documents=20, parts=1, layers=5, kept=96, steps=60, draws=3, clustered=1000)
FULL: Final = Size(documents=40, parts=1, layers=None, kept=256, steps=200, draws=3, clustered=3000)


@dataclass(frozen=True, eq=False)
class Found:
    """What was measured of the units of one basis of a model; `layer` says whose they are, and `middle` is the layer that rankings are crossed in."""

    model: str
    basis: str
    classes: tuple[str, ...]
    words: int
    documents: int
    layer: Int[Tensor, " unit"]
    ranking: Ranking
    weight: Float[Tensor, "class unit"]
    minimal: Minimal
    kept: Kept
    whole: Selectivity
    few: Selectivity
    middle: int
    crossed: Crossed
    redundancy: Redundancy
    independent: Redundancy

    @property
    def units(self) -> int:
        """How many there are."""
        return len(self.layer)

    @property
    def chosen(self) -> Int[Tensor, " unit"]:
        """The units of the smallest set."""
        return self.ranking.order[: self.minimal.size]

    def needed(self, classes: frozenset[str]) -> Float[Tensor, " class"]:
        """For some classes, how many units have half of the probe's weight."""
        size = self.weight.abs().sort(1, descending=True).values
        share = size.cumsum(1) / size.sum(1, keepdim=True)
        counts = 1 + (share < _MASS).sum(1).double()
        return counts[[place for place, name in enumerate(self.classes) if name in classes]]


def measure(model: Model, texts: Sequence[LabelledText], basis: str, size: Size, *, seed: int = 0) -> Found:
    """All evaluations of the units of `outputs` (of layers) or `h`.

    Cost: about ten probes of all units, each of 4 words units classes steps FLOP. Memory: 4 bytes for each word and unit.
    """
    words = aligned(model.tokenizer, texts, fewest=_FEWEST)
    layers = some_layers(model, size.layers)
    sites = [Site("resid_post" if basis == "outputs" else "mlp_act", layer) for layer in layers]
    held = word_vectors(model, texts, words, sites, dtype="float16")
    parts, owner = [], []
    for site in sites:
        x = held.pop(site)
        if basis == "h":
            x = x[:, _differing(x, words.y, words.half, len(words.classes), size.kept)]
        parts.append(x)
        owner.append(torch.full((x.shape[1],), site.layer or 0))
    cases, layer = words.cases(torch.cat(parts, 1).float()).standardised(), torch.cat(owner)
    del parts
    x, y = cases.discover
    probe = elastic_probe(x, y, len(cases.classes), most=size.steps)
    ranking = probe_ranking(probe)
    fit, ranker = _fit(size.steps), _ranker(size.steps)
    minimal = minimal_set(cases, ranker, fit, draws=size.draws, seed=seed)
    middle = layers[len(layers) // 2]
    some = hash_parts(seed, torch.arange(len(layer))).argsort()[: size.clustered].sort().values
    return Found(
        model=model.name,
        basis=basis,
        classes=words.classes,
        words=len(words.y),
        documents=len(words.document.unique()),
        layer=layer,
        ranking=ranking,
        weight=probe.weight,
        minimal=minimal,
        kept=kept_units(cases, lambda *_: ranking, _SHARES, draws=size.draws, seed=seed),
        whole=selectivity(cases, fit, draws=size.draws, seed=seed),
        few=selectivity(cases.only(ranking.order[: minimal.size]), fit, draws=size.draws, seed=seed),
        middle=middle,
        crossed=_crossed(cases.only((layer == middle).nonzero()[:, 0]), size, seed),
        redundancy=redundancy(cases.x[:, some]),
        independent=redundancy(_rolled(cases.x[:, some])),
    )


def _differing(
    x: Float[Tensor, "row unit"], y: Int[Tensor, " row"], half: Int[Tensor, " row"], classes: int, most: int
) -> Int[Tensor, " unit"]:
    """The units that differ most between classes in the discover half, in order."""
    moments = class_moments(x, torch.where(half == Half.DISCOVER, y, -1), classes)
    return f_statistic(moments).argsort(descending=True, stable=True)[:most].sort().values


def _fit(steps: int) -> Callable[[Tensor, Tensor, int], Callable[[Tensor], Tensor]]:
    return lambda x, y, classes: elastic_probe(x, y, classes, most=steps)


def _ranker(steps: int) -> Callable[[Tensor, Tensor, int], Ranking]:
    return lambda x, y, classes: probe_ranking(elastic_probe(x, y, classes, most=steps))


def _crossed(cases: Cases, size: Size, seed: int) -> Crossed:
    """Three rankings under two probes, in one layer; under one where a unit is constant in a class, which Gaussians cannot have."""
    rankers = {"probe": _ranker(size.steps), **{name: RANKERS[name] for name in ("probeless", "F")}}
    probes = {"linear": _fit(size.steps)}
    if bool((class_moments(*cases.discover, len(cases.classes)).squares > 0).all()):
        probes["gaussian"] = PROBES["gaussian"]
    sizes = tuple(count for count in (10, 50) if count <= cases.x.shape[1])
    return crossed(cases, rankers, probes, sizes, draws=size.draws, seed=seed)


def _rolled(x: Float[Tensor, "row unit"]) -> Float[Tensor, "row unit"]:
    """Every unit's words moved on by another number of places, so that no two go together but by chance."""
    rows = len(x)
    place = torch.arange(rows)[:, None] + (torch.arange(x.shape[1]) * 37) % rows
    return x.gather(0, place % rows)


def claims(found: Found) -> list[Claim]:
    """What the papers say, as far as it was measured."""
    return [*_of_sets(found), *_of_rankings(found)]


def _of_sets(found: Found) -> list[Claim]:
    minimal, kept = found.minimal, found.kept
    low, high = found.whole.extremes
    few_low, few_high = found.few.extremes
    tenth = _SHARES.index(0.1)
    closed, opened_classes = (mean_of(found.needed(classes)) for classes in (CLOSED, OPEN))
    return [
        Claim(
            "a small set of units tells parts of speech as well as all do",
            "about 400 of 9,984 units of BERT (4 %), within 1 point of 96 %",
            f"{minimal.size} of {found.units} units ({minimal.size / found.units:.1%}) reach {minimal.accuracy:.1%}, all {minimal.full:.1%}",
            f"as many random units {float(minimal.random.mean()):.1%} (at most {float(minimal.random.max()):.1%}); commonest class {minimal.majority:.1%}",
            minimal.size <= 0.1 * found.units
            and minimal.accuracy > float(minimal.random.max())
            and minimal.accuracy >= minimal.full - 0.02,
        ),
        Claim(
            "of a trained probe the first units carry most",
            "the first fifth far more than the last, random between",
            f"with a tenth kept: first {float(kept.top[tenth]):.1%}, last {float(kept.bottom[tenth]):.1%}, all {kept.full:.1%}",
            f"random tenths {float(kept.random[:, tenth].mean()):.1%}",
            float(kept.top[tenth]) > float(kept.random[:, tenth].max()) and float(kept.top[tenth]) > float(kept.bottom[tenth]),
        ),
        Claim(
            "probes do not just remember words, and the fewer units the less so",
            "selectivity 14 points with all units, about 30 with the smallest set",
            f"{100 * found.whole.value:.1f} points ({100 * low:.1f} to {100 * high:.1f}) with all, {100 * found.few.value:.1f} "
            f"({100 * few_low:.1f} to {100 * few_high:.1f}) with the smallest set",
            f"0; random labels for words {float(found.whole.control.mean()):.1%}, commonest class {found.whole.majority:.1%}",
            low > 0 and few_low > high,
        ),
        Claim(
            "closed classes need fewer units than open ones",
            "so, of a probe's weight (Dalvi et al. 2019)",
            f"half of a class's weight is in {closed} units of closed, {opened_classes} of open classes",
            "-",
            opened_classes.above(closed),
        ),
    ]


def _of_rankings(found: Found) -> list[Claim]:
    crossing = found.crossed
    first, worst = (each.mean(1)[:, 0] for each in (crossing.accuracy, crossing.reversed))
    random = crossing.random.mean(1)[:, 0]
    named = ", ".join(f"{name} {float(value):.1%}" for name, value in zip(crossing.rankings, first, strict=True))
    back = ", ".join(f"{float(value):.1%}" for value in worst)
    left = 1 - len(found.redundancy.kept) / len(found.redundancy.cluster)
    none = 1 - len(found.independent.kept) / len(found.independent.cluster)
    return [
        Claim(
            "rankings hold under other probes: first units beat random and last ones",
            "so, the better the ranking (Antverg and Belinkov 2022)",
            f"{crossing.sizes[0]} units of layer {found.middle}, mean of {' and '.join(crossing.probes)} probes: {named}",
            f"reversed {back}; random {float(random.mean()):.1%} (at most {float(random.max()):.1%})",
            bool((first > random.max()).all()) and bool((first > worst).all()),
        ),
        Claim(
            "units are redundant",
            "up to 85 % of BERT's (Dalvi et al. 2020)",
            f"{left:.0%} of {len(found.redundancy.cluster)} units go with another, at |r| about 0.5",
            f"units moved against each other {none:.0%}",
            left > none + 0.1,
        ),
    ]


def by_layer(found: Found) -> str:
    """How many units of the smallest set are in each layer, beside what there would be by chance."""
    layers = found.layer.unique().tolist()
    expected = found.minimal.size / found.units
    cells = []
    for each in layers:
        mine = found.layer == each
        cells.append(f"{each}: {int(mine[found.chosen].sum())} ({expected * int(mine.sum()):.0f})")
    return f"  units of the smallest set by layer (by chance): {', '.join(cells)}"


def by_ranking(found: Found) -> str:
    """Every ranking under every probe."""
    lines = [f"  layer {found.middle}: accuracy of probes trained on the first units (reversed; random)"]
    each = found.crossed
    for row, ranking in enumerate(each.rankings):
        cells = []
        for column, probe in enumerate(each.probes):
            for place, size in enumerate(each.sizes):
                value, back, random = (
                    each.accuracy[row, column, place],
                    each.reversed[row, column, place],
                    each.random[:, column, place],
                )
                cells.append(f"{probe}, {size}: {float(value):.3f} ({float(back):.3f}; {float(random.mean()):.3f})")
        lines.append(f"  {ranking:>12}  " + "  ".join(cells))
    return "\n".join(lines)


def describe(found: Found) -> str:
    """The claims with the papers' numbers, layers and rankings."""
    what = "what layers put out" if found.basis == "outputs" else "h"
    head = f"{found.model}, {what}: {found.units} units, {found.words} words of {found.documents} documents, {len(found.classes)} classes"
    return "\n".join([head, "", claims_table(claims(found)), "", by_layer(found), by_ranking(found)])


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="some layers and words: two minutes")
    parser.add_argument("--models", default="smollm2,minilm")
    parser.add_argument("--bases", default="outputs,h")
    parser.add_argument("--brown", type=Path, help="the folder of the Brown corpus, if npm is not to fetch it")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    bases = options.bases.split(",")
    if unknown := [name for name in bases if name not in ("outputs", "h")]:
        parser.error(f"there is no basis {unknown[0]}; there are outputs and h")
    size = QUICK if options.quick else FULL
    texts = tagged_texts(options.brown or fetch("brown"), size.documents, size.parts)
    for name in options.models.split(","):
        model = opened(name)
        for basis in bases:
            sys.stdout.write(describe(measure(model, texts, basis, size, seed=options.seed)) + "\n\n")
    sys.stdout.write("\n".join(["What differs from the paper:", *(f"  - {each}" for each in DIFFERENCES)]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
