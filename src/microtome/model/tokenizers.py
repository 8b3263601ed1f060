"""The tokenizer beside a checkpoint: opened, and refused where it is another model's.

Turning text into windows belongs in `corpus`.
"""

from pathlib import Path
from typing import Any, Final

from microtome.core import Refusal

__all__ = ["check_tokenizer", "open_tokenizer"]

_FILES: Final = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer_config.json",
)

_NAMED: Final = 8
"""Up to so many tokens without an embedding are named: then they were added, and the rest may be right."""

_FEWEST: Final = 0.75
"""A tokenizer may have fewer tokens than the embedding has rows, which are often rounded up, but not fewer than this share."""


def open_tokenizer(folder: Path, vocab: int) -> Any:
    """The tokenizer in `folder` for an embedding of `vocab` rows, or None where the folder has none.

    Errors: `Refusal` for a tokenizer that does not open, or does not fit.
    """
    if not any((folder / name).is_file() for name in _FILES):
        return None
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers raises the bare class
        raise Refusal(
            f"tokenizer in {folder}",
            why=f"it does not open: {str(error).partition(chr(10))[0]}",
            instead="copy the tokenizer files of this model again",
        ) from error
    check_tokenizer(tokenizer, vocab, str(folder))
    return tokenizer


def check_tokenizer(tokenizer: Any, vocab: int, where: str) -> None:
    """Refuse a tokenizer whose ids do not fit an embedding of `vocab` rows: it belongs to another model."""
    tokens = tokenizer.get_vocab()
    outside = sorted(token for token, index in tokens.items() if index >= vocab)
    if 0 < len(outside) <= _NAMED:
        raise Refusal(
            f"tokenizer in {where}",
            why=f"the model embeds ids below {vocab}, and these tokens have larger ones: {', '.join(outside)}",
            instead="put the tokenizer files of this model beside its weights, or take these tokens out",
        )
    if outside or len(tokens) < _FEWEST * vocab:
        raise Refusal(
            f"tokenizer in {where}",
            why=f"it has {len(tokens)} tokens, and the model embeds {vocab}: it is another model's",
            instead="put the tokenizer files of this model beside its weights",
        )
