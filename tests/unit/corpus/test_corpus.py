import pickle
import random

import numpy as np
import pytest
import torch

from microtome.core import Half, Refusal, Role
from microtome.corpus import Corpus, Cutting, Document, open_corpus, prepare
from tests.unit.corpus.toy_tokenizers import toy_text


@pytest.fixture
def corpus(bert, sink) -> Corpus:
    source = [Document(f"d{n}", toy_text(n, 5 + 13 * n % 90), "ab"[n % 2]) for n in range(40)]
    return prepare(source, bert, sink, "main", cutting=Cutting(window=24, shortest=4))


def by_window(corpus: Corpus, windows, size: int) -> dict[int, list[int]]:
    return {
        int(batch.window[row]): batch.ids[row][batch.roles[row] != Role.PAD].tolist()
        for batch in corpus.batches(windows, size)
        for row in range(len(batch.window))
    }


def test_batches_hold_every_window_once_longest_first(corpus):
    lengths, seen = [], []
    for batch in corpus.batches(range(corpus.windows), 100):
        real = (batch.roles != Role.PAD).sum(dim=1)
        assert batch.ids.shape[1] == int(real.max())
        assert batch.ids.numel() <= 100
        lengths += real.tolist()
        seen += batch.window.tolist()
    assert sorted(seen) == list(range(corpus.windows))
    assert lengths == sorted(lengths, reverse=True)
    assert [w for w, n in zip(seen, lengths, strict=True) if n == 24] == sorted(
        w for w, n in zip(seen, lengths, strict=True) if n == 24
    )


def test_a_window_is_the_same_in_any_batch(corpus):
    whole = by_window(corpus, range(corpus.windows), 10_000)
    assert by_window(corpus, range(corpus.windows), 1) == whole
    assert by_window(corpus, [7, 3, 5], 48) == {window: whole[window] for window in (3, 5, 7)}
    assert all(ids[0] == 2 and ids[-1] == 3 for ids in whole.values())


def test_padding_is_on_the_right_and_says_so(corpus):
    for batch in corpus.batches(range(corpus.windows), 200):
        padded = batch.roles == Role.PAD
        assert not bool((padded[:, :-1] & ~padded[:, 1:]).any())
        assert int(batch.ids[padded].sum()) == 0


def test_labels_and_halves_are_those_of_the_document(corpus, atlas):
    documents = open_corpus(*corpus.paths, name="again")
    assert documents.labels == ("a", "b")
    half: dict[int, int] = {}
    for batch in corpus.batches(range(corpus.windows), 500):
        assert torch.equal(batch.label, batch.document % 2)
        for document, value in zip(batch.document.tolist(), batch.half.tolist(), strict=True):
            assert half.setdefault(document, value) == value
    assert set(half.values()) == {Half.DISCOVER, Half.CONFIRM}


def test_documents_without_labels_have_label_minus_one(gpt, sink):
    corpus = prepare([toy_text(0, 50)], gpt, sink, "main")
    (batch,) = corpus.batches([0], 1000)
    assert batch.label.tolist() == [-1]
    assert corpus.labels == ()


