"""An atlas as files that may still be growing: which tables are there, which are damaged, and a connection over the rest.

A `View` is one run of the atlas at one moment: tables that know runs show it the rows of that run alone, so that no query can
mix two. What is made of many rows (the index, long columns) is in files of a temporary folder, so that memory does not grow with
an atlas. Its signature changes with the files, and everything derived from it is computed once. Atlases that stand beside it are
looked at for comparison alone. Queries belong in `summary`, `browse`, `unit`; what a manifest says in `store.manifest`; looking for
changed bytes in `damage`.
"""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from microtome.core import NotFound, Refusal
from microtome.store import TABLES, Manifest, RunCard, empty_table, manifest_path, read_manifest
from microtome.web.damage import Damage
from microtome.web.records import Problem, Progress

__all__ = ["AGAIN", "Reader", "remove_stale", "Side", "View", "first_run", "problem_of"]

T = TypeVar("T")

KEPT_VIEWS: Final = 4
"""Runs whose views are kept: each has an index."""
INDEXING: Final = "300MB"
"""What DuckDB may hold while it makes an index; what is larger it keeps beside the index, which is a file."""
ASKING: Final = "128MB"
"""What it may hold afterwards."""
_AT_ONCE: Final = 1 << 16
_FOLDER: Final = "microtome-index-"
"""How the folders of indexes begin; the number of the process follows."""
AGAIN: Final = "run the same `microtome build` again: damaged tables are found and rebuilt"


@contextlib.contextmanager
def _readable(atlas: Path) -> Iterator[None]:
    """Tell a damaged file from a mistake of ours; where the atlas is on this machine is not said."""
    try:
        yield
    except (duckdb.ParserException, duckdb.BinderException, duckdb.CatalogException):
        raise
    except duckdb.OutOfMemoryException as error:
        why = f"there is no room for it in memory or in the folder of temporary files ({str(error).splitlines()[0][:160]})"
        raise Refusal("the index of this atlas", why=why, instead="make room, or name another folder by TMPDIR") from error
    except duckdb.Error as error:
        raise Refusal(
            "a table of this atlas",
            why=f"it cannot be read ({str(error).splitlines()[0].replace(f'{atlas}/', '')[:160]})",
            instead=AGAIN,
        ) from error


def first_run(manifest: Manifest) -> str:
    """The run that is shown where none is asked for: complete before unfinished, over a text before the weights alone."""

    def rank(name: str) -> tuple[bool, bool]:
        card = manifest.runs[name]
        return card.status != "complete", card.corpus is None

    return min(manifest.runs, key=rank, default="")


@dataclass(frozen=True)
class Side:
    """A run that others can be compared with: `name` is that of the run, or FOLDER:RUN where it is of another atlas, `folder`."""

    name: str
    folder: str
    run: str
    manifest: Manifest


