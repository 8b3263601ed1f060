"""The image processor beside a checkpoint, and how many patches its pictures have.

Reading image folders belongs in `corpus`.
"""

from pathlib import Path
from typing import Any, Final

import numpy as np

from microtome.core import Refusal
from microtome.model.shape import Shape

__all__ = ["open_processor", "patch_grid"]

_FILE: Final = "preprocessor_config.json"
_BACKEND: Final = "pil"
"""Always the same one, whatever else is installed: others resize to slightly different pixels."""


def open_processor(folder: Path) -> Any:
    """The image processor in `folder`, or None where the folder has none.

    Errors: `Refusal` for one that does not open.
    """
    if not (folder / _FILE).is_file():
        return None
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend=_BACKEND)
    except Exception as error:  # whatever a processor class makes of its configuration
        raise Refusal(
            f"image processor in {folder}",
            why=f"it does not open: {str(error).partition(chr(10))[0]}",
            instead=f"copy {_FILE} of this model again",
        ) from error


def patch_grid(shape: Shape, processor: Any) -> tuple[int, int]:
    """Rows and columns of patches in the pictures that `processor` makes: it decides their size, not the configuration.

    Errors: `Refusal` for pictures of different sizes, that patches do not tile, or whose size the model has no positions for.
    Cost: two blank pictures.
    """
    patches = shape.patches
    assert patches is not None, "the model reads images"
    wide, tall = (_size(processor, 64 * rows, 64 * columns) for rows, columns in ((3, 5), (5, 3)))
    height, width = wide
    grid = height // patches.height, width // patches.width
    if wide != tall:
        why = f"it makes pictures of different sizes, {height} x {width} and {tall[0]} x {tall[1]}"
    elif (height % patches.height, width % patches.width) != (0, 0):
        why = f"it makes pictures of {height} x {width}, which patches of {patches.height} x {patches.width} do not tile"
    elif not patches.stretches and grid != (patches.rows, patches.columns):
        expected = f"{patches.rows * patches.height} x {patches.columns * patches.width}"
        why = f"it makes pictures of {height} x {width}, and the model has positions for {expected}"
    else:
        return grid
    raise Refusal("the image processor", why=why, instead="use the image processor that belongs to this model")


def _size(processor: Any, height: int, width: int) -> tuple[int, int]:
    """Height and width of what the processor makes of a blank picture."""
    blank = np.zeros((height, width, 3), np.uint8)
    pixels = processor(images=[blank], return_tensors="np")["pixel_values"]
    return pixels.shape[-2], pixels.shape[-1]
