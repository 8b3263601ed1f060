"""Image folders to windows: one image is one document and one window.

A token is (item, row, column): its id is row * columns + column, and -1 for the special tokens ahead of the patches. Pixels
stay in their files and go through the model's own image processor when a batch is made.
"""

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from microtome.core import Refusal, Role
from microtome.corpus.corpus import Corpus, open_corpus
from microtome.corpus.documents import Document, Reading, readable
from microtome.corpus.ledger import Ledger, spooled
from microtome.corpus.plain import files_below, labels_below
from microtome.corpus.preparation import Sink
from microtome.corpus.windows import ROWS

__all__ = ["Grid", "ImageProcessor", "Pixels", "is_image_source", "open_images", "prepare_images"]

ImageProcessor = Callable[..., Any]
"""The model's image processor: processor(images=[...], return_tensors="pt")["pixel_values"]."""

_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_AS_USUAL: Final = Reading()


@dataclass(frozen=True)
class Grid:
    """The tokens of an image: `before` special ones (class token, registers), then rows * columns patches, row by row."""

    rows: int
    columns: int
    before: int = 1


@dataclass(frozen=True, eq=False)
class Pixels:
    """The pixel values of documents, read from the files below `folder` when they are asked for."""

    folder: Path
    names: tuple[str, ...]
    processor: ImageProcessor

    def __call__(self, documents: Sequence[int]) -> dict[str, Tensor]:
        """Processed pixels, as `pixel_values`."""
        images = [_image(self.folder / self.names[document]) for document in documents]
        return {"pixel_values": torch.as_tensor(self.processor(images=images, return_tensors="pt")["pixel_values"])}

    def identity(self) -> str:
        """A digest of the files' bytes and of what the processor makes of a fixed picture. Cost: reads every file."""
        digest = hashlib.blake2b(digest_size=16)
        for name in self.names:
            path = self.folder / name
            digest.update(_digest(path).encode() if path.is_file() else b"-")
        ramp = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
        probe = self.processor(images=[_from_array(np.stack([ramp, ramp * 2, 255 - ramp], axis=2))], return_tensors="pt")
        digest.update(torch.as_tensor(probe["pixel_values"]).float().cpu().numpy().tobytes())
        return digest.hexdigest()


def is_image_source(source: object) -> bool:
    """Whether a source is an image, or a folder in which more than half of the files are images, by their names."""
    if not isinstance(source, str | Path) or not str(source):
        return False
    path = Path(source)
    if not path.is_dir():
        return path.suffix.lower() in _SUFFIXES and path.exists()
    files = files_below(path)
    return 2 * sum(file.suffix.lower() in _SUFFIXES for file in files) > len(files)


def prepare_images(
    source: str | Path,
    processor: ImageProcessor,
    sink: Sink,
    run: str,
    *,
    grid: Grid,
    reading: Reading = _AS_USUAL,
    seed: int = 0,
) -> Corpus:
    """Write the tables of an image folder (or of one image) and open them; a file's sub-folder is its label.

    Errors: `Refusal` where nothing, or too much, cannot be opened as an image, and where the processor's pictures do not fit
    `grid`. Cost: every image is decoded once, so that none fails later.
    """
    path = Path(source)
    if not path.exists():
        raise Refusal(str(path), why="there is no such file or folder", instead="name an image or a folder of images")
    folder = path if path.is_dir() else path.parent
    files = files_below(path) if path.is_dir() else [path]
    labels = labels_below(folder, files)
    with spooled() as spool:
        ledger = Ledger(readable(path.resolve().name), run, 1, seed, spool)

        def windows() -> Iterator[pa.RecordBatch]:
            taken: list[int] = []
            done = 0
            for file, label in zip(files, labels, strict=True):
                number = ledger.note(_document(file, file.relative_to(folder).as_posix(), label))
                if number is not None:
                    if not taken and not done:
                        _check_grid(file, processor, grid)
                    taken.append(number)
                    ledger.tally.add(number, 1, grid.rows * grid.columns)
                if len(taken) == ROWS:
                    yield _rows(taken, done, grid, run)
                    ledger.finish(set(taken))
                    taken, done = [], done + ROWS
            if taken:
                yield _rows(taken, done, grid, run)
            ledger.close()
            ledger.check(reading.bad_share)

        windows_path = sink("windows", windows())
        documents_path = sink("documents", ledger.rows())
    return open_images(documents_path, windows_path, name=readable(path.resolve().name), folder=folder, processor=processor)


def open_images(documents: Path, windows: Path, *, name: str, folder: Path, processor: ImageProcessor) -> Corpus:
    """Open the tables of an image folder that has been prepared; the files must still be below `folder`."""
    with pq.ParquetFile(documents) as file:
        names = tuple(file.read(columns=["name"]).column("name").to_pylist())
    return open_corpus(documents, windows, name=name, extras=Pixels(folder, names, processor))


def _rows(documents: list[int], first: int, grid: Grid, run: str) -> pa.RecordBatch:
    count, size = len(documents), grid.before + grid.rows * grid.columns
    ids = np.r_[np.full(grid.before, -1), np.arange(grid.rows * grid.columns)].astype(np.int32)
    roles = np.r_[np.full(grid.before, Role.SPECIAL), np.full(grid.rows * grid.columns, Role.CONTENT)].astype(np.uint8)
    offsets = pa.array(np.arange(count + 1) * size, pa.int32())
    none = np.full(size, -1, np.int32)
    lists = [pa.ListArray.from_arrays(offsets, pa.array(np.tile(values, count))) for values in (ids, roles, none, none)]
    plain = [
        pa.array([run] * count, pa.string()),
        pa.array(range(first, first + count), pa.int64()),
        pa.array(documents, pa.int64()),
        pa.array([0] * count, pa.int64()),
    ]
    names = ["run", "window", "document", "start", "ids", "roles", "char_start", "char_end"]
    return pa.RecordBatch.from_arrays([*plain, *lists], names)


def _document(path: Path, name: str, label: str | None) -> Document:
    if readable(name) != name:
        return Document(name, label=label, problem="the name of the file is not valid Unicode")
    try:
        _image(path)
        return Document(name, label=label, digest=_digest(path))
    except (OSError, ValueError, SyntaxError) as error:
        return Document(name, label=label, problem=f"not an image ({type(error).__name__})")


def _image(path: Path) -> Any:
    """The picture, decoded, in three colours."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a picture is a little wrong in, and of large ones
            with Image.open(path) as image:
                return image.convert("RGB")
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error


def _from_array(values: NDArray[np.uint8]) -> Any:
    from PIL import Image

    return Image.fromarray(values)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _check_grid(path: Path, processor: ImageProcessor, grid: Grid) -> None:
    pixels = Pixels(path.parent, (path.name,), processor)([0])["pixel_values"]
    height, width = pixels.shape[-2:]
    if height % grid.rows or width % grid.columns:
        raise Refusal(
            path.name,
            why=f"the image processor makes pictures of {height} x {width}, which {grid.rows} x {grid.columns} patches do not tile",
            instead="use the image processor that belongs to this model",
        )
