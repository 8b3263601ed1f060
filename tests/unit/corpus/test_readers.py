import bz2
import gzip
import io
import json
import lzma
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from microtome.core import Refusal
from microtome.corpus import Document, Reading, documents, plain, source_name
from microtome.corpus.documents import problem_of


def read(source, **options) -> list[Document]:
    return list(documents(source, Reading(**options)))


def names(found: list[Document]) -> list[str]:
    return [document.name for document in found]


def texts(found: list[Document]) -> list[str]:
    return [document.text for document in found]


def problems(found: list[Document]) -> list[str | None]:
    return [problem_of(document) for document in found]


def test_a_text_file_is_one_document_as_it_is(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes("\ufeffün\r\n two\n".encode())
    assert read(tmp_path / "a.txt") == [Document("a.txt", "ün\r\n two\n")]
    assert read(str(tmp_path / "a.txt")) == read(tmp_path / "a.txt")


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)])
def test_compressed_texts_and_tables(tmp_path: Path, suffix: str, pack):
    (tmp_path / f"a.txt{suffix}").write_bytes(pack("schön".encode()))
    (tmp_path / f"b.jsonl{suffix}").write_bytes(pack(b'{"text": "one"}\n{"text": "two"}'))
    assert texts(read(tmp_path)) == ["schön", "one", "two"]


def test_a_damaged_archive_is_named_and_skipped(tmp_path: Path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"hello" * 1000)[:-12])
    (tmp_path / "b.jsonl.gz").write_bytes(b"no gzip at all")
    first, second = read(tmp_path)
    assert (first.name, first.text) == ("a.txt.gz", "")
    assert str(first.problem).startswith("damaged .gz file")
    assert str(second.problem).startswith("damaged .jsonl.gz file")


def test_folders_are_read_in_order_of_path_and_hidden_files_left_out(tmp_path: Path):
    for name in ("b/2.txt", "b/1.txt", "a.txt", ".hidden", ".git/config", "c/d/e.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    found = read(tmp_path)
    assert names(found) == ["a.txt", "b/1.txt", "b/2.txt", "c/d/e.md"]
    assert {document.label for document in found} == {None}


def test_one_level_of_sub_folders_gives_labels(tmp_path: Path):
    for name in ("pos/1.txt", "neg/1.txt", "pos/2.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert [(document.name, document.label) for document in read(tmp_path)] == [
        ("neg/1.txt", "neg"),
        ("pos/1.txt", "pos"),
        ("pos/2.txt", "pos"),
    ]


def test_large_files_come_in_parts_that_end_at_line_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plain, "PART", 20)
    text = "über alles\nläuft das Wasser\nund die Zeit vergeht hier"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    found = read(tmp_path / "a.txt")
    assert names(found) == ["a.txt", "a.txt#2", "a.txt#3", "a.txt#4"][: len(found)]
    assert "".join(texts(found)) == text
    assert texts(found)[0] == "über alles"
    assert len(found) >= 3


def test_bad_bytes_in_a_late_part_leave_the_earlier_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plain, "PART", 8)
    (tmp_path / "a.txt").write_bytes(b"abc defg hij \xff\xff")
    found = read(tmp_path / "a.txt")
    assert found[0] == Document("a.txt", "abc")
    assert found[-1].name == "a.txt#2"
    assert problems(found)[-1] == "not valid utf-8 (byte 0xff at 5; --encoding names another)"


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"", "empty"),
        (b" \n\t ", "empty"),
        (b"\x7fELF\0\0\0", "binary (it contains NUL bytes)"),
        (b"\x89PNG\0\xff", "binary (it contains NUL bytes)"),
        (b"na\xefve", "not valid utf-8 (byte 0xef at 2; --encoding names another)"),
        ("hello".encode("utf-16"), "not utf-8: it begins like UTF-16 (--encoding utf-16)"),
    ],
)
def test_why_a_file_is_no_text(tmp_path: Path, raw: bytes, problem: str):
    (tmp_path / "a.txt").write_bytes(raw)
    assert problems(read(tmp_path / "a.txt")) == [problem]


