"""What a model sees of a picture, small enough to be kept and looked at: the rows of the table `pictures`.

A picture is kept as the image processor leaves it, resized and cropped, so that patches are where the model has them. Which files
are read, and as what tokens, belongs in `images`.
"""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from numpy.typing import NDArray

__all__ = ["TOGETHER", "Colours", "ImageProcessor", "Seen", "from_array", "picture_rows", "processed", "seen", "unprocessed"]

ImageProcessor = Callable[..., Any]
"""The model's image processor: processor(images=[...], return_tensors="pt")["pixel_values"]."""

TOGETHER: Final = 64
"""Pictures of a row group: to show one, about a megabyte is read."""
LONGEST: Final = 256
"""Pixels of the longer side of a picture that is kept, at most."""
QUALITY: Final = 85
_PROBE: Final = 64
_NARROW: Final = 1e-6


@dataclass(frozen=True, eq=False)
class Colours:
    """What a processor makes of black and of white, colour by colour."""

    black: NDArray[np.float32]
    white: NDArray[np.float32]

    @classmethod
    def of(cls, processor: ImageProcessor) -> "Colours":
        """Found by processing a black and a white picture; the median leaves borders out that a processor may add."""
        ends = [from_array(np.full((_PROBE, _PROBE, 3), value, np.uint8)) for value in (0, 255)]
        black, white = (np.median(processed(processor, end), axis=(1, 2)) for end in ends)
        return cls(black, white)


@dataclass(frozen=True)
class Seen:
    """A picture as a model sees it, as JPEG."""

    width: int
    height: int
    jpeg: bytes


def processed(processor: ImageProcessor, image: Any) -> Float[np.ndarray, "colour height width"]:
    """The pixels that a processor makes of one picture."""
    return torch.as_tensor(processor(images=[image], return_tensors="pt")["pixel_values"])[0].float().cpu().numpy()


def unprocessed(pixels: Float[np.ndarray, "colour height width"], colours: Colours) -> Any:
    """The picture that `pixels` are of, before they were scaled and normalised.

    p = 255 (v - black) / (white - black), colour by colour: exact for any processor that scales and shifts each colour, whether or
    not it says by how much or can be told not to. Where black and white become the same, as in a processor that normalises each picture
    by itself, they are the smallest and the largest number of this picture.
    """
    black, white = colours.black, colours.white
    if np.abs(white - black).min() < _NARROW:
        black, white = pixels.min(keepdims=True).ravel(), pixels.max(keepdims=True).ravel()
    span = np.where(np.abs(white - black) < _NARROW, 1.0, white - black)
    shares = (pixels - black[:, None, None]) / span[:, None, None]
    values = np.rint(255 * np.clip(shares, 0.0, 1.0)).astype(np.uint8)
    return from_array(np.broadcast_to(values, (3, *values.shape[1:])).transpose(1, 2, 0))


def seen(image: Any) -> Seen:
    """A picture as it is kept: at most 256 pixels long, as JPEG of quality 85."""
    small = image.copy()
    small.thumbnail((LONGEST, LONGEST))
    written = io.BytesIO()
    small.save(written, "JPEG", quality=QUALITY)
    return Seen(small.width, small.height, written.getvalue())


def picture_rows(pictures: Mapping[int, Seen], rows: int, columns: int, run: str) -> pa.RecordBatch:
    """Rows of the table `pictures`, of documents by their numbers."""
    count, kept = len(pictures), pictures.values()
    return pa.RecordBatch.from_pydict({
        "run": pa.array([run] * count, pa.string()),
        "document": pa.array([*pictures], pa.int64()),
        "rows": pa.array([rows] * count, pa.int32()),
        "columns": pa.array([columns] * count, pa.int32()),
        "width": pa.array([each.width for each in kept], pa.int32()),
        "height": pa.array([each.height for each in kept], pa.int32()),
        "jpeg": pa.array([each.jpeg for each in kept], pa.binary()),
    })  # fmt: skip


def from_array(values: NDArray[np.uint8]) -> Any:
    """A picture of (height, width, colour)."""
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(values))
