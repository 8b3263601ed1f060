"""The neurons lens: what is folded over the stream for every feed-forward unit, and the tables made of it.

Statistics and findings themselves are computed in `statistics` and `findings`. Top tokens of value vectors are the business of
`readout` and the vocabulary lens; ablations, probes and explanations have modules of their own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import pyarrow as pa
import torch

from microtome.capture.lens import MAIN, PILOT, Results, Rows, Run, Stage, few_documents
from microtome.core import Fold, Half
from microtome.examples import (
    DecileContexts,
    PilotQuantiles,
    UnitSurvey,
    contexts_table,
    histograms_table,
    in_order_of_text,
    units_table,
)
from microtome.examples.counts import Counts, TokenCounts, token_counts_table
from microtome.examples.detectors import next_detectors, token_detectors, untested
from microtome.examples.findings import findings_table
from microtome.examples.labels import labels_table
from microtome.model import Model
from microtome.neurons.basis import Neurons, fold_name, neurons_of
from microtome.neurons.causal import Picked, ablation_rows, effect_findings, effect_rows, pick
from microtome.neurons.deeper import deeper, deeper_folds, why_no_agreement, why_not_alike, why_not_deeper, why_not_together
from microtome.neurons.effects import Effects, FirstOrderEffects, UnitAblations, why_no_effects
from microtome.neurons.explaining import (
    EXPLAINED,
    explain_layers,
    explained_folds,
    explained_layers,
    explanation_findings,
    explanation_rows,
)
from microtome.neurons.findings import judged_findings
from microtome.neurons.links import link_rows, linked_kinds, weight_links, why_no_links
from microtome.neurons.statistics import judge, survey_of, unit_stats_table, write_norms, written_stats_table
from microtome.readout.detected import token_labels
from microtome.readout.sample import Target
from microtome.readout.spellings import spellings
from microtome.readout.words import texts_of

__all__ = ["ABLATED", "EFFECTS", "NeuronsLens"]

EFFECTS = Stage(5, "effects", sample=64, unit=8)
ABLATED = Stage(6, "ablated", sample=32, unit=1)

_COUNTS: Final = "neurons.tokens"
_FIRST_ORDER: Final = "neurons.effects"
_ABLATIONS: Final = "neurons.ablations"
_LINKS: Final = "links.weights"
_SEED: Final = 0
"""Of what the weights alone decide, which is the same in every run."""
_BOTH_WAYS: Final = "every token attends to those after it, so firing before a token may be no more than having read it"


@dataclass(frozen=True)
class NeuronsLens:
    """Statistics, contexts and first findings of every feed-forward unit of every layer.

    `k` contexts per end and half of the documents; `per_decile` contexts per tenth of each unit's distribution, from about
    `sampled` tokens of the corpus; tenths as found on `pilot` tokens.
    Source: Geva et al. 2021, arXiv:2012.14913, section 3.
    Source: Voita et al. 2023, arXiv:2309.04827, section 4.
    """

    k: int = 10
    per_decile: int = 2
    sampled: int = 4096
    pilot: int = 512

    @property
    def name(self) -> str:
        """Writer of the tables."""
        return "neurons"

    def stages(self, run: Run) -> tuple[Stage, ...]:
        """A pilot for the deciles, then everything; beyond the quick depth what the loss owes to units. None where there is no text."""
        if run.corpus is None:
            return ()
        return (PILOT, MAIN) if _why_no_effects(run) else (PILOT, MAIN, *_causal(run), EXPLAINED)

    def folds(self, stage: Stage, run: Run, earlier: Results) -> Mapping[str, Fold]:
        """Per basis: quantiles in the pilot; then survey and decile contexts, and once the counts of tokens, if they are words."""
        bases = neurons_of(run.model.shape)
        if stage == PILOT:
            return {fold_name("pilot", basis): PilotQuantiles(basis, self.pilot, run.seed) for basis in bases}
        if stage.order == EFFECTS.order:
            return {_FIRST_ORDER: FirstOrderEffects(_built(run), _target(run))}
        if stage.order == ABLATED.order:
            picked = _picked(run, earlier)
            units = tuple(picked.layer.tolist()), tuple(picked.index.tolist())
            return {_ABLATIONS: UnitAblations(_built(run), *units, _target(run), Half.CONFIRM)}
        if stage.order == EXPLAINED.order:
            assert run.corpus is not None, "folds are of a text"
            windows = min(run.corpus.windows, EXPLAINED.sample or run.corpus.windows)
            signed = run.model.shape.gated
            return dict(explained_folds(bases, _picked(run, earlier), windows=windows, signed=signed, seed=run.seed))
        vocab = run.model.shape.vocab
        folds: dict[str, Fold] = {_COUNTS: TokenCounts(vocab)} if vocab else {}
        rate = min(1.0, self.sampled / max(1, run.corpus.tokens)) if run.corpus is not None else 0.0
        for basis in bases:
            edges = earlier.of(PILOT, fold_name("pilot", basis)).edges
            folds[fold_name("survey", basis)] = UnitSurvey(basis, self.k)
            folds[fold_name("deciles", basis)] = DecileContexts(basis, edges, self.per_decile, rate, run.seed)
        if not why_not_deeper(run):
            folds |= deeper_folds(bases, run, lambda basis: earlier.of(PILOT, fold_name("pilot", basis)).edges)
        return folds

    def tables(self, run: Run, results: Results) -> Mapping[str, Rows]:
        """units, unit_stats, unit_labels, explanations, contexts, histograms, token_counts, links, coactivations and findings; without a corpus units, the norms of what they write, and links."""
        bases = neurons_of(run.model.shape)
        norms = [write_norms(run.model.weights, basis) for basis in bases]
        if run.corpus is None:
            return {"units": units_table(bases), "unit_stats": written_stats_table(bases, norms, run.name), **_links(run)}
        vocab = run.model.shape.vocab
        none = torch.zeros((len(Half), 0), dtype=torch.int64)
        counts = results.of(MAIN, _COUNTS) if vocab else Counts(none, none)
        texts = texts_of(run.model.tokenizer, vocab)
        spelling = spellings(texts, counts.here)
        found = []
        for basis, norm in zip(bases, norms, strict=True):
            survey = results.of(MAIN, fold_name("survey", basis))
            tokens = token_detectors(survey.contexts, counts.here, spelling, run.seed)
            following = untested(basis.units)
            if run.model.shape.causal:
                following = next_detectors(survey.contexts, counts.following, spelling, run.seed)
            found.append(survey_of(basis, survey, norm, tokens, following))
        judged = judge(found)
        stats, more = [unit_stats_table(judged, run.name)], []
        others: dict[str, Rows] = {}
        if not _why_no_effects(run):
            effects, picked, ablations = _effects(run, results), _picked(run, results), results.of(_causal(run)[1], _ABLATIONS)
            stats += [effect_rows(bases, effects, run.name), ablation_rows(bases, picked, ablations, run.name)]
            explained = explain_layers(explained_layers(results, picked), texts, seed=run.seed)
            more = [*effect_findings(bases, effects, picked, ablations), *explanation_findings(explained)]
            others["explanations"] = explanation_rows(explained, run.name)
        labels = list(token_labels([each.detected for each in judged], texts))
        if not why_not_deeper(run):
            asked = deeper(bases, run, results, spelling, texts)
            stats, labels, more = [*stats, *asked.stats], [*labels, *asked.labels], [*more, *asked.findings]
            others |= asked.tables
        return {
            "units": units_table(bases),
            "unit_stats": pa.concat_tables(stats, promote_options="permissive"),
            "contexts": (_contexts(basis, run, results) for basis in in_order_of_text(bases)),
            "histograms": (_histograms(basis, run, results) for basis in in_order_of_text(bases)),
            "token_counts": token_counts_table(counts.here, run.name),
            "unit_labels": labels_table(labels, run.name),
            **_links(run),
            **others,
            "findings": findings_table([*judged_findings(judged, texts), *more], run.name, "neurons"),
        }

    def absent(self, run: Run) -> Mapping[str, str]:
        """What needs text, where there is none; what needs words, where tokens are patches; and what the depth leaves out."""
        unlinked = why_no_links(run.model.weights, run.depth)
        links = {"links of units": unlinked} if unlinked else {}
        if run.corpus is not None:
            patches = "the tokens of an image are patches, which belong to no vocabulary"
            missing = {} if run.model.shape.vocab else {"token_counts": patches, "token detectors": patches}
            seen = {} if run.model.shape.causal or missing else {"next-token detectors": _BOTH_WAYS}
            why = _why_no_effects(run)
            causal = dict.fromkeys(("effects of units on the loss", "explanations of units"), why) if why else {}
            deep = {
                "roles, families, runs of words and places of units": why_not_deeper(run),
                "co-activation of units": why_not_together(run),
                "likeness of contexts": why_not_alike(run),
                "value agreement": why_no_agreement(run),
            }
            causal |= {what: reason for what, reason in deep.items() if reason}
            return missing | seen | causal | links | few_documents(run)
        why = "needs text: run `microtome build MODEL TEXT -o ATLAS`"
        return {"contexts": why, "token_counts": why, "statistics of activations": why} | links


def _links(run: Run) -> dict[str, Rows]:
    """Links of units by their weights, layer by layer, beyond the quick depth."""
    if why_no_links(run.model.weights, run.depth):
        return {}
    weights = run.model.weights
    layers = [basis.layer for basis in in_order_of_text(neurons_of(run.model.shape))]
    kinds = sorted(linked_kinds(weights))
    return {_LINKS: (link_rows(each) for kind in kinds for each in weight_links(weights, kind, layers, seed=_SEED))}


def _why_no_effects(run: Run) -> str:
    """Why the loss's debts to units are left out; empty where they are not."""
    if run.depth == "quick":
        return "not part of depth quick: it takes passes of its own: microtome neurons MODEL TEXT -o ATLAS"
    return why_no_effects(_built(run)) or ""


