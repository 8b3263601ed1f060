"""Of which documents a dictionary has learnt, so that it is not judged by them.

Halves of a text follow from the text, the seed, and, of few documents, from which others there are. So the confirm half of one text may have
documents that a dictionary has learnt from in another. How a dictionary is judged belongs in `evaluation_lens`.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pyarrow.parquet as pq
import torch
from jaxtyping import Bool
from torch import Tensor

from microtome.core import Batch, Half, Refusal
from microtome.corpus import Corpus
from microtome.factors.dictionary import Dictionary
from microtome.factors.lens import FactorsLens
from microtome.numerics import hash_parts
from microtome.store import fingerprint, read_manifest

__all__ = ["JUDGE", "HeldOut", "LearntFrom", "held_out", "learnt_from"]

JUDGE: Final = "evaluation"
"""Who writes what dictionaries are found to be worth. Lenses that make one write as `factors`, or `factors-NAME`, so that none has this name."""


@dataclass(frozen=True)
class LearntFrom:
    """The text that a dictionary was learnt on: its fingerprint, and digests of the documents of which it has seen something."""

    corpus: str
    documents: frozenset[str]


@dataclass(frozen=True, eq=False)
class HeldOut:
    """A text as it is judged by: windows of documents that were learnt from are in the discover half, wherever they were.

    Errors: `Refusal` where nothing is left to judge by.
    """

    corpus: Corpus
    learnt: Bool[Tensor, " window"]

    @property
    def window(self) -> int:
        """Tokens in a window, at most."""
        return self.corpus.window

    @property
    def windows(self) -> int:
        """How many there are."""
        return self.corpus.windows

    @property
    def fingerprint(self) -> str:
        """That of the text, and of what was moved."""
        return fingerprint((self.corpus.fingerprint, self.learnt)) if bool(self.learnt.any()) else self.corpus.fingerprint

    def batches(self, windows: Sequence[int], tokens_per_batch: int, device: torch.device | str = "cpu") -> Iterator[Batch]:
        """Some of the windows, each once, as the text gives them."""
        for batch in self.corpus.batches(windows, tokens_per_batch, device):
            moved = self.learnt[batch.window.cpu()].to(batch.half.device)
            yield replace(batch, half=batch.half.masked_fill(moved, int(Half.DISCOVER)))

    def sample(self, n: int, seed: int) -> list[int]:
        """`n` of them, drawn by hash, in order; half of them, where there are as many, of what no dictionary has learnt from."""
        if n >= self.windows or not bool(self.learnt.any()):
            return self.corpus.sample(n, seed)
        order = hash_parts(seed, torch.arange(self.windows)).argsort(stable=True)
        free, learnt = order[~self.learnt[order]], order[self.learnt[order]]
        few = max(n // 2, n - len(learnt))
        drawn = torch.cat([free[:few], learnt[: n - min(few, len(free))]])
        return sorted(drawn.tolist())


def held_out(corpus: Corpus, learnt: Iterable[LearntFrom]) -> HeldOut:
    """The text, with documents that one of several dictionaries has learnt from in its discover half.

    Of the very text that a dictionary was learnt on the halves are the same, and nothing is moved.
    Errors: `Refusal` where all documents of the confirm half were learnt from.
    Cost: where texts differ, one read of the documents.
    """
    others = [each for each in learnt if each.corpus != corpus.fingerprint]
    seen = frozenset[str]().union(*(each.documents for each in others))
    of_windows = corpus.documents_of_windows()
    if not seen:
        return HeldOut(corpus, torch.zeros(corpus.windows, dtype=torch.bool))
    table = pq.read_table(corpus.paths[0], columns=["text", "half"])
    texts, halves = table.column("text").to_pylist(), table.column("half").to_pylist()
    known = torch.tensor([text is not None and _digest(text) in seen for text in texts])
    left = torch.tensor([half is not None and half != Half.DISCOVER.name.lower() for half in halves]) & ~known
    if not bool(left[of_windows].any()):
        why = "of every document of its confirm half a dictionary has learnt something"
        instead = "give text that it has not seen, or the one that it was learnt on, with the same seed"
        raise Refusal("this text to judge by", why=why, instead=instead)
    return HeldOut(corpus, known[of_windows])


def learnt_from(path: Path, dictionary: Dictionary) -> LearntFrom | None:
    """What a dictionary in an atlas (`path` is its folder, or the file in it) was learnt from there; None where that is not known.

    Cost: a read of the atlas's documents.
    """
    folder = path if path.is_dir() else path.absolute().parent.parent
    if not (folder / "atlas.json").is_file():
        return None
    runs, coded = read_manifest(folder).runs, FactorsLens(given=dictionary)
    for file in sorted((folder / "tables" / "dictionaries").glob("*.parquet")):
        if file.name.split(".")[0] == JUDGE:
            continue
        for row in pq.read_table(file, columns=["run", "name", "file"]).to_pylist():
            card = runs.get(row["run"])
            if row["name"] != dictionary.name or card is None or card.corpus is None or row["file"] not in card.files:
                continue
            if card.given.get(coded.name) == coded.fingerprint:  # it was there before that run
                continue
            return LearntFrom(card.corpus["fingerprint"], frozenset(_learnt(folder, row["run"])))
    return None


def _learnt(folder: Path, run: str) -> Iterator[str]:
    for file in sorted((folder / "tables" / "documents").glob("*.parquet")):
        for batch in pq.ParquetFile(file).iter_batches(64, columns=["run", "half", "text"]):
            for row in batch.to_pylist():
                if row["run"] == run and row["text"] is not None and row["half"] not in (None, Half.CONFIRM.name.lower()):
                    yield _digest(row["text"])


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
