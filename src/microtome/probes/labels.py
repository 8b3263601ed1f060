"""Texts whose words are labelled: column files of the CoNLL kind, and texts of word/TAG such as Brown's.

Files to words with labels and the characters they cover. Which tokens of a model they are is found in `words`.
"""

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Final

from microtome.core import Refusal

__all__ = ["LabelledText", "brown_class", "distinct", "merged", "read_columns", "read_labels", "read_tagged"]

_CLOSING: Final = frozenset(",.;:?!)]}%")
_OPENING: Final = frozenset("([{")
_DOCUMENT: Final = "-DOCSTART-"
_COMMENTS: Final = ("# newdoc", "# newpar", "# sent_id", "# text")
"""What begins a comment even where it has as many words as there are columns; `#` alone may be a word."""


@dataclass(frozen=True)
class LabelledText:
    """A sentence, or several: `words` are where `spans` (characters, end excluded) say in `text`, a label for each."""

    document: str
    text: str
    words: tuple[str, ...]
    labels: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]


def read_labels(path: Path, relabel: Callable[[str], str] = str) -> list[LabelledText]:
    """Labelled texts of a file, or of all files of a folder in the order of their names, whatever their kind; `relabel` names classes.

    A file with a word on each line is one of columns, else its words are word/TAG.
    Errors: `Refusal` where there is no file, and as of `read_columns` and `read_tagged`.
    """
    files = sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [path]
    if not files or not path.exists():
        raise Refusal(f"labels in {path.name}", why="there is no file", instead="name a file of columns or of word/TAG")
    found: list[LabelledText] = []
    for file in files:
        first = next((line.split() for line in _lines(file) if line.strip() and not line.startswith("#")), [])
        tagged = first and all("/" in word.strip("/") for word in first)
        found += read_tagged(file, relabel=relabel) if tagged else read_columns(file, relabel=relabel)
    return found


def read_columns(
    path: Path, *, word: int | None = None, label: int | None = None, relabel: Callable[[str], str] = str
) -> list[LabelledText]:
    """Sentences of a file with a word and its columns on each line, and an empty line between sentences.

    By default words are in the first column and labels in the last; in CoNLL-U (ten columns) in FORM and UPOS, ranges and empty nodes left
    out. `-DOCSTART-` and `# newdoc` begin a document; where none does, each sentence is one, for nothing says that they belong together.
    Errors: `Refusal` for a line of another number of columns, a column that is not there, and a file without a word.
    """
    lines = _lines(path)
    separator = "\t" if any("\t" in line for line in lines) else None
    rows = [line.split(separator) for line in lines]
    width = len(next((row for row, line in zip(rows, lines, strict=True) if line.strip() and line[0] != "#"), []))
    universal = width == 10 and separator == "\t"
    word, label = (1 if universal else 0) if word is None else word, (3 if universal else -1) if label is None else label
    if width < 2 or max(word, label) >= width or min(word, label) < -width:
        why = f"its lines have {width} columns, and columns {word} and {label} are asked for"
        raise Refusal(f"labels in {path.name}", why=why, instead="name a file with a word and its label on each line")
    document, starts, sentence = 0, 0, 0
    found: dict[tuple[int, int], list[tuple[str, str, bool]]] = {}
    for number, (line, row) in enumerate(zip(lines, rows, strict=True), 1):
        comment = line.startswith("#") and (len(row) != width or line.startswith(_COMMENTS))
        if comment or line.startswith(_DOCUMENT) or not line.strip():
            starts += line.startswith((_DOCUMENT, "# newdoc"))
            document, sentence = starts, sentence + 1
        elif len(row) != width:
            why = f"line {number} has {len(row)} columns, and those before it {width}"
            raise Refusal(f"labels in {path.name}", why=why, instead="mend the line, or separate columns by tabs")
        elif not (universal and re.fullmatch(r"\d+[-.]\d+", row[0])):
            glued = universal and "SpaceAfter=No" in row[9]
            found.setdefault((document, sentence), []).append((row[word].strip(), relabel(row[label].strip()), glued))
    names = {key: f"{path.name} {key[0] if starts else number}" for number, key in enumerate(found)}
    texts = []
    for key, rows_of in found.items():
        words, labels, glued = zip(*rows_of, strict=True)
        texts.append(_text(names[key], words, labels, [False, *glued[:-1]]))
    return _some(texts, path)


