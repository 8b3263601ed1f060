import itertools
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microtome.core import Refusal
from microtome.corpus.tokenising import Piece, Tokens, cuts, encode, pieces, wrapping
from tests.unit.corpus.toy_tokenizers import byte_level, metaspace, word_piece

KINDS = [byte_level(), word_piece(), metaspace()]


def joined(parts: list[Tokens]) -> tuple[list[int], list[tuple[int, int]]]:
    ids = [int(i) for part in parts for i in part.ids]
    spans = [(int(a), int(b)) for part in parts for a, b in zip(part.char_start, part.char_end, strict=True)]
    return ids, spans


def whole(tokenizer, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, padding=False)
    return found["input_ids"], [tuple(span) for span in found["offset_mapping"]]


def test_what_the_tokenizer_puts_around_a_text_is_found_by_trial(gpt, bert, llama):
    assert (wrapping(gpt).before, wrapping(gpt).after) == ((), ())
    assert (wrapping(bert).before, wrapping(bert).after) == ((2,), (3,))
    assert (wrapping(llama).before, wrapping(llama).after) == ((1,), ())


def test_a_space_is_dropped_at_a_cut_only_where_the_tokenizer_puts_one_back(gpt, bert, llama):
    assert [wrapping(kind).gap for kind in (gpt, bert, llama)] == [0, 0, 1]


def test_unknown_words_are_no_special_tokens(gpt, bert, llama):
    assert wrapping(bert).special == {0, 2, 3, 4}
    assert wrapping(llama).special == {1, 2}
    assert wrapping(gpt).special == {0}


def test_a_slow_tokenizer_is_refused():
    class Slow:
        is_fast = False
        all_special_ids: list[int] = []
        special_tokens_map: dict[str, str] = {}
        backend_tokenizer = None

    with pytest.raises(Refusal, match=r"tokenizer Slow: it is a slow tokenizer.*use a checkpoint with a tokenizer\.json"):
        wrapping(Slow())


def test_cuts_are_at_single_spaces_between_words():
    text = "one  two, three four\nfive"
    assert cuts(text, gap=0, size=18) == [(0, 15), (15, 25)]
    assert text[15:] == " four\nfive"
    assert cuts(text, gap=1, size=18) == [(0, 15), (16, 25)]


def test_a_text_without_spaces_is_cut_at_the_size():
    assert cuts("a" * 10, gap=0, size=4) == [(0, 4), (4, 8), (8, 10)]
    assert cuts("", gap=0, size=4) == [(0, 0)]


def test_other_white_space_is_kept_at_a_cut():
    assert cuts("aaaaaa\nbbbbbb", gap=1, size=8) == [(0, 6), (6, 13)]


def visible(text: str, span: tuple[int, int]) -> tuple[int, int] | None:
    """The characters of a token that are not white space: tokenizers differ in whether a span holds the space before a word."""
    inside = [place for place in range(*span) if not text[place].isspace()]
    return (inside[0], inside[-1] + 1) if inside else None


words = st.lists(st.text(string.ascii_letters + string.digits + "éß", min_size=1, max_size=9), min_size=1, max_size=60)
marks = st.sampled_from([" ", " ", " ", " ", ", ", ".  ", "\n\n", " — "])


@given(words=words, data=st.data(), kind=st.sampled_from(range(3)))
def test_cut_texts_have_the_tokens_and_offsets_of_the_whole(words, data, kind):
    text = words[0] + "".join(data.draw(marks) + word for word in words[1:])
    tokenizer = KINDS[kind]
    gap = wrapping(tokenizer).gap
    size = 40
    clean = all(
        text[end] == " " and text[end - 1].isalnum() and text[end + 1].isalnum() for _, end in cuts(text, gap, size)[:-1]
    )
    parts = list(encode(pieces(0, text, gap, size), tokenizer))
    ids, spans = joined(parts)
    if clean:
        whole_ids, whole_spans = whole(tokenizer, text)
        assert ids == whole_ids
        assert [visible(text, span) for span in spans] == [visible(text, span) for span in whole_spans]


@given(text=st.text(min_size=1, max_size=300), kind=st.sampled_from(range(3)))
def test_pieces_leave_out_nothing_but_single_spaces(text, kind):
    gap = wrapping(KINDS[kind]).gap
    found = cuts(text, gap, 32)
    assert found[0][0] == 0
    assert found[-1][1] == len(text)
    for (_, end), (begin, _) in itertools.pairwise(found):
        assert text[end:begin] in ("", " " * gap)
    assert max(end - begin for begin, end in found) <= 32


def test_offsets_point_at_the_characters_of_the_document(tokenizer):
    text = "The café 😀 sat, مرحبا بالعالم\nnaïve " * 3
    ids, spans = joined(list(encode(pieces(0, text, wrapping(tokenizer).gap), tokenizer)))
    assert (ids, spans) == whole(tokenizer, text)
    assert all(0 <= begin <= end <= len(text) for begin, end in spans)


def test_every_byte_token_of_an_emoji_covers_the_whole_emoji(gpt):
    text = "a 🜚 b"
    ids, spans = joined(list(encode([Piece(0, text, 0, last=True)], gpt)))
    covering = [span for span in spans if span[0] <= 2 < span[1]]
    assert len(covering) >= 3
    assert {text[begin:end].strip() for begin, end in covering} == {"🜚"}
    assert len(ids) == len(spans)


def test_the_tokenizers_own_cutting_and_padding_do_not_apply(bert):
    bert("a b", padding="max_length", truncation=True)
    parts = list(encode([Piece(0, "the cat " * 30, 0, last=True), Piece(1, "the", 0, last=True)], bert))
    assert parts[0].counts[0] >= 60
    assert parts[0].counts[1] < 8


def test_calls_are_bounded_and_change_nothing(gpt):
    stream = [Piece(n, "the cat sat on the mat", 0, last=True) for n in range(10)]
    small = list(encode(stream, gpt, characters=40))
    large = list(encode(stream, gpt))
    assert [len(part.pieces) for part in small] == [2] * 5
    assert len(large) == 1
    assert joined(small) == joined(large)
    assert np.concatenate([part.counts for part in small]).tolist() == large[0].counts.tolist()
