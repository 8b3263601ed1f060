"""Texts to tokens with the characters they cover, in bulk and in bounded memory.

The tokenizer is the model's own fast tokenizer, handed in by the caller: nothing here imports transformers. Cutting tokens into
windows belongs in `windows`.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from microtome.core import Refusal

__all__ = ["Piece", "Tokens", "Tokenizer", "Wrapping", "cuts", "encode", "pieces", "wrapping"]

PIECE: Final = 1 << 14
"""Characters of a document that go to the tokenizer in one string at most."""
CALL: Final = 1 << 19
"""Characters that go to the tokenizer in one call, which spreads them over its threads."""
CALL_PIECES: Final = 4096
"""Strings that go to the tokenizer in one call at most."""


@runtime_checkable
class Tokenizer(Protocol):
    """What is needed of a Hugging Face fast tokenizer."""

    @property
    def is_fast(self) -> bool:
        """Whether it knows character offsets."""
        ...

    @property
    def backend_tokenizer(self) -> Any:
        """The tokenizer of the library `tokenizers` inside."""
        ...

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of the special tokens."""
        ...

    @property
    def special_tokens_map(self) -> dict[str, Any]:
        """Names of special tokens (bos_token, unk_token, ...) and their texts."""
        ...


@dataclass(frozen=True)
class Wrapping:
    """What a tokenizer does beside splitting a text: the special tokens it puts around one, and which ids are special anywhere.

    `gap` says how a long text is cut at a space: 0 keeps the space with the second piece (most tokenizers: a space belongs to
    the word after it), 1 drops it (tokenizers that put a space before any text themselves).
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    special: frozenset[int]
    gap: int


@dataclass(frozen=True)
class Piece:
    """A stretch of document number `document`; `start` is where it begins there, in characters, `gap` the spaces left out ahead."""

    document: int
    text: str
    start: int
    last: bool
    gap: int = 0


@dataclass(frozen=True, eq=False)
class Tokens:
    """Tokens of several pieces, one after the other. `counts` are the tokens of each piece."""

    pieces: tuple[Piece, ...]
    counts: NDArray[np.int64]
    ids: NDArray[np.int32]
    char_start: NDArray[np.int32]
    char_end: NDArray[np.int32]


def wrapping(tokenizer: Tokenizer) -> Wrapping:
    """Find out by trial what the tokenizer puts around a text, and where a text may be cut.

    Errors: `Refusal` for a slow tokenizer, which knows no character offsets.
    """
    if not tokenizer.is_fast:
        raise Refusal(
            f"tokenizer {type(tokenizer).__name__}",
            why="it is a slow tokenizer, which does not say which characters a token covers",
            instead="use a checkpoint with a tokenizer.json",
        )
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    bare = backend.encode("the cat sat", add_special_tokens=False).ids
    full = backend.encode("the cat sat", add_special_tokens=True).ids
    begin = next((i for i in range(len(full) - len(bare) + 1) if full[i : i + len(bare)] == bare), None)
    if begin is None:
        raise Refusal(
            f"tokenizer {type(tokenizer).__name__}",
            why="its special tokens do not stand around the text but inside it",
            instead="use a checkpoint whose tokenizer puts special tokens at the ends only",
        )
    parted = [backend.encode(text, add_special_tokens=False).ids for text in ("the cat", " sat", "sat")]
    dropped = parted[0] + parted[1] != bare and parted[0] + parted[2] == bare
    return Wrapping(tuple(full[:begin]), tuple(full[begin + len(bare) :]), _special(tokenizer), int(dropped))


def _special(tokenizer: Tokenizer) -> frozenset[int]:
    """Ids that are special wherever they stand; the token of unknown words is not, unless it doubles as another."""
    names = tokenizer.special_tokens_map
    unknown = names.get("unk_token")
    if unknown is None or any(text == unknown for name, text in names.items() if name != "unk_token"):
        return frozenset(tokenizer.all_special_ids)
    return frozenset(tokenizer.all_special_ids) - {tokenizer.backend_tokenizer.token_to_id(str(unknown))}


def cuts(text: str, gap: int, size: int = PIECE) -> list[tuple[int, int]]:
    """Where to cut a long text: stretches of at most `size` characters that tokenise as they would in the whole.

    A cut is made at a single space between two letters or digits, where the tokenizers in use always begin a new word: their
    splitting patterns read from left to right, end a run of letters there and hold nothing that reaches over it. (With `gap` 1
    the space itself is left out, since the tokenizer puts it back.) Where a stretch has no such place, the cut is at any white
    space, and without that at `size`: there a token or two may differ from those of the whole text.

    >>> cuts("one two three", gap=0, size=9)
    [(0, 7), (7, 13)]
    """
    found, begin = [], 0
    while len(text) - begin > size:
        end, skip = _cut(text, begin, begin + size, gap)
        found.append((begin, end))
        begin = end + skip
    return [*found, (begin, len(text))]


def _cut(text: str, begin: int, end: int, gap: int) -> tuple[int, int]:
    low = begin + (end - begin) // 2
    place = text.rfind(" ", low, end)
    while place > low:
        if text[place - 1].isalnum() and text[place + 1].isalnum():
            return place, gap
        place = text.rfind(" ", low, place)
    for place in range(end - 1, low, -1):
        if text[place].isspace() and not text[place - 1].isspace():
            return place, 0
    return end, 0


def pieces(document: int, text: str, gap: int, size: int = PIECE) -> Iterator[Piece]:
    """The pieces of one document, the last one marked."""
    before = 0
    for begin, end in cuts(text, gap, size):
        yield Piece(document, text[begin:end], begin, end == len(text), begin - before)
        before = end


def encode(stream: Iterable[Piece], tokenizer: Tokenizer, characters: int = CALL) -> Iterator[Tokens]:
    """Tokenise a stream of pieces without special tokens, about `characters` characters a call.

    The tokenizer's own cutting and padding are switched off. It works on the next call while the last one's tokens are used.
    Cost: the tokenizer's, and about a tenth more on another core.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    with ThreadPoolExecutor(max_workers=1) as pool:
        ahead: tuple[list[Piece], Future[list[Any]]] | None = None
        for held in _calls(stream, characters):
            work = pool.submit(backend.encode_batch, [piece.text for piece in held], add_special_tokens=False)
            if ahead is not None:
                yield _tokens(*ahead)
            ahead = held, work
        if ahead is not None:
            yield _tokens(*ahead)