@pytest.mark.parametrize(("words", "blocks"), [(1900, 16), (300, 2), (60, 1)])
def test_the_windows_of_a_single_document_are_dealt_in_blocks(gpt, sink, words, blocks):
    whole = gpt(toy_text(0, words))["input_ids"]
    corpus = prepare(
        [toy_text(0, words)], gpt, sink, "main", cutting=Cutting(window=max(4, len(whole) // (4 * blocks)), shortest=2)
    )
    half = dict(
        pair
        for batch in corpus.batches(range(corpus.windows), 500)
        for pair in zip(batch.window.tolist(), batch.half.tolist(), strict=True)
    )
    size = min(16, max(1, corpus.windows // 4))
    assert [half[w] for w in range(corpus.windows)] == [w // size % 2 for w in range(corpus.windows)]
    assert set(half.values()) == {0, 1}


def test_two_documents_of_one_window_are_in_different_halves(gpt, sink):
    corpus = prepare([toy_text(0, 20), "", toy_text(1, 20)], gpt, sink, "main")
    (batch,) = corpus.batches([0, 1], 1000)
    assert sorted(batch.half.tolist()) == [0, 1]
    assert sorted(batch.document.tolist()) == [0, 2]


def test_samples_are_seeded_nested_and_spread(gpt, sink):
    corpus = prepare([toy_text(n, 40) for n in range(300)], gpt, sink, "main")
    ten, twenty = corpus.sample(10, 0), corpus.sample(20, 0)
    assert len(set(ten)) == 10
    assert set(ten) < set(twenty)
    assert ten == sorted(ten)
    assert ten != corpus.sample(10, 1)
    assert 60 < float(np.mean(corpus.sample(100, 0))) / corpus.windows * 200 < 140
    assert corpus.sample(1000, 0) == list(range(corpus.windows))


def test_masking_hides_fifteen_percent_of_the_content_and_nothing_else(corpus, bert):
    hidden = total = 0
    for batch in corpus.batches(range(corpus.windows), 300):
        masked = corpus.mask(batch, bert.mask_token_id, seed=0)
        assert masked.targets is not None
        taken = masked.targets != -100
        assert bool((batch.roles[taken] == Role.CONTENT).all())
        assert torch.equal(masked.targets[taken], batch.ids[taken])
        assert set(masked.ids[taken].tolist()) == {bert.mask_token_id}
        assert torch.equal(masked.ids[~taken], batch.ids[~taken])
        hidden += int(taken.sum())
        total += int((batch.roles == Role.CONTENT).sum())
    assert 0.11 < hidden / total < 0.19


def test_what_is_masked_does_not_depend_on_the_batch(corpus, bert):
    def hidden(size: int, seed: int) -> set[tuple[int, int]]:
        return {
            (int(batch.window[row]), int(column))
            for batch in corpus.batches(range(corpus.windows), size)
            for row, column in (corpus.mask(batch, bert.mask_token_id, seed).targets != -100).nonzero().tolist()
        }

    assert hidden(50, 1) == hidden(5000, 1)
    assert hidden(50, 1) != hidden(50, 2)


def test_masking_needs_a_mask_token(corpus):
    (batch,) = corpus.batches([0], 100)
    with pytest.raises(Refusal, match="masked tokens: the tokenizer has no mask token; use a masked language model's"):
        corpus.mask(batch, None, 0)


def test_many_windows_across_row_groups_are_read_in_any_order(gpt, sink):
    corpus = prepare([toy_text(n, 120) for n in range(120)], gpt, sink, "main", cutting=Cutting(window=4, shortest=1))
    assert corpus.windows > 2 * 1024
    order = random.Random(0).sample(range(corpus.windows), 500)
    found = by_window(corpus, order, 333)
    assert found == {window: ids for window, ids in by_window(corpus, range(corpus.windows), 5000).items() if window in order}


def test_more_windows_than_are_sorted_together_come_in_blocks(corpus, monkeypatch):
    whole = by_window(corpus, range(corpus.windows), 100)
    monkeypatch.setattr("microtome.corpus.corpus.BLOCK", 7)
    assert by_window(corpus, range(corpus.windows), 100) == whole


def test_a_corpus_travels_between_processes(corpus):
    list(corpus.batches([0], 100))
    copy = pickle.loads(pickle.dumps(corpus))
    assert len(pickle.dumps(corpus)) < 10_000
    assert by_window(copy, [3, 1], 100) == by_window(corpus, [3, 1], 100)
    assert copy.fingerprint == corpus.fingerprint


def test_a_corpus_opened_again_is_the_same(corpus):
    again = open_corpus(*corpus.paths, name="other name", window=24)
    assert again.fingerprint == corpus.fingerprint
    assert (again.windows, again.tokens, again.documents, again.run) == (
        corpus.windows,
        corpus.tokens,
        corpus.documents,
        "main",
    )


def test_the_fingerprint_tells_texts_labels_and_seeds_apart(gpt, sink):
    def of(seed: int = 0, label: str = "a", last: str = "end") -> str:
        source = [Document(f"d{n}", toy_text(n, 30) + last * (n == 4), label) for n in range(80)]
        return prepare(source, gpt, sink, "main", seed=seed).fingerprint

    assert len({of(), of(seed=1), of(label="b"), of(last="enc")}) == 4
    assert of() == of()


def test_unknown_windows_and_damaged_files_are_refused(corpus):
    with pytest.raises(Refusal, match=f"window {corpus.windows}: the run has {corpus.windows} windows"):
        list(corpus.batches([corpus.windows], 100))
    raw = bytearray(corpus.paths[1].read_bytes())
    corpus.paths[1].write_bytes(raw[: len(raw) // 2])
    with pytest.raises(Refusal, match=r"corpus\.main\.parquet: it cannot be read .*; run the build again"):
        open_corpus(*corpus.paths, name="x")
