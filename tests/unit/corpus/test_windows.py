import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microtome.core import Refusal, Role
from microtome.corpus.tokenising import Piece, Tokens, Wrapping, encode, pieces, wrapping
from microtome.corpus.windows import ROWS, Cutting, Tally, cut, window_rows

BARE = Wrapping((), (), frozenset(), 0)
CLS = Wrapping((901,), (902,), frozenset({900, 901, 902}), 0)


def stretches(*lengths: int, calls: Sequence[int] = ()) -> list[Tokens]:
    """Documents of so many tokens, numbered through from 0; `calls` says after which tokens a call to the tokenizer ends."""
    total = sum(lengths)
    ends = np.cumsum(lengths)
    borders = sorted({0, total, *(call for call in calls if call < total)})
    found = []
    for begin, end in itertools.pairwise(borders):
        held, counts = [], []
        for number, (stop, length) in enumerate(zip(ends, lengths, strict=True)):
            here = min(stop, end) - max(stop - length, begin)
            if here > 0:
                held.append(Piece(number, "", 0, last=bool(stop <= end)))
                counts.append(here)
        ids = np.arange(begin, end, dtype=np.int32)
        found.append(Tokens(tuple(held), np.array(counts, np.int64), ids, ids * 3, ids * 3 + 2))
    return found


def rows(stream: list[Tokens], wraps: Wrapping, cutting: Cutting) -> list[dict]:
    return [row for batch in window_rows(stream, wraps, cutting, "main", Tally()) for row in batch.to_pylist()]


def test_full_windows_then_a_tail_of_at_least_the_shortest():
    found = cut(np.array([10, 11, 3]), np.array([0, 0, 0]), np.array([True, True, True]), 4, Cutting(window=4, shortest=3))
    assert found.stretch.tolist() == [0, 0, 1, 1, 1, 2]
    assert found.begin.tolist() == [0, 4, 0, 4, 8, 0]
    assert found.length.tolist() == [4, 4, 4, 4, 3, 3]


def test_a_short_document_is_one_window_unless_it_has_fewer_than_the_fewest():
    found = cut(np.array([2, 1, 5]), np.zeros(3, np.int64), np.ones(3, bool), 8, Cutting(window=8, shortest=6, fewest=2))
    assert found.stretch.tolist() == [0, 2]
    assert found.length.tolist() == [2, 5]


def test_the_rest_of_an_open_document_is_no_tail_yet():
    found = cut(np.array([7]), np.array([0]), np.array([False]), 4, Cutting(window=4, shortest=2))
    assert found.length.tolist() == [4]
    assert found.rest.tolist() == [3]


def test_the_end_of_a_document_that_has_windows_must_be_long_enough():
    found = cut(np.array([3]), np.array([8]), np.array([True]), 8, Cutting(window=8, shortest=4))
    assert found.length.tolist() == []


def test_windows_of_a_decoder_begin_with_a_first_token():
    first, second = rows(stretches(7), BARE, Cutting(window=4, shortest=2))
    assert first["ids"] == [0, 1, 2, 3]
    assert first["roles"] == [Role.FIRST, Role.CONTENT, Role.CONTENT, Role.CONTENT]
    assert (second["ids"], second["start"], second["window"]) == ([4, 5, 6], 4, 1)
    assert second["roles"] == [Role.FIRST, Role.CONTENT, Role.CONTENT]
    assert (first["char_start"], first["char_end"]) == ([0, 3, 6, 9], [2, 5, 8, 11])


def test_windows_of_an_encoder_carry_their_special_tokens():
    first, second = rows(stretches(5), CLS, Cutting(window=5, shortest=2))
    assert first["ids"] == [901, 0, 1, 2, 902]
    assert first["roles"] == [Role.SPECIAL, Role.CONTENT, Role.CONTENT, Role.CONTENT, Role.SPECIAL]
    assert first["char_start"] == [-1, 0, 3, 6, -1]
    assert (second["ids"], second["start"]) == ([901, 3, 4, 902], 3)


