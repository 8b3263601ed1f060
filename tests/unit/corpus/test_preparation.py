import json
import os
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from microtome.core import Refusal, Role
from microtome.corpus import Cutting, Document, Reading, documents, prepare
from tests.unit.corpus.toy_tokenizers import toy_text


def rows(atlas: Path, table: str) -> list[dict]:
    with pq.ParquetFile(atlas / "tables" / table / "corpus.main.parquet") as file:
        return file.read().to_pylist()


def test_both_tables_say_what_became_of_the_text(tokenizer, sink, atlas):
    source = [Document("one", toy_text(1), "x"), Document("two", ""), Document("three", toy_text(3), "y")]
    corpus = prepare(source, tokenizer, sink, "main", cutting=Cutting(window=32, shortest=8))
    table = rows(atlas, "documents")
    assert [row["document"] for row in table] == [0, 1, 2]
    assert [row["status"] for row in table] == ["used", "skipped", "used"]
    assert [row["reason"] for row in table] == [None, "empty", None]
    assert [row["label"] for row in table] == ["x", None, "y"]
    assert [row["text"] for row in table] == [toy_text(1), None, toy_text(3)]
    windows = rows(atlas, "windows")
    assert len(windows) == corpus.windows == sum(row["windows"] for row in table)
    assert corpus.tokens == sum(row["tokens"] for row in table)
    assert (corpus.documents, corpus.skipped.count, corpus.skipped.first) == (2, 1, (("two", "empty"),))
    assert corpus.labels == ("x", "y")
    assert corpus.window == 32


def test_windows_cover_the_characters_they_say(tokenizer, sink, atlas):
    prepare([toy_text(n) for n in range(6)], tokenizer, sink, "main", cutting=Cutting(window=16, shortest=4))
    text = {row["document"]: row["text"] for row in rows(atlas, "documents")}
    for row in rows(atlas, "windows"):
        inside = [place for place, role in enumerate(row["roles"]) if role >= Role.FIRST]
        begin, end = row["char_start"][inside[0]], row["char_end"][inside[-1]]
        shown = tokenizer.decode([row["ids"][place] for place in inside]).replace("##", "")
        assert shown.split() == text[row["document"]][begin:end].split()


def test_long_documents_have_the_windows_of_the_whole_text(tokenizer, sink, atlas):
    text = " ".join(toy_text(number) for number in range(400))
    assert len(text) > 4 * (1 << 14)
    prepare([text], tokenizer, sink, "main", cutting=Cutting(window=64))
    ids = tokenizer(text, add_special_tokens=False, truncation=False)["input_ids"]
    found = [
        token
        for row in rows(atlas, "windows")
        for token, role in zip(row["ids"], row["roles"], strict=True)
        if role >= Role.FIRST
    ]
    assert found == ids[: len(found)]
    assert len(ids) - len(found) < 32


def test_the_same_source_gives_the_same_bytes(gpt, sink, atlas):
    source = [toy_text(n) for n in range(30)]
    first = prepare(source, gpt, sink, "main", seed=3)
    before = {path: path.read_bytes() for path in first.paths}
    second = prepare(iter(source), gpt, sink, "main", seed=3)
    assert {path: path.read_bytes() for path in second.paths} == before
    assert second.fingerprint == first.fingerprint


def test_the_seed_moves_documents_between_the_halves(gpt, sink, atlas):
    source = [toy_text(n) for n in range(200)]
    prepare(source, gpt, sink, "main", seed=1)
    one = [row["half"] for row in rows(atlas, "documents")]
    prepare(source, gpt, sink, "main", seed=2)
    two = [row["half"] for row in rows(atlas, "documents")]
    assert set(one) == {"discover", "confirm"}
    assert 60 < one.count("discover") < 140
    assert 60 < sum(a != b for a, b in zip(one, two, strict=True)) < 140


