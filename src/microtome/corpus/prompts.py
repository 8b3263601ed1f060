"""Texts that a model reads whole, each a window of its own: prompts of experiments.

They are given as they are and written nowhere; texts that are cut, halved and kept belong in `preparation`.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from microtome.core import Batch, Refusal, Role
from microtome.corpus.tokenising import Tokenizer, wrapping
from microtome.numerics.hashing import hash_parts

__all__ = ["Prompts", "prompt_batch"]


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts that a stage passes over: each a window, all of them in memory, and never cut."""

    batch: Batch

    @property
    def window(self) -> int:
        """Tokens of the longest."""
        return self.batch.ids.shape[1]

    @property
    def windows(self) -> int:
        """How many there are."""
        return len(self.batch.ids)

    @property
    def fingerprint(self) -> str:
        """A hash of ids, roles, documents and halves."""
        digest = hashlib.blake2b(digest_size=16)
        for column in (self.batch.ids, self.batch.roles, self.batch.document, self.batch.half):
            digest.update(column.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def batches(self, windows: Sequence[int], tokens_per_batch: int, device: torch.device | str = "cpu") -> Iterator[Batch]:
        """`windows` in batches of at most `tokens_per_batch` tokens, padding included (one window at least), longest first."""
        rows = torch.tensor(list(windows), dtype=torch.int64)
        lengths = (self.batch.roles.cpu() != Role.PAD).sum(1)[rows]
        rows = rows[lengths.argsort(descending=True, stable=True)]
        lengths, place = lengths.sort(descending=True).values.tolist(), 0
        while place < len(rows):
            size = max(1, tokens_per_batch // max(1, lengths[place]))
            yield self.batch.take(rows[place : place + size]).trimmed().to(device)
            place += size

    def sample(self, n: int, seed: int) -> list[int]:
        """The `n` with the lowest hash of (seed, window), in order; all where there are no more."""
        if n >= self.windows:
            return list(range(self.windows))
        return sorted(torch.argsort(hash_parts(seed, torch.arange(self.windows)), stable=True)[:n].tolist())


def prompt_batch(
    tokenizer: Tokenizer | None, texts: Sequence[str], *, context: int | None = None, device: torch.device | str = "cpu"
) -> Batch:
    """Prompts as windows, each with the special tokens that the tokenizer puts around a text, padded on the right.

    A window is a document of its own, in the discover half and without a label. `context` is the most tokens that the model reads.
    Errors: `Refusal` for no text, one string in place of several, a text without a token, one that is too long, and a missing tokenizer.
    """
    if tokenizer is None:
        raise Refusal("prompts", why="the model has no tokenizer", instead="give ids, or a checkpoint with a tokenizer.json")
    if (
        not isinstance(texts, Sequence)
        or isinstance(texts, str)
        or not texts
        or not all(isinstance(text, str) for text in texts)
    ):
        raise Refusal(f"the prompts {texts!r}", why="they are no list of texts", instead="give one or more, in a list")
    around = wrapping(tokenizer)
    found = [_read(tokenizer, text, context) for text in texts]
    shape = len(found), max(map(len, found))
    ids, roles = torch.zeros(shape, dtype=torch.int64), torch.full(shape, Role.PAD, dtype=torch.uint8)
    special = torch.tensor(sorted(around.special), dtype=torch.int64)
    for row, own in enumerate(found):
        ids[row, : len(own)] = own
        roles[row, : len(own)] = torch.where(torch.isin(own, special), int(Role.SPECIAL), int(Role.CONTENT)).to(torch.uint8)
        if not around.before:
            roles[row, 0] = Role.FIRST
    number, none = torch.arange(len(found)), torch.zeros(len(found), dtype=torch.int64)
    columns = (ids, roles, number, number, none, none.to(torch.uint8), none - 1)
    return Batch(*(column.to(device) for column in columns), extra={})


def _read(tokenizer: Tokenizer, text: str, context: int | None) -> Int[Tensor, " token"]:
    """The ids of a text."""
    try:
        bare = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    except TypeError as error:  # half of a surrogate pair
        raise Refusal(f"the prompt {text!r}", why="it is no text that can be written", instead="mend its encoding") from error
    if not bare:
        raise Refusal(f"the prompt {text!r}", why="it has no token", instead="give a text with a word")
    ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=True).ids
    if context is not None and len(ids) > context:
        why = f"it has {len(ids)} tokens, and the model reads {context}"
        raise Refusal(f"the prompt {text[:40]!r}", why=why, instead="shorten it")
    return torch.tensor(ids, dtype=torch.int64)
