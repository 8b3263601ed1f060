"""What differs between two models, or between two atlases: one ranked report, and its rows.

Of two models (folders, hub ids, an adapter as the second) the parameters are compared, and nothing is built or run. The kinds of
comparison are in `differences`, a module each; here is which one two things get, and how its rows come into an atlas. How a report
looks on a terminal belongs in `cli`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from microtome.atlas.cards import manifest_for
from microtome.atlas.differences import (
    AtlasDifference,
    Comparison,
    Kind,
    ModelAlignment,
    ModelDifference,
    alignment,
    compare_atlases,
    differing_sizes,
    displacement,
    require_idle,
)
from microtome.atlas.folder import claimed, require_run_name, require_usable
from microtome.atlas.homes import home_of
from microtome.atlas.read import Atlas
from microtome.atlas.settings import LENSES
from microtome.core import Refusal
from microtome.model import Checkpoint, Model, open_checkpoint
from microtome.model.adapter import adapted, holds_adapter
from microtome.readout.words import texts_of
from microtome.store import (
    TABLES,
    RunCard,
    digest,
    fingerprint,
    is_address,
    manifest_path,
    table_path,
    write_manifest,
    write_table,
)
from microtome.vocabulary.words import vocabulary_table

__all__ = ["KINDS", "diff"]

Opened = Model | Checkpoint
Source = Opened | str | Path

KINDS: Final[Mapping[Kind, Callable[[Opened, Opened, Comparison], ModelDifference | ModelAlignment]]] = {
    "displacement": displacement,
    "alignment": alignment,
}
"""Every kind of comparison of two models. A new kind is a new module and an entry."""

_SIGNS: Final = re.compile(r"[^\w-]+")


def diff(
    left: Source,
    right: Source,
    *,
    output: str | Path | None = None,
    comparison: Comparison | None = None,
    run: str | None = None,
) -> ModelDifference | ModelAlignment | AtlasDifference:
    """Compare two models or, where both are folders of atlases, two atlases.

    Two models of one shape are compared vector by vector (`ModelDifference`), any others by the tokens that both have
    (`ModelAlignment`); `comparison.kind` asks for one of the two. `right` may be an adapter's folder, with the model it was trained on as
    `left`. With `output` the rows are written into an atlas of `right`, as a run of their own (`run`; named after `left` where it is
    None). Of atlases, `run` names the run of both.

    Errors: `Refusal` where one cannot be opened, they do not correspond, or what is asked for would change nothing.
    """
    atlases = [
        isinstance(each, str | Path) and (is_address(each) or manifest_path(Path(each)).is_file()) for each in (left, right)
    ]
    if any(atlases):
        if not all(atlases):
            one = left if atlases[0] else right
            raise Refusal(str(one), why="it is an atlas and the other is a model", instead="name two models or two atlases")
        why = "that is for models, and these are atlases"
        if output is not None:
            raise Refusal("an output", why=why, instead="leave it out")
        require_idle(comparison or Comparison(), vars(Comparison()), why)
        return compare_atlases(Atlas(str(left)), Atlas(str(right)), run)
    one = _opened(left)
    other = _opened(right, one)
    comparison = comparison or Comparison()
    kind = comparison.kind or _kind(one, other)
    if run is not None:
        require_run_name(run)
        if output is None:
            raise Refusal(f"run {run}", why="nothing is written", instead="name an output, or leave the run out")
    if output is not None:
        require_usable(output)
    found = KINDS[kind](one, other, comparison)
    if output is not None:
        name = run or _slug(found.run)
        _write(found, one, other, output, replace(comparison, kind=kind), name)
    return found


def _kind(one: Opened, other: Opened) -> Kind:
    alike = one.family.name == other.family.name and not differing_sizes(asdict(one.shape), asdict(other.shape))
    return "displacement" if alike else "alignment"


def _opened(source: Source, base: Opened | None = None) -> Opened:
    """A model; of an adapter's folder, `base` with the adapter."""
    if isinstance(source, Model | Checkpoint):
        return source
    if base is None or not holds_adapter(source):
        return open_checkpoint(source)
    if isinstance(base, Checkpoint):
        return adapted(base, source)
    raise Refusal(f"adapter {source}", why=f"{base.name} is built", instead="name the folder of the model it was trained on")


def _slug(name: str) -> str:
    """A name as a part of the names of files."""
    return _SIGNS.sub("-", name).strip("-")[:64]


def _new(folder: Path, table: str, writer: str, rows: pa.Table) -> pa.Table:
    """Of a table whose rows hold for any run, the rows that no other writer has written."""
    key = list(TABLES[table].key)
    others = [path for path in table_path(folder, table, "*").parent.glob("*.parquet") if path.stem != writer]
    there = {tuple(row.values()) for path in others for row in pq.read_table(path, columns=key).to_pylist()}
    fresh = [row for row in rows.to_pylist() if tuple(row[name] for name in key) not in there]
    return pa.Table.from_pylist(fresh, TABLES[table].schema)


def _write(
    found: ModelDifference | ModelAlignment,
    left: Opened,
    right: Opened,
    output: str | Path,
    comparison: Comparison,
    run: str,
) -> None:
    """Write the tables as a run of the atlas in folder, or at address, `output`; the same comparison again replaces its own."""
    parts = {name: str(value) for name, value in vars(comparison).items()}
    parts |= {"left": left.fingerprint, "words": str([digest(Path(path)) for path in comparison.words])}
    identity = fingerprint((right.fingerprint, sorted(parts.items())))
    tables = found.tables(run)
    with home_of(output, run) as home, claimed(home.folder, run) as folder:
        manifest = manifest_for(right, folder)
        existing = manifest.runs.get(run)
        if existing is not None and existing.identity != identity:
            instead = "use --run NAME for another run in the same atlas, or another folder"
            raise Refusal(f"run {run}", why="it is of something else than this comparison", instead=instead)
        compared = found.compared
        missing = {lens.name: f"this run says {compared.says}" for lens in LENSES}
        card = RunCard(
            status="building",
            identity=identity,
            seed=comparison.seed,
            window=0,
            execution={},
            certificate={},
            absent=missing,
            compared=compared,
        )
        manifest.runs[run] = card
        write_manifest(folder, manifest)
        files = []
        for name, rows in tables.items():
            writer = f"{found.writer}.{run}"
            files.append(
                write_table(
                    folder, name, writer, rows if "run" in TABLES[name].schema.names else _new(folder, name, writer, rows)
                )
            )
        if right.tokenizer is not None:
            texts = texts_of(right.tokenizer, right.shape.vocab)
            files.append(write_table(folder, "vocabulary", "vocabulary", vocabulary_table(texts)))
        recorded = {str(file.relative_to(folder)): digest(file) for file in files}
        manifest.runs[run] = card.model_copy(update={"status": "complete", "files": recorded})
        write_manifest(folder, manifest)
