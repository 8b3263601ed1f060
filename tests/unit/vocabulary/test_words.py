"""Which tokens a reader wants to see."""

from types import SimpleNamespace

from microtome.readout import texts_of
from microtome.vocabulary.words import unreadable_tokens, vocabulary_table
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
