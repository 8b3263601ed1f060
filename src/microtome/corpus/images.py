"""Image folders to windows: one image is one document and one window.

A token is (item, row, column): its id is row * columns + column, and -1 for the special tokens ahead of the patches. Pixels
stay in their files and go through the model's own image processor when a batch is made; what it makes of them is also kept as
small pictures to be looked at (`pictures`).
"""

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Refusal, Role
from microtome.corpus.corpus import Corpus, open_corpus
from microtome.corpus.documents import Document, Reading, readable
from microtome.corpus.ledger import Ledger, spooled
from microtome.corpus.pictures import (
    TOGETHER,
    Colours,
    ImageProcessor,
    Seen,
    from_array,
    picture_rows,
    processed,
    seen,
    unprocessed,
)
from microtome.corpus.plain import files_below, labels_below
from microtome.corpus.preparation import Sink
from microtome.corpus.windows import ROWS

__all__ = ["Grid", "ImageProcessor", "Pixels", "is_image_source", "open_images", "prepare_images"]

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
        probe = self.processor(images=[from_array(np.stack([ramp, ramp * 2, 255 - ramp], axis=2))], return_tensors="pt")
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

    The table `pictures` has what the model sees of every document that is used, copies included.
    Errors: `Refusal` where nothing, or too much, cannot be opened as an image, and where the processor's pictures do not fit
    `grid`. Cost: every image is decoded once, so that none fails later, and goes through the processor once more than the passes
    over the corpus ask for. Memory: a row group of pictures.
    """
    path = Path(source)
    if not path.exists():
        raise Refusal(str(path), why="there is no such file or folder", instead="name an image or a folder of images")
    folder = path if path.is_dir() else path.parent
    files = files_below(path) if path.is_dir() else [path]
    name = readable(path.resolve().name)
    with spooled() as spool:
        ledger = Ledger(name, run, 1, seed, spool)
        taken: list[int] = []

        def pictures() -> Iterator[pa.RecordBatch]:
            waiting: dict[int, Seen] = {}
            for document, picture in _read(folder, files, processor, grid):
                number = ledger.note(document)
                if number is None or picture is None:
                    continue
                taken.append(number)
                waiting[number] = picture
                ledger.tally.add(number, 1, grid.rows * grid.columns)
                ledger.finish({number})
                if len(waiting) == TOGETHER:
                    yield picture_rows(waiting, grid.rows, grid.columns, run)
                    waiting = {}
            if waiting:
                yield picture_rows(waiting, grid.rows, grid.columns, run)
            ledger.close()
            ledger.check(reading.bad_share)

        sink("pictures", pictures())
        windows_path = sink("windows", (_rows(taken[at : at + ROWS], at, grid, run) for at in range(0, len(taken), ROWS)))
        documents_path = sink("documents", ledger.rows())
    return open_images(documents_path, windows_path, name=name, folder=folder, processor=processor)


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


def _read(folder: Path, files: list[Path], processor: ImageProcessor, grid: Grid) -> Iterator[tuple[Document, Seen | None]]:
    """Each file as a document, in order, and what the model sees of it; None where it cannot be used."""
    colours: Colours | None = None
    for file, label in zip(files, labels_below(folder, files), strict=True):
        name = file.relative_to(folder).as_posix()
        if readable(name) != name:
            yield Document(name, label=label, problem="the name of the file is not valid Unicode"), None
            continue
        try:
            image = _image(file)
            document = Document(name, label=label, digest=_digest(file))
        except (OSError, ValueError, SyntaxError) as error:
            yield Document(name, label=label, problem=f"not an image ({type(error).__name__})"), None
            continue
        try:
            pixels = processed(processor, image)
        except (OSError, ValueError, ZeroDivisionError) as error:  # such as of a picture of one pixel
            problem = f"the image processor does not take it ({type(error).__name__})"
            yield Document(name, label=label, problem=problem), None
            continue
        if colours is None:
            _check_grid(file.name, pixels, grid)
            colours = Colours.of(processor)
        yield document, seen(unprocessed(pixels, colours))


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


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _check_grid(name: str, pixels: Float[np.ndarray, "colour height width"], grid: Grid) -> None:
    height, width = pixels.shape[-2:]
    if height % grid.rows or width % grid.columns:
        raise Refusal(
            name,
            why=f"the image processor makes pictures of {height} x {width}, which {grid.rows} x {grid.columns} patches do not tile",
            instead="use the image processor that belongs to this model",
        )