def _causal(run: Run) -> tuple[Stage, Stage]:
    """The two stages, in which a masked language model has its masks."""
    masked = _target(run) == "masked"
    return replace(EFFECTS, masked=masked), replace(ABLATED, masked=masked)


def _built(run: Run) -> Model:
    assert isinstance(run.model, Model), "a text is read by a model that was built"
    return run.model


def _target(run: Run) -> Target:
    head = _built(run).head
    return "masked" if head is not None and head.kind == "masked" else "next"


def _effects(run: Run, results: Results) -> Effects:
    return results.of(_causal(run)[0], _FIRST_ORDER)


def _picked(run: Run, results: Results) -> Picked:
    """The units that are ablated, by what all text says that units write."""
    written = []
    for basis in neurons_of(run.model.shape):
        moments = results.of(MAIN, fold_name("survey", basis)).moments
        size = (moments.mean.square() + moments.standard_deviation.square()).sqrt()
        written.append(size.double() * write_norms(run.model.weights, basis))
    return pick(_effects(run, results), torch.stack(written), seed=run.seed)


def _contexts(basis: Neurons, run: Run, results: Results) -> pa.Table:
    """Extremes and deciles of one basis."""
    found = [results.of(MAIN, fold_name(what, basis)).contexts for what in ("survey", "deciles")]
    return contexts_table(basis, found, run.name)


def _histograms(basis: Neurons, run: Run, results: Results) -> pa.Table:
    return histograms_table(basis, results.of(MAIN, fold_name("deciles", basis)), run.name)
