"""Sources to documents: one entry for files, folders, tables, the hub, standard input, the sample, and Python iterables.

Order is deterministic: that of the paths in a folder, of the rows in a table. Each kind has its own module; images have
theirs too (`images`), since they need a model's processor.
"""

import json
import os
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Final, TypeGuard

from microtome.core import Refusal
from microtome.corpus.documents import Document, Reading, readable
from microtome.corpus.hub import hub_documents
from microtome.corpus.plain import bare_suffix, files_below, labels_below, standard_input, text_file
from microtome.corpus.tabular import json_lines, parquet, separated

__all__ = ["SAMPLE", "Source", "documents", "is_path", "source_name"]

SAMPLE: Final = "sample"
"""The source that names the small text which ships with the package."""

Source = str | Path | Iterable[str | Path | Document]


def documents(source: Source, reading: Reading) -> Iterator[Document]:
    """The documents of a source, in order; unusable ones come with their problem.

    A `str` is `sample`, `-` (standard input), `hf:NAME[:config][:split]`, or a path. In an iterable a `str` is a text, a `Path`
    a file or folder, a `Document` itself.
    Errors: `Refusal` where a path is missing, a folder has no files, a table no column of text.
    """
    if isinstance(source, str):
        if source == SAMPLE:
            return _sample()
        if not source.strip() or "\0" in source:
            raise Refusal(f"text {source!r}", why="it names nothing", instead="name a file or a folder")
        if source == "-":
            return standard_input(reading)
        if source.startswith("hf:"):
            return hub_documents(source, reading)
        return _path(Path(source), reading)
    return _path(source, reading) if isinstance(source, Path) else _items(source, reading)


def is_path(source: Source) -> TypeGuard[str | Path]:
    """Whether a source is a file or folder: not the sample, standard input, a data set of the hub, or texts in Python."""
    if isinstance(source, str):
        return source not in (SAMPLE, "-") and not source.startswith("hf:")
    return isinstance(source, Path)


def source_name(source: Source) -> str:
    """A short name for a source, without the folders that lead to it."""
    if is_path(source):
        return readable(os.path.basename(os.path.abspath(source)))
    return {"-": "stdin"}.get(source, source.removeprefix("hf:")) if isinstance(source, str) else "texts"


def _path(path: Path, reading: Reading) -> Iterator[Document]:
    if not path.exists():
        raise Refusal(
            str(path),
            why="there is no such file or folder",
            instead="name a file, a folder, hf:NAME, - for standard input, or sample",
        )
    if not path.is_dir():
        return _file(path, path.name, None, reading)
    return _folder(path, reading)


def _folder(folder: Path, reading: Reading) -> Iterator[Document]:
    files = files_below(folder)
    for path, label in zip(files, labels_below(folder, files), strict=True):
        name = path.relative_to(folder).as_posix()
        try:
            yield from _file(path, name, label, reading)
        except Refusal as refusal:  # a table without a column of text, among files that are good
            yield Document(name, label=label, problem=f"{refusal.why}; {refusal.instead}")


def _file(path: Path, name: str, label: str | None, reading: Reading) -> Iterator[Document]:
    match bare_suffix(path):
        case ".jsonl" | ".ndjson" | ".json":
            return json_lines(path, name, reading)
        case ".csv" | ".tsv":
            return separated(path, name, reading)
        case ".parquet":
            return parquet(path, name, reading)
        case _:
            return text_file(path, name, label, reading)


def _sample() -> Iterator[Document]:
    for line in (resources.files("microtome.corpus") / "sample.jsonl").read_text("utf-8").splitlines():
        record = json.loads(line)
        yield Document(record["title"], record["text"], record["label"])


def _items(items: Iterable[str | Path | Document], reading: Reading) -> Iterator[Document]:
    for number, item in enumerate(items, start=1):
        match item:
            case str():
                yield Document(f"text {number}", item)
            case Path():
                yield from _path(item, reading)
            case Document():
                yield item
            case _:
                raise Refusal(
                    f"item {number} of the source",
                    why=f"it is a {type(item).__name__}",
                    instead="give texts, paths or documents",
                )
