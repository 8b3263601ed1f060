"""Tokens as text, for each kind of tokenizer, and how a sentence names them."""

import pytest

from microtome.readout import is_whole, named, quoted, texts_of
from tests.toys import decoder_tokenizer


class Pieces:
    """A tokenizer that is a list of pieces."""

    def __init__(self, pieces: list[str]) -> None:
        self.pieces = pieces

    def __len__(self) -> int:
        return len(self.pieces)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.pieces[index] for index in ids]


def test_byte_level_pieces_become_utf8_and_spaces_are_spaces() -> None:
    texts = texts_of(Pieces(["\u0120his", "caf\u00c3\u00a9", "\u00e2\u0122", "\u010a", "<|end|>"]), 5)
    assert texts == [" his", "café", "\\xe2\\x80", "\n", "<|end|>"]
    assert [is_whole(text) for text in texts] == [True, True, False, True, True]


def test_real_byte_level_tokenizer_agrees_with_its_own_decoding() -> None:
    tokenizer = decoder_tokenizer()
    texts = texts_of(tokenizer, len(tokenizer))
    for word in ("The", " river", " holds", "."):
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        assert "".join(texts[index] for index in ids) == word


def test_sentence_pieces_and_word_pieces() -> None:
    assert texts_of(Pieces(["\u2581his", "self", "<0x0A>"]), 3) == [" his", "self", "<0x0A>"]
    assert texts_of(Pieces(["his", "##self"]), 2) == ["his", "##self"]
    assert not is_whole("<0xE2>")


def test_ids_without_a_token_are_empty_and_without_a_tokenizer_tokens_are_numbers() -> None:
    assert texts_of(Pieces(["his"]), 3) == ["his", "", ""]
    assert texts_of(None, 2) == ["token 0", "token 1"]


@pytest.mark.parametrize(
    ("texts", "shown"),
    [
        ([" up", "up", " Up", "ups", "UP"], "‘up’, ‘Up’, ‘ups’"),
        (["\n", " ", " " * 8], "‘\\n’, ‘ ’, ‘8 spaces’"),
        (["one"], "‘one’"),
    ],
)
def test_words_are_quoted_once_each(texts: list[str], shown: str) -> None:
    assert quoted(texts) == shown
    assert quoted(texts, most=1) == named(texts[0])


def test_control_characters_are_written_out() -> None:
    assert named("\x14a") == "‘\\x14a’"
