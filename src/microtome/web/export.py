"""The page as a folder that any web server can serve: the same files, over data written out in compressed shards.

A shard is gzipped JSON. What holds for any run (the tokens' texts, the places of units) is written once, the rest in a folder
for each run, by its number. Units are in shards of neighbours, found by arithmetic on their place in address order; statistics
are a column each; a token's units are in the shard of its number. Windows are kept apart, so a stretch of text that many units
fire on is written once. What only a server can do the page says.
"""

import base64
import gzip
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from pydantic import BaseModel

from microtome.core import Refusal
from microtome.store import Manifest, folder_of, read_manifest
from microtome.web.assets import assets
from microtome.web.browse import bases
from microtome.web.contexts import owed, spelt
from microtome.web.index import stat_names, vocabulary
from microtome.web.pictures import patch_grid, patches_of
from microtome.web.reader import Reader, View
from microtome.web.records import Absent, Summary
from microtome.web.resource import Resource, file_of
from microtome.web.resources import RESOURCES
from microtome.web.unit import pages
from microtome.web.windows import windows

__all__ = ["export"]

MARKER: Final = "export.json"
FORMAT: Final = "microtome export"
PER_SHARD: Final = 16
"""Units of a shard."""
WINDOWS: Final = 16
"""Windows of a shard."""
TOKEN_SHARDS: Final = 256
CHARACTERS: Final = 100_000
"""Characters of a piece of a document."""
_BATCH: Final = 128 * PER_SHARD

Text = Literal["kept", "left out"]

_log = logging.getLogger(__name__)


