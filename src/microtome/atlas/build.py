"""One command from a model and text to an atlas.

Prepares the corpus, runs the stages of every lens, writes their tables, and keeps the manifest true throughout: a build that
stops at any moment is continued by running it again. What is measured is the lenses' business, what a model reads that of `texts`;
estimates belong in `estimate`.
"""

import contextlib
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, get_args

from microtome.atlas.cards import absent, card_for, manifest_for
from microtome.atlas.folder import claimed, prune, require_usable
from microtome.atlas.homes import Home, home_of
from microtome.atlas.meanings import write_meanings
from microtome.atlas.read import Atlas, damaged
from microtome.atlas.settings import Settings, lenses_of, names_of, sites_of
from microtome.atlas.texts import adopt, stage
from microtome.atlas.watch import Watched
from microtome.capture import Depth, Lens, Material, Progress, Results, Run, Silent, material_of, run_stages
from microtome.capture.recipes import require_same_model, subject_of, workers_class
from microtome.core import Interrupted, Refusal
from microtome.corpus import Corpus, Reading, Source
from microtome.engine import HERE, Crew, Engine
from microtome.factors.plan import Plan, device_of
from microtome.model import Checkpoint, Model, load, open_checkpoint
from microtome.model.allocator import give_back_freed_memory
from microtome.readout.words import texts_of
from microtome.store import (
    TABLES,
    Manifest,
    RunCard,
    committed,
    digest,
    is_address,
    manifest_path,
    write_manifest,
    write_table,
)
from microtome.vocabulary.words import vocabulary_table

__all__ = ["build"]

_log = logging.getLogger(__name__)

_DEPTHS: Final[tuple[Depth, ...]] = get_args(Depth)
"""Shallow first: a deeper one has all that a shallower one has."""


def build(
    model: Model | Checkpoint | str | Path,
    text: Source | None = None,
    *,
    output: str | Path,
    settings: Settings | None = None,
    reading: Reading | None = None,
    progress: Progress | None = None,
    engine: Engine = HERE,
) -> Atlas:
    """Build an atlas of `model` over `text` in folder, or at address, `output`, or add a run to the atlas that is there.

    `text` is anything `corpus.prepare` reads, and for a vision model an image or a folder of images; without it only what the
    weights tell is computed, and the model is never built.
    `engine` says where the passes over the text run: in this process, in others, on a cluster.
    Run again after an interruption, it continues; run again when complete, it checks the tables and returns.

    Errors: `Refusal` where the model, the text or the folder cannot be used; then neither a new folder nor a new run is left
    behind. Where the disk is full, what is finished stays, and the same command continues it.
    """
    settings, watch = settings or Settings(), progress or Silent()
    require_usable(output)
    _require_states_near(settings, output)
    subject = _subject(model, text, watch)
    with (
        _crew(engine, subject, watch) as crew,
        home_of(output, settings.run) as home,
        claimed(home.folder, settings.run) as folder,
    ):
        _require_room(settings, subject)
        inputs = _Inputs(subject, text, reading or Reading(), crew, home)
        _build(inputs, folder, settings, Watched(home.watched(watch), folder))
    return Atlas(output)


@dataclass(frozen=True)
class _Inputs:
    """What is read, who does it, and where what comes of it is kept."""

    subject: Model | Checkpoint
    text: Source | None
    reading: Reading
    crew: Crew
    home: Home


def _require_states_near(settings: Settings, output: str | Path) -> None:
    """Refuse to train by several processes what they could not read."""
    plan = settings.dictionary
    if isinstance(plan, Plan) and plan.spread.processes > 1 and is_address(output):
        raise Refusal(
            f"{plan.spread.processes} processes that train at {output}",
            why="they read states from a folder",
            instead="build into a folder that they see, or train by one process",
        )


def _require_room(settings: Settings, subject: Model | Checkpoint) -> None:
    """Refuse to keep states for processes that cannot be started."""
    plan = settings.dictionary
    if isinstance(plan, Plan) and plan.spread.processes > 1 and isinstance(subject, Model):
        plan.spread.launcher.require_room(plan.spread.processes, device_of(plan, subject))


@contextlib.contextmanager
def _crew(engine: Engine, subject: Model | Checkpoint, progress: Progress) -> Iterator[Crew]:
    """The workers of an engine; nobody but this process where it is enough."""
    if engine == HERE or isinstance(subject, Checkpoint):
        yield HERE
        return
    progress.step("opening the model in every worker")
    with engine.started(subject_of(subject)) as crew:
        require_same_model(subject, crew.identity)
        yield crew


def _subject(model: Model | Checkpoint | str | Path, text: Source | None, progress: Progress) -> Model | Checkpoint:
    if isinstance(model, Checkpoint) and text is not None:
        raise Refusal(f"text for {model.name}", why="the model is open but not built", instead="pass its folder, or load() it")
    if isinstance(model, Checkpoint):
        model.require_finite()
    if isinstance(model, Model | Checkpoint):
        return model
    progress.step(f"opening {Path(model).name}")
    return _subject(open_checkpoint(model), text, progress) if text is None else load(model)


