"""Yun et al. 2021, arXiv:2103.15949: the texts, the states of all their tokens, and the codes of these states by several dictionaries.

Passages of the Brown corpus, whose words have tags, and of presidential speeches, which have none. What is measured of codes belongs in the other
modules. Additional axes: `place` counts the sites of a dictionary, `entry` the codes above 0.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from microtome.capture import fold_batch
from microtome.core import CONTENT, Batch, Half, Refusal
from microtome.corpus import prompt_batch
from microtome.corpus.tokenising import wrapping
from microtome.factors.basis import factors_of
from microtome.factors.dictionary import Dictionary
from microtome.factors.harvest import Harvest, Harvested, Rows
from microtome.factors.plan import shared_sites
from microtome.model import Model
from microtome.numerics import hash_parts, hash_text, uniform
from microtome.probes import LabelledText, merged, read_tagged

__all__ = [
    "Codes",
    "States",
    "Text",
    "codes_of",
    "halves_of",
    "mixed",
    "passages",
    "read_text",
    "speech_passages",
    "states_of",
    "untagged",
]

_WORD: Final = re.compile(r"[\w'-]+|[^\w\s]")
_AT_ONCE: Final = 4096
_BATCH: Final = 16


@dataclass(frozen=True, eq=False)
class Text:
    """Passages as a model reads them, a window each: the document and half of each, and which word each token belongs to (-1: none)."""

    passages: tuple[LabelledText, ...]
    batch: Batch
    word: Int64[Tensor, "window token"]

    @cached_property
    def tokens(self) -> int:
        """Content tokens of all passages."""
        return int(self.batch.counted(CONTENT).sum())


@dataclass(frozen=True, eq=False)
class States:
    """States of all content tokens, in the order of windows and positions, with the word and the sentence of each (sentences are numbered over all windows)."""

    text: Text
    harvested: Harvested
    rows: Rows
    word: Int64[Tensor, " row"]
    sentence: Int64[Tensor, " row"]

    @property
    def confirm(self) -> Bool[Tensor, " row"]:
        """Which tokens are of documents that chose and taught nothing."""
        return self.rows.half == int(Half.CONFIRM)

    @cached_property
    def tagged(self) -> Bool[Tensor, " row"]:
        """Which tokens are of passages whose words have tags."""
        return torch.tensor([bool(each.labels[0]) for each in self.text.passages])[self.rows.window.long()]

    def truths(self, holds: Sequence[Sequence[int]]) -> Int64[Tensor, " row"]:
        """For each token what a list over passages and their words says of its word; -1 where there is none."""
        longest = max(map(len, holds))
        table = torch.full((len(holds), longest + 1), -1, dtype=torch.int64)  # the last column is that of no word
        for window, own in enumerate(holds):
            table[window, : len(own)] = torch.tensor(own, dtype=torch.int64)
        return table[self.rows.window.long(), self.word]

    def context(self, row: int, around: int = 9) -> str:
        """A token in what stands around it, in double brackets."""
        own = self.text.passages[int(self.rows.window[row])]
        word = int(self.word[row])
        if word < 0:
            return "[[ ]]"
        begin, end = own.spans[word]
        low, high = own.spans[max(0, word - around)][0], own.spans[min(len(own.spans) - 1, word + around)][1]
        return f"{own.text[low:begin]}[[{own.text[begin:end]}]]{own.text[end:high]}"


@dataclass(frozen=True, eq=False)
class Codes:
    """Codes above 0 of all tokens at one place, ordered by factor and, within a factor, from the largest down; ties by token."""

    row: Int64[Tensor, " entry"]
    unit: Int64[Tensor, " entry"]
    value: Float[Tensor, " entry"]
    rows: int
    units: int

    @staticmethod
    def of(
        row: Int64[Tensor, " entry"], unit: Int64[Tensor, " entry"], value: Float[Tensor, " entry"], rows: int, units: int
    ) -> "Codes":
        """Put them in order."""
        order = torch.from_numpy(np.lexsort((row.numpy(), -value.numpy(), unit.numpy())))
        return Codes(row[order], unit[order], value[order], rows, units)

    def only(self, kept: Bool[Tensor, " row"]) -> "Codes":
        """Those of some tokens; tokens keep their numbers."""
        there = kept[self.row]
        return replace(self, row=self.row[there], unit=self.unit[there], value=self.value[there])

    def factor(self, unit: int) -> tuple[Int64[Tensor, " some"], Float[Tensor, " some"]]:
        """The tokens at which a factor is active, and its codes, from the largest down."""
        low, high = torch.searchsorted(self.unit, torch.tensor([unit, unit + 1])).tolist()
        return self.row[low:high], self.value[low:high]

    @cached_property
    def rank(self) -> Int64[Tensor, " entry"]:
        """The place of each code among those of its factor, from 0."""
        return torch.arange(len(self.unit)) - torch.searchsorted(self.unit, self.unit)

    def importance(self, n: int) -> Float[Tensor, " unit"]:
        """The mean of each factor's n largest codes, 0 where there are fewer: the source work's importance."""
        first = self.rank < n
        return torch.zeros(self.units).index_add_(0, self.unit[first], self.value[first].float()) / n


def passages(brown: Path, words: int) -> list[LabelledText]:
    """All of the Brown corpus in passages of at least so many words, with their full tags.

    Errors: `Refusal` for a folder without the corpus.
    """
    files = sorted(brown.glob("c[a-r][0-9][0-9]"))
    if not files:
        raise Refusal(
            f"the Brown corpus in {brown.name}", why="it has no file such as ca01", instead="name the folder of its texts"
        )
    return [each for path in files for each in merged(read_tagged(path), words)]


def untagged(document: str, text: str) -> LabelledText:
    """A text whose words have empty labels."""
    found = list(_WORD.finditer(text))
    return LabelledText(
        document, text, tuple(each.group() for each in found), ("",) * len(found), tuple(each.span() for each in found)
    )


def speech_passages(folder: Path, count: int, words: int) -> list[LabelledText]:
    """The opening of so many speeches, evenly over all; none for 0."""
    files = sorted(folder.glob("*.txt"))
    step = max(1, len(files) // max(1, count))
    return [untagged(path.stem, " ".join(path.read_text("utf-8").split()[:words])) for path in files[::step][:count]]


def halves_of(documents: Sequence[str]) -> dict[str, int]:
    """Documents dealt to the halves by the rank of the hash of their names."""
    return {name: rank % 2 for rank, name in enumerate(sorted(set(documents), key=lambda name: (hash_text(name), name)))}


def read_text(model: Model, chosen: Sequence[LabelledText]) -> Text:
    """Passages as windows, longest first.

    Errors: those of `prompt_batch`.
    """
    assert model.tokenizer is not None, "prompts need one, and say so"
    wrapping(model.tokenizer)  # nothing is padded or cut
    lengths = [len(each.text) for each in chosen]
    ordered = tuple(chosen[index] for index in sorted(range(len(chosen)), key=lambda index: -lengths[index]))
    batch = prompt_batch(model.tokenizer, [each.text for each in ordered], context=model.shape.context)
    names = [each.document for each in ordered]
    number, half = {name: index for index, name in enumerate(dict.fromkeys(names))}, halves_of(names)
    batch = replace(
        batch,
        document=torch.tensor([number[name] for name in names]),
        half=torch.tensor([half[name] for name in names], dtype=torch.uint8),
    )
    word = torch.full(batch.ids.shape, -1, dtype=torch.int64)
    for window, each in enumerate(ordered):
        offsets = np.array(model.tokenizer.backend_tokenizer.encode(each.text, add_special_tokens=True).offsets, np.int64)
        spans = np.array(each.spans, np.int64)
        place = np.searchsorted(spans[:, 0], offsets[:, 1] - 1, side="right") - 1
        inside = (offsets[:, 1] > offsets[:, 0]) & (place >= 0) & (offsets[:, 0] < spans[place.clip(0), 1])
        word[window, : len(offsets)] = torch.from_numpy(np.where(inside, place, -1))
    return Text(ordered, batch, word)


def mixed(text: Text, seed: int = 0) -> Text:
    """The same windows with their content tokens in an order drawn at random; each token keeps the word that it is of."""
    place = torch.arange(text.batch.ids.shape[1])
    movable = text.batch.counted(CONTENT)
    drawn = uniform(hash_parts(seed, text.batch.window[:, None], place[None, :]))
    into = torch.where(movable, place.double(), torch.inf).argsort(dim=1, stable=True)
    out_of = torch.where(movable, drawn, torch.inf).argsort(dim=1, stable=True)
    within = place < movable.sum(1, keepdim=True)
    source = place.expand_as(text.word).scatter(1, into, torch.where(within, out_of, into))
    return replace(text, batch=replace(text.batch, ids=text.batch.ids.gather(1, source)), word=text.word.gather(1, source))


def states_of(model: Model, text: Text) -> States:
    """States of all content tokens at the six places of a shared dictionary.

    Cost: one pass. Memory: 12 d_model bytes a token.
    """
    batch = text.batch
    harvest = Harvest(shared_sites(model.shape))
    state = harvest.init()
    for some in torch.arange(len(batch.ids)).split(_BATCH):
        fold_batch(model, batch.take(some).trimmed().to(model.device), {"states": harvest}, {"states": state})
    harvested = harvest.appended([state])
    parts = list(harvested.rows(0))
    joined = Rows(
        *(torch.cat([getattr(part, name) for part in parts]) for name in ("states", "id", "window", "position", "half"))
    )
    rows = joined.take(((joined.window.long() << 24) + joined.position.long()).argsort())
    word = text.word[rows.window.long(), rows.position.long()]
    ends = [np.cumsum([0, *(each in {".", "?", "!", ";"} for each in own.words[:-1])]) for own in text.passages]
    first = np.cumsum([0, *(int(each[-1]) + 1 for each in ends[:-1])])
    sentences = torch.cat([torch.from_numpy(each + begin) for each, begin in zip(ends, first, strict=True)])
    begin = torch.tensor(np.cumsum([0, *(len(own.words) for own in text.passages[:-1])]))
    return States(text, harvested, rows, word, sentences[begin[rows.window.long()] + word.clamp(min=0)])


def codes_of(dictionary: Dictionary, rows: Rows) -> tuple[Codes, ...]:
    """Codes of all tokens at all places of a dictionary; massive states have none.

    Cost: a code of each state. Memory: 20 bytes for each code above 0.
    """
    found = []
    for place, basis in enumerate(factors_of(dictionary)):
        parts = []
        for some in torch.arange(len(rows.id)).split(_AT_ONCE):
            codes = basis.encode({basis.site: rows.states[some, place][None].float()})[0]
            row, unit = (codes > 0).nonzero(as_tuple=True)
            parts.append((some[row], unit, codes[row, unit].float()))
        row, unit, value = (torch.cat(each) for each in zip(*parts, strict=True))
        found.append(Codes.of(row, unit, value, len(rows.id), dictionary.units))
    return tuple(found)
