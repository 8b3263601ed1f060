"""What a run is asked to be: its settings, the lenses that there are, and those that are made of files that are given.

What becomes of it is the business of `build`; what is recorded of it, of `cards`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from microtome.atlas.folder import require_run_name
from microtome.capture import Depth, Lens
from microtome.core import Refusal, Site
from microtome.corpus import Joined
from microtome.factors.dictionary import Dictionary
from microtome.factors.evaluation_lens import EvaluationLens
from microtome.factors.judging import Judging
from microtome.factors.lens import FactorsLens
from microtome.factors.plan import Plan
from microtome.geometry import GeometryLens
from microtome.geometry.asked import require_depth, require_seed, require_window
from microtome.model import Checkpoint, Model, sites_named
from microtome.neurons import NeuronsLens
from microtome.neurons.facts_lens import facts_lens
from microtome.neurons.labels_lens import labels_lens
from microtome.vocabulary import VocabularyLens

__all__ = ["GIVEN", "LENSES", "Settings", "lenses_of", "names_of", "sites_of"]

LENSES: Final[tuple[Lens, ...]] = (GeometryLens(), NeuronsLens(), VocabularyLens(), FactorsLens())
"""Every lens that a build runs. A new lens is a new entry."""

_FACTORS: Final = "factors"

GIVEN: Final[Mapping[str, Callable[[Model, Path], Lens]]] = {"facts": facts_lens, "labels": labels_lens}
"""Lenses of a file that is given to them, by the name of the setting. A new one is a new entry, and a field of `Settings`."""


@dataclass(frozen=True)
class Settings:
    """What a run is, besides its model and its text.

    `lenses` are those to run, by name: none named is all. `sites` are the hidden states that lenses of hidden states look at, as
    `model.sites_named` reads them: none named is the residual stream. With `protocol` "paper" windows are drawn as Song & Zhong drew
    them, see `corpus.Joined`, whatever `window` says; with "clean" each is within a document, and there once. `facts` is a file of
    facts whose units are looked for (`shipped`: those that come along), `labels` a file or folder of labelled words. `dictionary` is what the
    factors lens trains, or one that is there; or dictionaries are to be judged.
    """

    run: str = "main"
    depth: Depth = "quick"
    seed: int = 0
    window: int = 256
    lenses: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    protocol: Literal["clean", "paper"] = "clean"
    facts: str | Path | None = None
    labels: str | Path | None = None
    dictionary: Plan | Dictionary | Judging = Plan()

    def __post_init__(self) -> None:
        require_run_name(self.run)
        require_depth(self.depth)
        require_seed(self.seed)
        require_window(self.window)
        if unknown := [name for name in self.lenses if name not in names_of(LENSES)]:
            raise Refusal(f"lens {unknown[0]}", why="there is none of that name", instead=f"name {', '.join(names_of(LENSES))}")

    @property
    def windows(self) -> int | Joined:
        """How windows are taken."""
        return self.window if self.protocol == "clean" else Joined()

    @property
    def asked(self) -> dict[str, Depth]:
        """The depth that each lens is asked for."""
        own = {name: name for name in names_of(LENSES)} | {_FACTORS: self.factors.name}
        return dict.fromkeys((*(own[name] for name in self.lenses or own), *self.given), self.depth)

    @property
    def factors(self) -> FactorsLens | EvaluationLens:
        """The lens of the dictionary, or of those that are judged."""
        if isinstance(self.dictionary, Judging):
            return EvaluationLens(self.dictionary)
        return FactorsLens(self.dictionary) if isinstance(self.dictionary, Plan) else FactorsLens(given=self.dictionary)

    def beside(self, output: Path) -> "Settings":
        """The same for an atlas in a folder: of dictionaries that are judged it may have some already. Errors: `Refusal` as of `Judging.beside`."""
        if not isinstance(self.dictionary, Judging):
            return self
        return replace(self, dictionary=self.dictionary.beside(output, self.run))

    @property
    def tried(self) -> "Settings":
        """The same for a trial of what it costs, see `Plan.tried`."""
        return replace(self, dictionary=self.dictionary.tried) if isinstance(self.dictionary, Plan) else self

    @property
    def given(self) -> dict[str, Path]:
        """The files that are given, by the lens that is made of each."""
        files = {name: getattr(self, name) for name in GIVEN}
        return {name: Path(file) for name, file in files.items() if file is not None}


def names_of(lenses: Sequence[Lens]) -> tuple[str, ...]:
    """Their names."""
    return tuple(lens.name for lens in lenses)


def lenses_of(subject: Model | Checkpoint, settings: Settings) -> tuple[Lens, ...]:
    """Every lens, those of files that are given among them.

    Errors: `Refusal` where a file is no such file or not for this model, or where there is no text.
    """
    given = settings.given
    lenses = tuple(settings.factors if lens.name == _FACTORS else lens for lens in LENSES)
    if not given:
        return lenses
    if not isinstance(subject, Model):
        why = "the model must be built for it, and without a text only its weights are read"
        raise Refusal(f"--{next(iter(given))}", why=why, instead="name a text as well: `sample` is a small one")
    return (*lenses, *(GIVEN[name](subject, file) for name, file in given.items()))


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
