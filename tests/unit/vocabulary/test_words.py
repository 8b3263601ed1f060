"""Which tokens a reader wants to see."""

from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from microtome.core import Refusal
from microtome.readout import texts_of
from microtome.vocabulary.words import (
    kept_tokens,
    listed_words,
    tokens_of_words,
    unreadable_tokens,
    vocabulary_table,
    word_classes,
)
from tests.toys import encoder_tokenizer


def test_special_tokens_placeholders_and_rows_without_a_token_are_unreadable() -> None:
    texts = ["[CLS]", "[unused7]", "his", "<unused12>", "un", "", ""]
    tokenizer = SimpleNamespace(all_special_ids=[0], added_tokens_decoder={0: SimpleNamespace(special=True)})
    assert unreadable_tokens(tokenizer, texts) == {0, 1, 3, 5, 6}
    table = vocabulary_table(texts)
    assert table["token"].to_pylist() == list(range(7))
    assert table["text"].to_pylist() == texts


def test_special_tokens_of_a_real_tokenizer_are_unreadable() -> None:
    tokenizer = encoder_tokenizer()
    texts = texts_of(tokenizer, len(tokenizer))
    hidden = {texts[index] for index in unreadable_tokens(tokenizer, texts)}
    assert {"[CLS]", "[SEP]", "[PAD]", "[MASK]"} <= hidden
    assert " river" not in hidden


TEXTS = ["<end>", " his", "His", "his ", "\n", " ", "é", " 12", "a-b", "\\xe2", "", " a", " b"]


class _Tokenizer(SimpleNamespace):
    all_special_ids = (0,)
    added_tokens_decoder: ClassVar[dict] = {}


@pytest.mark.parametrize(
    ("which", "kept"),
    [
        ("all", set(range(13))),
        ("readable", {*range(1, 10), 11, 12}),
        ("ascii", {1, 2, 3, 4, 5, 7, 8, 11, 12}),
        ("alphanumeric", {1, 2, 3, 6, 7, 11, 12}),
        ("words", {1, 11, 12}),
    ],
)
def test_filters_keep_what_they_say(which: str, kept: set[int]) -> None:
    assert kept_tokens(_Tokenizer(), TEXTS, which) == kept


def test_a_file_of_words_keeps_their_spellings(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("HIS\n\nhers\n", "utf-8-sig")
    assert kept_tokens(_Tokenizer(), TEXTS, str(path)) == {1, 2, 3}
    path.write_bytes(b"\xff\xfehis")
    with pytest.raises(Refusal, match="it is not UTF-8"):
        kept_tokens(_Tokenizer(), TEXTS, str(path))
    path.write_text("hers\n", "utf-8")
    with pytest.raises(Refusal, match="no token of the model is among them"):
        kept_tokens(_Tokenizer(), TEXTS, str(path))
    path.write_text("é\na-b\n", "utf-8")
    with pytest.raises(Refusal, match="2 of the model's tokens are among them, and of so few none stands out"):
        kept_tokens(_Tokenizer(), TEXTS, str(path))
    assert kept_tokens(_Tokenizer(), ["<end>", " his"], "all") == {0, 1}, "a model may have two tokens"
    with pytest.raises(Refusal, match="tokens nouns: it is no filter and no file"):
        kept_tokens(_Tokenizer(), TEXTS, "nouns")


def test_spellings_of_a_word_share_a_class_and_white_space_does_not() -> None:
    classes = word_classes(TEXTS).tolist()
    assert classes[1] == classes[2] == classes[3]
    assert len(set(classes)) == len(TEXTS) - 2


def test_tokens_of_a_word_are_all_its_spellings_that_are_shown_the_one_behind_a_space_first() -> None:
    shown = [index for index in range(len(TEXTS)) if index != 3]
    found = tokens_of_words(TEXTS, reversed(shown))
    assert found["his"] == [1, 2]
    assert "" not in found
    cased = tokens_of_words(TEXTS, shown, str.strip)
    assert (cased["his"], cased["His"]) == ([1], [2])
    assert tokens_of_words(["Rome", "rome", " Rome", " rome", " ROME"], range(5))["rome"] == [3, 0, 1, 2, 4]


def test_words_of_a_file_are_its_lines_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("May\n\n new york \n", "utf-8-sig")
    assert listed_words(path) == ["May", "new york"]
