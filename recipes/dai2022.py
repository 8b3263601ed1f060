"""Dai et al. 2022, arXiv:2104.08696: knowledge neurons of a decoder, and of an encoder whose masked-language-model head is trained here.

usage: python -m recipes.dai2022 [MODEL] [--quick] [--facts FILE] [--skip-encoder] [--seed N]

Which units does a fact owe its answer to, what becomes of the answer when they are off or doubled, and can facts be changed or erased by
what they write? MODEL is a packaged one (smollm2 if none is given) or a checkpoint, FILE the facts that come with microtome. After it the
same is asked of MiniLM, which comes without a head: one is trained on frozen weights and packaged speeches and articles (`masked_head`).
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch

from microtome.cli.packaged import fetch
from microtome.neurons.facts import read_facts
from microtome.neurons.knowledge_edits import EditedAnswers
from recipes import masked_head
from recipes.claims import Claim, Estimate, claims_table, mean_of, share_of
from recipes.dai2022_measures import FULL, FULL_ENCODER, QUICK, QUICK_ENCODER, Found, Kind, measure
from recipes.masked_head import TrainedHead, with_head
from recipes.windows import opened

__all__ = ["DIFFERENCES", "claims", "describe", "texts_of", "trained"]

DIFFERENCES: Final = (
    "facts are those that come with microtome (capitals, currencies, languages), those of each relation that the model knows best; the paper's "
    "are 27,738 of PARAREL, of 34 relations, and the model is BERT-base-cased",
    "the thresholds of a fact's units are the paper's, moved until a relation keeps 2 to 5 units a fact, so that number is no result",
    "attributions are integrals by Gauss, finer where they do not add up; the paper takes 20 left steps",
    "active units are compared by |h| times the length of what they write; the paper takes h",
    "edits go by what the head reads for a word, with the sign of the unit's activation; the paper's BERT is tied and its units have no sign to turn",
    "perplexities are of the right answers of other facts",
)
_SPARED: Final = 0.1
"""Others are spared if their log-perplexity grows by no more than this share of what the relation's does; in the paper it is about a tenth."""
_HEAD: Final = "the head of the encoder was trained here on frozen weights: what it cannot read, the encoder may still know"


def claims(found: Found) -> list[Claim]:
    """What the paper says, as far as it was measured."""
    return [*_of_units(found), *_of_tests(found), *_of_edits(found), *_of_erasing(found)]