def _calls(stream: Iterable[Piece], characters: int) -> Iterator[list[Piece]]:
    held: list[Piece] = []
    size = 0
    for piece in stream:
        held.append(piece)
        size += len(piece.text)
        if size >= characters or len(held) >= CALL_PIECES:
            yield held
            held, size = [], 0
    if held:
        yield held


def _tokens(held: Sequence[Piece], work: "Future[list[Any]]") -> Tokens:
    encodings = work.result()
    lists = [encoding.ids for encoding in encodings]
    counts = np.fromiter(map(len, lists), np.int64, len(lists))
    total = int(counts.sum())
    ids = np.fromiter(itertools.chain.from_iterable(lists), np.int32, total)
    flat = itertools.chain.from_iterable(itertools.chain.from_iterable(encoding.offsets for encoding in encodings))
    spans = np.fromiter(flat, np.int32, 2 * total).reshape(total, 2)
    spans += np.repeat(np.array([piece.start for piece in held], np.int32), counts)[:, None]
    _restore_gaps(spans, held, counts)
    return Tokens(tuple(held), counts, ids, np.ascontiguousarray(spans[:, 0]), np.ascontiguousarray(spans[:, 1]))


def _restore_gaps(spans: NDArray[np.int32], held: Sequence[Piece], counts: NDArray[np.int64]) -> None:
    """Give the space that was left out ahead of a piece to its first token, which the tokenizer made with a space of its own."""
    firsts = np.cumsum(counts) - counts
    for place, (piece, count) in enumerate(zip(held, counts, strict=True)):
        if piece.gap and count:
            first = int(firsts[place])
            alone = count > 1 and spans[first + 1, 0] == spans[first, 0]
            spans[first] = piece.start - piece.gap, piece.start if alone else spans[first, 1]
