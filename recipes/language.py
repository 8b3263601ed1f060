"""Text as training material: a small vocabulary of its own, windows that are read once, and their noisy versions.

The noise is that of Song & Zhong: the second half of every window, or all of it, replaced by ids drawn uniformly from the vocabulary.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from microtome.core import Refusal
from microtome.corpus import Reading, Source, documents
from microtome.store import committed, fingerprint
from recipes.training import Examples

__all__ = ["LEVELS", "Language", "Level", "language", "noisy"]

Level = Literal["clean", "half random", "random"]
LEVELS: tuple[Level, ...] = ("clean", "half random", "random")
"""The paper's noise levels 0, 1 and 2."""

_HELD_OUT = 10


@dataclass(frozen=True, eq=False)
class Language:
    """Windows of a text, one token longer than what is read, so that its last token too has one to say. No window crosses documents.

    Documents of `held` are none of `windows`; `document` says of which each held window is.
    """

    windows: Int[Tensor, "window token"]
    held: Int[Tensor, "window token"]
    document: Int[Tensor, " window"]
    vocabulary: int

    def stream(self, level: Level, seed: int) -> Examples:
        """All windows once, in an order and with noise of their own for each seed."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.windows), generator=generator)
        rows = noisy(self.windows[order], level, self.vocabulary, generator)
        return Examples(rows[:, :-1], rows[:, 1:])

    def fresh(self, level: Level, seed: int) -> Examples:
        """The held windows, with noise of their own."""
        rows = noisy(self.held, level, self.vocabulary, torch.Generator().manual_seed(seed))
        return Examples(rows[:, :-1], rows[:, 1:])


def noisy(
    windows: Int[Tensor, "window token"], level: Level, vocabulary: int, generator: torch.Generator
) -> Int[Tensor, "window token"]:
    """Windows with none, the second half, or all of their tokens replaced by random ids."""
    width = windows.shape[1]
    begin = {"clean": width, "half random": width // 2, "random": 0}[level]
    random = torch.randint(vocabulary, windows.shape, generator=generator).to(windows.dtype)
    return torch.cat([windows[:, :begin], random[:, begin:]], 1)


def language(text: Source, vocabulary: int, window: int, folder: Path) -> Language:
    """Cut a text into windows of `window` tokens of a byte-pair vocabulary trained on it, every tenth document held out.

    The vocabulary is kept in `folder`: a run that continues reads the same ids.
    Errors: `Refusal` where the text has fewer than ten documents, or none that is long enough.
    """
    found = [document.text for document in documents(text, Reading()) if document.text]
    if len(found) < _HELD_OUT:
        raise Refusal("the text", why=f"it has {len(found)} documents", instead=f"give it {_HELD_OUT} or more")
    held = found[::_HELD_OUT]
    read = [each for place, each in enumerate(found) if place % _HELD_OUT]
    tokenizer = _tokenizer(read, vocabulary, folder)
    windows, _ = _cut(tokenizer, read, window + 1)
    held_windows, document = _cut(tokenizer, held, window + 1)
    if not len(windows) or not len(held_windows):
        raise Refusal(
            f"windows of {window} tokens",
            why="no document is that long",
            instead="give it longer documents, or shorter windows",
        )
    return Language(windows, held_windows, document, tokenizer.get_vocab_size())


def _tokenizer(texts: list[str], vocabulary: int, folder: Path) -> Tokenizer:
    """Byte-level byte-pair encoding without special tokens, trained on `texts` unless that was done before."""
    path = folder / f"tokenizer-{fingerprint([vocabulary, *texts])[:16]}.json"
    if not path.exists():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(texts, trainer)
        folder.mkdir(parents=True, exist_ok=True)
        with committed(path) as temporary:
            tokenizer.save(str(temporary))
    return Tokenizer.from_file(str(path))


def _cut(tokenizer: Tokenizer, texts: list[str], length: int) -> tuple[Int[Tensor, "window token"], Int[Tensor, " window"]]:
    """Windows side by side within each text, and which text each is of; what is left over at its end is not used."""
    pieces, document = [torch.zeros(0, length, dtype=torch.int32)], []
    for number, text in enumerate(texts):
        ids = torch.tensor(tokenizer.encode(text).ids, dtype=torch.int32)
        whole = len(ids) // length
        pieces.append(ids[: whole * length].reshape(whole, length))
        document += [number] * whole
    return torch.cat(pieces), torch.tensor(document, dtype=torch.int64)
