"""One command from a model and text to an atlas.

Prepares the corpus, runs the stages of every lens, writes their tables, and keeps the manifest true throughout: a build that
stops at any moment is continued by running it again. What is measured is the lenses' business; estimates belong in `estimate`.
"""

import importlib.metadata
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from microtome.atlas.read import Atlas
from microtome.atlas.watch import Watched
from microtome.capture import Depth, Lens, Progress, Results, Run, Silent, execution_class, run_stages
from microtome.core import Refusal
from microtome.corpus import Corpus, Cutting, Reading, Source, open_corpus, prepare
from microtome.geometry import GeometryLens
from microtome.model import Checkpoint, Model, load, open_checkpoint
from microtome.neurons import NeuronsLens
from microtome.store import (
    TABLES,
    Manifest,
    ModelCard,
    RunCard,
    digest,
    fingerprint,
    locked,
    manifest_path,
    read_manifest,
    stream_table,
    sweep,
    table_path,
    write_manifest,
    write_table,
)
from microtome.vocabulary import VocabularyLens

__all__ = ["LENSES", "Settings", "build"]

LENSES: Final[tuple[Lens, ...]] = (GeometryLens(), NeuronsLens(), VocabularyLens())
"""Every lens that a build runs. A new lens is a new entry."""

_CORPUS_TABLES: Final = ("documents", "windows")


@dataclass(frozen=True)
class Settings:
    """What a run is, besides its model and its text."""

    run: str = "main"
    depth: Depth = "quick"
    seed: int = 0
    window: int = 256


def build(
    model: Model | Checkpoint | str | Path,
    text: Source | None = None,
    *,
    output: str | Path,
    settings: Settings | None = None,
    reading: Reading | None = None,
    progress: Progress | None = None,
) -> Atlas:
    """Build an atlas of `model` over `text` in folder `output`, or add a run to the atlas that is there.

    `text` is anything `corpus.prepare` reads; without it only what the weights tell is computed, and the model is never built.
    Run again after an interruption, it continues; run again when complete, it checks the tables and returns.

    Errors: `Refusal` where the model, the text or the folder cannot be used; then a new folder is not left behind.
    """
    settings, output = settings or Settings(), Path(output)
    watch = progress or Silent()
    _require_usable(output)
    subject = _subject(model, text, watch)
    fresh = not output.exists()
    output.mkdir(parents=True, exist_ok=True)
    try:
        with locked(output):
            sweep(output)
            return _build(subject, text, output, settings, reading or Reading(), Watched(watch, output))
    except Refusal:
        if fresh and not manifest_path(output).exists():
            shutil.rmtree(output)
        raise


def _require_usable(output: Path) -> None:
    """A folder that holds other things than an atlas is left alone."""
    if output.is_file():
        raise Refusal(str(output), why="it is a file", instead="name a folder for the atlas")
    if output.is_dir() and any(output.iterdir()) and not manifest_path(output).exists() and not (output / "work").exists():
        raise Refusal(str(output), why="the folder holds files but no atlas.json", instead="name a new folder for the atlas")


def _subject(model: Model | Checkpoint | str | Path, text: Source | None, progress: Progress) -> Model | Checkpoint:
    if isinstance(model, Model | Checkpoint):
        return model
    progress.step(f"opening {Path(model).name}")
    return open_checkpoint(model) if text is None else load(model)


def _build(
    subject: Model | Checkpoint, text: Source | None, output: Path, settings: Settings, reading: Reading, watch: Watched
) -> Atlas:
    manifest = _manifest(subject, output)
    corpus = None
    if text is not None:
        watch.step("cutting the text into windows")
        corpus = _staged_corpus(subject, text, output, settings, reading)
    run = Run(settings.run, subject, corpus, settings.seed, settings.depth)
    card = _card(run, settings, manifest.runs.get(settings.run))
    if card.status == "complete" and not _damaged(output, card):
        _drop_work(output, settings.run)
        return Atlas(output)
    card = card.model_copy(update={"status": "building", "files": {}})
    manifest.runs[settings.run] = card
    write_manifest(output, manifest)
    files: list[Path] = []
    if corpus is not None:
        corpus, files = _adopt_corpus(output, settings.run, corpus)
        run = replace(run, corpus=corpus)
    results = run_stages(run, LENSES, output / "work" / settings.run, watch)
    watch.step("writing tables")
    files += _write_lenses(output, run, results)
    card = card.model_copy(
        update={"status": "complete", "files": {str(file.relative_to(output)): digest(file) for file in sorted(files)}}
    )
    manifest.runs[settings.run] = card
    write_manifest(output, manifest)
    _drop_work(output, settings.run)
    watch.finish()
    return Atlas(output)


def _manifest(subject: Model | Checkpoint, output: Path) -> Manifest:
    """The manifest that is there, which must be of this model, or a new one."""
    if not manifest_path(output).exists():
        card = ModelCard(
            name=subject.name,
            family=subject.family.name,
            architecture=(type(subject.module) if isinstance(subject, Model) else subject.architecture).__name__,
            fingerprint=subject.fingerprint,
            shape=asdict(subject.shape),
        )
        return Manifest(written_by=f"microtome {importlib.metadata.version('microtome')}", model=card)
    manifest = read_manifest(output)
    if manifest.model.fingerprint != subject.fingerprint:
        raise Refusal(
            str(output),
            why=f"it is the atlas of {manifest.model.name}, whose weights are not those of {subject.name}",
            instead="name another folder: an atlas has one model",
        )
    return manifest


