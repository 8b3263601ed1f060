"""What an evaluation says of a dictionary in rows and sentences: described factors, directions that are there again, and the findings.

The numbers of reconstructions are made in `evaluation_numbers`.
"""

import contextlib
import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Final, Literal

import pyarrow as pa
import torch
from jaxtyping import Bool
from torch import Tensor

from microtome.core import Refusal, Site, UnitAddress
from microtome.examples.findings import Finding
from microtome.explain import ExcerptRecord
from microtome.factors.described import OTHERS, described, described_stats
from microtome.factors.dictionary import Dictionary
from microtome.factors.evaluation import Stat
from microtome.factors.evaluation_numbers import ANEW, CONTROLS, GREEDY, TWIN, Learnt, Numbers, of_factors
from microtome.factors.harvest import Rows
from microtome.factors.probing import absorption, absorption_undefined
from microtome.factors.splicing import MEAN
from microtome.factors.stability import ALIKE, flat_directions, matched, stability
from microtome.model import Model
from microtome.readout.words import named, texts_of
from microtome.store import rows_of

__all__ = ["SAME", "absorbed", "compared", "describe", "findings_of", "learnt_again", "reasons"]

SAME: Final = "same direction"
_DESCRIBED: Final = ("detection", "fuzzing")
_MATCHES: Final = ("match_cosine", "match_above_07", "match_above_09", "nearest_cosine")
_MATCHED: Final = 8192
"""Directions beyond which a match one to one takes hours."""


def reasons(numbers: Numbers, dictionary: Dictionary, learnt: Learnt) -> None:
    """Controls that there are not, and why."""
    if dictionary.arrangement != "shared":
        why = f"codes of a {dictionary.arrangement} are not of the states that are made of them"
        numbers.undefined(("exact_codes", "baselines", "sites_used"), why)
    if learnt.why:
        numbers.undefined(("random_twin",), learnt.why)


def describe(numbers: Numbers, dictionary: Dictionary, records: Mapping[str, ExcerptRecord], model: Model, seed: int) -> None:
    """Detection and fuzzing of the factors that were picked, beside descriptions of others, and beside random directions.

    `records` are excerpts by `excerpts.NAME` and `random.NAME`.
    """
    record, random = records.get(f"excerpts.{dictionary.name}"), records.get(f"random.{dictionary.name}")
    if record is None:
        why = "the model reads no tokens of text" if model.tokenizer is None else "no factor is active"
        numbers.undefined(_DESCRIBED, why)
        return
    texts = texts_of(model.tokenizer, model.shape.vocab)
    controls: dict[str, Mapping[str, Stat]] = {}

    def names(token: int) -> str:
        return named(texts[token])

    try:
        own, controls[OTHERS] = described_stats(found := described(record, names, seed=seed), seed)
    except Refusal as refusal:
        numbers.undefined(_DESCRIBED, refusal.why)
        return
    own |= {"factors_described": Stat(float((~found.detection.own.isnan()).sum()))}  # that have questions of both kinds
    if random is not None:
        with contextlib.suppress(Refusal):  # too few of them are active: there is the other control
            controls[CONTROLS["random directions"]], _ = described_stats(described(random, names, seed=seed), seed)
    numbers.add(record.basis.sites[0], own, controls)


def absorbed(numbers: Numbers, dictionary: Dictionary, rows: Sequence[Rows], sites: Sequence[Site], model: Model) -> None:
    """How often a first letter that the state says is said by another factor than the letter's: in the mean over letters, at the middle site."""
    why = absorption_undefined(sum(each.numel() for each in model.module.parameters()), dictionary.units)
    if why is None and dictionary.arrangement != "shared":
        why = Stat(math.nan, undefined=f"codes of a {dictionary.arrangement} are not of the states that are made of them")
    if why is not None:
        numbers.add("", {"absorption": why}, {})
        return
    site = of_factors(dictionary)
    x = torch.cat([each.states[:, list(sites).index(site)] for each in rows])
    half, ids = (torch.cat([getattr(each, name) for each in rows]) for name in ("half", "id"))
    codes, scaled = dictionary.encode({site: x}), dictionary.scaled({site: x})[site]
    letters = [text.strip()[:1].casefold() for text in texts_of(model.tokenizer, model.shape.vocab)]
    found = []
    for letter in "abcdefghijklmnopqrstuvwxyz":
        y = torch.tensor([each == letter for each in letters])[ids]
        try:
            found.append(absorption(codes, dictionary.directions[0], scaled, y, half))
        except Refusal:
            continue
    values = [each.value for each in found if math.isfinite(each.value)]
    told = Stat(sum(values) / len(values)) if values else Stat(math.nan, undefined="no letter is told from the states")
    numbers.add(site, {"absorption": told}, {})


def learnt_again(numbers: Numbers, dictionary: Dictionary, learnt: Learnt, alive: Bool[Tensor, " unit"]) -> None:
    """How many of the active directions are there again in a dictionary that was learnt anew, matched one to one, beside random ones."""
    if learnt.anew is None:
        return
    _stable(numbers, flat_directions(dictionary, alive), flat_directions(learnt.anew), "that learnt anew")


def _stable(numbers: Numbers, one: Tensor, other: Tensor, name: str) -> bool:
    """Add how much of one there is in the other; whether that could be told."""
    why = ""
    if one.shape[1] != other.shape[1]:
        why = "they are of other sites"
    elif not len(one) or not len(other):
        why = "no factor is active"
    elif max(len(one), len(other)) > _MATCHED:
        why = f"a match of more than {_MATCHED:,} directions takes hours"
    if why:
        numbers.undefined([f"{stat} with {name}" for stat in _MATCHES], why)
        return False
    found = {kind: {f"{stat} with {name}": value for stat, value in of.items()} for kind, of in stability(one, other).items()}
    numbers.add("", found.pop(""), found)
    return True


