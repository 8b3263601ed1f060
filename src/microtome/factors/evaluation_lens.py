"""An evaluation of dictionaries in an atlas: how good each is on a text, with all controls, and what two of them have in common.

`microtome factors evaluate` and `compare` make it; a build that trains a dictionary has a shorter one (`judgement`). What a number is, is said in
`evaluation_numbers`; here are the passes over the text, and rows and sentences.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Final

import pyarrow as pa
import torch

from microtome.capture.execution import flops_per_token
from microtome.capture.lens import Results, Rows, Run, Stage
from microtome.core import Fold, Refusal, RowFold, Site
from microtome.corpus import Corpus
from microtome.examples.chosen import Chosen
from microtome.examples.findings import findings_table
from microtome.examples.rows import units_table
from microtome.explain import ExcerptRecord, ExcerptSurvey, Selection
from microtome.factors.basis import Factors, factors_of
from microtome.factors.dictionary import Dictionary
from microtome.factors.evaluation_numbers import (
    Numbers,
    Twin,
    controls_of,
    in_place,
    judged_rows,
    learnt_anew,
    mean_l0,
    of_factors,
    reconstructed,
)
from microtome.factors.evaluation_rows import absorbed, compared, describe, findings_of, learnt_again, reasons
from microtome.factors.harvest import Harvest, Harvested
from microtome.factors.harvest import Rows as StateRows
from microtome.factors.held_out import JUDGE, HeldOut, LearntFrom, held_out
from microtome.factors.labelled import LabelledStates
from microtome.factors.lens import FactorsLens
from microtome.factors.plan import learning_operations
from microtome.factors.polysemy import Sense
from microtome.factors.rows import dictionary_row
from microtome.factors.senses import sense_findings, sense_rows
from microtome.factors.stored import write_dictionary
from microtome.model import Model
from microtome.model.selection import vector_width
from microtome.numerics import hash_parts
from microtome.store import fingerprint, rows_of

__all__ = ["EXCERPTS", "STATES", "EvaluationLens", "Judging"]

STATES: Final = Stage(30, "judged states")
EXCERPTS: Final = Stage(31, "judged factors", sample=128)
WORDS: Final = Stage(32, "judged words")

_TOKENS: Final = 1 << 16
"""Tokens whose states are kept, at most."""
_PICKED: Final = 64
"""Factors of a dictionary that are described."""
_SALT: Final = 0x7069636B
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class Judging:
    """What is to be judged: dictionaries of one model, by a text.

    Beside them stand dictionaries that are learnt anew, unless there is no `twin`; with `labels`, a file or folder of labelled words, there are probes
    of few factors, too.
    `learnt` says what texts they were learnt from, of those of which it is known (`held_out.learnt_from`). `there` names dictionaries that the atlas
    has already, with their files: these are not written again.
    Errors: `Refusal` for no dictionary, for two of the same name, and for a name that could not be part of an address.
    """

    dictionaries: tuple[Dictionary, ...]
    twin: Twin = "drawn"
    labels: Path | None = None
    learnt: tuple[LearntFrom, ...] = ()
    there: tuple[tuple[str, str], ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        names = [each.name for each in self.dictionaries]
        if not names:
            raise Refusal("an evaluation", why="there is no dictionary to judge", instead="name one: --dictionary PATH")
        for name in names:
            if not _NAME.fullmatch(name):
                why = "names of dictionaries become parts of addresses and of files"
                raise Refusal(f"dictionary {name!r}", why=why, instead="call it otherwise: --dictionary NAME=PATH")
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            why = f"{names.count(twice[0])} of them have this name"
            raise Refusal(f"dictionary {twice[0]}", why=why, instead="call one of them otherwise: --dictionary NAME=PATH")


@dataclass(frozen=True)
class EvaluationLens:
    """Dictionaries judged by the confirm half of a text that none of them has learnt from.

    At most 65,536 tokens are kept; of them 2,048 of whole windows judge reconstructions, 8 windows what the model loses, 8,192 of the other half
    make baselines, and 64 factors of each dictionary are described, at its middle site, from 128 windows of the text.
    Source: Karvonen et al. 2025, arXiv:2503.09532, on measures of dictionaries; Heap et al. 2025, arXiv:2501.17727, on the random transformer.
    """

    judging: Judging

    @property
    def name(self) -> str:
        """Writer of the tables."""
        return JUDGE

    @cached_property
    def fingerprint(self) -> str:
        """Of what is judged, and by what."""
        labels = None if self._labelled is None else self._labelled.fingerprint
        return fingerprint((self.judging.dictionaries, self.judging.twin, labels, self.judging.learnt))

    @cached_property
    def _labelled(self) -> LabelledStates | None:
        return None if self.judging.labels is None else LabelledStates.read(self.judging.labels, JUDGE)

    @cached_property
    def _held(self) -> dict[str, HeldOut]:
        """By the text's fingerprint."""
        return {}

    def stages(self, run: Run) -> tuple[Stage, ...]:
        """A pass that keeps states, one that finds excerpts of some factors, and with labels one over the labelled text. None without a text.

        Errors: `Refusal` for a dictionary of another model, of sites that it does not have, or of sites of several widths, and where all of the
        text's confirm half was learnt from.
        """
        if run.corpus is None:
            return ()
        self.sites(run)
        found = [_over(STATES, self._text(run))]
        if _model(run).tokenizer is not None:
            found.append(_over(EXCERPTS, self._text(run)))
        if self._labelled is not None:
            found.append(Stage(WORDS.order, WORDS.name, over=self._labelled.over(_model(run))))
        return tuple(found)

    def folds(self, stage: Stage, run: Run, earlier: Results) -> Mapping[str, Fold | RowFold]:
        """States in the first pass; then excerpts of a sample of factors and of random directions; then states of labelled words."""
        if stage == STATES:
            rate = min(1.0, _TOKENS / max(1, _corpus(run).tokens))
            return {_fold("states"): Harvest(self.sites(run), rate, run.seed)}
        if stage == WORDS:
            assert self._labelled is not None, "a stage of labels has labels"
            sites = dict.fromkeys(site for each in self.judging.dictionaries for site in _probed_at(each))
            everywhere = dict.fromkeys(site for each in self.judging.dictionaries for site in each.reads)
            return self._labelled.folds(_model(run), tuple(sites), tuple(everywhere), run.seed)
        found: dict[str, Fold | RowFold] = {}
        harvested = self._harvested(earlier)
        rows = judged_rows(harvested, run.seed)
        for each in self.judging.dictionaries:
            basis = _basis(each)
            chosen = _picked(basis, rows, harvested.harvest.sites, run.seed)
            selection = Selection(shortest=4, seed=run.seed)
            if chosen:
                found[_fold("excerpts", each.name)] = ExcerptSurvey(Chosen(basis, chosen, signed=False), selection)
            l0 = mean_l0(each, rows, harvested.harvest.sites)
            beside = controls_of(each, harvested, l0, run.seed, ("random directions",))
            for random in beside.values():
                other = Factors(random, basis.site)
                drawn = _picked(other, rows, harvested.harvest.sites, run.seed)
                if drawn:
                    found[_fold("random", each.name)] = ExcerptSurvey(Chosen(other, drawn, signed=False), selection)
        return found

    def tables(self, run: Run, results: Results) -> Mapping[str, Rows]:
        """dictionaries, dictionary_stats, findings; of several dictionaries of the same sites links, and the units that these name."""
        if run.corpus is None:
            return {}
        judged, model, seed = self.judging.dictionaries, _model(run), run.seed
        harvested, held = self._harvested(results), self._text(run)
        sites, rows = harvested.harvest.sites, judged_rows(harvested, seed)
        numbers = {each.name: Numbers() for each in judged}
        beside, learnt, alive = {}, {}, {}
        for each in judged:
            l0 = mean_l0(each, rows, sites)
            beside[each.name] = controls_of(each, harvested, l0, seed)
            learnt[each.name] = learnt_anew(each, held, model, l0, self.judging.twin, seed)
            others = [other for other in judged if other is not each]
            alive[each.name] = reconstructed(
                numbers[each.name], each, others, beside[each.name], learnt[each.name], rows, sites, held.corpus
            )
            reasons(numbers[each.name], each, learnt[each.name])
            absorbed(numbers[each.name], each, list(harvested.rows(1))[:1], sites, model)
            describe(numbers[each.name], each, _records(results), model, seed)
            learnt_again(numbers[each.name], each, learnt[each.name], alive[each.name])
            if self._labelled is not None:
                read = {site: self._labelled.states(results, WORDS, site) for site in _probed_at(each)}
                self._labelled.probe(numbers[each.name], each, read, of_factors(each), model, seed)
        in_place(numbers, judged, beside, harvested, held, model, seed)
        links, findings = compared(numbers, judged, alive)
        findings = [finding for each in judged for finding in findings_of(each, numbers[each.name], model.name)] + findings
        told = {each.name: self._senses(each, run, results) for each in judged}
        findings += [finding for each in judged for finding in sense_findings(each, told[each.name])]
        found: dict[str, Rows] = {
            "dictionaries": rows_of("dictionaries", [self._row(each, run, results) for each in judged]),
            "dictionary_stats": pa.concat_tables([numbers[each.name].rows(run.name, each.name) for each in judged]),
            "findings": findings_table(findings, run.name, self.name),
        }
        if any(told.values()):
            found["senses"] = pa.concat_tables([sense_rows(each, told[each.name], run.name) for each in judged])
        if len(links):
            found[f"links.{'-'.join(each.name for each in judged)}"] = links
            there = dict(self.judging.there)
            found |= {f"units.{each.name}": units_table([_basis(each)]) for each in judged if each.name not in there}
        return found

    def _senses(self, dictionary: Dictionary, run: Run, results: Results) -> list[tuple[str, Sense]]:
        if self._labelled is None:
            return []
        return self._labelled.senses(dictionary, results, WORDS, _model(run), run.seed)

    def absent(self, run: Run) -> Mapping[str, str]:
        """What needs text."""
        return {self.name: "needs text: name one to judge by"} if run.corpus is None else {}

    def operations(self, run: Run) -> float:
        """FLOP beside the passes, roughly: learning anew, replacing states, and codes that are searched for."""
        if not self.stages(run):
            return 0.0
        model, total = _model(run), 0.0
        tokens = min(_TOKENS, _corpus(run).tokens)
        for each in self.judging.dictionaries:
            states = min(16_384, tokens) // 2 * len(each.reads)
            units = min(each.units, max(64, states // 64))
            learning = 0.0 if self.judging.twin == "none" else 2 * learning_operations(states, 3, each.width, units)
            replaced = 7.0 * min(6, len(each.writes)) * 8 * _corpus(run).window
            head = 2.0 * model.shape.d_model * model.shape.vocab
            codes = 60.0 * min(2048, tokens) * len(each.writes) * each.width * each.units
            total += learning + replaced * (flops_per_token(model) + head) + codes
        return total

    def kept_bytes(self, run: Run) -> int:
        """What the states take on disk while they are judged by."""
        if not self.stages(run):
            return 0
        sites = self.sites(run)
        return min(_TOKENS, _corpus(run).tokens) * len(sites) * vector_width(_model(run), sites[0]) * 2

    def sites(self, run: Run) -> tuple[Site, ...]:
        """Where states are kept: all sites of all dictionaries."""
        found = dict.fromkeys(site for each in self.judging.dictionaries for site in FactorsLens(given=each).sites(run))
        widths = {vector_width(_model(run), site) for site in found}
        if len(widths) > 1:
            why = f"their states have {' and '.join(map(str, sorted(widths)))} numbers"
            raise Refusal("these dictionaries together", why=why, instead="judge them in runs of their own")
        return tuple(found)

    def _text(self, run: Run) -> HeldOut:
        corpus = _corpus(run)
        return self._held.setdefault(corpus.fingerprint, held_out(corpus, self.judging.learnt))

    def _harvested(self, results: Results) -> Harvested:
        found = results.of(STATES, _fold("states"))
        assert isinstance(found, Harvested), "what the first pass keeps"
        return found

    def _row(self, dictionary: Dictionary, run: Run, results: Results) -> dict[str, object]:
        """The dictionary, which the atlas keeps, if it has not kept it before."""
        file = dict(self.judging.there).get(dictionary.name)
        if file is None:
            file = f"dictionaries/{self.name}.{dictionary.name}.{run.name}.safetensors"
            results.make(file, dictionary.fingerprint, partial(write_dictionary, dictionary))
        return dictionary_row(dictionary, run.name, file)


def _model(run: Run) -> Model:
    assert isinstance(run.model, Model), "states are of a model that was built"
    return run.model


def _corpus(run: Run) -> Corpus:
    assert run.corpus is not None, "there is a text"
    return run.corpus


def _over(stage: Stage, text: HeldOut) -> Stage:
    return replace(stage, over=text)


def _fold(what: str, of: str = "") -> str:
    return f"{JUDGE}.{what}" + (f".{of}" if of else "")


def _basis(dictionary: Dictionary) -> Factors:
    """The dictionary at the site at which single factors are looked at."""
    (found,) = (each for each in factors_of(dictionary) if each.site == of_factors(dictionary))
    return found


def _probed_at(dictionary: Dictionary) -> tuple[Site, ...]:
    """What is read to have codes there."""
    return _basis(dictionary).sites


def _picked(basis: Factors, rows: Sequence[StateRows], sites: Sequence[Site], seed: int) -> tuple[int, ...]:
    """Factors drawn among those that are active on these rows."""
    active = torch.zeros(basis.units, dtype=torch.bool)
    for each in rows:
        states = {site: each.states[None, :, list(sites).index(site)] for site in basis.sites}
        active |= (basis.encode(states) > 0).any(1)[0].cpu()
    alive = active.nonzero()[:, 0]
    order = hash_parts(seed, _SALT, alive).argsort(stable=True)
    return tuple(sorted(alive[order[:_PICKED]].tolist()))


def _records(results: Results) -> dict[str, ExcerptRecord]:
    """What the folds of excerpts found, by their names less the lens's."""
    prefix = f"{JUDGE}."
    return {
        name.removeprefix(prefix): results.of(EXCERPTS, name) for name in results.names(EXCERPTS) if name.startswith(prefix)
    }