def _build(inputs: _Inputs, output: Path, settings: Settings, watch: Watched) -> None:
    subject, text = inputs.subject, inputs.text
    manifest = manifest_for(subject, output)
    settings = settings.beside(output)
    material = corpus = None
    sites = sites_of(subject, settings)
    if text is not None:
        assert isinstance(subject, Model), "text is folded over a model that was built"
        material = material_of(subject, text, inputs.reading, window=settings.windows, seed=settings.seed)
        watch.step(f"cutting the {subject.family.inputs} into windows")
        corpus = stage(material, output / "work" / settings.run / "corpus", settings.run)
    workers = workers_class(subject, inputs.crew.identity)
    run = Run(settings.run, subject, corpus, settings.seed, settings.depth, sites, workers)
    lenses = lenses_of(subject, settings)
    card = card_for(run, settings, manifest, lenses)
    others = set(card.depths) - set(names_of(lenses))  # made of files, or of plans, that this command does not name
    ours = {file for file in card.files if _writer(file) not in others}
    spoilt = [file for file in damaged(output) if file in ours] if card.status == "complete" else []
    plan = _plan(card, settings, names_of(lenses), anew=bool(spoilt))
    if not plan:
        _drop_work(output, settings.run)
        watch.finish()
        return
    for file in spoilt:
        _log.warning("%s is missing or damaged (not the bytes that were written); it is made anew", file)
    stay = (set(card.depths) - set(plan)) & (others if spoilt else set(card.depths))
    kept = {file: sha for file, sha in card.files.items() if _writer(file) in stay}
    files: list[Path] = []
    with _restored(manifest, output, settings.run):
        card = card.model_copy(update={"status": "building", "pending": plan, "files": kept})
        manifest.runs[settings.run] = card
        _begin(inputs.home, output, manifest)
        if material is not None and corpus is not None:
            corpus, files = _adopted(inputs.home, material, corpus, output)
            run = replace(run, corpus=corpus)
        for depth in _DEPTHS:
            if some := tuple(lens for lens in lenses if plan.get(lens.name) == depth):
                files += _observe(output, replace(run, depth=depth), some, watch, inputs)
    depths: dict[str, Depth] = {**card.depths, **plan}
    card = card.model_copy(
        update={
            "status": "complete",
            "depths": depths,
            "pending": {},
            "absent": absent(run, depths),
            "files": kept | {str(file.relative_to(output)): digest(file) for file in files},
        }
    )
    manifest.runs[settings.run] = card
    write_manifest(output, manifest)
    _drop_work(output, settings.run)
    watch.finish()


def _begin(home: Home, output: Path, manifest: Manifest) -> None:
    """Write the manifest of a run that begins."""
    write_manifest(output, manifest)
    home.keep([manifest_path(output)])


def _adopted(home: Home, material: Material, corpus: Corpus, output: Path) -> tuple[Corpus, list[Path]]:
    """The corpus in the atlas, and its tables."""
    corpus, files = adopt(material, corpus, output)
    home.keep(files)
    return corpus, files


@contextlib.contextmanager
def _restored(manifest: Manifest, output: Path, run: str) -> Iterator[None]:
    """Make a run that was complete what it was, where something that was to be added to it is refused on the way."""
    before = manifest.runs.get(run)
    try:
        yield
    except Interrupted:
        raise
    except Refusal:
        if before is not None and before.status == "complete":
            manifest.runs[run] = before
            write_manifest(output, manifest)
            _drop_work(output, run)
        raise


def _plan(card: RunCard, settings: Settings, lenses: Sequence[str], *, anew: bool) -> dict[str, Depth]:
    """Which lenses to run, and how deep: those that are asked for deeper than they stand, or (`anew`) also those that stand.

    A run that was interrupted goes on with what was begun, of which lenses that stand as deep already were to be made anew.
    Errors: `Refusal` where the run was interrupted over something else.
    """
    standing: dict[str, Depth] = {name: depth for name, depth in card.depths.items() if name in lenses}
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


def _observe(output: Path, run: Run, lenses: Sequence[Lens], watch: Watched, inputs: _Inputs) -> list[Path]:
    """Run the stages of lenses and write their tables."""
    place = inputs.home.states(run.name)
    results = run_stages(run, lenses, output / "work" / run.name, watch, place=place, text=inputs.home.place, crew=inputs.crew)
    files = [*_write_lenses(output, run, lenses, results, watch), *_kept(output, results)]
    inputs.home.keep(files)
    _drop_stages(output, run.name)
    inputs.home.drop_states(run.name)
    return files


def _write_lenses(output: Path, run: Run, lenses: Sequence[Lens], results: Results, watch: Watched) -> list[Path]:
    """Write the tables of lenses, and what tokens are called; rows that hold for any run of the model are written under the names of lens and part alone."""
    files = []
    for lens in lenses:
        watch.step(f"writing tables of {lens.name}")
        for key, rows in lens.tables(run, results).items():
            name, _, part = key.partition(".")
            own = run.name if "run" in TABLES[name].schema.names else part
            files.append(write_table(output, name, f"{lens.name}.{own}" if own else lens.name, rows))
            give_back_freed_memory()
    watch.step("writing what tokens are called and mean")
    if run.model.tokenizer is not None:  # what tokens are called is no lens's, and every page of one needs it
        rows = vocabulary_table(texts_of(run.model.tokenizer, run.model.shape.vocab))
        files.append(write_table(output, "vocabulary", "vocabulary", rows))
    return files + write_meanings(output, run, [lens.name for lens in lenses])


def _kept(output: Path, results: Results) -> list[Path]:
    """What stages have made, in the atlas."""
    files = []
    for name, made in results.made.items():
        path = output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with committed(path) as temporary:
            shutil.copyfile(made, temporary)
        files.append(path)
    return files


def _drop_stages(output: Path, run: str) -> None:
    """States whose results are in tables: the next stages of this name may be of another depth."""
    for work in (output / "work" / run).glob("*/work.json"):
        shutil.rmtree(work.parent, ignore_errors=True)
    shutil.rmtree(output / "work" / run / "made", ignore_errors=True)


def _drop_work(output: Path, run: str) -> None:
    """The states of a complete run are in its tables."""
    shutil.rmtree(output / "work" / run, ignore_errors=True)
    prune(output / "work" / run)
