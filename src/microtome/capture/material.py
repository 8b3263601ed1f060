"""What a model reads: text or images, whichever it takes, as something that becomes a corpus.

Both are a `Material`: it writes its tables through a sink, and opens them again wherever they are. Readers and windows belong in
`corpus`, where an atlas keeps its tables in `atlas`.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import pyarrow as pa

from microtome.core import Refusal
from microtome.corpus import (
    Corpus,
    Cutting,
    Grid,
    Joined,
    Reading,
    Sink,
    Source,
    is_image_source,
    is_path,
    open_corpus,
    open_images,
    prepare,
    prepare_images,
    prepare_joined,
    source_name,
)
from microtome.model import Model, patch_grid
from microtome.store import stream_table

__all__ = ["Material", "material_of", "writing_to"]

_log = logging.getLogger(__name__)


@runtime_checkable
class Material(Protocol):
    """A source that fits its model, and how it becomes a corpus."""

    def prepare(self, sink: Sink, run: str) -> Corpus:
        """Write the tables `documents` and `windows`, and of images `pictures`; open them."""
        ...

    def reopen(self, documents: Path, windows: Path, prepared: Corpus) -> Corpus:
        """The corpus `prepared`, whose tables have been moved."""
        ...


@dataclass(frozen=True)
class _Texts:
    model: Model
    source: Source
    reading: Reading
    window: int | Joined
    seed: int

    def prepare(self, sink: Sink, run: str) -> Corpus:
        shape, tokenizer = self.model.shape, self.model.tokenizer
        asked = self.window.window if isinstance(self.window, Joined) else self.window
        window = min(asked, shape.context or asked)
        if window < asked:
            _log.warning("windows are of %d tokens, not %d: %s reads no more", window, asked, self.model.name)
        if isinstance(self.window, Joined):
            joined = replace(self.window, window=window)
            return prepare_joined(self.source, tokenizer, sink, run, joined=joined, reading=self.reading, vocab=shape.vocab)
        return prepare(
            self.source,
            tokenizer,
            sink,
            run,
            reading=self.reading,
            cutting=Cutting(window=window),
            seed=self.seed,
            vocab=shape.vocab,
        )

    def reopen(self, documents: Path, windows: Path, prepared: Corpus) -> Corpus:
        return open_corpus(documents, windows, name=prepared.name, window=prepared.window)


@dataclass(frozen=True)
class _Images:
    model: Model
    source: str | Path
    reading: Reading
    grid: Grid
    seed: int

    def prepare(self, sink: Sink, run: str) -> Corpus:
        return prepare_images(
            self.source, self.model.processor, sink, run, grid=self.grid, reading=self.reading, seed=self.seed
        )

    def reopen(self, documents: Path, windows: Path, prepared: Corpus) -> Corpus:
        path = Path(self.source)
        folder = path if path.is_dir() else path.parent
        return open_images(documents, windows, name=prepared.name, folder=folder, processor=self.model.processor)


def material_of(model: Model, source: Source, reading: Reading, *, window: int | Joined, seed: int) -> Material:
    """`source` as `model` reads it: text in windows of at most `window` tokens, or images, one a window.

    `Joined` windows are drawn as it says, and cut to the model's context where that is shorter.
    Errors: `Refusal` where the model reads the other kind, or lacks the tokenizer or image processor that it takes.
    """
    if model.family.inputs == "image" and isinstance(window, Joined):
        raise Refusal("the paper's protocol", why="it joins texts, and images cannot be joined", instead="use the clean one")
    if model.family.inputs == "image":
        return _images(model, source, reading, seed)
    if is_image_source(source):
        raise _other_kind(model, source, "text", "it is an image or a folder of images")
    if model.tokenizer is None:
        raise Refusal(
            f"text for {model.name}",
            why="there is no tokenizer beside the model",
            instead="put the tokenizer files of this model beside its weights, or build without a text",
        )
    return _Texts(model, source, reading, window, seed)


def _images(model: Model, source: Source, reading: Reading, seed: int) -> Material:
    if not is_path(source) or (Path(source).exists() and not is_image_source(source)):
        raise _other_kind(model, source, "images", "it is no image and no folder of images")
    if model.processor is None:
        raise Refusal(
            f"images for {model.name}",
            why="there is no image processor beside the model",
            instead="put its preprocessor_config.json beside its weights, or build without images",
        )
    patches = model.shape.patches
    assert patches is not None, "a model that reads images has patches"
    rows, columns = patch_grid(model.shape, model.processor)
    return _Images(model, source, reading, Grid(rows, columns, patches.before), seed)


def _other_kind(model: Model, source: Source, kind: str, why: str) -> Refusal:
    return Refusal(
        source_name(source), why=f"{why}, and {model.name} reads {kind}", instead=f"name {kind}, or a model that reads this"
    )


def writing_to(folder: Path, writer: str) -> Sink:
    """A sink that writes tables below `folder`."""

    def sink(table: str, batches: Iterator[pa.RecordBatch]) -> Path:
        return stream_table(folder, table, writer, batches)

    return sink
