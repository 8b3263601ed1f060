"""What an evaluation says of a dictionary in rows and sentences: described factors, directions that are there again, and the findings.

The numbers of reconstructions are made in `evaluation_numbers`.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Final, Literal

import pyarrow as pa
from jaxtyping import Bool, Float
from torch import Tensor

from microtome.core import Refusal, UnitAddress
from microtome.examples.findings import Finding
from microtome.explain import ExcerptRecord
from microtome.factors.anew import ANEW, TWIN, active
from microtome.factors.baselines import CONTROLS, GREEDY
from microtome.factors.described import OTHERS, described, described_stats
from microtome.factors.dictionary import Dictionary
from microtome.factors.evaluation import Stat
from microtome.factors.evaluation_numbers import Beside, Found, alive_in
from microtome.factors.numbers import Numbers
from microtome.factors.splicing import MEAN
from microtome.factors.stability import ALIKE, Matched, flat_directions, matched, stability
from microtome.model import Model
from microtome.readout.words import named, texts_of
from microtome.store import rows_of

__all__ = ["SAME", "compared", "describe", "findings_of", "learnt_again", "reasons"]

SAME: Final = "same direction"
_DESCRIBED: Final = ("detection", "fuzzing")
_MATCHES: Final = ("match_cosine", "match_above_07", "match_above_09", "nearest_cosine")
_LEARNT_FROM: Final = "learnt_from"
_ANEW: Final = "that learnt anew"
_MATCHED: Final = 8192
"""Directions beyond which a match one to one takes hours."""


def reasons(each: Beside, learnt_from: Literal["known", "not known"]) -> Numbers:
    """Controls that there are not, and why; and whether it is known what the dictionary has learnt from."""
    found = []
    if each.dictionary.arrangement != "shared":
        why = f"codes of a {each.dictionary.arrangement} are not of the states that are made of them"
        found.append(Numbers.undefined(("exact_codes", "baselines", "sites_used"), why))
    elif not each.baselines:
        found.append(Numbers.undefined(("baselines",), "the text has fewer states to learn from than a state has numbers"))
    if each.learnt.why_not_anew:
        found.append(Numbers.undefined(("learnt_anew",), each.learnt.why_not_anew))
    if each.learnt.why_no_twin:
        found.append(Numbers.undefined(("random_twin",), each.learnt.why_no_twin))
    if learnt_from == "not known":
        found.append(
            Numbers.undefined((_LEARNT_FROM,), "it is not known what it has learnt from: that may have been this text")
        )
    return Numbers.joined(found)


def describe(dictionary: Dictionary, records: Mapping[str, ExcerptRecord], model: Model, seed: int) -> Numbers:
    """Detection and fuzzing of the factors that were picked, beside descriptions of others, and beside random directions.

    `records` are excerpts by `excerpts.NAME` and `random.NAME`.
    """
    record, random = records.get(f"excerpts.{dictionary.name}"), records.get(f"random.{dictionary.name}")
    if record is None:
        why = "the model reads no tokens of text" if model.tokenizer is None else "no factor is active"
        return Numbers.undefined(_DESCRIBED, why)
    texts = texts_of(model.tokenizer, model.shape.vocab)
    controls: dict[str, Mapping[str, Stat]] = {}

    def names(token: int) -> str:
        return named(texts[token])

    try:
        own, controls[OTHERS] = described_stats(found := described(record, names, seed=seed), seed)
    except Refusal as refusal:
        return Numbers.undefined(_DESCRIBED, refusal.why)
    own |= {"factors_described": Stat(float((~found.detection.own.isnan()).sum()))}  # that have questions of both kinds
    if random is not None:
        try:
            controls[CONTROLS["random directions"]], _ = described_stats(described(random, names, seed=seed), seed)
        except Refusal as refusal:
            missing = Numbers.undefined(("random_directions_described",), refusal.why)
            return Numbers.joined([Numbers.at(record.basis.sites[0], own, controls), missing])
    return Numbers.at(record.basis.sites[0], own, controls)


def learnt_again(each: Beside, found: Found) -> Numbers:
    """How many of the active directions are there again among those of a dictionary that was learnt anew, matched one to one, beside random ones."""
    if each.learnt.anew is None:
        return Numbers()
    one = flat_directions(each.dictionary, alive_in(each.dictionary, found))
    other = flat_directions(each.learnt.anew, active(found[ANEW]))
    if why := _why_not(one, other):
        return _unmatched(_ANEW, why)
    return _stable(one, other, _ANEW, matched(one, other))


def _why_not(one: Tensor, other: Tensor) -> str:
    if one.shape[1] != other.shape[1]:
        return "they are of other sites"
    if not len(one) or not len(other):
        return "no factor is active"
    return f"a match of more than {_MATCHED:,} directions takes hours" if max(len(one), len(other)) > _MATCHED else ""


def _unmatched(name: str, why: str) -> Numbers:
    return Numbers.undefined([f"{stat} with {name}" for stat in _MATCHES], why)


def _stable(one: Float[Tensor, "unit width"], other: Float[Tensor, "other width"], name: str, pairs: Matched) -> Numbers:
    """How much of one there is in the other, of which the pairs are known."""
    found = stability(one, other, pairs=pairs)
    told = {kind: {f"{stat} with {name}": value for stat, value in of.items()} for kind, of in found.items()}
    return Numbers.at("", told.pop(""), told)


def compared(
    dictionaries: Sequence[Dictionary], alive: Mapping[str, Bool[Tensor, " _"]]
) -> tuple[dict[str, Numbers], pa.Table, list[Finding]]:
    """Matched directions of every two dictionaries of the same sites: numbers of each, links both ways, and what is to be said of it."""
    parts: dict[str, list[Numbers]] = {each.name: [] for each in dictionaries}
    links: list[dict[str, object]] = []
    findings: list[Finding] = []
    for one, other in combinations(dictionaries, 2):
        first, second = (flat_directions(each, alive[each.name]) for each in (one, other))
        apart = one.writes != other.writes or (one.arrangement == "crosscoder") != (other.arrangement == "crosscoder")
        if why := "they are of other sites" if apart else _why_not(first, second):
            parts[one.name].append(_unmatched(other.name, why))
            parts[other.name].append(_unmatched(one.name, why))
            continue
        pairs = matched(first, second)
        numbers = _stable(first, second, other.name, pairs)
        parts[one.name].append(numbers)
        parts[other.name].append(_stable(second, first, one.name, Matched(pairs.second, pairs.first, pairs.cosine)))
        links += _links(one, other, pairs, alive, numbers.beside[""][ALIKE][f"match_cosine with {other.name}"].value)
        findings.append(_shared(one, other, numbers))
    return {name: Numbers.joined(each) for name, each in parts.items()}, rows_of("links", links), findings


def _links(
    one: Dictionary, other: Dictionary, pairs: Matched, alive: Mapping[str, Bool[Tensor, " _"]], control: float
) -> list[dict[str, object]]:
    """Of every pair, both ways."""
    places = [alive[each.name].nonzero()[:, 0] for each in (one, other)]
    units = zip(places[0][pairs.first].tolist(), places[1][pairs.second].tolist(), pairs.cosine.tolist(), strict=True)
    found: list[dict[str, object]] = []
    for i, j, score in units:
        ends = [str(UnitAddress("factors", unit, name=each.name)) for unit, each in ((i, one), (j, other))]
        found += [
            {"unit": unit, "other": far, "kind": SAME, "score": score, "control": control} for unit, far in (ends, ends[::-1])
        ]
    return found


def _shared(one: Dictionary, other: Dictionary, numbers: Numbers) -> Finding:
    stat, cosine = (f"{each} with {other.name}" for each in ("match_above_07", "match_cosine"))
    own, beside = numbers.own[""], numbers.beside[""][ALIKE]
    sentence = (
        f"of the factors of {one.name} that are active, matched one to one with those of {other.name}, {own[stat].value:.0%} have a cosine above 0.7 "
        f"({ALIKE}: {beside[stat].value:.0%}); the mean cosine is {own[cosine].value:.2f} (beside {beside[cosine].value:.2f})"
    )
    return Finding("dictionaries compared", f"factors@{one.name}", sentence, own[stat].value, beside[stat].value, ALIKE)


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
    unknown = "; it is not known whether it has learnt from this text" if _LEARNT_FROM in numbers.own.get("", {}) else ""
    sentence = (
        f"{l0:.0f} factors of the {dictionary.units:,} of {dictionary.name} explain {own:.0%} of the variance of held-out states, {where}; "
        f"{dead:.0%} are never active on {numbers.mean('tokens'):,.0f} tokens ({'; '.join(parts) or 'nothing to compare with'}){unknown}"
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
        f"where states are replaced by what {dictionary.name} makes of them, {model} predicts otherwise: KL {own:.2f} nats a token, "
        f"loss {numbers.mean('loss_added'):+.2f}, in the mean over sites ({'; '.join(parts)})"
    )
    return Finding("dictionary in place", f"factors@{dictionary.name}", sentence, own, best, kind)


def _told(dictionary: Dictionary, numbers: Numbers) -> Finding | None:
    own, others = numbers.mean("detection"), numbers.mean("detection", OTHERS)
    if not math.isfinite(own):
        return None
    random = numbers.mean("detection", CONTROLS["random directions"])
    also = f", random directions with greedy codes {random:.0%}" if math.isfinite(random) else ""
    sentence = (
        f"of factors of {dictionary.name} that are described by their tokens, a judge who knows the description tells {own:.0%} "
        f"of held-out excerpts right ({OTHERS} {others:.0%}{also}; chance 50%); of marked tokens {numbers.mean('fuzzing'):.0%}"
    )
    beside = {OTHERS: others, CONTROLS["random directions"]: random}
    kind = max((each for each in beside if math.isfinite(beside[each])), key=beside.__getitem__, default=OTHERS)
    return Finding("factors described", f"factors@{dictionary.name}", sentence, own, beside[kind], kind)


def _best(numbers: Numbers, stat: str, which: Literal["highest", "lowest"]) -> tuple[str, float]:
    """Of what costs next to nothing the best, and its number."""
    found = {kind: value for kind in CONTROLS.values() if math.isfinite(value := numbers.mean(stat, kind))}
    if not found:
        return "nothing to compare with", math.nan
    ordered = sorted(found, key=found.__getitem__)
    best = ordered[-1 if which == "highest" else 0]
    return best, found[best]
