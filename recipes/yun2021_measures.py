"""Yun et al. 2021, arXiv:2103.15949: dictionaries of a model's states, and all experiments on them. Their tables belong in `yun2021`.

The source work's dictionary is one of sparse codes, shared by every second of twelve layers. Here it is learnt from states that are scaled and mixed, by
faster steps; beside it stand an autoencoder of as many factors, and random directions with exact codes of as many.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from microtome.core import Half, Site
from microtome.factors.aims import Aimed
from microtome.factors.baselines import Baseline, baselines, sampled
from microtome.factors.basis import factors_of
from microtome.factors.dictionary import Dictionary
from microtome.factors.evaluation import Candidate, Evaluation, evaluated
from microtome.factors.harvest import of_half
from microtome.factors.judgement import exact_codes
from microtome.factors.learning import Learning
from microtome.factors.plan import Plan, trained
from microtome.factors.polysemy import Nested
from microtome.factors.variants import BatchTopK
from microtome.model import Model
from microtome.probes import LabelledText
from recipes.yun2021_levels import Coloured, Grouped, Looked, coloured, grouped, looked
from recipes.yun2021_patterns import PATTERNS, Matched, matched, with_patterns
from recipes.yun2021_senses import Sensed, ambiguous, sensed
from recipes.yun2021_templates import FAMILIES, Perturbed, perturbed
from recipes.yun2021_text import Codes, States, codes_of, mixed, passages, read_text, speech_passages, states_of

__all__ = ["FULL", "PAPERS", "QUICK", "RANDOM", "SHUFFLED", "THEIRS", "Found", "Size", "dictionaries", "measure"]

THEIRS: Final = "sparse coding"
AUTOENCODER: Final = "BatchTopK"
RANDOM: Final = "random directions"
SHUFFLED: Final = "shuffled text"
REFITTED: Final = "sparse coding, amounts refitted"
_AROUND: Final = 30
"""Words of the passages in which words are read whose senses are told."""
_CHEAP: Final[tuple[Baseline, ...]] = ("pca", "pca largest", "random directions")
PAPERS: Final = {"low": 0.64, "middle": 0.172, "mid": 0.188}
"""Shares of levels among the 500 factors of the authors' site."""


@dataclass(frozen=True)
class Size:
    """How much is read, learnt and asked.

    Passages are of `words` words: so many drawn, as many more as it takes for `examples` with each pattern, and so many openings of `speeches`.
    Dictionaries have `units` factors, `l0` of them in a code; sparse coding passes over the states `passes` times, the autoencoder `turns` times.
    `asked` words with at least `fewest` and at most `most` occurrences of each kind, judged in `outer` parts. Patterns with `top` contexts, in each half
    at least `places` of them. `important` codes make an importance; `looked` factors of each level are read in `contexts` contexts each, and
    `coloured` of them in one. `judged` tokens decide about dictionaries.
    """

    passages: int
    examples: int
    speeches: int
    words: int
    units: int
    l0: int
    passes: int
    turns: int
    asked: int
    fewest: int
    most: int
    outer: int
    top: int
    places: int
    important: int
    looked: int
    contexts: int
    coloured: int
    judged: int


