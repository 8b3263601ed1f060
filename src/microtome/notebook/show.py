"""`show`: a page of an atlas in a notebook."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from microtome.atlas import Atlas
from microtome.core import Refusal
from microtome.model import Model
from microtome.notebook.address import resolved
from microtome.notebook.answers import opened
from microtome.store import folder_of, manifest_path, read_manifest

if TYPE_CHECKING:
    from microtome.notebook.panel import Panel

__all__ = ["show"]

LEAST: Final = 200
"""Pixels of height below which nothing can be read; the front end has the same bound."""


def show(
    atlas: str | Path | Atlas,
    address: str = "findings",
    *,
    run: str | None = None,
    model: str | Path | Model | None = None,
    beside: str | Path | Atlas | Sequence[str | Path | Atlas] = (),
    height: int = 640,
) -> "Panel":
    """A page of `atlas` as a widget: the last line of a cell shows it.

    `address` is that of a page, as a browser shows it after `#/` (`geometry`, `units?basis=heads`), or of a unit (`neurons.24/343`). `run` is
    a run of the atlas; the first where none is named. `model` is where the atlas's model is, or the model: with it, texts are read.
    Runs of the atlas or atlases `beside` it can be compared with its own. `height` is in pixels; dragging the panel's lower edge changes it.
    Errors: `Refusal` where anywidget is not installed, where a folder is no atlas, and where there is no such page, unit or run.
    """
    try:
        from microtome.notebook.panel import Panel
    except ImportError as error:
        raise Refusal(
            "a panel in a notebook",
            why=f"{error.name or 'anywidget'} is not installed",
            instead="run: pip install 'microtome[notebook]'",
        ) from error
    if height < LEAST:
        raise Refusal(f"height {height}", why="nothing can be read in it", instead=f"give {LEAST} or more pixels")
    several = (beside,) if isinstance(beside, str | Path | Atlas) else beside
    folder, *others = [each.path if isinstance(each, Atlas) else folder_of(each) for each in (atlas, *several)]
    for each in others:
        read_manifest(each)
    if manifest_path(folder).is_file() or not (folder / "progress.json").is_file():
        read_manifest(folder)
    answers = opened(folder, model, others)
    return Panel(answers, resolved(answers, address, run), height)
