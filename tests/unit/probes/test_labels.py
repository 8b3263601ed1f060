from pathlib import Path

import pytest

from microtome.core import Refusal
from microtome.probes import LabelledText, brown_class, distinct, merged, read_columns, read_labels, read_tagged


def written(folder: Path, text: str, name: str = "labels.txt") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def spelled(text: LabelledText) -> list[str]:
    return [text.text[begin:end] for begin, end in text.spans]


def test_words_and_last_column_of_a_conll_file(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "-DOCSTART- -X- O O\n\nEU NNP I-NP B-ORG\nrejects VBZ I-VP O\n\n# # I-NP O\n\n-DOCSTART- -X- O O\n\nNo DT I O\n",
    )
    texts = read_columns(path)
    assert [text.words for text in texts] == [("EU", "rejects"), ("#",), ("No",)]
    assert texts[0].labels == ("B-ORG", "O")
    assert [text.document for text in texts] == ["labels.txt 1", "labels.txt 1", "labels.txt 2"]
    assert read_columns(path, label=1)[0].labels == ("NNP", "VBZ")


def test_conll_u_leaves_out_ranges_and_closes_up_where_the_file_says(tmp_path: Path) -> None:
    row = "{}\t{}\t_\t{}\t_\t_\t_\t_\t_\t{}"
    lines = [
        "# sent_id = 1",
        row.format("1-2", "don't", "_", "_"),
        row.format(1, "do", "AUX", "SpaceAfter=No"),
        row.format(2, "n't", "PART", "_"),
        row.format("2.1", "gone", "VERB", "_"),
        row.format(3, "go", "VERB", "SpaceAfter=No"),
        row.format(4, ".", "PUNCT", "_"),
    ]
    (text,) = read_columns(written(tmp_path, "\n".join(lines)))
    assert text.text == "don't go."
    assert text.words == ("do", "n't", "go", ".")
    assert text.labels == ("AUX", "PART", "VERB", "PUNCT")
    assert spelled(text) == list(text.words)


def test_without_documents_each_sentence_is_one(tmp_path: Path) -> None:
    texts = read_columns(written(tmp_path, "a X\n\nb Y\n"))
    assert len({text.document for text in texts}) == 2


def test_word_and_tag_split_at_the_last_slash_and_punctuation_closes_up(tmp_path: Path) -> None:
    (text,) = read_tagged(written(tmp_path, "\tThe/at ratio/nn (/( 1/2/cd )/) fell/vbd ,/, ''/'' ./.\n\n"))
    assert text.words == ("The", "ratio", "(", "1/2", ")", "fell", ",", "''", ".")
    assert text.labels[3] == "cd"
    assert text.text == "The ratio (1/2) fell, '' ."
    assert spelled(text) == list(text.words)
    assert text.document == "labels.txt"


def test_kinds_of_files_are_told_apart_and_a_folder_is_read_by_name(tmp_path: Path) -> None:
    written(tmp_path, "b X\n", "2")
    written(tmp_path, "a/nn b/vb\n", "1")
    texts = read_labels(tmp_path, relabel=str.upper)
    assert [text.labels for text in texts] == [("NN", "VB"), ("X",)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a/nn b\n", r"in line 1, 'b' is not of the form word/TAG"),
        ("a/nn /nn\n", r"in line 1, '/nn' is not of the form"),
        ("\n", "it has no word"),
    ],
)
def test_bad_word_and_tag_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(Refusal, match=message):
        read_tagged(written(tmp_path, text))


def test_bad_columns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="line 2 has 1 columns, and those before it 2"):
        read_columns(written(tmp_path, "a X\nb\n"))
    with pytest.raises(Refusal, match="its lines have 2 columns, and columns 0 and 5 are asked for"):
        read_columns(written(tmp_path, "a X\n"), label=5)
    with pytest.raises(Refusal, match="there is no file"):
        read_labels(tmp_path / "missing")
    bad = tmp_path / "bad"
    bad.write_bytes(b"caf\xe9 X\n")
    with pytest.raises(Refusal, match="byte 3 is not valid UTF-8"):
        read_columns(bad)


def test_a_sentence_that_was_there_before_is_left_out() -> None:
    once, again, other, cased = (
        LabelledText(document, " ".join(words), words, tuple("x" * len(words)), ((0, 1),))
        for document, words in (("a", ("It", "is")), ("b", ("It", "is")), ("b", ("It", "was")), ("c", ("it", "IS")))
    )
    assert distinct([once, again, other, cased]) == [once, other]


def test_merging_keeps_words_where_they_are(tmp_path: Path) -> None:
    texts = read_tagged(written(tmp_path, "a/X b/Y\nc/X\nd/Y e/X\n"))
    one, two = merged(texts, words=3)
    assert (one.text, two.text) == ("a b c", "d e")
    assert one.labels == ("X", "Y", "X")
    assert spelled(one) == ["a", "b", "c"]
    other = read_tagged(written(tmp_path, "f/X\n", "other"))
    assert [text.document for text in merged([*texts, *other], words=100)] == ["labels.txt", "other"]


@pytest.mark.parametrize(
    ("tag", "name"),
    [("nn-tl", "noun"), ("*", "negation"), ("``", "punctuation"), ("hvz*", "verb"), ("wp$", "pronoun"), ("nil", "other")],
)
def test_coarse_classes_of_brown(tag: str, name: str) -> None:
    assert brown_class(tag) == name
