"""One command from a model and text to an atlas.

Prepares the corpus, runs the stages of every lens, writes their tables, and keeps the manifest true throughout: a build that
stops at any moment is continued by running it again. What is measured is the lenses' business, what a model reads that of `texts`;
estimates belong in `estimate`.
"""

import importlib.metadata
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, get_args

from microtome.atlas.folder import claimed, prune, require_run_name, require_usable
from microtome.atlas.read import Atlas, damaged
from microtome.atlas.texts import adopt, corpus_card, stage
from microtome.atlas.watch import Watched
from microtome.capture import Depth, Lens, Progress, Results, Run, Silent, execution_class, material_of, run_stages
from microtome.core import Refusal, Site
from microtome.corpus import Joined, Reading, Source
from microtome.geometry import GeometryLens
from microtome.geometry.asked import require_depth, require_seed, require_window
from microtome.model import Checkpoint, Model, load, open_checkpoint, sites_named
from microtome.model.allocator import give_back_freed_memory
from microtome.neurons import NeuronsLens
from microtome.readout.words import texts_of
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
from microtome.vocabulary.words import vocabulary_table

__all__ = ["LENSES", "Settings", "build", "card_for", "manifest_for", "sites_of"]

_log = logging.getLogger(__name__)

LENSES: Final[tuple[Lens, ...]] = (GeometryLens(), NeuronsLens(), VocabularyLens())
"""Every lens that a build runs. A new lens is a new entry."""

_DEPTHS: Final[tuple[Depth, ...]] = get_args(Depth)
"""Shallow first: a deeper one has all that a shallower one has."""

_NOT_YET: Final = {"factors": "sparse dictionaries of hidden states are not part of this version"}


@dataclass(frozen=True)
class Settings:
    """What a run is, besides its model and its text.

    `lenses` are those to run, by name: none named is all. `sites` are the hidden states that lenses of hidden states look at, as
    `model.sites_named` reads them: none named is the residual stream. With `protocol` "paper" windows are drawn as Song & Zhong drew
    them, see `corpus.Joined`, whatever `window` says; with "clean" each is within a document, and there once.
    """

    run: str = "main"
    depth: Depth = "quick"
    seed: int = 0
    window: int = 256
    lenses: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    protocol: Literal["clean", "paper"] = "clean"

    def __post_init__(self) -> None:
        require_run_name(self.run)
        require_depth(self.depth)
        require_seed(self.seed)
        require_window(self.window)
        if unknown := [name for name in self.lenses if name not in _names(LENSES)]:
            raise Refusal(f"lens {unknown[0]}", why="there is none of that name", instead=f"name {', '.join(_names(LENSES))}")

    @property
    def windows(self) -> int | Joined:
        """How windows are taken."""
        return self.window if self.protocol == "clean" else Joined()

    @property
    def asked(self) -> dict[str, Depth]:
        """The depth that each lens is asked for."""
        return dict.fromkeys(self.lenses or _names(LENSES), self.depth)


def _names(lenses: Sequence[Lens]) -> tuple[str, ...]:
    return tuple(lens.name for lens in lenses)


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
    sites = sites_of(subject, settings)
    if text is not None:
        assert isinstance(subject, Model), "text is folded over a model that was built"
        material = material_of(subject, text, reading, window=settings.windows, seed=settings.seed)
        watch.step(f"cutting the {subject.family.inputs} into windows")
        corpus = stage(material, output / "work" / settings.run / "corpus", settings.run)
    run = Run(settings.run, subject, corpus, settings.seed, settings.depth, sites)
    card = card_for(run, settings, manifest)
    spoilt = [file for file in damaged(output) if file in card.files] if card.status == "complete" else []
    plan = _plan(card, settings, anew=bool(spoilt))
    if not plan:
        _drop_work(output, settings.run)
        watch.finish()
        return Atlas(output)
    for file in spoilt:
        _log.warning("%s is missing or damaged (not the bytes that were written); it is made anew", file)
    kept = {} if spoilt else {file: sha for file, sha in card.files.items() if _writer(file) in set(card.depths) - set(plan)}
    card = card.model_copy(update={"status": "building", "pending": plan, "files": kept})
    manifest.runs[settings.run] = card
    write_manifest(output, manifest)
    files: list[Path] = []
    if material is not None and corpus is not None:
        corpus, files = adopt(material, corpus, output)
        run = replace(run, corpus=corpus)
    for depth in _DEPTHS:
        if lenses := tuple(lens for lens in LENSES if plan.get(lens.name) == depth):
            files += _observe(output, replace(run, depth=depth), lenses, watch)
    depths: dict[str, Depth] = {**card.depths, **plan}
    card = card.model_copy(
        update={
            "status": "complete",
            "depths": depths,
            "pending": {},
            "absent": _absent(run, depths),
            "files": kept | {str(file.relative_to(output)): digest(file) for file in files},
        }
    )
    manifest.runs[settings.run] = card
    write_manifest(output, manifest)
    _drop_work(output, settings.run)
    watch.finish()
    return Atlas(output)