def compared(
    numbers: Mapping[str, Numbers], dictionaries: Sequence[Dictionary], alive: Mapping[str, Bool[Tensor, " unit"]]
) -> tuple[pa.Table, list[Finding]]:
    """Matched directions of every two dictionaries of the same sites, as links both ways, and what is to be said of it."""
    links: list[dict[str, object]] = []
    findings: list[Finding] = []
    for one, other in combinations(dictionaries, 2):
        if one.writes != other.writes or (one.arrangement == "crosscoder") != (other.arrangement == "crosscoder"):
            for mine, far in ((one, other), (other, one)):
                numbers[mine.name].undefined([f"{stat} with {far.name}" for stat in _MATCHES], "they are of other sites")
            continue
        first, second = (flat_directions(each, alive[each.name]) for each in (one, other))
        if not _stable(numbers[one.name], first, second, other.name):
            continue
        _stable(numbers[other.name], second, first, one.name)
        own, beside = numbers[one.name].own[""], numbers[one.name].beside[""][ALIKE]
        pairs = matched(first, second)
        places = [alive[each.name].nonzero()[:, 0] for each in (one, other)]
        control = beside[f"match_cosine with {other.name}"].value
        for i, j, score in zip(
            places[0][pairs.first].tolist(), places[1][pairs.second].tolist(), pairs.cosine.tolist(), strict=True
        ):
            ends = [str(UnitAddress("factors", unit, name=each.name)) for unit, each in ((i, one), (j, other))]
            links += [
                {"unit": unit, "other": far, "kind": SAME, "score": score, "control": control}
                for unit, far in (ends, ends[::-1])
            ]
        stat = f"match_above_07 with {other.name}"
        sentence = (
            f"of the factors of {one.name} that are active, matched one to one with those of {other.name}, {own[stat].value:.0%} have a cosine above 0.7 "
            f"({ALIKE}: {beside[stat].value:.0%}); the mean cosine is {own[f'match_cosine with {other.name}'].value:.2f} (beside {control:.2f})"
        )
        subject = f"factors@{one.name}"
        findings.append(Finding("dictionaries compared", subject, sentence, own[stat].value, beside[stat].value, ALIKE))
    return rows_of("links", links), findings


def findings_of(dictionary: Dictionary, numbers: Numbers, model: str) -> list[Finding]:
    """How much is explained, what the model loses, and how well factors are told from their descriptions: each with its controls in the sentence."""
    told = (_explained(dictionary, numbers), _lost(dictionary, numbers, model), _told(dictionary, numbers))
    return [each for each in told if each is not None]


def _explained(dictionary: Dictionary, numbers: Numbers) -> Finding:
    stat = "explained_variance"
    own, l0, dead = (numbers.mean(each) for each in (stat, "l0", "dead"))
    beside = {kind: numbers.mean(stat, kind) for kind in (GREEDY, ANEW, TWIN)}
    kind, best = _best(numbers, stat, "highest")
    parts = [f"{name}: {value:.0%}" for name, value in ((kind, best), *beside.items()) if math.isfinite(value)]
    first, *more = dictionary.writes
    where = f"in the mean over {1 + len(more)} sites" if more else f"at {first}"
    sentence = (
        f"{l0:.0f} factors of the {dictionary.units:,} of {dictionary.name} explain {own:.0%} of the variance of held-out states, {where}; {dead:.0%} are never "
        f"active on {numbers.mean('tokens'):,.0f} tokens ({'; '.join(parts) or 'nothing to compare with'})"
    )
    return Finding("dictionary judged", f"factors@{dictionary.name}", sentence, own, best, kind)


def _lost(dictionary: Dictionary, numbers: Numbers, model: str) -> Finding | None:
    """KL, not recovered loss: of that even random states recover nearly all."""
    own = numbers.mean("kl")
    if not math.isfinite(own):
        return None
    kind, best = _best(numbers, "kl", "lowest")
    parts = [f"{name} {value:.2f}" for name, value in ((kind, best), (MEAN, numbers.mean("kl", MEAN))) if math.isfinite(value)]
    sentence = (
        f"where states are replaced by what {dictionary.name} makes of them, {model} predicts otherwise: KL {own:.2f} nats a token, loss {numbers.mean('loss_added'):+.2f}, in "
        f"the mean over sites ({'; '.join(parts)})"
    )
    return Finding("dictionary in place", f"factors@{dictionary.name}", sentence, own, best, kind)


def _told(dictionary: Dictionary, numbers: Numbers) -> Finding | None:
    own, others = numbers.mean("detection"), numbers.mean("detection", OTHERS)
    if not math.isfinite(own):
        return None
    random = numbers.mean("detection", CONTROLS["random directions"])
    beside = f", random directions with exact codes {random:.0%}" if math.isfinite(random) else ""
    sentence = (
        f"of factors of {dictionary.name} that are described by their tokens, a judge who knows the description tells {own:.0%} of held-out excerpts right "
        f"({OTHERS} {others:.0%}{beside}; chance 50%); of marked tokens {numbers.mean('fuzzing'):.0%}"
    )
    return Finding("factors described", f"factors@{dictionary.name}", sentence, own, others, OTHERS)


def _best(numbers: Numbers, stat: str, which: Literal["highest", "lowest"]) -> tuple[str, float]:
    """Of what costs next to nothing the best, and its number."""
    found = {kind: value for kind in CONTROLS.values() if math.isfinite(value := numbers.mean(stat, kind))}
    if not found:
        return "nothing to compare with", math.nan
    ordered = sorted(found, key=found.__getitem__)
    best = ordered[-1 if which == "highest" else 0]
    return best, found[best]
