"""From a source to the tables `documents` and `windows` of a run: read, tokenise, cut, count, refuse.

One pass over the source, in memory that does not grow with it. Writing files is the caller's business, who hands in a `Sink`;
reading the result back belongs in `corpus`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from microtome.core import Refusal
from microtome.corpus.corpus import Corpus, open_corpus
from microtome.corpus.documents import Reading
from microtome.corpus.ledger import Ledger, spooled
from microtome.corpus.readers import Source, documents, source_name
from microtome.corpus.tokenising import Tokenizer, Tokens, encode, wrapping
from microtome.corpus.windows import Cutting, window_rows

__all__ = ["Sink", "check_vocabulary", "prepare"]

Sink = Callable[[str, Iterator[pa.RecordBatch]], Path]
"""Writes the rows of a table, by its name, and says where: whole or, if the rows end in an exception, not at all."""

_AS_USUAL: Final = Reading()
_USUAL_CUT: Final = Cutting()


def prepare(
    source: Source,
    tokenizer: Tokenizer,
    sink: Sink,
    run: str,
    *,
    reading: Reading = _AS_USUAL,
    cutting: Cutting = _USUAL_CUT,
    seed: int = 0,
    vocab: int | None = None,
) -> Corpus:
    """Cut the texts of `source` into windows, write both tables through `sink`, and open the result.

    Unusable documents (empty, fewer than `cutting.fewest` tokens, undecodable, binary) are counted, named and skipped. `vocab`
    is the number of rows of the model's embedding, against which tokens are checked.
    Errors: `Refusal` where nothing is usable, where more than one document and more than `reading.bad_share` of them are
    unusable, where a token is outside the vocabulary, and whatever the readers refuse. Then nothing is written.
    Cost: the tokenizer's, and about a fifth more. Memory: one document, one tokenizer call, one row group.
    """
    name = source_name(source)
    wraps = wrapping(tokenizer)
    with spooled() as spool:
        ledger = Ledger(name, run, cutting.fewest, seed, spool)

        def stream() -> Iterator[Tokens]:
            for tokens in encode(ledger.pieces(documents(source, reading), wraps.gap), tokenizer):
                if vocab is not None:
                    check_vocabulary(tokens, vocab, ledger.name_of)
                yield tokens
                ledger.finish({piece.document for piece in tokens.pieces if piece.last})

        def windows() -> Iterator[pa.RecordBatch]:
            yield from window_rows(stream(), wraps, cutting, run, ledger.tally)
            ledger.close()
            ledger.check(reading.bad_share)

        windows_path = sink("windows", windows())
        documents_path = sink("documents", ledger.rows())
    return open_corpus(documents_path, windows_path, name=name, window=cutting.window)


def check_vocabulary(tokens: Tokens, vocab: int, name_of: Callable[[int], str]) -> None:
    """Refuse a token outside the vocabulary; `name_of` names the document of a number."""
    if len(tokens.ids) and int(tokens.ids.max()) >= vocab:
        place = int(np.searchsorted(np.cumsum(tokens.counts), int(tokens.ids.argmax()), side="right"))
        raise Refusal(
            f"tokens of {name_of(tokens.pieces[place].document)}",
            why=f"the tokenizer gives token {int(tokens.ids.max())}, and the model's vocabulary has {vocab} entries",
            instead="use the tokenizer that belongs to this model",
        )
