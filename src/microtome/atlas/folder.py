"""The folder of an atlas as something to write in: which folders may be used, who may write, what a failed build leaves behind.

What is written belongs in `build`, how single files are committed in `store`.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from microtome.atlas.homes import require_usable_address
from microtome.core import Interrupted, Refusal
from microtome.store import (
    Bucket,
    full,
    locked,
    manifest_path,
    place_of,
    read_manifest,
    sweep,
    write_manifest,
)

__all__ = ["claimed", "prune", "require_run_name", "require_usable"]

_BEGUN: Final = re.compile(r"\.lock|work|progress\.json|(progress|atlas)\.json(\.[0-9a-f]+)?\.part")
"""All that a build has written before its manifest."""

_RUN_NAME: Final = re.compile(r"\w[\w-]{0,63}")


def require_run_name(run: str) -> None:
    """Refuse a name that could not be part of the names of files: a dot would make them ambiguous, a slash lead elsewhere."""
    if not _RUN_NAME.fullmatch(run):
        raise Refusal(
            f"run {run!r}",
            why="names of runs become names of files",
            instead="use at most 64 letters, digits, _ and -, not beginning with -",
        )


def require_usable(output: str | Path) -> None:
    """Refuse what cannot become, or is not, the folder or address of an atlas: files that are not ours are left alone.

    In a folder nothing is made or written; at an address, where only that tells whether it may be, a small object is, and removed.
    """
    place = place_of(output)
    if isinstance(place, Bucket):
        require_usable_address(place)
    else:
        _require_usable_folder(place.path)


def _require_usable_folder(output: Path) -> None:
    try:
        str(output.absolute()).encode()
    except UnicodeEncodeError as error:
        raise Refusal(
            str(output), why="the name of the folder, or of one above it, is not valid Unicode", instead="name another folder"
        ) from error
    if output.is_file():
        raise Refusal(str(output), why="it is a file", instead="name a folder for the atlas")
    if output.is_symlink() and not output.exists():
        raise Refusal(str(output), why="it is a link to nothing", instead="name a folder for the atlas")
    if manifest_path(output).exists():
        read_manifest(output)
    elif output.is_dir():
        names = {path.name for path in output.iterdir()}
        if names and not (".lock" in names and all(map(_BEGUN.fullmatch, names))):
            raise Refusal(
                str(output), why="the folder holds files but no atlas.json", instead="name a new folder for the atlas"
            )
    _require_writable(output)


def _require_writable(output: Path) -> None:
    """Refuse a folder in which nothing may be written, or that could not be made in the nearest one that is there."""
    place = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    if not place.is_dir():
        raise Refusal(str(output), why=f"{place} is a file", instead="name a folder for the atlas")
    if not os.access(place, os.W_OK | os.X_OK):
        raise Refusal(
            str(output), why=f"nothing may be written in {place.absolute()}", instead="name a folder where you may write"
        )


@contextlib.contextmanager
def claimed(output: Path, run: str) -> Iterator[Path]:
    """Hold the folder `output`, made where it is not there, for writing `run`; on a refusal undo what was new in it.

    Errors: `Refusal` where another process holds it, or it cannot be made or written. After `Interrupted`, an interruption from outside and
    errors of our own a run that has begun is kept, since running again continues it.
    """
    fresh = _make(output)
    try:
        with locked(output):
            known = manifest_path(output).exists() and run in read_manifest(output).runs
            for part in ("work", "tables", "dictionaries"):
                sweep(output / part)
            for leftover in output.glob("atlas.json.*.part"):
                leftover.unlink()
            try:
                yield output
            except Refusal as refusal:
                if not known and not isinstance(refusal, Interrupted):
                    _forget(output, run)
                raise
            except OSError as error:
                refusal = full(error, "the atlas", output)
                if refusal is None:
                    raise
                raise refusal from error
            finally:
                for name in ("progress.json", "progress.json.part"):
                    (output / name).unlink(missing_ok=True)
                shutil.rmtree(output / "work" / run / "corpus", ignore_errors=True)
                prune(output / "work" / run)
    except BaseException:
        if fresh and not manifest_path(output).exists():
            shutil.rmtree(output, ignore_errors=True)
        raise


def prune(folder: Path) -> None:
    """Remove a folder of work, and the one above it, where they are empty."""
    for place in (folder, folder.parent):
        if place.is_dir() and not any(place.iterdir()):
            place.rmdir()


def _make(output: Path) -> bool:
    """Make the folder; whether it is new. It must be told here: another build may be making it at this moment."""
    try:
        output.mkdir(parents=True)
    except FileExistsError:
        return False
    except OSError as error:
        raise Refusal(
            str(output), why=f"the folder cannot be made: {error.strerror}", instead="name a folder where you may write"
        ) from error
    return True


def _forget(output: Path, run: str) -> None:
    """Remove a run that has just begun, and the manifest where it was the only one."""
    shutil.rmtree(output / "work" / run, ignore_errors=True)
    for file in (*(output / "tables").glob(f"*/*.{run}.parquet"), *(output / "dictionaries").glob(f"*.{run}.safetensors")):
        file.unlink()
    if not manifest_path(output).exists():
        return
    manifest = read_manifest(output)
    if manifest.runs.pop(run, None) is not None:
        if manifest.runs:
            write_manifest(output, manifest)
        else:
            manifest_path(output).unlink()
