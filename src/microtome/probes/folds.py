"""Labelled words on their way through a model: class moments of all units, and the vectors of some units at some words, as folds.

Windows are the texts that words were found in, numbered alike. What moments and vectors are good for is said in `class_moments` and `sparse`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import CONTENT, Batch, ExpertRows, Half, Site, State
from microtome.probes.class_moments import ClassMoments, class_moments, combined
from microtome.probes.pooling import Pooling, pooled
from microtome.probes.words import LabelledWords

__all__ = ["WordMoments", "WordMomentsRecord", "WordRows"]

_PARTS: Final = ("count", "mean", "squares")


@dataclass(frozen=True, eq=False)
class WordMomentsRecord:
    """Class moments of the words as they are labelled, and under the labels of each control task, by half."""

    task: tuple[ClassMoments, ...]
    control: tuple[tuple[ClassMoments, ...], ...]


@dataclass(frozen=True, eq=False)
class WordMoments:
    """`WordMomentsRecord` of a site. `control` has, of each control task, a label for each word.

    Memory: 32 bytes a class, unit and task.
    """

    kind: ClassVar[str] = "probes.word_moments"
    version: ClassVar[int] = 2

    site: Site
    units: int
    words: LabelledWords
    control: Int[Tensor, "draw row"]
    pooling: Pooling = "last"

    @property
    def sites(self) -> tuple[Site, ...]:
        """The one."""
        return (self.site,)

    def init(self) -> State:
        """No word."""
        shape = (1 + len(self.control), len(Half), len(self.words.classes))
        sizes = {"count": shape, "mean": (*shape, self.units), "squares": (*shape, self.units)}
        return {name: torch.zeros(size, dtype=torch.float64) for name, size in sizes.items()}

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Add the words of the batch."""
        mine, x = _vectors(self.words, values[self.site], batch, self.pooling)
        if not len(mine):
            return
        for number, labels in enumerate((self.words.y, *self.control)):
            for half in Half:
                y = torch.where(self.words.half[mine] == half, labels[mine], -1)
                found = class_moments(x, y.to(x.device), len(self.words.classes))
                _add(state, (number, int(half)), found)

    def merge(self, state: State, later: State) -> State:
        """Moments of both."""
        for number in range(1 + len(self.control)):
            for half in Half:
                place = number, int(half)
                _add(state, place, ClassMoments(*(later[name][place] for name in _PARTS)))
        return state

    def result(self, state: State) -> WordMomentsRecord:
        """The record."""
        task, *control = (
            tuple(ClassMoments(*(state[name][number, half] for name in _PARTS)) for half in Half)
            for number in range(1 + len(self.control))
        )
        return WordMomentsRecord(task, tuple(control))


@dataclass(frozen=True, eq=False)
class WordRows:
    """Activations of `units` of a site at the words `rows`, in float16, (row, unit); not a number where no window had the word.

    The state has their bits. Memory: 2 bytes a word and unit.
    """

    kind: ClassVar[str] = "probes.word_rows"
    version: ClassVar[int] = 1

    site: Site
    units: Int[Tensor, " unit"]
    words: LabelledWords
    rows: Int[Tensor, " row"]
    pooling: Pooling = "last"

    @property
    def sites(self) -> tuple[Site, ...]:
        """The one."""
        return (self.site,)

    def init(self) -> State:
        """No word."""
        none = torch.zeros(0, dtype=torch.int64)
        return {"row": none, "bits": torch.zeros(0, len(self.units), dtype=torch.int16)}

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Keep the words of the batch that are wanted."""
        mine, x = _vectors(self.words, values[self.site], batch, self.pooling)
        wanted = torch.isin(mine, self.rows)
        limit = torch.finfo(torch.float16).max
        kept = x[wanted.to(x.device)][:, self.units.to(x.device)].float().clamp(-limit, limit).half().cpu()
        state["row"] = torch.cat([state["row"], torch.searchsorted(self.rows, mine[wanted])])
        state["bits"] = torch.cat([state["bits"], kept.view(torch.int16)])

    def merge(self, state: State, later: State) -> State:
        """Words follow each other."""
        return {name: torch.cat([tensor, later[name]]) for name, tensor in state.items()}

    def result(self, state: State) -> Float[Tensor, "row unit"]:
        """In the order of `rows`."""
        found = torch.full((len(self.rows), len(self.units)), torch.nan, dtype=torch.float16)
        return found.index_copy_(0, state["row"], state["bits"].view(torch.float16))


def _vectors(
    words: LabelledWords, value: Tensor | ExpertRows, batch: Batch, pooling: Pooling
) -> tuple[Int[Tensor, " row"], Float[Tensor, "row unit"]]:
    """Which words are in the batch, if their last token counts, and their vectors."""
    assert isinstance(value, Tensor), "units inside experts have no vector at every token"
    windows = batch.window.cpu()
    mine = torch.isin(words.text, windows).nonzero()[:, 0]
    order = windows.argsort()
    window = order[torch.searchsorted(windows[order], words.text[mine])]
    counted = batch.counted(CONTENT).cpu()[window, words.last[mine]]
    mine, window = mine[counted], window[counted]
    return mine, pooled(value.flatten(2), window, words.first[mine], words.last[mine], pooling)


def _add(state: State, place: tuple[int, int], found: ClassMoments) -> None:
    whole = combined(
        ClassMoments(*(state[name][place] for name in _PARTS)), ClassMoments(*(getattr(found, n).cpu() for n in _PARTS))
    )
    for name in _PARTS:
        state[name][place] = getattr(whole, name)