QUICK: Final = Size(
    passages=60, examples=36, speeches=30, words=90, units=1024, l0=20, passes=1, turns=3, asked=4, fewest=60, most=60, outer=4, top=20,
    places=14, important=50, looked=16, contexts=4, coloured=4, judged=1500,
)  # fmt: skip
FULL: Final = Size(
    passages=1000, examples=150, speeches=200, words=110, units=2048, l0=30, passes=2, turns=10, asked=12, fewest=80, most=150, outer=5, top=50,
    places=40, important=200, looked=40, contexts=10, coloured=12, judged=8000,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Found:
    """All that was measured of one model; patterns by which dictionary, or which text, they were sought in, `left_out` those that the text has too few of."""

    model: str
    layers: int
    tokens: int
    windows: int
    size: Size
    dictionaries: Mapping[str, Dictionary]
    judged: Mapping[str, Mapping[Site, Evaluation]]
    senses: tuple[Sensed, ...]
    patterns: Mapping[str, tuple[Matched, ...]]
    left_out: tuple[str, ...]
    templates: tuple[Perturbed, ...]
    levels: Grouped
    looked: tuple[Looked, ...]
    coloured: tuple[Coloured, ...]
    contexts: Mapping[str, tuple[str, ...]]

    @property
    def depths(self) -> tuple[float, ...]:
        """Of the places, as shares of the layers."""
        return tuple((site.layer or 0) / self.layers for site in self.dictionaries[THEIRS].reads)


def dictionaries(
    model: Model, states: States, size: Size, seed: int = 0
) -> tuple[dict[str, Dictionary], dict[str, Dictionary]]:
    """The source work's and the autoencoder, and random directions with exact codes; and what else they are judged beside.

    Cost: a code of each state of the discover half for each pass, and passes of the autoencoder.
    """
    plans = {
        THEIRS: Plan("theirs", units=size.units, method=Learning(size.units, Aimed(float(size.l0))), passes=size.passes),
        AUTOENCODER: Plan("autoencoder", units=size.units, method=BatchTopK(size.l0), passes=size.turns),
    }
    made = {name: trained(plan, plan.name, size.units, states.harvested, model, seed=seed) for name, plan in plans.items()}
    sites = states.harvested.harvest.sites
    sample = sampled(made[THEIRS], of_half(states.harvested.rows, Half.DISCOVER)(1), sites, size.judged, seed)
    beside = baselines(sample, size.l0, size.units, _CHEAP)
    exact = exact_codes(beside.pop("random directions"), sample.states[:: max(1, len(sample.states) // 512)], float(size.l0))
    assert exact is not None, "as many random directions as factors are enough"
    return {**made, RANDOM: exact.dictionary}, {f"{name}, as many": each for name, each in beside.items()}


def _judged(
    states: States, own: Mapping[str, Dictionary], beside: Mapping[str, Dictionary], size: Size
) -> dict[str, dict[Site, Evaluation]]:
    """All of them on the same tokens of the confirm half, drawn evenly."""
    confirm = states.confirm.nonzero()[:, 0]
    some = states.rows.take(confirm[:: max(1, len(confirm) // size.judged)])
    candidates = [Candidate(name, each) for name, each in {**own, **beside}.items()]
    candidates.append(Candidate(REFITTED, own[THEIRS], "refitted"))
    return evaluated(candidates, [some], states.harvested.harvest.sites, states.text.batch.document)


def measure(model: Model, brown: Path, speeches: Path, size: Size, *, seed: int = 0) -> Found:
    """All experiments on one model.

    Errors: those of what is read, and of dictionaries for a text that is too short for them.
    Cost: two readings of the text and one of each occurrence of the words; codes of all states by four dictionaries.
    """
    corpus = passages(brown, size.words)
    chosen = [*with_patterns(corpus, size.passages, size.examples, seed), *speech_passages(speeches, size.speeches, size.words)]
    states = states_of(model, read_text(model, chosen))
    own, beside = dictionaries(model, states, size, seed)
    codes = {name: codes_of(each, states.rows) for name, each in own.items()}
    disordered = states_of(model, mixed(states.text, seed))
    sought = {name: (states, each) for name, each in codes.items()}
    sought[SHUFFLED] = disordered, codes_of(own[THEIRS], disordered.rows)
    found = {name: matched(PATTERNS, *each, top=size.top, fewest=size.places) for name, each in sought.items()}
    enough = [pattern.name for pattern in PATTERNS if all(pattern.name in each for each in found.values())]
    patterns = {name: tuple(each[key] for key in enough) for name, each in found.items()}
    levels = grouped(states, own[THEIRS], codes[THEIRS], model.shape.layers, size.important)
    reaches = looked(
        model, states, own[THEIRS], codes[THEIRS], levels.halves[0], units=size.looked, contexts=size.contexts, seed=seed
    )
    last = [each for each in reaches if each.level == "mid"]
    return Found(
        model=model.name,
        layers=model.shape.layers,
        tokens=states.text.tokens,
        windows=len(chosen),
        size=size,
        dictionaries=own,
        judged=_judged(states, own, beside, size),
        senses=_senses(model, passages(brown, _AROUND), own, size, seed),
        patterns=patterns,
        left_out=tuple(pattern.name for pattern in PATTERNS if pattern.name not in enough),
        templates=_templates(model, own[THEIRS], patterns[THEIRS]),
        levels=levels,
        looked=tuple(reaches),
        coloured=tuple(_coloured(model, states, own[THEIRS], codes[THEIRS], last, size)),
        contexts={each.pattern.name: tuple(map(states.context, each.contexts)) for each in patterns[THEIRS]},
    )


def _senses(
    model: Model, corpus: Sequence[LabelledText], own: Mapping[str, Dictionary], size: Size, seed: int
) -> tuple[Sensed, ...]:
    settings = Nested(outer=size.outer, inner=3, seed=seed)
    others = {name: own[name] for name in (AUTOENCODER, RANDOM)}
    words = ambiguous(corpus, size.asked, size.fewest)
    return tuple(sensed(model, corpus, word, own[THEIRS], others, most=size.most, settings=settings) for word in words)


def _templates(model: Model, dictionary: Dictionary, patterns: Sequence[Matched], count: int = 8) -> tuple[Perturbed, ...]:
    bases = factors_of(dictionary)
    return tuple(
        perturbed(model, bases[each.best], each.units[each.best], each.pattern.name, count)
        for each in patterns
        if each.pattern.name in FAMILIES
    )


def _coloured(
    model: Model, states: States, dictionary: Dictionary, codes: Sequence[Codes], last: Sequence[Looked], size: Size
) -> list[Coloured]:
    return [
        one
        for each in last
        for one in coloured(model, states, dictionary, codes, each, units=size.coloured, contexts=1, points=9)
    ]