def _card(run: Run, settings: Settings, existing: RunCard | None) -> RunCard:
    """The card of this run; where one exists it must be of the same inputs."""
    execution = execution_class(run.model) if isinstance(run.model, Model) else {}
    parts = {
        "text": run.corpus.fingerprint if run.corpus else "none",
        "depth": settings.depth,
        "seed": str(settings.seed),
        "window": str(settings.window),
        **execution,
    }
    identity = fingerprint((run.model.fingerprint, parts))
    absent = {name: why for lens in LENSES for name, why in lens.absent(run).items()}
    card = RunCard(
        status="building",
        identity=identity,
        depth=settings.depth,
        seed=settings.seed,
        window=settings.window,
        execution=execution,
        certificate=run.model.certificate.to_json() if isinstance(run.model, Model) else {},
        corpus=_corpus_card(run.corpus) if run.corpus else None,
        absent=absent,
    )
    if existing is None:
        return card
    if existing.identity != identity:
        raise Refusal(
            f"run {settings.run}",
            why=_difference(existing, card),
            instead="use --run NAME for another run in the same atlas, or another folder",
        )
    return existing


def _difference(existing: RunCard, card: RunCard) -> str:
    """What differs between the run that is in the atlas and the one asked for."""
    pairs: dict[str, tuple[Any, Any]] = {
        "depth": (existing.depth, card.depth),
        "seed": (existing.seed, card.seed),
        "window": (existing.window, card.window),
        **{key: (existing.execution.get(key), card.execution.get(key)) for key in {*existing.execution, *card.execution}},
    }
    changed = [f"{key} was {old} and is now {new}" for key, (old, new) in sorted(pairs.items()) if old != new]
    return "; ".join(changed) or "its text was another one"


def _corpus_writer(run: str) -> str:
    return f"corpus.{run}"


def _staged_corpus(subject: Model | Checkpoint, text: Source, output: Path, settings: Settings, reading: Reading) -> Corpus:
    """Prepare the corpus beside the tables: those of a run that is there stay until this one proves to be the same."""
    assert isinstance(subject, Model), "text is folded over a model that was built"
    staging = output / "work" / settings.run / "corpus"
    shutil.rmtree(staging, ignore_errors=True)

    def sink(table: str, batches: Any) -> Path:
        return stream_table(staging, table, _corpus_writer(settings.run), batches)

    cutting = Cutting(window=min(settings.window, subject.shape.context or settings.window))
    return prepare(
        text,
        subject.tokenizer,
        sink,
        settings.run,
        reading=reading,
        cutting=cutting,
        seed=settings.seed,
        vocab=subject.shape.vocab,
    )


def _corpus_card(corpus: Corpus) -> dict[str, Any]:
    """What the manifest says of a corpus: sizes, identity, what was skipped and why."""
    return {
        "name": corpus.name,
        "documents": corpus.documents,
        "windows": corpus.windows,
        "tokens": corpus.tokens,
        "window": corpus.window,
        "labels": list(corpus.labels),
        "fingerprint": corpus.fingerprint,
        "skipped": corpus.skipped.count,
        "skipped_first": [{"name": name, "reason": reason} for name, reason in corpus.skipped.first],
    }


def _adopt_corpus(output: Path, run: str, corpus: Corpus) -> tuple[Corpus, list[Path]]:
    """Move the prepared corpus to where the atlas keeps it, and open it there."""
    paths = {}
    for table in _CORPUS_TABLES:
        staged = table_path(output / "work" / run / "corpus", table, _corpus_writer(run))
        paths[table] = table_path(output, table, _corpus_writer(run))
        paths[table].parent.mkdir(parents=True, exist_ok=True)
        staged.replace(paths[table])
    moved = open_corpus(paths["documents"], paths["windows"], name=corpus.name, window=corpus.window)
    return moved, list(paths.values())


def _write_lenses(output: Path, run: Run, results: Results) -> list[Path]:
    """Write the tables of every lens; rows that hold for any run of the model are written under the lens's name alone."""
    files = []
    for lens in LENSES:
        for name, table in lens.tables(run, results).items():
            per_run = "run" in TABLES[name].schema.names
            writer = f"{lens.name}.{run.name}" if per_run else lens.name
            files.append(write_table(output, name, writer, _with_run(table, run.name) if per_run else table))
    return files


def _with_run(table: pa.Table, run: str) -> pa.Table:
    return table if "run" in table.column_names else table.append_column("run", pa.repeat(run, table.num_rows))


def _damaged(output: Path, card: RunCard) -> Mapping[str, str]:
    """Tables of a complete run that are missing or changed."""
    return {f: sha for f, sha in card.files.items() if not (output / f).is_file() or digest(output / f) != sha}


def _drop_work(output: Path, run: str) -> None:
    """The states of a complete run are in its tables."""
    shutil.rmtree(output / "work" / run, ignore_errors=True)
    work = output / "work"
    if work.is_dir() and not any(work.iterdir()):
        work.rmdir()