def read_tagged(path: Path, *, separator: str = "/", relabel: Callable[[str], str] = str) -> list[LabelledText]:
    """Sentences of a file of `word/TAG`, one on each line; the file is a document. Punctuation closes up to the word before it.

    The last separator of each is the one that counts, so that 1/2/cd is a number.
    Errors: `Refusal` for a word without label, and for a file without a word.
    """
    texts = []
    for number, line in enumerate(_lines(path), 1):
        pairs = [each.rpartition(separator) for each in line.split()]
        bad = next(("".join(pair) for pair in pairs if not pair[0] or not pair[2]), None)
        if bad is not None:
            why = f"in line {number}, {bad!r} is not of the form word{separator}TAG"
            raise Refusal(f"labels in {path.name}", why=why, instead="give each word a label")
        if pairs:
            words = [pair[0] for pair in pairs]
            texts.append(_text(path.name, words, [relabel(pair[2]) for pair in pairs], _closed_up(words)))
    return _some(texts, path)


def distinct(texts: Iterable[LabelledText]) -> list[LabelledText]:
    """Texts without those whose words were all there before: the same sentence in both halves would be held out from nothing."""
    first: dict[tuple[str, ...], LabelledText] = {}
    for each in texts:
        first.setdefault(tuple(word.casefold() for word in each.words), each)
    return list(first.values())


def merged(texts: Iterable[LabelledText], words: int = 150) -> list[LabelledText]:
    """Consecutive texts of a document joined until they have `words` words, so that few words stand at the beginning of what is read."""
    found = []
    for document, group in groupby(texts, key=lambda each: each.document):
        waiting: list[LabelledText] = []
        for text in group:
            waiting.append(text)
            if sum(len(each.words) for each in waiting) >= words:
                found.append(_merged(document, waiting))
                waiting = []
        if waiting:
            found.append(_merged(document, waiting))
    return found


@functools.cache  # a corpus has few tags, each a thousand times
def brown_class(tag: str) -> str:
    """The coarse class of a tag of the Brown corpus: its first part, without marks of titles, headlines, quotations and foreign words.

    >>> [brown_class(tag) for tag in ("np$-tl", "vbd*", "ppss+bem", "fw-nn", ",")]
    ['name', 'verb', 'pronoun', 'noun', 'punctuation']
    """
    if not any(letter.isalpha() for letter in tag):
        return "negation" if tag == "*" else "punctuation"
    first = re.split(r"[-+*$]", tag.removeprefix("fw-"))[0]
    return next((name for prefix, name in _BROWN if first.startswith(prefix)), "other")


_BROWN: Final = (
    ("nn", "noun"),
    ("nr", "noun"),
    ("np", "name"),
    ("vb", "verb"),
    ("be", "verb"),
    ("hv", "verb"),
    ("do", "verb"),
    ("md", "modal"),
    ("jj", "adjective"),
    ("rb", "adverb"),
    ("rn", "adverb"),
    ("rp", "particle"),
    ("ql", "adverb"),
    ("in", "preposition"),
    ("to", "to"),
    ("at", "determiner"),
    ("ap", "determiner"),
    ("ab", "determiner"),
    ("dt", "determiner"),
    ("pn", "pronoun"),
    ("pp", "pronoun"),
    ("wp", "pronoun"),
    ("wd", "wh-word"),
    ("wr", "wh-word"),
    ("wq", "wh-word"),
    ("cc", "conjunction"),
    ("cs", "conjunction"),
    ("cd", "number"),
    ("od", "number"),
    ("ex", "existential"),
)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        why, way = f"byte {error.start} is not valid UTF-8", "save it as UTF-8"
        raise Refusal(f"labels in {path.name}", why=why, instead=way) from error


def _closed_up(words: Sequence[str]) -> list[bool]:
    """Whether each word follows the one before it without a space: punctuation after a word, and what is after a bracket."""
    before = ["", *words[:-1]]
    return [
        bool(last) and (last in _OPENING or (word in _CLOSING and last[-1].isalnum()))
        for word, last in zip(words, before, strict=True)
    ]


def _text(document: str, words: Sequence[str], labels: Sequence[str], glued: Sequence[bool]) -> LabelledText:
    parts: list[str] = []
    spans, at = [], 0
    for number, (word, close) in enumerate(zip(words, glued, strict=True)):
        gap = "" if close or not number else " "
        parts += [gap, word]
        spans.append((at + len(gap), at + len(gap) + len(word)))
        at = spans[-1][1]
    return LabelledText(document, "".join(parts), tuple(words), tuple(labels), tuple(spans))


def _merged(document: str, texts: Sequence[LabelledText]) -> LabelledText:
    starts = [0]
    for each in texts[:-1]:
        starts.append(starts[-1] + len(each.text) + 1)
    spans = [(begin + at, end + at) for at, each in zip(starts, texts, strict=True) for begin, end in each.spans]
    words, labels = (tuple(each for text in texts for each in getattr(text, name)) for name in ("words", "labels"))
    return LabelledText(document, " ".join(each.text for each in texts), words, labels, tuple(spans))


def _some(texts: list[LabelledText], path: Path) -> list[LabelledText]:
    if not texts:
        raise Refusal(f"labels in {path.name}", why="it has no word", instead="name a file with labelled words")
    return texts