def _plan(card: RunCard, settings: Settings, *, anew: bool) -> dict[str, Depth]:
    """Which lenses to run, and how deep: those that are asked for deeper than they stand, or (`anew`) also those that stand.

    A run that was interrupted goes on with what was begun, of which lenses that stand as deep already were to be made anew.
    Errors: `Refusal` where the run was interrupted over something else.
    """
    standing: dict[str, Depth] = {name: depth for name, depth in card.depths.items() if name in _names(LENSES)}
    wanted: dict[str, Depth] = {
        name: depth
        for name, depth in settings.asked.items()
        if name not in standing or _DEPTHS.index(depth) > _DEPTHS.index(standing[name])
    }
    if card.pending and wanted == {name: depth for name, depth in card.pending.items() if depth != standing.get(name)}:
        return card.pending
    if card.pending:
        raise Refusal(
            f"run {settings.run}",
            why=f"it is unfinished: {_described(card.pending)} was begun, and {_described(wanted) or 'nothing'} is to be made now",
            instead="run the command that was interrupted again, use --run NAME for another run, or another folder",
        )
    return {**standing, **wanted} if anew else wanted


def _described(plan: Mapping[str, str]) -> str:
    return ", ".join(f"{lens} at depth {depth}" for lens, depth in plan.items())


def _writer(file: str) -> str:
    """The lens that wrote a table: files are named for it, and for the run."""
    return Path(file).name.split(".")[0]


def _observe(output: Path, run: Run, lenses: Sequence[Lens], watch: Watched) -> list[Path]:
    """Run the stages of lenses and write their tables."""
    results = run_stages(run, lenses, output / "work" / run.name, watch)
    watch.step("writing tables")
    files = _write_lenses(output, run, lenses, results)
    _drop_stages(output, run.name)
    return files


def _absent(run: Run, depths: Mapping[str, Depth]) -> dict[str, str]:
    """What this run lacks and why, lens by lens at the depth it has."""
    missing = {}
    for lens in LENSES:
        if lens.name in depths:
            missing |= lens.absent(replace(run, depth=depths[lens.name]))
        else:
            missing[lens.name] = "not part of this run: microtome build MODEL TEXT -o ATLAS, with the same text"
    return missing | _NOT_YET


def sites_of(subject: Model | Checkpoint, settings: Settings) -> tuple[Site, ...]:
    """The sites that settings name, in this model.

    Errors: `Refusal` where the model lacks one, or where there is no text whose hidden states could be looked at.
    """
    if settings.protocol != "clean" and not isinstance(subject, Model):
        raise Refusal(
            f"protocol {settings.protocol}", why="it says how windows of a text are taken", instead="name a text as well"
        )
    if not settings.sites:
        return ()
    if not isinstance(subject, Model):
        raise Refusal(f"sites {', '.join(settings.sites)}", why="hidden states are of a text", instead="name a text as well")
    return sites_named(subject, settings.sites)


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
    window = settings.window if run.corpus is None or settings.protocol == "clean" else run.corpus.window
    parts = {
        "text": run.corpus.fingerprint if run.corpus else "none",
        "seed": str(settings.seed),
        "window": str(window),
        **execution,
    }
    sites = tuple(str(site) for site in run.sites)
    if sites:
        parts["sites"] = " ".join(sites)
    if settings.protocol != "clean":
        parts["protocol"] = settings.protocol
    identity = fingerprint((run.model.fingerprint, parts))
    card = RunCard(
        status="building",
        identity=identity,
        seed=settings.seed,
        window=window,
        sites=sites,
        protocol=settings.protocol,
        execution=execution,
        certificate=run.model.certificate.to_json() if isinstance(run.model, Model) else {},
        corpus=corpus_card(run.corpus) if run.corpus else None,
        absent=_absent(run, settings.asked),
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
        "seed": (existing.seed, card.seed),
        "window": (existing.window, card.window),
        "protocol": (existing.protocol, card.protocol),
        "what is looked at": (_listed(existing.sites), _listed(card.sites)),
        **{key: (existing.execution.get(key), card.execution.get(key)) for key in {*existing.execution, *card.execution}},
    }
    changed = [f"{key} was {old} and is now {new}" for key, (old, new) in sorted(pairs.items()) if old != new]
    return "; ".join(changed) or ("its images were others" if inputs == "image" else "its text was another one")


def _listed(sites: Sequence[str]) -> str:
    return ", ".join(sites) or "the residual stream"


def _write_lenses(output: Path, run: Run, lenses: Sequence[Lens], results: Results) -> list[Path]:
    """Write the tables of lenses, and what tokens are called; rows that hold for any run of the model are written under the names of lens and part alone."""
    files = []
    for lens in lenses:
        for key, rows in lens.tables(run, results).items():
            name, _, part = key.partition(".")
            own = run.name if "run" in TABLES[name].schema.names else part
            files.append(write_table(output, name, f"{lens.name}.{own}" if own else lens.name, rows))
            give_back_freed_memory()
    if run.model.tokenizer is not None:  # what tokens are called is no lens's, and every page of one needs it
        rows = vocabulary_table(texts_of(run.model.tokenizer, run.model.shape.vocab))
        files.append(write_table(output, "vocabulary", "vocabulary", rows))
    return files


def _drop_stages(output: Path, run: str) -> None:
    """States whose results are in tables: the next stages of this name may be of another depth."""
    for work in (output / "work" / run).glob("*/work.json"):
        shutil.rmtree(work.parent, ignore_errors=True)


def _drop_work(output: Path, run: str) -> None:
    """The states of a complete run are in its tables."""
    shutil.rmtree(output / "work" / run, ignore_errors=True)
    prune(output / "work" / run)