def test_encodings(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes("naïve".encode("latin-1"))
    (tmp_path / "b.txt").write_bytes("naïve".encode("utf-16"))
    (tmp_path / "c.csv").write_bytes("text\nnaïve".encode("utf-16"))
    (tmp_path / "d.jsonl").write_bytes('{"text": "naïve"}\n{"text": "ïï"}'.encode("utf-16"))
    assert texts(read(tmp_path / "a.txt", encoding="latin-1")) == ["naïve"]
    assert texts(read(tmp_path / "b.txt", encoding="utf-16")) == ["naïve"]
    assert texts(read(tmp_path / "c.csv", encoding="utf-16")) == ["naïve"]
    assert texts(read(tmp_path / "d.jsonl", encoding="utf-16")) == ["naïve", "ïï"]
    with pytest.raises(Refusal, match="encoding 'utf-99': Python knows no encoding of this name; use for example utf-8"):
        Reading(encoding="utf-99")


def test_json_lines(tmp_path: Path):
    lines = ['{"text": "one", "label": 1}', "", '{"text": "two", "label": null}', "{bad", "[1]", '{"label": 2}', '{"text": 3}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    found = read(tmp_path / "a.jsonl")
    assert [(d.name, d.text, d.label) for d in found[:2]] == [("a.jsonl:1", "one", "1"), ("a.jsonl:3", "two", None)]
    assert problems(found)[2:] == [
        "not JSON (Expecting property name enclosed in double quotes in column 2)",
        "not a JSON object",
        "field 'text' is missing",
        "field 'text' is not text",
    ]


def test_one_bad_line_spoils_no_other(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one"}\n{"text": "\xff"}\n{"text": "\\ud83d"}\n{"text": "four"}\n')
    found = read(tmp_path / "a.jsonl")
    assert texts(found)[0] == "one"
    assert texts(found)[3] == "four"
    assert problems(found)[1:3] == [
        "not valid utf-8 (byte 0xff at 10; --encoding names another)",
        "not valid Unicode (it contains half of a surrogate pair)",
    ]


def test_the_field_of_the_text_can_be_named(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "no", "story": "yes", "kind": "fable"}))
    assert read(tmp_path / "a.jsonl", text_column="story", label_column="kind") == [Document("a.jsonl:1", "yes", "fable")]


def test_a_json_list_is_refused(tmp_path: Path):
    (tmp_path / "a.json").write_text('[{"text": "one"}]')
    with pytest.raises(Refusal, match=r"a\.json: it holds one JSON list; write one object a line"):
        read(tmp_path / "a.json")


def test_csv_and_tsv(tmp_path: Path):
    (tmp_path / "a.csv").write_text('id,Content,label\n1,"two\nlines, quoted",x\n2,plain,\n3,too,many,fields\n')
    (tmp_path / "b.tsv").write_text("only\na, b\n")
    found = read(tmp_path)
    assert [(d.name, d.text, d.label) for d in found[:2]] == [("a.csv:1", "two\nlines, quoted", "x"), ("a.csv:2", "plain", "")]
    assert problems(found)[2] == "4 fields under 3 columns"
    assert found[3] == Document("b.tsv:1", "a, b")


def test_a_header_of_another_encoding_is_named(tmp_path: Path):
    (tmp_path / "a.csv").write_bytes("Überschrift,Größe\nx,y\n".encode("latin-1"))
    assert problems(read(tmp_path / "a.csv")) == ["not valid utf-8 (--encoding names another)"]


def test_csv_with_bad_bytes_and_large_fields(tmp_path: Path):
    long = "word " * 60_000
    (tmp_path / "a.csv").write_bytes(b"text\nna\xefve\n" + long.encode() + b"\n")
    found = read(tmp_path / "a.csv")
    assert problems(found) == ["not valid utf-8 (--encoding names another)", None]
    assert found[1].text == long


def test_parquet(tmp_path: Path):
    table = pa.table({"id": [1, 2, 3], "sentence": ["one", None, "three"], "label": [0, 1, 1]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    found = read(tmp_path / "a.parquet")
    assert [(d.name, d.text, d.label) for d in found] == [
        ("a.parquet:1", "one", "0"),
        ("a.parquet:2", "", "1"),
        ("a.parquet:3", "three", "1"),
    ]
    assert problems(found)[1] == "column 'sentence' is empty"


def test_a_file_that_is_no_parquet_is_an_unusable_document(tmp_path: Path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    (problem,) = problems(read(tmp_path / "a.parquet"))
    assert str(problem).startswith("not a Parquet file (")


def test_parquet_that_is_damaged_inside_gives_what_can_be_read(tmp_path: Path):
    path = tmp_path / "a.parquet"
    rows = [f"a text of its own, number {number}" for number in range(600)]
    pq.write_table(pa.table({"text": rows}), path, row_group_size=300, use_dictionary=False, compression="none")
    data = bytearray(path.read_bytes())
    place = data.index(b"number 7")
    data[place] = 0xFF
    path.write_bytes(data)
    found = read(path)
    assert texts(found)[:7] == rows[:7]
    assert [(number, problem) for number, problem in enumerate(problems(found)) if problem] == [
        (7, "column 'text' is not valid utf-8")
    ]
    footer = pq.read_metadata(path).row_group(1).column(0)
    data[footer.data_page_offset : footer.data_page_offset + 8] = b"\xff" * 8
    path.write_bytes(data)
    found = read(path)
    assert texts(found)[255] == rows[255], "what came before"
    assert str(problems(found)[-1]).startswith("damaged Parquet file (")


@pytest.mark.parametrize(
    ("name", "contents", "problem"),
    [
        (
            "b.csv",
            "a,b\nx,y\n",
            "none of its columns is known to hold text; they are a, b; name the column of the text with --text",
        ),
        ("b.tsv", "a\tb\nx\ty\n", "none of its columns is known to hold text; they are a, b; name the column of the text with"),
        (
            "b.jsonl",
            '{"a": "x", "b": "y"}\n{"a": "x", "b": "y"}',
            "none of its columns is known to hold text; they are a, b; name",
        ),
        ("b.json", '[{"text": "x"}]', "it holds one JSON list; write one object a line (JSON Lines), or a folder of texts"),
        ("b.parquet", "", "none of its columns is known to hold text; they are none; name the column of the text with --text"),
    ],
)
def test_a_table_without_text_spoils_no_folder(tmp_path: Path, name: str, contents: str, problem: str):
    (tmp_path / "a.txt").write_text("good")
    (tmp_path / name).write_text(contents)
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"a": [1], "b": [2]}), tmp_path / name)
    (tmp_path / "c.jsonl").write_text('{"text": "good too"}')
    found = read(tmp_path)
    assert names(found) == ["a.txt", name, "c.jsonl:1"]
    assert texts(found) == ["good", "", "good too"]
    assert str(found[1].problem).startswith(problem)
    with pytest.raises(Refusal, match=name):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl", "a.parquet"])
def test_a_file_that_may_not_be_read_is_named_and_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / name).touch()
    (tmp_path / "b.md").write_text("good")
    monkeypatch.setattr("microtome.corpus.tabular.opened", forbidden)
    monkeypatch.setattr("microtome.corpus.plain.opened", forbidden)
    monkeypatch.setattr("microtome.corpus.tabular.pq.ParquetFile", forbidden)
    assert "ermission denied" in str(read(tmp_path)[0].problem)


