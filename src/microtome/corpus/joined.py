"""Texts joined into one and windows drawn from it anywhere: the sampling of Song & Zhong, for numbers to lay beside theirs.

Windows overlap, repeat and reach over the ends of texts, so no two halves of them are independent: all are in one half, and what
takes two halves is undefined. Windows that respect documents belong in `windows`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from microtome.core import Refusal, Role
from microtome.corpus.corpus import Corpus, open_corpus
from microtome.corpus.documents import EMPTY, Reading, problem_of, readable
from microtome.corpus.ledger import NAMED, document_rows, require_usable
from microtome.corpus.preparation import Sink, check_vocabulary
from microtome.corpus.readers import Source, documents, source_name
from microtome.corpus.tokenising import Tokenizer, encode, pieces, wrapping
from microtome.corpus.windows import ROWS, Integers, window_batch, windows_of

__all__ = ["Joined", "Stream", "prepare_joined", "starts", "stream_of"]

USED: Final = 0.9
"""The share of the stream that windows are drawn from; the paper keeps the rest for validation."""
DRAWN: Final = 8
"""Windows drawn at a time."""
SEPARATOR: Final = "\n"


@dataclass(frozen=True)
class Joined:
    """`contexts` windows of `window` tokens that begin anywhere in the joined texts, drawn with replacement after `passed` others.

    Source: Song & Zhong 2023, arXiv:2310.04861, the published code.
    """

    window: int = 512
    contexts: int = 6400
    seed: int = 1234
    passed: int = 0

    def __post_init__(self) -> None:
        if self.window < 4:
            raise Refusal(windows_of(self.window), why="there is no context in them", instead="use 4 or more, usually 512")
        if self.contexts < 1 or self.passed < 0:
            raise Refusal(
                f"{self.contexts} contexts after {self.passed}",
                why="windows are counted from 1, and those before them from 0",
                instead="use 1 or more contexts, usually 6400",
            )


@dataclass(frozen=True, eq=False)
class Stream:
    """Texts as one sequence of tokens, special ones at its ends included, which cover no characters of `text` (-1).

    `before` counts the special tokens ahead, `unused` are the documents that are no text: the name and why.
    """

    text: str
    ids: NDArray[np.int32]
    char_start: NDArray[np.int32]
    char_end: NDArray[np.int32]
    before: int
    unused: tuple[tuple[str, str], ...] = ()


def starts(tokens: int, joined: Joined) -> Integers:
    """Where windows begin in a stream of `tokens` tokens: uniform in [0, N - window), N the tokens that are used.

    The draws are those of `torch.manual_seed(seed)` and then `torch.randint(N - window, (8,))` again and again.
    Errors: `Refusal` where what is used of the stream is not longer than a window.
    """
    used = int(tokens * USED)
    if used <= joined.window:
        raise Refusal(
            windows_of(joined.window),
            why=f"the joined texts have {tokens}, of which {USED:.0%} are used",
            instead="name more text, or use shorter windows",
        )
    generator = torch.Generator().manual_seed(joined.seed)
    count = joined.passed + joined.contexts
    draws = [torch.randint(used - joined.window, (DRAWN,), generator=generator) for _ in range(-(-count // DRAWN))]
    return torch.cat(draws)[joined.passed : count].numpy()


def stream_of(source: Source, tokenizer: Tokenizer, reading: Reading, *, vocab: int | None = None) -> Stream:
    """Read every text of `source`, join them by line ends, and tokenise the whole once.

    Empty texts stay, as empty lines; those that cannot be read are left out and named.
    Errors: as of `prepare`. Memory: the joined text, and 24 bytes a token.
    """
    wraps, name = wrapping(tokenizer), source_name(source)
    texts: list[str] = []
    unused: list[tuple[str, str]] = []
    for document in documents(source, reading):
        reason = problem_of(document)
        if reason in (None, EMPTY):
            texts.append(document.text)
        else:
            unused.append((readable(document.name), str(reason)))
    named = [f"{each} ({why})" for each, why in unused[:NAMED]]
    require_usable(name, len(texts) + len(unused), len(unused), named, reading.bad_share)
    text = SEPARATOR.join(texts)
    if not text.strip():
        raise Refusal(name, why="its documents are empty", instead="name a text that is not empty")
    tokens = []
    for found in encode(pieces(0, text, wraps.gap), tokenizer):
        if vocab is not None:
            check_vocabulary(found, vocab, lambda _: name)
        tokens.append(found)
    ids, char_start, char_end = (
        np.concatenate([np.array(ahead, np.int32), *middle, np.array(behind, np.int32)])
        for ahead, middle, behind in (
            (wraps.before, [each.ids for each in tokens], wraps.after),
            ([-1] * len(wraps.before), [each.char_start for each in tokens], [-1] * len(wraps.after)),
            ([-1] * len(wraps.before), [each.char_end for each in tokens], [-1] * len(wraps.after)),
        )
    )
    return Stream(text, ids, char_start, char_end, len(wraps.before), tuple(unused))


def prepare_joined(
    source: Source,
    tokenizer: Tokenizer,
    sink: Sink,
    run: str,
    *,
    joined: Joined,
    reading: Reading,
    vocab: int | None = None,
) -> Corpus:
    """Write both tables, with one document that is all texts joined, and open them.

    The first token of a window has the role FIRST, so that no fold counts it; all others count, as in the paper.
    Errors: as of `prepare`, and `Refusal` for texts that together are not longer than a window. Then nothing is written.
    """
    stream = stream_of(source, tokenizer, reading, vocab=vocab)
    begins, name = starts(len(stream.ids), joined), source_name(source)
    windows_path = sink("windows", _windows(stream, begins, joined.window, run))
    sizes = {"tokens": len(begins) * joined.window, "windows": len(begins)}
    rows: list[dict[str, object]] = [{"name": name, "half": "discover", **sizes, "status": "used", "text": stream.text}]
    nothing = {"tokens": 0, "windows": 0, "status": "skipped"}
    rows += [{"name": each, **nothing, "reason": why} for each, why in stream.unused]
    table = document_rows([{"run": run, "document": number, **row} for number, row in enumerate(rows)])
    return open_corpus(sink("documents", iter([table])), windows_path, name=name, window=joined.window)


def _windows(stream: Stream, begins: Integers, window: int, run: str) -> Iterator[pa.RecordBatch]:
    for first in range(0, len(begins), ROWS):
        mine = begins[first : first + ROWS]
        places = (mine[:, None] + np.arange(window)).ravel()
        roles = np.full((len(mine), window), Role.CONTENT, np.uint8)
        roles[:, 0] = np.where(mine < stream.before, Role.SPECIAL, Role.FIRST)
        number, ends = np.arange(first, first + len(mine)), window * np.arange(1, len(mine) + 1)
        columns = [stream.ids[places], roles.ravel(), stream.char_start[places], stream.char_end[places]]
        yield window_batch(run, number, np.zeros(len(mine), np.int64), np.maximum(mine - stream.before, 0), ends, columns)
