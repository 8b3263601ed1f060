"""Yun et al. 2021, arXiv:2103.15949: words that are verbs and something else, and which single factor tells the two, layer by layer.

Which words is decided by the tags of the Brown corpus: those that are most often both. How factors are chosen and judged belongs to the library.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import torch

from microtome.core import Site
from microtome.factors.basis import factors_of
from microtome.factors.dictionary import Dictionary
from microtome.factors.polysemy import Nested, Sense, Separated, folds_of, nested, polysemy
from microtome.model import Model
from microtome.numerics import hash_text
from microtome.probes import LabelledText, aligned, brown_class, word_vectors
from recipes.claims import Estimate, share_of

__all__ = ["LEFT", "Sensed", "ambiguous", "occurrences", "right", "sensed"]

LEFT: Final = "left"
"""The word of the paper's table; it is among the words if it is often enough both."""
VERB: Final = "verb"
OTHER: Final = "other"


@cache
def _kind(tag: str) -> str:
    return VERB if brown_class(tag) == VERB else OTHER


def ambiguous(texts: Sequence[LabelledText], count: int, fewest: int) -> list[str]:
    """The `count` words that are verbs, and not verbs, most often: by the rarer of the two, which is at least `fewest`; "left" first if it is among these."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for text in texts:
        for word, tag in zip(text.words, text.labels, strict=True):
            if word.isalpha():
                seen[word.casefold()][_kind(tag)] += 1
    rarer = {word: min(counts[VERB], counts[OTHER]) for word, counts in seen.items()}
    enough = sorted((word for word, rare in rarer.items() if rare >= fewest), key=lambda word: (-rarer[word], word))
    first = [LEFT] if LEFT in enough else []
    return [*first, *(word for word in enough if word != LEFT)][:count]


def occurrences(texts: Sequence[LabelledText], word: str, most: int, seed: int = 0) -> list[LabelledText]:
    """At most `most` occurrences of a word as a verb and as many others, by hash; each a passage with that word alone labelled. None at a passage's beginning."""
    found: dict[str, list[tuple[int, LabelledText]]] = {VERB: [], OTHER: []}
    for text in texts:
        for place, (own, tag) in enumerate(zip(text.words, text.labels, strict=True)):
            if place and own.casefold() == word:
                label = _kind(tag)
                alone = LabelledText(text.document, text.text, (own,), (label,), (text.spans[place],))
                found[label].append((hash_text(f"{seed} {text.document} {text.text} {place}"), alone))
    return [each for several in found.values() for _, each in sorted(several, key=lambda pair: pair[0])[:most]]


@dataclass(frozen=True, eq=False)
class Sensed:
    """A word: what tells verbs from others at each site by the source work's dictionary (`sense`), and how well one factor of others does, anywhere.

    `shown` are a few occurrences at which the factor that was chosen most often is largest, with what they are.
    """

    word: str
    sense: Sense
    others: dict[str, Separated]
    shown: tuple[str, ...]

    @property
    def best(self) -> tuple[Site, int]:
        """The factor that was chosen most often."""
        chosen = self.sense.anywhere["factor"].chosen
        return max(chosen, key=lambda each: (chosen[each], each[1]))


def right(sense: Sense, found: Separated) -> Estimate:
    """The share of rows that were called rightly, with Wilson's interval."""
    hits = round(found.scores.recall * sense.positives)
    called = round(hits / found.scores.precision) if found.scores.precision else 0
    correct = hits + (sense.rows - sense.positives) - (called - hits)
    return share_of(torch.arange(sense.rows) < correct)


def sensed(
    model: Model,
    texts: Sequence[LabelledText],
    word: str,
    dictionary: Dictionary,
    others: dict[str, Dictionary],
    *,
    most: int,
    settings: Nested,
) -> Sensed:
    """Read a word's occurrences and ask all methods which are verbs; `others` are dictionaries of which only single factors are asked.

    Errors: those of `polysemy`. Cost: one reading of each occurrence, and that of `polysemy`.
    """
    chosen = occurrences(texts, word, most, settings.seed)
    words = aligned(model.tokenizer, chosen, fewest=2)
    labels = [words.classes[each] for each in words.y.tolist()]
    states = word_vectors(model, chosen, words, dictionary.reads)
    (sense,) = polysemy(states, factors_of(dictionary), labels, words.document, settings)
    y = torch.tensor([label == sense.name for label in labels])
    fold = folds_of(y, words.document, settings.outer, settings.seed)
    beside = {}
    for name, other in others.items():
        codes = {site: other.encode({site: states[site]}) for site in other.reads}
        beside[name] = nested(codes, y, words.document, fold, "factor", settings)
    found = Sensed(word, sense, beside, ())
    site, unit = found.best
    value = dictionary.encode({site: states[site]})[:, unit]
    shown = []
    for row in value.argsort(descending=True, stable=True)[:4].tolist():
        text, (begin, end) = chosen[int(words.text[row])], chosen[int(words.text[row])].spans[0]
        around = f"{text.text[max(0, begin - 40) : begin]}[[{text.text[begin:end]}]]{text.text[end : end + 40]}"
        shown.append(f"{float(value[row]):.1f} {labels[row]}: {around}")
    return Sensed(word, sense, beside, tuple(shown))