def _of_units(found: Found) -> list[Claim]:
    own, active = (found.shared(kind) for kind in ("attributed", "active"))
    upper, usual = found.upper("attributed"), (found.layers // 3) / found.layers
    explained = [each.explained for every in found.units["attributed"].values() for each in every.facts]
    return [
        Claim(
            "a fact has few units",
            "4.13; by activation 3.96",
            f"{found.counts('attributed')}; they explain {_mean(explained):.0%} of the answer",
            f"by activation {found.counts('active')}",
            None,
        ),
        Claim(
            "facts of a relation share units, those of two do not",
            "1.23 within, 0.09 between",
            f"{own[0]:.2f} within, {own[1]:.2f} between",
            f"by activation {active[0]:.2f} and {active[1]:.2f}; paper's 2.85 and 1.92",
            own[0] > own[1] and own[1] < active[1],
        ),
        Claim(
            "most units are in the topmost layers",
            "most",
            f"{upper.percent} in the upper third",
            f"by layers {usual:.0%}; by activation {found.upper('active').percent}",
            upper.above(max(usual, 0.5)),
        ),
    ]


def _of_tests(found: Found) -> list[Claim]:
    made = []
    for factor, says, paper in (
        (0.0, "without its units a fact's answer is less probable", "-29.03 %, of active units -1.47 %"),
        (2.0, "with them doubled it is more probable", "+31.17 %, of active units -1.27 %"),
    ):
        own, base = (_changes(found, kind, factor) for kind in ("attributed", "active"))
        tested = found.effects["attributed", factor]
        random = mean_of(torch.tensor([float(each.random.mean()) for each in tested]))
        sure = sum(each.p <= 0.05 for each in tested)
        same, rest = (
            mean_of(torch.tensor([math.nan if value is None else value for value in values]))
            for values in ([each.same_relation for each in tested], [each.other_relations for each in tested])
        )
        reached = random.low > own.high if factor < 1 else own.low > random.high
        made.append(
            Claim(
                says,
                paper,
                f"{own.percent} of {len(tested)} facts, {sure} with p <= 0.05; others of the relation {same.value:+.0%}, "
                f"of other relations {rest.value:+.0%}",
                f"random units {random.percent}; active units {base.percent}",
                reached if len(tested) > 1 else None,
            )
        )
    return made


def _changes(found: Found, kind: Kind, factor: float) -> Estimate:
    return mean_of(torch.tensor([each.fact for each in found.effects[kind, factor]]))


def _of_edits(found: Found) -> list[Claim]:
    made = []
    random = found.edits["random"]
    for name, says in (("paper", "an edit of 8 lengths changes a fact"), ("mild", "an edit of 2 lengths changes a fact")):
        edits = found.edits[name]
        if not edits:
            why = f"none of {len(found.tested)} tested facts is known and has units of its own"
            made.append(Claim(says, "48.5 % changed, 34.4 % to the new answer", why, "-", None))
            continue
        changed, success = (mean_of(torch.tensor([getattr(each, part) for each in edits])) for part in ("changed", "success"))
        control = [_mean([getattr(each, part) for each in random]) for part in ("changed", "success")]
        made.append(
            Claim(
                says,
                "48.5 % changed, 34.4 % to the new answer; random units 4.7 % and 0 %",
                f"of {len(edits)} facts {changed.value:.0%} of prompts changed, {success.percent} to the new answer; perplexity of others "
                f"of the relation {_grown(edits, 'same_relation')}, of other relations {_grown(edits, 'other_relations')}",
                f"8 lengths of random units: {control[0]:.0%} changed, {control[1]:.0%}; {_grown(random, 'same_relation')}, "
                f"{_grown(random, 'other_relations')}",
                changed.value > control[0] and success.value > control[1],
            )
        )
    return made


def _grown(edits: Sequence[EditedAnswers], part: str) -> str:
    """How many times as large perplexities become, in the median."""
    pairs = [value for each in edits if (value := getattr(each, part)) is not None]
    return f"times {float(torch.tensor([after / before for before, after in pairs]).median()):.3g}" if pairs else "-"


def _of_erasing(found: Found) -> list[Claim]:
    made = []
    for each in found.erased:
        own, others = each.own[1] / each.own[0] - 1, each.others[1] / each.others[0] - 1
        random = each.random_own / each.own[0] - 1
        made.append(
            Claim(
                f"without its {each.units} commonest units {each.relation} is forgotten, and others are not",
                "perplexity +37 % to +141 %, of others +1 % to +10 %",
                f"perplexity {each.own[0]:.3g} to {each.own[1]:.3g} ({own:+.0%}), of others {others:+.0%}",
                f"random units {random:+.0%}, of others {each.random_others / each.others[0] - 1:+.0%}",
                own > max(random, 0.0) and math.log1p(others) <= _SPARED * math.log1p(own),
            )
        )
    return made


def _mean(values: Sequence[float | None]) -> float:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else math.nan


def _knowledge(found: Found) -> list[str]:
    """What the model knows of all facts that it can be asked."""
    lines = []
    for relation in dict.fromkeys(each.fact.fact.relation for each in found.asked):
        own = [each for each in found.asked if each.fact.fact.relation == relation]
        right, first = (
            share_of(torch.tensor(values)) for values in ([each.known > 0.5 for each in own], [each.first for each in own])
        )
        lines.append(
            f"  {relation:>10}: {right.percent} of {len(own)} facts answered right in most prompts; their answer is the first of those of the "
            f"relation for {first.percent} (chance {own[0].chance:.1%})"
        )
    return [*lines, f"  known: {', '.join(found.knows) or 'none'}; {found.refused} facts have an answer of several tokens"]


def _facts(found: Found) -> list[str]:
    """A row for each tested fact."""
    heads = ("fact", "known", "units", "explained", "off", "doubled", "random off", "p")
    lines = ["".join(f"{head:>28}" if place == 0 else f"{head:>12}" for place, head in enumerate(heads))]
    known = {id(each.fact): each.known for each in found.asked}
    effects = {factor: iter(found.effects["attributed", factor]) for factor in (0.0, 2.0)}
    for settled in found.units["attributed"].values():
        for each in settled.facts:
            cells = [
                f"{each.asked.fact.subject}: {each.asked.fact.answer}",
                f"{known[id(each.asked)]:.0%}",
                str(len(each.units)),
            ]
            cells.append("-" if each.explained is None else f"{each.explained:.0%}")
            if each.units:
                off, doubled = (next(effects[factor]) for factor in (0.0, 2.0))
                cells += [f"{off.fact:+.0%}", f"{doubled.fact:+.0%}", f"{float(off.random.mean()):+.1%}", f"{off.p:.3f}"]
                cells.append("  " + " ".join(map(str, each.units[:3])))
            lines.append(
                "".join(f"{c:>28}" if place == 0 else c if c[:2] == "  " else f"{c:>12}" for place, c in enumerate(cells))
            )
    return lines


def describe(found: Found, head: TrainedHead | None = None) -> str:
    """What is known, the claims with the paper's numbers, every tested fact, and what differs."""
    lines = [f"{found.name}: {len(found.asked)} facts asked, {len(found.tested)} tested"]
    if head is not None:
        lines.append(
            f"  the head, trained on {head.tokens:,} hidden tokens: loss {head.loss}, of frequencies {head.frequencies_loss}; right "
            f"{head.right.percent}, by frequencies {head.frequencies_right.percent}, without training {head.untrained_right.percent}"
        )
    lines += [*_knowledge(found), "", claims_table(claims(found)), "", *_facts(found), "", "What differs from the paper:"]
    return "\n".join([*lines, *(f"  - {each}" for each in (*DIFFERENCES, *([] if head is None else [_HEAD])))])


def texts_of(*folders: Path) -> list[str]:
    """All texts of folders, of one after the other in turn, so that every tenth text is of any."""
    lists = [[path.read_text("utf-8") for path in sorted(folder.rglob("*.txt"))] for folder in folders]
    longest = max(map(len, lists))
    return [texts[place] for place in range(longest) for texts in lists if place < len(texts)]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument(
        "--quick", action="store_true", help="four facts of the decoder, a head trained for seconds: two minutes"
    )
    parser.add_argument("--facts", help="a file of facts, instead of those that come with microtome")
    parser.add_argument("--skip-encoder", action="store_true", help="leave MiniLM and its head out")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    facts = read_facts(options.facts)
    found = measure(opened(options.model), facts, QUICK if options.quick else FULL, seed=options.seed)
    sys.stdout.write(describe(found) + "\n")
    if not options.skip_encoder:
        head = trained(quick=options.quick, seed=options.seed)
        again = measure(head.model, facts, QUICK_ENCODER if options.quick else FULL_ENCODER, seed=options.seed)
        sys.stdout.write("\n" + describe(again, head) + "\n")
    return 0


def trained(*, quick: bool, seed: int = 0) -> TrainedHead:
    """MiniLM with a head learnt from speeches and articles."""
    training = masked_head.QUICK if quick else masked_head.FULL
    return with_head(opened("minilm"), texts_of(fetch("sotu"), fetch("bbc")), replace(training, seed=seed))


if __name__ == "__main__":
    sys.exit(main())