def test_numbers_that_python_will_not_read_spoil_no_other_line(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "one", "n": ' + "9" * 5000 + '}\n{"text": "two"}\n' + "[" * 100_000)
    found = read(tmp_path / "a.jsonl")
    assert [bool(problem) for problem in problems(found)] == [True, False, True]
    assert texts(found)[1] == "two"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "none of its columns is known to hold text; they are a, b; name the column of the text with --text-column"),
        ({"text_column": "c"}, "it has no column 'c'; its columns are a, b; name one of them with --text-column"),
        (
            {"text_column": "a", "label_column": "c"},
            "it has no column 'c'; its columns are a, b; name one of them with --label-column",
        ),
    ],
)
def test_tables_without_the_column_are_refused(tmp_path: Path, options: dict[str, str], message: str):
    pq.write_table(pa.table({"a": ["x"], "b": ["y"]}), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("a,b\nx,y\n")
    (tmp_path / "a.jsonl").write_text('{"a": "x", "b": "y"}\n')
    for name in ("a.parquet", "a.csv", "a.jsonl"):
        with pytest.raises(Refusal) as caught:
            read(tmp_path / name, **options)
        assert message in str(caught.value)
        assert str(caught.value).startswith(name)


def test_standard_input(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("grüße".encode())))
    assert read("-") == [Document("stdin", "grüße")]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert problems(read("-")) == ["empty"]
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(Refusal, match="standard input is closed; pipe a text into it, or name a file"):
        read("-")


