"""One command from a model and text to an atlas.

Prepares the corpus, runs the stages of every lens, writes their tables, and keeps the manifest true throughout: a build that
stops at any moment is continued by running it again. What is measured is the lenses' business, what a model reads that of `texts`;
estimates belong in `estimate`.
"""

import importlib.metadata
import logging
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from microtome.atlas.folder import claimed, prune, require_run_name, require_usable
from microtome.atlas.read import Atlas, damaged
from microtome.atlas.texts import adopt, corpus_card, material_of, stage
from microtome.atlas.watch import Watched
from microtome.capture import Depth, Lens, Progress, Results, Run, Silent, execution_class, run_stages
from microtome.core import Refusal
from microtome.corpus import Reading, Source
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
    manifest_path,
    read_manifest,
    write_manifest,
    write_table,
)
from microtome.vocabulary import VocabularyLens

__all__ = ["LENSES", "Settings", "build", "card_for", "manifest_for"]

_log = logging.getLogger(__name__)

LENSES: Final[tuple[Lens, ...]] = (GeometryLens(), NeuronsLens(), VocabularyLens())
"""Every lens that a build runs. A new lens is a new entry."""


_NOT_YET: Final = {"factors": "sparse dictionaries of hidden states are not part of this version"}


@dataclass(frozen=True)
class Settings:
    """What a run is, besides its model and its text."""

    run: str = "main"
    depth: Depth = "quick"
    seed: int = 0
    window: int = 256

    def __post_init__(self) -> None:
        require_run_name(self.run)
        if self.depth != "quick":
            raise Refusal(f"depth {self.depth}", why="this version computes the quick depth", instead="use --depth quick")
        if not 0 <= self.seed < 2**63:
            raise Refusal(f"seed {self.seed}", why="it is negative or needs more than 63 bits", instead="use 0, 1, 2, ...")


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

    `text` is anything `corpus.prepare` reads, and for a vision model an image or a folder of images; without it only what the
    weights tell is computed, and the model is never built.
    Run again after an interruption, it continues; run again when complete, it checks the tables and returns.

    Errors: `Refusal` where the model, the text or the folder cannot be used; then neither a new folder nor a new run is left
    behind. Where the disk is full, what is finished stays, and the same command continues it.
    """
    settings, output = settings or Settings(), Path(output)
    watch = progress or Silent()
    require_usable(output)
    subject = _subject(model, text, watch)
    with claimed(output, settings.run) as folder:
        return _build(subject, text, folder, settings, reading or Reading(), Watched(watch, folder))


def _subject(model: Model | Checkpoint | str | Path, text: Source | None, progress: Progress) -> Model | Checkpoint:
    if isinstance(model, Checkpoint) and text is not None:
        raise Refusal(f"text for {model.name}", why="the model is open but not built", instead="pass its folder, or load() it")
    if isinstance(model, Checkpoint):
        model.require_finite()
    if isinstance(model, Model | Checkpoint):
        return model
    progress.step(f"opening {Path(model).name}")
    return _subject(open_checkpoint(model), text, progress) if text is None else load(model)


def _build(
    subject: Model | Checkpoint, text: Source | None, output: Path, settings: Settings, reading: Reading, watch: Watched
) -> Atlas:
    manifest = manifest_for(subject, output)
    material = corpus = None
    if text is not None:
        assert isinstance(subject, Model), "text is folded over a model that was built"
        material = material_of(subject, text, reading, window=settings.window, seed=settings.seed)
        watch.step(f"cutting the {subject.family.inputs} into windows")
        corpus = stage(material, output / "work" / settings.run / "corpus", settings.run)
    run = Run(settings.run, subject, corpus, settings.seed, settings.depth)
    card = card_for(run, settings, manifest)
    spoilt = [file for file in damaged(output) if file in card.files] if card.status == "complete" else []
    if card.status == "complete" and not spoilt:
        _drop_work(output, settings.run)
        watch.finish()
        return Atlas(output)
    for file in spoilt:
        _log.warning("%s is missing or damaged (not the bytes that were written); it is made anew", file)
    card = card.model_copy(update={"status": "building", "files": {}})
    manifest.runs[settings.run] = card
    write_manifest(output, manifest)
    files: list[Path] = []
    if material is not None and corpus is not None:
        corpus, files = adopt(material, corpus, output)
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


def manifest_for(subject: Model | Checkpoint, output: Path) -> Manifest:
    """The manifest in folder `output`, which must be of this model, or a new one.

    Errors: `Refusal` where it is of another model, newer or damaged.
    """
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


def card_for(run: Run, settings: Settings, manifest: Manifest) -> RunCard:
    """The card of this run; where the manifest has one it must be of the same inputs.

    Errors: `Refusal` that says what differs.
    """
    existing = manifest.runs.get(settings.run)
    execution = execution_class(run.model) if isinstance(run.model, Model) else {}
    parts = {
        "text": run.corpus.fingerprint if run.corpus else "none",
        "depth": settings.depth,
        "seed": str(settings.seed),
        "window": str(settings.window),
        **execution,
    }
    identity = fingerprint((run.model.fingerprint, parts))
    absent = {name: why for lens in LENSES for name, why in lens.absent(run).items()} | _NOT_YET
    card = RunCard(
        status="building",
        identity=identity,
        depth=settings.depth,
        seed=settings.seed,
        window=settings.window,
        execution=execution,
        certificate=run.model.certificate.to_json() if isinstance(run.model, Model) else {},
        corpus=corpus_card(run.corpus) if run.corpus else None,
        absent=absent,
    )
    if existing is None:
        return card
    if existing.identity != identity:
        raise Refusal(
            f"run {settings.run}",
            why=_difference(existing, card, run.model.family.inputs),
            instead="use --run NAME for another run in the same atlas, or another folder",
        )
    return existing


def _difference(existing: RunCard, card: RunCard, inputs: str) -> str:
    """What differs between the run that is in the atlas and the one asked for."""
    if (existing.corpus is None) != (card.corpus is None):
        return "it is a run of the weights alone" if existing.corpus is None else f"it is a run over {inputs}s"
    pairs: dict[str, tuple[Any, Any]] = {
        "depth": (existing.depth, card.depth),
        "seed": (existing.seed, card.seed),
        "window": (existing.window, card.window),
        **{key: (existing.execution.get(key), card.execution.get(key)) for key in {*existing.execution, *card.execution}},
    }
    changed = [f"{key} was {old} and is now {new}" for key, (old, new) in sorted(pairs.items()) if old != new]
    return "; ".join(changed) or ("its images were others" if inputs == "image" else "its text was another one")


def _write_lenses(output: Path, run: Run, results: Results) -> list[Path]:
    """Write the tables of every lens; rows that hold for any run of the model are written under the lens's name alone."""
    files = []
    for lens in LENSES:
        for name, rows in lens.tables(run, results).items():
            per_run = "run" in TABLES[name].schema.names
            files.append(write_table(output, name, f"{lens.name}.{run.name}" if per_run else lens.name, rows))
    return files


def _drop_work(output: Path, run: str) -> None:
    """The states of a complete run are in its tables."""
    shutil.rmtree(output / "work" / run, ignore_errors=True)
    prune(output / "work" / run)
