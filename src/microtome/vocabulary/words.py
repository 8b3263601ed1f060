"""Which tokens a reader wants to see, and the table of all of them. Their spelling is that of `readout.words`."""

import re
from collections.abc import Sequence
from typing import Any, Final

import pyarrow as pa

__all__ = ["unreadable_tokens", "vocabulary_table"]

_UNUSED: Final = re.compile(r"\[unused_?\d+\]|<unused_?\d+>|<\|?reserved[^>]*>|<extra_id_\d+>", re.IGNORECASE)


def unreadable_tokens(tokenizer: Any, texts: Sequence[str]) -> frozenset[int]:
    """Ids of special tokens, of placeholders ([unused7]) and of rows of the embedding that no token has."""
    special = {int(index) for index in tokenizer.all_special_ids}
    special |= {int(index) for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(special | {index for index, text in enumerate(texts) if not text or _UNUSED.fullmatch(text)})


def vocabulary_table(texts: Sequence[str]) -> pa.Table:
    """Rows of the store's table `vocabulary`."""
    return pa.table({"token": pa.array(range(len(texts)), pa.int32()), "text": pa.array(texts, pa.string())})
