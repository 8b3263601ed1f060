"""An evaluation of dictionaries in an atlas: how good each is on a text, with all controls, and what two of them have in common.

`microtome factors evaluate` and `compare` make it; a build that trains a dictionary has a shorter one (`judgement`). What a number is, is said in
`evaluation_numbers`; here are the passes over the text, and rows and sentences.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Final

import pyarrow as pa
import torch

from microtome.capture.execution import flops_per_token
from microtome.capture.lens import Results, Rows, Run, Stage
from microtome.core import Fold, Half, Refusal, RowFold, Site
from microtome.corpus import Corpus
from microtome.examples.chosen import Chosen
from microtome.examples.findings import Finding, findings_table
from microtome.examples.rows import units_table
from microtome.explain import ExcerptRecord, ExcerptSurvey, Selection
from microtome.factors.anew import learnt_anew
from microtome.factors.basis import Factors, factors_of
from microtome.factors.dictionary import Dictionary
from microtome.factors.evaluation_numbers import (
    Beside,
    alive_in,
    controls_of,
    drawn_rows,
    geometry,
    in_place,
    mean_l0,
    of_factors,
    reconstructed,
    reconstruction,
)
from microtome.factors.evaluation_rows import compared, describe, findings_of, learnt_again, reasons
from microtome.factors.harvest import Harvest, Harvested
from microtome.factors.harvest import Rows as StateRows
from microtome.factors.held_out import JUDGE, HeldOut, held_out
from microtome.factors.judging import Judging
from microtome.factors.labelled import LabelledStates
from microtome.factors.lens import FactorsLens
from microtome.factors.numbers import Numbers
from microtome.factors.plan import learning_operations
from microtome.factors.polysemy import Sense
from microtome.factors.probing import absorbed
from microtome.factors.rows import dictionary_row
from microtome.factors.senses import sense_findings, sense_rows
from microtome.factors.stored import write_dictionary
from microtome.model import Model
from microtome.model.selection import vector_width
from microtome.numerics import hash_parts
from microtome.store import fingerprint, rows_of

__all__ = ["EXCERPTS", "STATES", "EvaluationLens", "Judging"]

STATES: Final = Stage(30, "judged states")
"""Of whole windows, so many that they have as many tokens as are kept."""
EXCERPTS: Final = Stage(31, "judged factors", sample=128)
WORDS: Final = Stage(32, "judged words")

_TOKENS: Final = 1 << 16
"""Tokens whose states are kept, about."""
_PICKED: Final = 64
"""Factors of a dictionary that are described."""
_SALT: Final = 0x7069636B


@dataclass(frozen=True)
class EvaluationLens:
    """Dictionaries judged by the confirm half of a text that none of them has learnt from.

    States of whole windows with 65,536 tokens, about, are kept; of them 32 windows of as many documents, and of 2,048 tokens at least, judge
    reconstructions, 8 windows what the model loses, 8,192 tokens of the other half make baselines, and 64 factors of each dictionary that are
    active in the other half are described, at its middle site, from 128 windows of the text.
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
        return None if self.judging.labels is None else LabelledStates.read(self.judging.labels, JUDGE, self.judging.words)

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
        found = [_over(replace(STATES, sample=_windows(run)), self._text(run))]
        if _model(run).tokenizer is not None:
            found.append(_over(EXCERPTS, self._text(run)))
        if self._labelled is not None:
            found.append(Stage(WORDS.order, WORDS.name, over=self._labelled.over(_model(run))))
        return tuple(found)

    def folds(self, stage: Stage, run: Run, earlier: Results) -> Mapping[str, Fold | RowFold]:
        """States in the first pass; then excerpts of a sample of factors and of random directions; then states of labelled words."""
        if stage.name == STATES.name:
            return {_fold("states"): Harvest(self.sites(run), 1.0, run.seed)}
        if stage == WORDS:
            assert self._labelled is not None, "a stage of labels has labels"
            sites = dict.fromkeys(site for each in self.judging.dictionaries for site in _probed_at(each))
            everywhere = dict.fromkeys(site for each in self.judging.dictionaries for site in each.reads)
            return self._labelled.folds(_model(run), tuple(sites), tuple(everywhere), run.seed)
        return _surveys(self.judging, run, self._harvested(run, earlier))

    def tables(self, run: Run, results: Results) -> Mapping[str, Rows]:
        """dictionaries, dictionary_stats, findings; of several dictionaries of the same sites links, and the units that these name."""
        if run.corpus is None:
            return {}
        judged, name = self.judging.dictionaries, _model(run).name
        numbers, links, shared = self._numbers(run, results)
        findings = [finding for each in judged for finding in findings_of(each, numbers[each.name], name)] + shared
        told = {each.name: self._senses(each, run, results) for each in judged}
        findings += [finding for each in judged for finding in sense_findings(each, told[each.name])]
        found: dict[str, Rows] = {
            "dictionaries": rows_of("dictionaries", [_row(each, dict(self.judging.there), run, results) for each in judged]),
            "dictionary_stats": pa.concat_tables([numbers[each.name].rows(run.name, each.name) for each in judged]),
            "findings": findings_table(findings, run.name, self.name),
        }
        if any(told.values()):
            found["senses"] = pa.concat_tables([sense_rows(each, told[each.name], run.name) for each in judged])
        if len(links):
            found[f"links.{fingerprint(judged)[:12]}"] = links
            there = dict(self.judging.there)
            found |= {f"units.{each.name}": units_table([_basis(each)]) for each in judged if each.name not in there}
        return found

    def _numbers(self, run: Run, results: Results) -> tuple[dict[str, Numbers], pa.Table, list[Finding]]:
        """All numbers of each dictionary; and of several what they have in common, as links and sentences."""
        model, seed, held, known = _model(run), run.seed, self._text(run), dict(self.judging.learnt)
        harvested, documents = self._harvested(run, results), held.corpus.documents_of_windows()
        sites, rows = harvested.harvest.sites, drawn_rows(harvested, Half.CONFIRM, documents, seed)
        if not rows:
            raise Refusal("an evaluation", why="the text has no document to judge by", instead="give more text")
        judged = _beside(self.judging, held, run, harvested, rows)
        found = reconstructed(judged, rows, sites, documents)
        lost = in_place(judged, harvested, held, model, seed)
        alive = {each.dictionary.name: alive_in(each.dictionary, found[each.dictionary.name]) for each in judged}
        matches, links, findings = compared(self.judging.dictionaries, alive)
        numbers = {}
        for each in judged:
            dictionary, mine = each.dictionary, found[each.dictionary.name]
            parts = [reconstruction(dictionary, mine), geometry(each, mine, seed)]
            parts.append(reasons(each, "known" if dictionary.name in known else "not known"))
            parts.append(absorbed(dictionary, harvested.rows, sites, of_factors(dictionary), model, seed))
            parts += [describe(dictionary, _records(results), model, seed), learnt_again(each, mine)]
            if self._labelled is not None:
                read = {site: self._labelled.states(results, WORDS, site) for site in _probed_at(dictionary)}
                parts.append(self._labelled.probe(dictionary, read, of_factors(dictionary), model, seed))
            numbers[dictionary.name] = Numbers.joined([*parts, lost[dictionary.name], matches[dictionary.name]])
        return numbers, links, findings

    def _senses(self, dictionary: Dictionary, run: Run, results: Results) -> list[tuple[str, Sense | str]]:
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
        tokens, window = min(_TOKENS, _corpus(run).tokens), _corpus(run).window
        for each in self.judging.dictionaries:
            states = min(16_384, tokens) // 2 * len(each.reads)
            units = min(each.units, max(64, states // 64))
            learning = (1 if self.judging.twin == "none" else 2) * learning_operations(states, 3, each.width, units)
            replaced = 7.0 * min(6, len(each.writes)) * 8 * window
            head = 2.0 * model.shape.d_model * model.shape.vocab
            codes = 60.0 * min(max(2048, 32 * window), tokens) * len(each.writes) * each.width * each.units
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
        return self._held.setdefault(corpus.fingerprint, held_out(corpus, [each for _, each in self.judging.learnt]))

    def _harvested(self, run: Run, results: Results) -> Harvested:
        found = results.of(replace(STATES, sample=_windows(run)), _fold("states"))
        assert isinstance(found, Harvested), "what the first pass keeps"
        return found


def _model(run: Run) -> Model:
    assert isinstance(run.model, Model), "states are of a model that was built"
    return run.model


def _corpus(run: Run) -> Corpus:
    assert run.corpus is not None, "there is a text"
    return run.corpus


def _windows(run: Run) -> int:
    """How many have as many tokens as are kept."""
    corpus = _corpus(run)
    return max(1, math.ceil(_TOKENS * corpus.windows / max(1, corpus.tokens)))


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


def _surveys(judging: Judging, run: Run, harvested: Harvested) -> dict[str, Fold | RowFold]:
    """Excerpts of factors that the discover half says are active, and of as many random directions."""
    found: dict[str, Fold | RowFold] = {}
    sites, seed, selection = harvested.harvest.sites, run.seed, Selection(shortest=4, seed=run.seed)
    rows = drawn_rows(harvested, Half.DISCOVER, _corpus(run).documents_of_windows(), seed)
    for each in judging.dictionaries if rows else ():
        basis = _basis(each)
        bases = {"excerpts": basis}
        beside = controls_of(each, harvested, mean_l0(each, rows, sites), seed, ("random directions",))
        if beside:
            bases["random"] = Factors(beside["random directions"], basis.site)
        for what, of in bases.items():
            if chosen := _picked(of, rows, sites, seed):
                found[_fold(what, each.name)] = ExcerptSurvey(Chosen(of, chosen, signed=False), selection)
    return found


def _beside(judging: Judging, held: HeldOut, run: Run, harvested: Harvested, rows: Sequence[StateRows]) -> list[Beside]:
    """Each dictionary with all that it is put beside."""
    sized = [(each, mean_l0(each, rows, harvested.harvest.sites)) for each in judging.dictionaries]
    windows = torch.cat([each.window for each in rows]).unique().tolist()
    learnt = learnt_anew(sized, held, _model(run), judging.twin, windows, run.seed)
    return [Beside(each, l0, controls_of(each, harvested, l0, run.seed), learnt[each.name]) for each, l0 in sized]


def _row(dictionary: Dictionary, there: Mapping[str, str], run: Run, results: Results) -> dict[str, object]:
    """The dictionary, which the atlas keeps, if it has not kept it before."""
    file = there.get(dictionary.name)
    if file is None:
        file = f"dictionaries/{JUDGE}.{dictionary.name}.{run.name}.safetensors"
        results.make(file, dictionary.fingerprint, partial(write_dictionary, dictionary))
    return dictionary_row(dictionary, run.name, file)
