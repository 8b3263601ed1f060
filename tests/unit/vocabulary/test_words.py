"""Tokens as text, for each kind of tokenizer."""

from types import SimpleNamespace

import pytest

from microtome.vocabulary.words import quoted, token_texts, unreadable_tokens, vocabulary_table
from tests.toys import decoder_tokenizer, encoder_tokenizer


class Pieces:
    """A tokenizer that is a list of pieces."""

    def __init__(self, pieces: list[str], special: tuple[int, ...] = ()) -> None:
        self.pieces = pieces
        self.all_special_ids = list(special)
        self.added_tokens_decoder = {index: SimpleNamespace(special=True) for index in special}

    def __len__(self) -> int:
        return len(self.pieces)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.pieces[index] for index in ids]


def test_byte_level_pieces_become_utf8_and_spaces_are_spaces() -> None:
    texts = token_texts(Pieces(["\u0120his", "caf\u00c3\u00a9", "\u00e2\u0122", "\u010a", "<|end|>"]), 5)
    assert texts == [" his", "café", "\\xe2\\x80", "\n", "<|end|>"]


def test_real_byte_level_tokenizer_agrees_with_its_own_decoding() -> None:
    tokenizer = decoder_tokenizer()
    texts = token_texts(tokenizer, len(tokenizer))
    for word in ("The", " river", " holds", "."):
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        assert "".join(texts[index] for index in ids) == word


def test_sentence_pieces_and_word_pieces() -> None:
    assert token_texts(Pieces(["\u2581his", "self", "<0x0A>"]), 3) == [" his", "self", "<0x0A>"]
    assert token_texts(Pieces(["his", "##self"]), 2) == ["his", "##self"]


def test_rows_of_the_embedding_without_a_token_are_empty_and_unreadable() -> None:
    tokenizer = Pieces(["[CLS]", "[unused7]", "his", "<unused12>", "un"], special=(0,))
    texts = token_texts(tokenizer, 7)
    assert texts[5:] == ["", ""]
    assert unreadable_tokens(tokenizer, texts) == {0, 1, 3, 5, 6}
    table = vocabulary_table(texts)
    assert table["token"].to_pylist() == list(range(7))
    assert table["text"].to_pylist() == texts


def test_special_tokens_of_a_real_tokenizer_are_unreadable() -> None:
    tokenizer = encoder_tokenizer()
    texts = token_texts(tokenizer, len(tokenizer))
    hidden = {texts[index] for index in unreadable_tokens(tokenizer, texts)}
    assert {"[CLS]", "[SEP]", "[PAD]", "[MASK]"} <= hidden
    assert " river" not in hidden


@pytest.mark.parametrize(
    ("texts", "shown"),
    [
        ([" up", "up", " Up", "ups", "UP"], "‘up’, ‘Up’, ‘ups’"),
        (["\n", " ", " " * 8], "‘\\n’, ‘ ’, ‘8 spaces’"),
        (["one"], "‘one’"),
    ],
)
def test_words_are_quoted_once_each(texts, shown) -> None:
    assert quoted(texts) == shown