class View:
    """A run of an atlas at one moment: manifest, tables, what is wrong with them, and a DuckDB connection with a view per table.

    Tables without a column `run` hold for any run. `run` is empty where the atlas has none yet, and so are its tables.
    """

    def __init__(self, atlas: Path, signature: str, run: str, changed: tuple[str, ...], reader: "Reader") -> None:
        self._reader = reader
        self._atlas = atlas
        self.signature = signature
        self.run = run
        self.changed = changed
        self.problems: list[Problem] = []
        self.manifest: Manifest | None = None
        self.files: dict[str, list[str]] = {}
        self._memo: dict[object, Any] = {}
        self._lock = threading.RLock()
        try:
            self.manifest = _told_manifest(atlas)
        except Refusal as refusal:
            self.problems.append(problem_of(refusal))
        self._folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._numbers = itertools.count()
        config: dict[str, Any] = {
            "allow_community_extensions": "false", "autoinstall_known_extensions": "false", "memory_limit": INDEXING,
            "temp_directory": str(self._folder / "spilt"),
        }  # fmt: skip
        self._connection = duckdb.connect(self._folder / "index.duckdb", config=config)
        for name in TABLES:
            self._add(atlas, name)
        self._compare(atlas)

    @property
    def card(self) -> RunCard | None:
        """What the manifest says of this run."""
        return self.manifest.runs.get(self.run) if self.manifest else None

    def sides(self) -> list[Side]:
        """Every run of this atlas and of those beside it."""
        return self._reader.sides()

    def side(self, name: str) -> "View":
        """A run by its name among `sides`. Errors: `Refusal` where there is none of that name."""
        return self._reader.side(name)

    def _add(self, atlas: Path, name: str) -> None:
        """Make the view `name` over its readable files; an empty table where there is none."""
        sound = self.files.setdefault(name, [])
        for path in sorted((atlas / "tables" / name).glob("*.parquet")):
            problem = _checked(path, name)
            if problem is None:
                sound.append(str(path))
            elif self._concerned(problem.what):
                self.problems.append(problem)
        if not sound:
            self._connection.register("nothing", empty_table(name))
            self._connection.execute(f'CREATE TABLE "{name}" AS SELECT * FROM nothing')
            self._connection.unregister("nothing")
            return
        mine = f" WHERE run = {_quoted(self.run)}" if "run" in TABLES[name].schema.names else ""
        files = ", ".join(_quoted(path) for path in sound)
        self._connection.execute(f'CREATE VIEW "{name}" AS SELECT * FROM read_parquet([{files}], union_by_name = true){mine}')

    def _compare(self, atlas: Path) -> None:
        """Name the files that the manifest lists and that are missing or not as they were written."""
        named = {problem.what for problem in self.problems}
        listed = sorted(self.manifest.digests()) if self.manifest else []
        missing = [file for file in listed if not (atlas / file).is_file()]
        for file in missing:
            self._report(file, "it is missing, so what it held is not shown", named)
        for file in self.changed:
            if file not in missing:
                self._report(file, "its bytes are not those that were written, so what is shown of it may be wrong", named)

    def _report(self, file: str, why: str, named: set[str]) -> None:
        if file not in named and self._concerned(file):
            self.problems.append(Problem(what=file, why=why, instead=AGAIN))

    def _concerned(self, file: str) -> bool:
        """Whether a file has to do with this run: it holds for any, or no other run alone lists it."""
        table = file.split("/")[-2]
        if table in TABLES and "run" not in TABLES[table].schema.names:
            return True
        runs = self.manifest.runs if self.manifest else {}
        owners = {name for name, card in runs.items() if file in card.files}
        return not owners or self.run in owners

    def sql(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """The rows of a prepared statement; safe from several threads.

        Errors: `Refusal` where a file turns out to be damaged inside.
        """
        with _readable(self._atlas), self._connection.cursor() as cursor:
            return cursor.execute(query, parameters).fetchall()

    def arrow(self, query: str, *parameters: Any) -> pa.Table:
        """The same as an Arrow table, for many rows at once."""
        with _readable(self._atlas), self._connection.cursor() as cursor:
            return cursor.sql(query, params=list(parameters)).to_arrow_table()

    def columns(self, query: str, *parameters: Any) -> dict[str, NDArray[Any]]:
        """The same as arrays in files, of which memory holds what was read last: for what is large and kept. No value may be missing.

        Lists lie one after the other.
        """
        with _readable(self._atlas), self._connection.cursor() as cursor:
            reader = cursor.sql(query, params=list(parameters)).to_arrow_reader(_AT_ONCE)
            paths = [self._folder / f"{next(self._numbers)}.column" for _ in reader.schema]
            with contextlib.ExitStack() as stack:
                files = [stack.enter_context(path.open("wb")) for path in paths]
                for batch in reader:
                    for file, values in zip(files, batch.columns, strict=True):
                        (values.flatten() if pa.types.is_nested(values.type) else values).to_numpy().tofile(file)
        return {field.name: _mapped(path, field.type) for field, path in zip(reader.schema, paths, strict=True)}

    @contextlib.contextmanager
    def indexing(self) -> Iterator[None]:
        """While tables are made whose rows may come in any order unless one is asked for; from then on less is held in memory."""
        self.sql("SET preserve_insertion_order = false")
        try:
            yield
        finally:
            self.sql("SET preserve_insertion_order = true")
            self.sql(f"SET memory_limit = '{ASKING}'")

    def once(self, key: object, make: "Callable[[View], T]") -> T:
        """The value of `make(self)`, computed when first asked for and kept as long as the files do not change."""
        with self._lock:
            if key not in self._memo:
                self._memo[key] = make(self)
            return self._memo[key]


class Reader:
    """The current views of an atlas folder, one for each run that is looked at, replaced when files come, go or change.

    `beside` are atlases whose runs it may be compared with; they are called by the last names of their folders.
    """

    def __init__(self, atlas: Path, beside: Sequence[Path] = ()) -> None:
        self.atlas = atlas
        self.beside = {name: Reader(path) for name, path in _named_folders(beside)}
        self.damage = Damage(atlas)
        self._lock = threading.Lock()
        self._signature = ""
        self._manifest: Manifest | None = None
        self._views: dict[str, View] = {}

    def view(self, run: str | None = None) -> View:
        """The run as the files are now, or the first. Cost: a stat of every file; opening tables only when one changed.

        Errors: `Refusal` where the atlas has no such run.
        """
        signature, changed = self.state()
        with self._lock:
            if signature != self._signature:
                self._views.clear()
                self._manifest = _manifest(self.atlas)
                self._signature = signature
            name = self._named(run)
            if name in self._views:
                self._views[name] = self._views.pop(name)
                return self._views[name]
            view = View(self.atlas, signature, name, changed, self)
            while len(self._views) >= KEPT_VIEWS:
                del self._views[next(iter(self._views))]
            self._views[name] = view
            return view

    def runs(self) -> list[str]:
        """The runs of the atlas as the files are now, the first of them first."""
        first = self.view().run
        return [first, *(name for name in (self._manifest.runs if self._manifest else ()) if name != first)]

    def sides(self) -> list[Side]:
        """The runs of the atlas, and then those of the atlases beside it; of one without a manifest none."""
        readers = {"": self, **self.beside}
        found = {folder: _manifest(reader.atlas) for folder, reader in readers.items()}
        return [
            Side(f"{folder}:{run}" if folder else run, folder, run, manifest)
            for folder, manifest in found.items()
            if manifest is not None
            for run in manifest.runs
        ]

    def side(self, name: str) -> View:
        """The view of a run by its name among `sides`.

        Errors: `NotFound` where there is no such run.
        """
        folder, _, run = name.rpartition(":")
        reader = self.beside.get(folder) if folder else self
        try:
            if reader is not None and run:
                return reader.view(run)
        except NotFound:
            pass
        raise NotFound(
            f"side {name[:200]}", why="there is no such run to compare with", instead="choose one of the list of sides"
        )

    def watch(self) -> None:
        """Look for changed bytes in the background."""
        for reader in (self, *self.beside.values()):
            reader.damage.watch()

    def _named(self, run: str | None) -> str:
        runs = self._manifest.runs if self._manifest else {}
        if run and not runs and manifest_path(self.atlas).is_file():
            _told_manifest(self.atlas)  # it is damaged, and says how
        if run and run not in runs:
            known = f"choose one of {', '.join(runs)}" if runs else "wait until it is being built"
            raise NotFound(f"run {run[:80]}", why="this atlas has no run of that name", instead=known)
        return run or (first_run(self._manifest) if self._manifest else "")

    def state(self) -> tuple[str, tuple[str, ...]]:
        """A signature of the files as they are now, those of other atlases included, and its own that are known to have changed since they were written."""
        files = self._files()
        changed = self.damage.known(files)
        more = (*changed, *(reader.state()[0] for reader in self.beside.values()))
        return (hashlib.sha256("|".join((files, *more)).encode()).hexdigest()[:16] if more else files), changed

    def progress(self) -> Progress | None:
        """How far the build is that is writing here, if one says so."""
        try:
            return Progress.model_validate(json.loads((self.atlas / "progress.json").read_text()))
        except (OSError, json.JSONDecodeError, ValidationError):
            return None

    def _files(self) -> str:
        digest = hashlib.sha256()
        for path in [manifest_path(self.atlas), *sorted((self.atlas / "tables").glob("*/*.parquet"))]:
            try:
                status = path.stat()
            except OSError:
                continue
            digest.update(f"{path.relative_to(self.atlas)}|{status.st_size}|{status.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:16]


def remove_stale() -> None:
    """Remove the indexes that processes have left which were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*-*"):
        process = folder.name.removeprefix(_FOLDER).partition("-")[0]
        try:
            if process.isdecimal():
                os.kill(int(process), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # another person's
            continue


def _mapped(path: Path, kind: pa.DataType) -> NDArray[Any]:
    """The numbers of a file as an array that is read where it is looked at."""
    number = np.dtype((kind.value_type if pa.types.is_nested(kind) else kind).to_pandas_dtype())
    return np.asarray(np.memmap(path, number, "r")) if path.stat().st_size else np.zeros(0, number)


def _named_folders(folders: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """Folders by their last names, numbered where these are alike."""
    taken: set[str] = set()
    for folder in folders:
        own = folder.resolve().name or "atlas"
        name = next(each for n in itertools.count(1) if (each := own if n == 1 else f"{own}-{n}") not in taken)
        taken.add(name)
        yield name, folder


def _told_manifest(atlas: Path) -> Manifest:
    """The manifest, or its refusal without where the atlas is on this machine."""
    try:
        return read_manifest(atlas)
    except Refusal as refusal:
        raise Refusal(refusal.what.replace(f"{atlas}/", ""), why=refusal.why, instead=refusal.instead) from refusal


def _manifest(atlas: Path) -> Manifest | None:
    try:
        return read_manifest(atlas)
    except Refusal:
        return None


def _checked(path: Path, table: str) -> Problem | None:
    """What is wrong with a table's file, judged by its footer and columns."""
    try:
        footer = pq.read_metadata(path)
        missing = sorted(set(TABLES[table].schema.names) - set(footer.schema.to_arrow_schema().names))
    except (OSError, ValueError) as error:
        why = f"it is damaged ({str(error).splitlines()[0][:120]})"
    else:
        if not missing:
            return None
        why = f"it lacks the columns {', '.join(missing)}"
    return Problem(what=f"tables/{table}/{path.name}", why=why, instead=AGAIN)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def problem_of(refusal: Refusal) -> Problem:
    """A refusal as the page shows it."""
    return Problem(what=refusal.what, why=refusal.why, instead=refusal.instead)
