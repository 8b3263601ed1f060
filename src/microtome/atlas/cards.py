"""What is recorded of an atlas and its runs before they are built, and whether that can be: of the same model, and of the same inputs.

Computing is the business of `build`.
"""

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from microtome.atlas.settings import GIVEN, LENSES, Settings
from microtome.atlas.texts import corpus_card
from microtome.capture import Depth, Lens, Run
from microtome.core import Refusal
from microtome.model import Checkpoint, Model
from microtome.store import Fingerprinted, Manifest, ModelCard, RunCard, differences, fingerprint, manifest_path, read_manifest

__all__ = ["absent", "card_for", "manifest_for"]


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


def card_for(run: Run, settings: Settings, manifest: Manifest, lenses: Sequence[Lens] = LENSES) -> RunCard:
    """The card of this run; where the manifest has one it must be of the same inputs.

    Errors: `Refusal` that says what differs.
    """
    existing = manifest.runs.get(settings.run)
    execution = dict(run.execution)
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
    asked = [lens for lens in lenses if lens.name in settings.asked]
    given = {lens.name: lens.fingerprint for lens in asked if isinstance(lens, Fingerprinted)}
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
        absent=absent(run, settings.asked),
        given=given,
    )
    if existing is None:
        return card
    if existing.identity != identity:
        raise Refusal(
            f"run {settings.run}",
            why=_difference(existing, card, run.model.family.inputs),
            instead="use --run NAME for another run in the same atlas, or another folder",
        )
    for name, content in given.items():
        if existing.given.get(name, content) != content:
            why = f"it has, or was begun with, other {name}"
            raise Refusal(f"run {settings.run}", why=why, instead="use --run NAME for another run in the same atlas")
    return existing.model_copy(update={"given": existing.given | given})


def absent(run: Run, depths: Mapping[str, Depth]) -> dict[str, str]:
    """What this run lacks and why, lens by lens at the depth it has."""
    missing = {
        name: f"no file of them was given: microtome neurons MODEL TEXT --{name} FILE -o ATLAS"
        for name in GIVEN
        if name not in depths
    }
    for lens in LENSES:
        if lens.name in depths:
            missing |= lens.absent(replace(run, depth=depths[lens.name]))
        else:
            missing[lens.name] = "not part of this run: microtome build MODEL TEXT -o ATLAS, with the same text"
    return missing


def _difference(existing: RunCard, card: RunCard, inputs: str) -> str:
    """What differs between the run that is in the atlas and the one asked for."""
    if (existing.corpus is None) != (card.corpus is None):
        return "it is a run of the weights alone" if existing.corpus is None else f"it is a run over {inputs}s"
    return "; ".join(differences(_compared(existing), _compared(card))) or (
        "its images were others" if inputs == "image" else "its text was another one"
    )


def _compared(card: RunCard) -> dict[str, object]:
    own: dict[str, object] = {
        "seed": card.seed,
        "window": card.window,
        "protocol": card.protocol,
        "what is looked at": _listed(card.sites),
    }
    return own | card.execution


def _listed(sites: Sequence[str]) -> str:
    return ", ".join(sites) or "the residual stream"
