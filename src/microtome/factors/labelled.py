"""Labelled words for probes of factors: their states as folds of a pass over the labelled text, and what few factors tell of them.

What a probe is put beside is said in `probing`, how label files are read in `probes`.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from microtome.capture.lens import Results, Stage
from microtome.core import Fold, Refusal, Site
from microtome.corpus import Prompts, prompt_batch
from microtome.factors.dictionary import Dictionary
from microtome.factors.evaluation import Stat
from microtome.factors.numbers import Numbers
from microtome.factors.patterns import TURNED, Answers, Occurrences, agreement
from microtome.factors.polysemy import Sense
from microtome.factors.probing import probe_stats, probed
from microtome.factors.senses import Asked, ambiguous, senses
from microtome.model import Model
from microtome.model.selection import vector_width
from microtome.numerics import hash_parts
from microtome.probes.folds import WordRows
from microtome.probes.labels import LabelledText, brown_class, distinct, merged, read_labels
from microtome.probes.words import LabelledWords, aligned
from microtome.store import fingerprint

__all__ = ["LabelledStates"]

_BROWN: Final = frozenset({"at", "nn", "np", "in", "jj", "vb"})
_FEWEST: Final = 50
"""Words that a label must have."""
_TOGETHER: Final = 150
_BY_LABELS: Final = "unexplained by labels"
_SALT: Final = 0x6C61626C
_WORDS: Final = 4096
"""Words whose states are kept, at most."""
_LABELS: Final = 6
"""Labels that are probed for: the commonest."""


@dataclass(frozen=True, eq=False)
class LabelledStates:
    """Texts with labelled words, what they are for each model, and the words whose labels are told apart, where they are `named`."""

    writer: str
    texts: tuple[LabelledText, ...]
    named: tuple[str, ...] = ()

    @staticmethod
    def read(path: Path, writer: str, named: tuple[str, ...] = ()) -> "LabelledStates":
        """A file or folder of columns of the CoNLL kind, or of word/TAG; tags of the Brown corpus by their classes.

        Errors: `Refusal` as of `read_labels`, and where no label has 50 words.
        """
        texts = read_labels(path)
        if {label for text in texts for label in text.labels} >= _BROWN:
            texts = read_labels(path, brown_class)
        once = distinct(texts)
        if max(Counter(label for text in once for label in text.labels).values(), default=0) < _FEWEST:
            raise Refusal(f"labels in {path.name}", why=f"no label has {_FEWEST} words", instead="give more labelled text")
        return LabelledStates(writer, tuple(once), named)

    @cached_property
    def fingerprint(self) -> str:
        """Of all texts and labels, and of the words that are named."""
        return fingerprint((self.texts, self.named))

    @cached_property
    def _known(self) -> dict[str, tuple[LabelledWords, Prompts]]:
        return {}

    def _for(self, model: Model) -> tuple[LabelledWords, Prompts]:
        """The words, and the windows that have them."""
        if model.fingerprint not in self._known:
            context = model.shape.context
            texts = merged(self.texts, min(_TOGETHER, (context or 4 * _TOGETHER) // 4))
            words = aligned(model.tokenizer, texts, fewest=_FEWEST)
            kept = _needed(words, self.named)
            words = _of_texts(words, kept)
            read = [texts[number].text for number in kept.tolist()]
            windows = Prompts(prompt_batch(model.tokenizer, read, context=context))
            self._known[model.fingerprint] = words, windows
        return self._known[model.fingerprint]

    def over(self, model: Model) -> Prompts:
        """The labelled text as windows. Errors: `Refusal` as of `aligned`."""
        return self._for(model)[1]

    def folds(self, model: Model, sites: Sequence[Site], everywhere: Sequence[Site], seed: int) -> dict[str, Fold]:
        """States of a sample of the words at each site, and `everywhere` those of words that have several labels."""
        words, rows = self._for(model)[0], self._rows(model, seed)
        found: dict[str, Fold] = {self._named(site): _states(model, site, words, rows) for site in sites}
        asked = ambiguous(words, seed, self.named)
        if asked:
            every = _together(asked)
            found |= {self._named(site, "senses"): _states(model, site, words, every) for site in everywhere}
        return found

    def states(self, results: Results, stage: Stage, site: Site) -> Float[Tensor, "row d_model"]:
        """What the fold of a site found."""
        return results.of(stage, self._named(site)).float()

    def probe(
        self,
        dictionary: Dictionary,
        read: Mapping[Site, Float[Tensor, "row d_model"]],
        site: Site,
        model: Model,
        seed: int,
    ) -> Numbers:
        """Probes of 1, 2 and 5 factors for each of the six commonest labels, beside dense ones and others; how many factors no label explains."""
        words, rows = self._for(model)[0], self._rows(model, seed)
        there = ~torch.stack([x.isnan().any(1) for x in read.values()]).any(0)
        rows, read = rows[there], {at: x[there] for at, x in read.items()}
        codes = dictionary.encode(read)
        (states, *_) = dictionary.scaled(read).values()
        y, half, text = (each[rows] for each in (words.y, words.half, words.text))
        tokens = Occurrences(words.kind[rows], text, words.first[rows], half)
        parts = [Numbers.at(site, *_unexplained(codes, tokens, Answers("label", words.classes, y), seed))]
        common = [label for label, _ in Counter(y.tolist()).most_common(_LABELS)]
        for label in common:
            name = words.classes[label]
            try:
                own, controls = probe_stats(name, probed(codes, states, y == label, half, text, seed=seed))
            except Refusal as refusal:
                parts.append(Numbers.undefined((f"probe {name}",), refusal.why))
                continue
            parts.append(Numbers.at(site, own, controls))
        return Numbers.joined(parts)

    def senses(
        self, dictionary: Dictionary, results: Results, stage: Stage, model: Model, seed: int
    ) -> list[tuple[str, Sense | str]]:
        """What tells the labels of words that have several, or why nothing does."""
        words = self._for(model)[0]
        asked = ambiguous(words, seed, self.named)
        if dictionary.arrangement != "shared":
            return [(each.word, f"sites of a {dictionary.arrangement} have no codes of their own") for each in asked]
        found: list[tuple[str, Sense | str]] = []
        read = {site: results.of(stage, self._named(site, "senses")).float() for site in dictionary.reads if asked}
        for each in asked:
            mine = torch.searchsorted(_together(asked), each.rows)
            there = {site: x[mine] for site, x in read.items()}
            try:
                found += [(each.word, sense) for sense in senses(dictionary, words, each, there)]
            except Refusal as refusal:
                found.append((each.word, f"{refusal.what}: {refusal.why}"))
        return found

    def _rows(self, model: Model, seed: int) -> Int64[Tensor, " row"]:
        words = self._for(model)[0]
        return torch.isin(words.text, _some_texts(words, seed)).nonzero()[:, 0]

    def _named(self, site: Site, what: str = "words") -> str:
        return f"{self.writer}.{what}.{site}"


def _unexplained(
    codes: Float[Tensor, "row unit"], tokens: Occurrences, answers: Answers, seed: int
) -> tuple[dict[str, Stat], dict[str, dict[str, Stat]]]:
    """The share of active factors that no label explains, by F1 on held-out documents, beside labels that were turned round in their texts."""
    try:
        row, unit = (codes > 0).nonzero(as_tuple=True)
        found = agreement((row, unit), codes.shape[1], tokens, [answers], seed=seed)
    except Refusal as refusal:
        return {_BY_LABELS: Stat(math.nan, undefined=refusal.why)}, {}
    return {_BY_LABELS: Stat(found.unexplained())}, {TURNED: {_BY_LABELS: Stat(found.unexplained_by_chance())}}


def _needed(words: LabelledWords, named: tuple[str, ...]) -> Int64[Tensor, " text"]:
    """The texts that are read: as many, by hash, as have the words whose states are kept, and those of words with several labels."""
    asked = (words.text[each.rows] for each in ambiguous(words, named=named))
    return torch.cat([_some_texts(words, _SALT), *asked]).unique()


def _some_texts(words: LabelledWords, seed: int) -> Int64[Tensor, " text"]:
    """Whole texts, drawn by hash, until there are as many words as are kept."""
    count = torch.bincount(words.text)
    order = hash_parts(seed, torch.arange(len(count))).argsort(stable=True)
    return order[: int((count[order].cumsum(0) < _WORDS).sum()) + 1]


def _of_texts(words: LabelledWords, kept: Int64[Tensor, " text"]) -> LabelledWords:
    """The words of some texts, which are numbered anew."""
    mine = torch.isin(words.text, kept)
    rows = {name: getattr(words, name)[mine] for name in ("text", "first", "last", "y", "document", "half", "kind")}
    spelled = tuple(words.words[row] for row in mine.nonzero()[:, 0].tolist())
    return replace(words, **{**rows, "text": torch.searchsorted(kept, rows["text"])}, words=spelled)


def _together(asked: Sequence[Asked]) -> Int64[Tensor, " row"]:
    """Rows of all words, in order."""
    return torch.cat([each.rows for each in asked]).sort().values


def _states(model: Model, site: Site, words: LabelledWords, rows: Int64[Tensor, " row"]) -> WordRows:
    return WordRows(site, torch.arange(vector_width(model, site)), words, rows)
