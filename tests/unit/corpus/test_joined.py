"""The paper's sampling: its draws, its roles, ids of large vocabularies, and what it refuses."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from microtome.core import CONTENT, Refusal, Role
from microtome.corpus import Corpus, Document, Joined, Reading, Sink, Source, prepare, prepare_joined
from microtome.corpus.joined import starts, stream_of
from tests.unit.corpus.toy_tokenizers import toy_text

_READING = Reading()


def prepared(source: Source, tokenizer: PreTrainedTokenizerFast, sink: Sink, joined: Joined) -> Corpus:
    return prepare_joined(source, tokenizer, sink, "main", joined=joined, reading=_READING)


def rows(atlas: Path, table: str) -> list[dict]:
    with pq.ParquetFile(atlas / "tables" / table / "corpus.main.parquet") as file:
        return file.read().to_pylist()


def test_starts_are_those_of_the_global_generator() -> None:
    torch.manual_seed(1234)
    theirs = torch.cat([torch.randint(90_000 - 512, (8,)) for _ in range(804)])
    assert starts(100_000, Joined()).tolist() == theirs[:6400].tolist()
    assert starts(100_000, Joined(contexts=32, passed=6400)).tolist() == theirs[6400:].tolist()
    assert starts(100_000, Joined(contexts=5)).tolist() == theirs[:5].tolist()


def test_starts_lie_in_the_part_that_is_used_and_repeat() -> None:
    found = starts(40, Joined(window=8, contexts=2000))
    assert sorted(set(found.tolist())) == list(range(36 - 8)), "90 % of 40 tokens, without the last place where a window fits"
    assert len(found) == 2000


def test_a_stream_that_is_no_longer_than_a_window_is_refused() -> None:
    assert len(starts(574, Joined(window=515))) == 6400
    with pytest.raises(Refusal, match=r"windows of 516 tokens: the joined texts have 574, of which 90% are used"):
        starts(574, Joined(window=516))


def test_texts_are_one_sequence_without_separators(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = [toy_text(1), "", toy_text(2)]
    stream = stream_of(texts, tokenizer, _READING)
    assert stream.text == f"{texts[0]}\n\n{texts[2]}"
    whole = tokenizer.backend_tokenizer
    whole.no_truncation()
    whole.no_padding()
    assert stream.ids.tolist() == whole.encode(stream.text).ids, "special tokens stand at its ends only"


def test_windows_are_slices_of_the_stream_with_the_first_token_left_out(
    tokenizer: PreTrainedTokenizerFast, sink: Sink, atlas: Path
) -> None:
    texts = [toy_text(number) for number in range(4)]
    corpus = prepared(texts, tokenizer, sink, Joined(window=16, contexts=40))
    stream = stream_of(texts, tokenizer, _READING)
    begins = starts(len(stream.ids), Joined(window=16, contexts=40))
    found = rows(atlas, "windows")
    assert [row["ids"] for row in found] == [stream.ids[begin : begin + 16].tolist() for begin in begins]
    for row, begin in zip(found, begins.tolist(), strict=True):
        assert row["roles"] == [Role.SPECIAL if begin < stream.before else Role.FIRST] + [Role.CONTENT] * 15
        assert row["start"] == max(begin - stream.before, 0)
        assert stream.text[row["char_start"][1] : row["char_end"][-1]]
    assert (corpus.documents, corpus.windows, corpus.window, corpus.labels) == (1, 40, 16, ())
    batch = next(corpus.batches(range(40), 10_000))
    assert batch.counted(CONTENT).sum(1).tolist() == [15] * 40, "position 0 is dropped"


def test_no_half_is_held_out_of_windows_that_overlap(gpt: PreTrainedTokenizerFast, sink: Sink, atlas: Path) -> None:
    source = [Document("one", toy_text(1)), Document("two", "\0"), Document("three", toy_text(3))]
    corpus = prepared(source, gpt, sink, Joined(window=16, contexts=20))
    batch = next(corpus.batches(range(20), 10_000))
    assert batch.half.tolist() == [0] * 20
    assert not corpus.shared_halves
    table = rows(atlas, "documents")
    assert [row["half"] for row in table] == ["discover", None]
    assert [row["status"] for row in table] == ["used", "skipped"]
    assert table[0]["text"] == f"{toy_text(1)}\n{toy_text(3)}"
    assert corpus.skipped.first == (("two", "binary (it contains NUL bytes)"),)


def test_documents_that_are_skipped_share_no_halves(gpt: PreTrainedTokenizerFast, sink: Sink) -> None:
    source = [*(toy_text(number) for number in range(8)), "\0"]
    assert not prepare(source, gpt, sink, "main").shared_halves
    assert prepare(source[-2:], gpt, sink, "main").shared_halves, "with one text, both halves have windows of it"


def test_ids_above_65535_come_back_as_they_are(sink: Sink) -> None:
    """In 16 bits they would wrap around, and a model with a large vocabulary would read another text."""
    words = {f"w{number}": number for number in range(70_000)}
    inner = Tokenizer(models.WordLevel({**words, "<unk>": 70_000}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wide = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    corpus = prepared([" ".join(f"w{number}" for number in range(69_000, 70_000))], wide, sink, Joined(window=64, contexts=8))
    batch = next(corpus.batches(range(8), 10_000))
    assert batch.ids.dtype == torch.int64
    assert int(batch.ids.min()) >= 69_000
    steps = batch.ids.diff(dim=1)
    assert bool((steps == 1).all())
    assert not np.array_equal(batch.ids.numpy(), batch.ids.numpy().astype(np.uint16))


def test_what_cannot_be_joined_is_refused(gpt: PreTrainedTokenizerFast, sink: Sink, atlas: Path) -> None:
    with pytest.raises(Refusal, match="its documents are empty"):
        prepared(["", " "], gpt, sink, Joined())
    with pytest.raises(Refusal, match="there are no documents in it"):
        prepared([], gpt, sink, Joined())
    with pytest.raises(Refusal, match="none of its documents is usable"):
        prepared(["a\0"], gpt, sink, Joined())
    with pytest.raises(Refusal, match="use the tokenizer that belongs to this model"):
        prepare_joined([toy_text(1)], gpt, sink, "main", joined=Joined(), reading=_READING, vocab=3)
    with pytest.raises(Refusal, match="windows of 3 tokens"):
        Joined(window=3)
    with pytest.raises(Refusal, match="0 contexts after 0"):
        Joined(contexts=0)
    assert not list(atlas.rglob("*.parquet"))