def test_texts_paths_and_documents_from_python(tmp_path: Path):
    (tmp_path / "a.txt").write_text("file")
    found = read(["one", tmp_path / "a.txt", Document("mine", "three", "x")])
    assert found == [Document("text 1", "one"), Document("a.txt", "file"), Document("mine", "three", "x")]
    with pytest.raises(Refusal, match="item 1 of the source: it is a int; give texts, paths or documents"):
        read(iter([3]))


def test_missing_paths_and_empty_folders_are_refused(tmp_path: Path):
    with pytest.raises(Refusal, match="nowhere: there is no such file or folder; name a file, a folder, hf:NAME"):
        read(str(tmp_path / "nowhere"))
    with pytest.raises(Refusal, match="there are no files in this folder"):
        read(tmp_path)


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def walk(folder: Path, onerror: Callable[[OSError], None]) -> Iterator[tuple[str, list[str], list[str]]]:
        yield str(folder), ["private"], ["a.txt"]
        onerror(PermissionError(13, "Permission denied", str(folder / "private")))

    (tmp_path / "a.txt").touch()
    monkeypatch.setattr("os.walk", walk)
    with pytest.raises(
        Refusal, match="private: the folder cannot be read: Permission denied; make it readable, or leave it out"
    ):
        read(tmp_path)


def test_the_sample_ships():
    found = read("sample")
    assert len(found) == 10
    assert problems(found) == [None] * 10
    assert {document.label for document in found} == {"story", "how-to", "report"}
    assert 6000 < sum(map(len, texts(found))) < 9000


def test_names_of_sources(tmp_path: Path):
    assert source_name("sample") == "sample"
    assert source_name("-") == "stdin"
    assert source_name("hf:imdb:train") == "imdb:train"
    assert source_name(str(tmp_path / "a.txt")) == "a.txt"
    assert source_name(["x"]) == "texts"
    assert source_name(os.fsdecode(b"/somewhere/caf\xe9.txt")) == "caf?.txt"


class Stream:
    """What `datasets.load_dataset(..., streaming=True)` gives, as far as it is used."""

    def __init__(self, features: dict, rows: list[dict]) -> None:
        self.features = features
        self._rows = rows

    def __iter__(self):
        return iter(self._rows)


def stand_in(monkeypatch: pytest.MonkeyPatch, stream: Stream) -> list[tuple]:
    calls = []

    def load_dataset(name, config, *, split, streaming):
        calls.append((name, config, split, streaming))
        if name == "missing":
            raise FileNotFoundError("Dataset 'missing' doesn't exist on the Hub")
        return stream

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return calls


def test_data_sets_of_the_hub_are_streamed_and_their_labels_named(monkeypatch: pytest.MonkeyPatch):
    features = {"text": None, "label": SimpleNamespace(names=["neg", "pos"])}
    calls = stand_in(monkeypatch, Stream(features, [{"text": "good", "label": 1}, {"text": "bad", "label": 0}]))
    assert read("hf:user/reviews:plain:test") == [
        Document("user/reviews:1", "good", "pos"),
        Document("user/reviews:2", "bad", "neg"),
    ]
    assert calls == [("user/reviews", "plain", "test", True)]


def test_a_single_part_is_a_split_only_where_it_is_called_like_one(monkeypatch: pytest.MonkeyPatch):
    calls = stand_in(monkeypatch, Stream({}, [{"text": "x"}]))
    for source in ("hf:a", "hf:a:validation", "hf:a:en"):
        assert texts(read(source)) == ["x"]
    assert [call[:3] for call in calls] == [("a", None, "train"), ("a", None, "validation"), ("a", "en", "train")]


def test_data_sets_that_cannot_be_had_are_refused(monkeypatch: pytest.MonkeyPatch):
    stand_in(monkeypatch, Stream({}, []))
    with pytest.raises(Refusal, match="hf:missing: the data set cannot be opened: Dataset 'missing' doesn't exist on the Hub"):
        read("hf:missing")
    with pytest.raises(Refusal, match=r"data set 'hf:a:b:c:d': not of the form hf:NAME\[:config\]\[:split\]"):
        read("hf:a:b:c:d")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(Refusal, match=r"needs the package datasets; pip install 'microtome\[hub\]'"):
        read("hf:imdb")