def export(atlas: str | Path, out: Path, *, beside: Sequence[str | Path] = (), text: Text = "kept") -> Path:
    """Write the page of `atlas` with its data into the folder `out`, and give that folder back. Serve it with any web server.

    All complete runs are in it; where none is complete, what there is of the others; and comparisons of each with the others and with
    the runs of the atlases `beside` it. Where text is left out, so are contexts, documents and pictures; the tokens that units fire on, names of
    documents and the quotations of labels and findings stay. An earlier export in `out` is replaced, whole or not at all.
    Cost: a pass over all tables; on disk about 3 kB per run and unit with 60 contexts, plus the text.
    Errors: `Refusal` where `atlas` is no atlas or one `beside` it is none, or `out` holds something else.
    """
    atlas, out = folder_of(atlas), Path(out)
    manifest = read_manifest(atlas)
    others = [folder_of(each) for each in beside]
    for each in others:
        read_manifest(each)
    _claim(out)
    reader = Reader(atlas, others)
    partial = out.with_name(f"{out.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _write_page(partial)
        signature = reader.view().signature
        _write_data(reader, _exported(reader, manifest), partial / "data", text)
        if reader.view().signature != signature:
            raise Refusal(
                str(atlas), why="it changed while it was being written out", instead="export again when its build is complete"
            )
        marker = {"format": FORMAT, "version": 1, "signature": signature}
        (partial / MARKER).write_text(json.dumps(marker) + "\n")
        if out.exists():
            earlier = out.with_name(f"{out.name}.earlier")
            shutil.rmtree(earlier, ignore_errors=True)
            out.rename(earlier)
            partial.rename(out)
            shutil.rmtree(earlier)
        else:
            partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _claim(out: Path) -> None:
    """Refuse a folder that is not empty and not an earlier export."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        if json.loads((out / MARKER).read_text()).get("format") == FORMAT:
            return
    except (OSError, json.JSONDecodeError, AttributeError):
        _log.debug("%s has no %s", out, MARKER)
    raise Refusal(str(out), why="it holds something that is not an earlier export", instead="name a new or empty folder")


def _write_page(folder: Path) -> None:
    for asset in assets().values():
        path = folder / asset.path
        path.parent.mkdir(parents=True, exist_ok=True)
        content = asset.content
        if asset.path == "index.html":
            server, static = (b'name="microtome-source" content="%s"' % kind for kind in (b"server", b"static"))
            assert server in content
            content = content.replace(server, static)
        path.write_bytes(content)
    (folder / ".nojekyll").write_bytes(b"")


def _shard(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    path.write_bytes(gzip.compress(text.encode(), 6, mtime=0))


def _exported(reader: Reader, manifest: Manifest) -> list[str]:
    """The runs to write, the one that is shown first first."""
    runs = reader.runs()
    return [name for name in runs if name and manifest.runs[name].status == "complete"] or runs


def _write_data(reader: Reader, runs: Sequence[str], folder: Path, text: Text) -> None:
    _shard(folder / "runs.json.gz", runs)
    first = reader.view()
    _shard(folder / "vocabulary.json.gz", vocabulary(first))
    _write_places(first, folder)
    for number, run in enumerate(runs):
        _write_run(reader.view(run), runs, folder / str(number), text)


def _write_run(view: View, runs: Sequence[str], folder: Path, text: Text) -> None:
    for resource in RESOURCES:
        if text == "kept" or resource.shows == "numbers":
            _write_resource(view, runs, resource, folder, text)
    _write_columns(view, folder)
    _write_search(view, folder / "search")
    _write_units(view, folder / "units", text)
    if text == "kept":
        numbers = _write_windows(view, folder)
        _write_documents(view, folder, numbers)


def _write_resource(view: View, runs: Sequence[str], resource: Resource[Any], folder: Path, text: Text) -> None:
    """A file for each key of a resource."""
    written: set[str] = set()
    for asked in resource.keys(view) if callable(resource.keys) else ():
        file = file_of(resource.path, asked)
        if file in written:
            raise Refusal(file, why="two answers would have this name in an export", instead="give one of them another name")
        written.add(file)
        record = resource.read(view, asked)
        if isinstance(record, Summary):
            record = record.model_copy(update={"runs": [run for run in record.runs if run.name in runs]})
            record = record if text == "kept" else _textless(record)
        _shard(folder / file, record.model_dump() if isinstance(record, BaseModel) else [each.model_dump() for each in record])


def _textless(summary: Summary) -> Summary:
    """The summary of a run whose contexts are not in the export."""
    absent = Absent(what="contexts", why="this copy was written without its text")
    return summary.model_copy(update={"tables": {**summary.tables, "contexts": 0}, "absent": [absent, *summary.absent]})


def _write_places(view: View, folder: Path) -> None:
    """Where units are: runs of consecutive addresses, the same for every run of the model."""
    bases(view)
    groups: list[dict[str, Any]] = []
    for place, unit, basis, layer, index in view.sql('SELECT place, unit, basis, layer, "index" FROM mt_rows ORDER BY place'):
        prefix = unit.removesuffix(str(index))
        last = groups[-1] if groups else None
        follows = last is not None and (last["prefix"], last["basis"], last["layer"]) == (prefix, basis, layer)
        if follows and last is not None and index == last["number"] + last["count"]:
            last["count"] += 1
        else:
            groups.append(
                {"prefix": prefix, "basis": basis, "layer": layer, "place": place, "number": index, "count": 1, "unit": unit}
            )
    for group in groups:
        whole = group.pop("unit")
        if group["prefix"] == whole:
            group["number"] = None
    _shard(
        folder / "places.json.gz",
        {"per": PER_SHARD, "windows": WINDOWS, "tokens": TOKEN_SHARDS, "piece": CHARACTERS, "groups": groups},
    )


def _write_columns(view: View, folder: Path) -> None:
    """The columns of the unit browser."""
    for n, stat in enumerate(stat_names(view)):
        rows = view.sql(f"SELECT s{n}, k{n} FROM mt_rows ORDER BY place")
        values, controls = ([_short(row[at]) for row in rows] for at in (0, 1))
        column = {"stat": stat, "values": values} | (
            {"controls": controls} if any(each is not None for each in controls) else {}
        )
        _shard(folder / "columns" / f"{n}.json.gz", column)
    rows = view.sql("SELECT promotes, fires, total FROM mt_rows ORDER BY place")
    names = ("promotes", "fires", "total")
    _shard(folder / "columns" / "tokens.json.gz", {name: [row[n] for row in rows] for n, name in enumerate(names)})
    _shard(folder / "columns" / "index.json.gz", {"stats": stat_names(view), "bases": [card.basis for card in bases(view)]})


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.9g}")


def _write_search(view: View, folder: Path) -> None:
    """Units by token: place, which of `index.KINDS`, and the rank or the number of contexts."""
    for shard in range(TOKEN_SHARDS):
        rows = view.sql(
            f"SELECT token, place, kind, number FROM mt_told WHERE token % {TOKEN_SHARDS} = ? ORDER BY 1, 2, 3, 4", shard
        )
        found: dict[int, list[list[int]]] = {}
        for token, *entry in rows:
            found.setdefault(token, []).append(entry)
        _shard(folder / f"{shard}.json.gz", found)


def _write_units(view: View, folder: Path, text: Text) -> None:
    total = view.sql("SELECT count(*) FROM mt_rows")[0][0]
    for first in range(0, total, _BATCH):
        records = [page.model_dump() for page in pages(view, first, _BATCH)]
        rows = _thin_contexts(view, [record["unit"] for record in records]) if text == "kept" else {}
        for record in records:
            record["contexts"] = rows.get(record["unit"], [])
        for n in range(0, len(records), PER_SHARD):
            _shard(folder / f"{(first + n) // PER_SHARD}.json.gz", records[n : n + PER_SHARD])


def _thin_contexts(view: View, units: Sequence[str]) -> dict[str, list[list[Any]]]:
    """Contexts without words: end, half, rank, site, value, scale, window, position, first, activations as base64."""
    table = view.arrow(
        'SELECT unit::VARCHAR AS unit, "end"::VARCHAR, half::VARCHAR, rank, site::VARCHAR, '
        'CASE WHEN isfinite(value) THEN value END, CASE WHEN isfinite(scale) THEN scale END, "window", position, first, activations '
        "FROM contexts WHERE unit IN (SELECT unnest(?::VARCHAR[])) ORDER BY 1, 2, 4, 3",
        list(units),
    )
    found: dict[str, list[list[Any]]] = {}
    for unit, rows in owed(view, units).items():
        found[unit] = [[*row, _encoded(np.array(codes, np.int8))] for *row, codes in rows]
    if not len(table):
        return found
    codes = table["activations"].combine_chunks().flatten().to_numpy().astype(np.int8).reshape(len(table), -1)
    columns = [table[name].to_pylist() for name in table.column_names[:-1]]
    for unit, *row, code in zip(*columns, codes, strict=True):
        found.setdefault(unit, []).append([*row, _encoded(code)])
    return found


def _encoded(codes: np.ndarray) -> str:
    return base64.b64encode(codes.tobytes()).decode()


def _write_windows(view: View, folder: Path) -> dict[int, int]:
    """Windows that contexts are in, in shards by number; gives documents their numbers in this export."""
    used = [number for (number,) in view.sql('SELECT DISTINCT "window" FROM contexts ORDER BY 1')]
    documents: dict[int, int] = {}
    images = patch_grid(view) is not None
    for shard, numbers in _grouped(used):
        found = {}
        for number, window in sorted(windows(view, set(numbers)).items()):
            document = documents.setdefault(window.document, len(documents))
            words = spelt(view, window, range(len(window.ids)))
            patches = [patches_of(window.ids)] if images else []
            found[number] = [document, words, window.starts, window.ends, *patches]
        _shard(folder / "windows" / f"{shard}.json.gz", found)
    return documents


def _grouped(used: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    groups: dict[int, list[int]] = {}
    for number in used:
        groups.setdefault(number // WINDOWS, []).append(number)
    yield from groups.items()


def _write_documents(view: View, folder: Path, numbers: dict[int, int]) -> None:
    """Documents that contexts are in: their names in one file, their text in pieces."""
    cards: list[list[Any]] = []
    for document in numbers:
        rows = view.sql("SELECT name, label, half::VARCHAR, tokens, text FROM documents WHERE document = ?", document)
        name, label, half, tokens, text = rows[0] if rows else (None, None, None, None, None)
        for piece in range(0, len(text or ""), CHARACTERS):
            _shard(
                folder / "documents" / str(len(cards)) / f"{piece // CHARACTERS}.json.gz",
                (text or "")[piece : piece + CHARACTERS],
            )
        cards.append([document, name, label, half, tokens, len(text) if text is not None else None])
    _shard(folder / "documents.json.gz", cards)