def test_copies_are_in_the_same_half(gpt, sink, atlas):
    for count in (6, 100):
        prepare([toy_text(n % (count // 2)) for n in range(count)], gpt, sink, "main")
        half = [row["half"] for row in rows(atlas, "documents")]
        assert half[: count // 2] == half[count // 2 :]


def test_copies_are_one_document_in_batches_unless_their_labels_differ(gpt, sink, atlas):
    texts, labels = [0, 1, 0, 2, 0, 1], ["a", "a", "a", "b", "b", "a"]
    source = atlas.parent / "copies.jsonl"
    lines = [json.dumps({"text": toy_text(n, 60), "label": label}) for n, label in zip(texts, labels, strict=True)]
    source.write_text("\n".join(lines))
    corpus = prepare(source, gpt, sink, "main", reading=Reading(label_column="label"))
    assert [row["same_as"] for row in rows(atlas, "documents")] == [None, None, 0, None, None, 1]
    assert (corpus.documents, corpus.copies) == (6, 2)
    own = {row["window"]: row["document"] for row in rows(atlas, "windows")}
    (batch,) = corpus.batches(range(corpus.windows), 1 << 20)
    found = dict(zip(batch.window.tolist(), batch.document.tolist(), strict=True))
    assert set(own.values()) == set(range(6))
    assert found == {window: [0, 1, 0, 3, 4, 1][document] for window, document in own.items()}


@pytest.mark.parametrize("count", [4, 5, 9, 40])
def test_few_documents_are_dealt_evenly(gpt, sink, atlas, count):
    prepare([toy_text(n) for n in range(count)], gpt, sink, "main")
    half = [row["half"] for row in rows(atlas, "documents")]
    assert half.count("discover") - half.count("confirm") in (0, 1)


def test_fewer_than_four_texts_are_in_both_halves(gpt, sink, atlas):
    prepare([toy_text(0), toy_text(1), toy_text(0), "", toy_text(2)], gpt, sink, "main")
    assert [row["half"] for row in rows(atlas, "documents")] == ["both", "both", "both", None, "both"]


def test_short_documents_are_used_and_those_of_one_token_are_not(gpt, sink, atlas):
    source = ["the cat sat"] * 30 + ["."]
    corpus = prepare(source, gpt, sink, "main")
    assert corpus.documents == 30
    assert corpus.skipped.first == (("text 31", "fewer than 2 tokens"),)


def test_one_bad_document_among_good_ones_is_skipped_however_few_there_are(gpt, sink):
    assert prepare([toy_text(1), b"\xff".decode("latin-1") + "\0"], gpt, sink, "main").documents == 1


def test_too_many_bad_documents_are_refused_and_nothing_is_written(gpt, sink, atlas):
    source = [*(toy_text(n) for n in range(20)), *(Document(f"bad{n}", "\0") for n in range(7))]
    with pytest.raises(Refusal) as caught:
        prepare(source, gpt, sink, "main")
    assert str(caught.value) == (
        "texts: 7 of its 27 documents are unusable, more than 5%: bad0 (binary (it contains NUL bytes)), "
        "bad1 (binary (it contains NUL bytes)), bad2 (binary (it contains NUL bytes)), bad3 (binary (it contains NUL bytes)), "
        "bad4 (binary (it contains NUL bytes)) and 2 more; "
        "name a source of plain text, remove these documents, or allow more of them with Reading(bad_share=...)"
    )
    assert [path for path in atlas.rglob("*") if path.is_file()] == []
    assert prepare(source, gpt, sink, "main", reading=Reading(bad_share=0.3)).documents == 20


def test_two_bad_documents_of_forty_are_within_five_percent(gpt, sink):
    corpus = prepare([*(toy_text(n) for n in range(38)), "", " "], gpt, sink, "main")
    assert (corpus.documents, corpus.skipped.count) == (38, 2)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", r"a\.txt: none of its documents is usable: a\.txt \(empty\); name a source of plain text"),
        (b"\x00\x01\x02" * 99, r"a\.txt: none of its documents is usable: a\.txt \(binary"),
        (b"caf\xe9 noir", r"not valid utf-8 \(byte 0xe9 at 3.*; name the text's encoding with --encoding"),
        (b"x", r"a\.txt \(fewer than 2 tokens\)"),
    ],
)
def test_a_source_without_usable_text_is_refused(gpt, sink, atlas, tmp_path, raw, message):
    (tmp_path / "a.txt").write_bytes(raw)
    with pytest.raises(Refusal, match=message):
        prepare(tmp_path / "a.txt", gpt, sink, "main")
    assert not list(atlas.rglob("*.parquet*"))


def test_tables_without_text_count_as_bad_documents_of_their_folder(gpt, sink, atlas, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.csv").write_text("a,b\nx,y\n")
    with pytest.raises(
        Refusal,
        match=r"none of its documents is usable: 0\.csv \(none of its columns .*; name the column of the text with --text-column\), 1.*; name the column of the text with --text-column$",
    ):
        prepare(folder, gpt, sink, "main")
    for number in range(57):
        (folder / f"{number}.txt").write_text(toy_text(number))
    corpus = prepare(folder, gpt, sink, "main")
    assert (corpus.documents, corpus.skipped.count) == (57, 3)
    assert corpus.skipped.first[0][0] == "0.csv"
    (folder / "56.txt").unlink()
    with pytest.raises(Refusal, match="3 of its 59 documents are unusable, more than 5%"):
        prepare(folder, gpt, sink, "main")


def test_names_that_are_no_text_are_written_with_question_marks(gpt, sink, atlas, tmp_path):
    folder = tmp_path / "texts" / os.fsdecode(b"b\xffse")
    folder.mkdir(parents=True)
    (folder / os.fsdecode(b"caf\xe9.txt")).write_text(toy_text(1))
    corpus = prepare(tmp_path / "texts", gpt, sink, "main")
    table = pq.read_table(corpus.paths[0])
    assert (table["name"].to_pylist(), table["label"].to_pylist()) == (["b?se/caf?.txt"], ["b?se"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_folder_of_temporary_files_is_named(gpt, sink, atlas, monkeypatch):
    monkeypatch.setattr("tempfile.TemporaryFile", lambda: Path("/dev/full").open("w+b"))  # noqa: SIM115
    with pytest.raises(Refusal, match=f"no space is left in {tempfile.gettempdir()}; free some space there, or name a larger"):
        prepare([toy_text(1)], gpt, sink, "main")
    assert not list(atlas.rglob("*.parquet*"))


def test_a_source_without_documents_is_refused(gpt, sink):
    with pytest.raises(Refusal, match="texts: there are no documents in it; name a text that is not empty"):
        prepare([], gpt, sink, "main")


def test_a_tokenizer_of_another_model_is_refused(gpt, sink):
    with pytest.raises(Refusal) as caught:
        prepare([toy_text(0), "the cat 😀"], gpt, sink, "main", vocab=100)
    assert "the model's vocabulary has 100 entries; use the tokenizer that belongs to this model" in str(caught.value)
    assert str(caught.value).startswith("tokens of text ")


def test_one_long_line_is_windowed(gpt, sink):
    corpus = prepare(["naïve" * 40_000], gpt, sink, "main")
    assert corpus.documents == 1
    assert corpus.windows > 100


def test_a_source_is_read_as_it_is_tokenised(gpt, sink):
    """What has been read but not written stays small: rows come out long before the source ends."""
    read, highest = 0, 0
    waiting: list[int] = []

    def source():
        nonlocal read
        for number in range(3000):
            read += 1
            yield toy_text(number) * 5

    def watching(table, batches):
        def watched():
            nonlocal highest
            for batch in batches:
                if table == "windows":
                    waiting.append(read - batch.column("document")[0].as_py())
                yield batch

        return sink(table, watched())

    prepare(source(), gpt, watching, "main", cutting=Cutting(window=64))
    assert len(waiting) > 5
    assert max(waiting) < 2000


def test_the_sample_makes_a_corpus(tokenizer, sink):
    corpus = prepare("sample", tokenizer, sink, "main")
    assert (corpus.name, corpus.documents, corpus.labels) == ("sample", 10, ("how-to", "report", "story"))
    assert len(list(documents("sample", Reading()))) == 10
