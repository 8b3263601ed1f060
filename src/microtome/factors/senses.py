"""Words with several labels in a labelled text, and which factor of a dictionary tells the commonest two apart, site by site.

The methods, and what stands beside a factor, are in `polysemy`; here is which words are asked for, and rows and sentences of it.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from microtome.core import Refusal, Site
from microtome.examples.findings import Finding
from microtome.factors.basis import factors_of
from microtome.factors.dictionary import Dictionary
from microtome.factors.polysemy import Method, Sense, Separated, polysemy
from microtome.numerics import hash_parts
from microtome.probes.words import LabelledWords
from microtome.store import rows_of

__all__ = ["Asked", "ambiguous", "sense_findings", "sense_rows", "senses"]

_WORDS: Final = 4
"""Words that are asked for, at most: those of which the rarer of two labels is most frequent."""
_FEWEST: Final = 30
"""Occurrences that a label of a word must have, unless the word is named."""
_NAMED: Final = 10
"""The same of a word that is named."""
_MOST: Final = 120
"""Occurrences of a label of a word that are read, at most."""
_SALT: Final = 0x73656E73
_BESIDE: Final[tuple[Method, ...]] = ("coordinate", "component", "random direction")
_CONTROL: Final = "the best single number of the state, in its own axes, along components or random directions"


@dataclass(frozen=True, eq=False)
class Asked:
    """A word, and the rows of the labelled words that are its occurrences."""

    word: str
    rows: Int64[Tensor, " row"]


def ambiguous(words: LabelledWords, seed: int = 0, named: Collection[str] = ()) -> list[Asked]:
    """The four words whose two commonest labels are most frequent, with 30 occurrences of either at least; of each at most 120, by hash.

    Words that are `named` are asked for instead, in small letters, with 10 occurrences.
    Errors: `Refusal` for a named word that has them not.
    """
    kinds, classes = int(words.kind.max()) + 1, len(words.classes)
    count = torch.bincount(words.kind * classes + words.y, minlength=kinds * classes).view(kinds, classes)
    if classes < 2:
        _require_found(named, [])
        return []
    common = count.sort(dim=1, descending=True, stable=True)
    rarer = common.values[:, 1]
    order, fewest = rarer.argsort(descending=True, stable=True)[:_WORDS].tolist(), _FEWEST
    if named:
        spelled = {kind: word.casefold() for kind, word in zip(words.kind.tolist(), words.words, strict=True)}
        order, fewest = [kind for kind, word in sorted(spelled.items()) if word in {each.casefold() for each in named}], _NAMED
    drawn = hash_parts(seed, _SALT, torch.arange(len(words.y)))
    found = []
    for kind in (each for each in order if int(rarer[each]) >= fewest):
        rows = []
        for label in common.indices[kind, :2].tolist():
            mine = ((words.kind == kind) & (words.y == label)).nonzero()[:, 0]
            rows.append(mine[drawn[mine].argsort(stable=True)[:_MOST]])
        found.append(Asked(words.words[int(rows[0][0])].casefold(), torch.cat(rows).sort().values))
    _require_found(named, [each.word for each in found])
    return found


def _require_found(named: Collection[str], found: Collection[str]) -> None:
    if missing := [word for word in named if word.casefold() not in found]:
        why = f"it has no two labels with {_NAMED} occurrences each in the labelled text"
        raise Refusal(f"senses of {missing[0]!r}", why=why, instead="give more labelled text, or name another word")


def senses(
    dictionary: Dictionary, words: LabelledWords, asked: Asked, states: Mapping[Site, Float[Tensor, "row d_model"]]
) -> list[Sense]:
    """What tells each label of a word. `states` are those of the word's rows at the dictionary's sites.

    Errors and cost: those of `polysemy`: it refuses too few documents.
    """
    labels = [words.classes[label] for label in words.y[asked.rows].tolist()]
    return polysemy(states, factors_of(dictionary), labels, words.document[asked.rows])


def sense_rows(dictionary: Dictionary, found: Sequence[tuple[str, Sense | str]], run: str) -> pa.Table:
    """Rows of `senses`: of every word and label each method at each site, and over all sites (""); of a word of which there is nothing, why."""
    rows: list[dict[str, object]] = []
    for word, sense in found:
        if isinstance(sense, str):
            key = {"run": run, "name": dictionary.name, "word": word, "label": "", "site": "", "method": "factor"}
            rows.append({**key, "undefined": sense})
            continue
        for (site, method), each in sense.sites.items():
            rows.append(_row(dictionary, word, sense, str(site), method, each, run))
        rows += [_row(dictionary, word, sense, "", method, each, run) for method, each in sense.anywhere.items()]
    return rows_of("senses", rows)


def _row(
    dictionary: Dictionary, word: str, sense: Sense, site: str, method: Method, found: Separated, run: str
) -> dict[str, object]:
    best = max(found.chosen, key=lambda each: (found.chosen[each], -each[1])) if found.chosen else None
    factor = best is not None and method == "factor"
    scores = {name: getattr(found.scores, name) for name in ("f1", "precision", "recall", "auroc")}
    return {
        "run": run,
        "name": dictionary.name,
        "word": word,
        "label": sense.name,
        "site": site,
        "method": method,
        "unit": f"factors@{dictionary.name}/{best[1]}" if factor and best is not None else None,
        "at": str(best[0]) if best is not None else None,
        "chosen": found.chosen[best] / sum(found.chosen.values()) if best is not None else None,
        "positives": sense.positives,
        "occurrences": sense.rows,
        "undefined": "",
        **{name: value if math.isfinite(value) else None for name, value in scores.items()},
        "in_sample": found.in_sample if math.isfinite(found.in_sample) else None,
    }


def sense_findings(dictionary: Dictionary, found: Sequence[tuple[str, Sense | str]]) -> Iterator[Finding]:
    """Of each word the factor that tells it best, beside single numbers of the state and beside all of it."""
    for word, sense in found:
        if isinstance(sense, str):
            continue
        own = sense.anywhere["factor"]
        beside = {method: sense.anywhere[method].scores.auroc for method in _BESIDE}
        most = max(beside.values())
        (site, unit), parts = max(own.chosen.items(), key=lambda each: (each[1], -each[0][1]))
        subject = f"factors@{dictionary.name}/{unit}"
        whole = sense.anywhere["state"].scores.auroc
        sentence = (
            f"{subject} at {site} tells ‘{word}’ as {sense.name} from its other label: AUROC {own.scores.auroc:.2f} on {sense.rows} held-out occurrences by a factor that others "
            f"chose (it in {parts} of {sum(own.chosen.values())} parts; a regression on the whole state {whole:.2f}, the best single number of the state {most:.2f})"
        )
        yield Finding("senses of words", subject, sentence, own.scores.auroc, most, _CONTROL)