def test_special_tokens_in_the_text_are_special():
    wraps = Wrapping((), (), frozenset({2}), 0)
    (row,) = rows(stretches(5), wraps, Cutting(window=8))
    assert row["roles"] == [Role.FIRST, Role.CONTENT, Role.SPECIAL, Role.CONTENT, Role.CONTENT]


lengths = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@given(lengths=lengths, calls=st.lists(st.integers(1, 480), max_size=20), wraps=st.sampled_from([BARE, CLS]))
def test_the_calls_to_the_tokenizer_do_not_matter(lengths, calls, wraps):
    cutting = Cutting(window=8, shortest=3)
    assert rows(stretches(*lengths, calls=calls), wraps, cutting) == rows(stretches(*lengths), wraps, cutting)


@given(lengths=lengths, window=st.integers(4, 20), shortest=st.integers(1, 20))
def test_windows_tile_their_documents_up_to_a_short_tail(lengths, window, shortest):
    cutting = Cutting(window=window, shortest=shortest)
    found = rows(stretches(*lengths), CLS, cutting)
    assert [row["window"] for row in found] == list(range(len(found)))
    for number, (length, end) in enumerate(zip(lengths, np.cumsum(lengths), strict=True)):
        own = [row for row in found if row["document"] == number]
        ids = [token for row in own for token in row["ids"][1:-1]]
        assert ids == list(range(end - length, end - length + len(ids)))
        assert [row["start"] for row in own] == [place * (window - 2) for place in range(len(own))]
        assert all(len(row["ids"]) == window for row in own[:-1])
        lost = length - len(ids)
        assert lost < (min(shortest, window - 2) if own else cutting.fewest)


@given(lengths=lengths, calls=st.lists(st.integers(1, 480), max_size=5))
def test_the_tally_counts_what_came_out(lengths, calls):
    tally = Tally()
    batches = window_rows(stretches(*lengths, calls=calls), CLS, Cutting(window=8, shortest=3), "main", tally)
    table = [row for batch in batches for row in batch.to_pylist()]
    for number in range(len(lengths)):
        own = [row for row in table if row["document"] == number]
        assert tally.take(number) == (len(own), sum(len(row["ids"]) - 2 for row in own))
        assert tally.take(number) == (0, 0)


def test_row_groups_are_full_but_the_last():
    batches = list(window_rows(stretches(9000, 1000, calls=[3000]), BARE, Cutting(window=4), "main", Tally()))
    assert [batch.num_rows for batch in batches] == [ROWS, ROWS, 2500 - 2 * ROWS]


def test_real_tokens_decode_to_the_text_they_cover(gpt):
    text = "The cat sat on the mat, and the dog barked 😀 at the cat. " * 20
    wraps = wrapping(gpt)
    found = rows(list(encode(pieces(0, text, wraps.gap), gpt)), wraps, Cutting(window=16, shortest=2))
    for row in found:
        covered = text[row["char_start"][0] : row["char_end"][-1]]
        assert gpt.decode(row["ids"]).strip(" \ufffd") == covered.strip(" 😀") or "😀" in covered


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cutting(window=1), "windows of 1 token: there is no context in them; use 4 or more"),
        (lambda: Cutting(window=3), "windows of 3 tokens: there is no context in them; use 4 or more"),
        (lambda: Cutting(fewest=1), "fewest 1: a document of one token has no context; use 2 or more"),
        (lambda: Cutting(shortest=0), "shortest 0: a window has at least one token; use 1 or more"),
        (
            lambda: Cutting(window=8, fewest=7).content(CLS),
            "fewest 7: windows of 8 tokens hold 6 ordinary ones; use at most 6, or longer windows",
        ),
        (
            lambda: Cutting(window=4).content(Wrapping((1, 2), (3,), frozenset(), 0)),
            "windows of 4 tokens: the tokenizer puts 3 special tokens into each; use longer windows",
        ),
    ],
)
def test_impossible_cuttings_are_refused(make, message):
    with pytest.raises(Refusal, match=message):
        make()
