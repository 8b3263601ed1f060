"""Building an atlas from the terminal: what `build` and the verbs of single lenses have in common."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from microtome.core import Refusal

if TYPE_CHECKING:
    from microtome.atlas import Settings
    from microtome.corpus import Reading
    from microtome.model import Model as BuiltModel

__all__ = ["Opening", "build_atlas", "reading_of"]


@dataclass(frozen=True)
class Opening:
    """A model as it was named, and how to open it."""

    name: str
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    device: str
    remote_code: Literal["refuse", "allow"]

    def load(self) -> "BuiltModel":
        """Opened and built."""
        from microtome.model import load

        return load(self.name, dtype=self.dtype, device=self.device, remote_code=self.remote_code)


def reading_of(encoding: str, text_column: str | None, label_column: str | None) -> "Reading":
    """How a text is read, by the options of that."""
    from microtome.corpus import Reading

    return Reading(encoding=encoding, text_column=text_column, label_column=label_column)


def build_atlas(
    opening: Opening, text: str | None, output: Path, settings: "Settings", reading: "Reading", *, dry_run: bool
) -> None:
    """Build, or say what it would take."""
    from microtome.atlas import build, estimate
    from microtome.atlas.folder import require_usable
    from microtome.cli.progress import Bar
    from microtome.model import open_checkpoint

    require_usable(output)
    if dry_run:
        if text is None:
            raise Refusal(
                "--dry-run", why="without a text there is only the reading of weights", instead="name a text, or leave it out"
            )
        typer.echo(estimate(opening.load(), text, output=output, settings=settings, reading=reading).describe())
        return
    with Bar() as bar:
        bar.step(f"opening {Path(opening.name).name}")
        subject = open_checkpoint(opening.name, remote_code=opening.remote_code) if text is None else opening.load()
        atlas = build(subject, text, output=output, settings=settings, reading=reading, progress=bar)
    typer.echo(f"{atlas.path} is ready: microtome open {shlex.quote(str(atlas.path))}")
