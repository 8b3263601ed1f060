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
    ids = tokenizer.get_vocab().values()
    largest = max(ids, default=-1)
    if largest >= vocab or len(ids) < _FEWEST * vocab:
        raise Refusal(
            f"tokenizer in {where}",
            why=f"it has {len(ids)} tokens with ids up to {largest}, and the model embeds {vocab}: it is another model's",
            instead="put the tokenizer files of this model beside its weights",
        )
