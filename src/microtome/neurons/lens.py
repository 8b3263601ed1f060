"""The neurons lens: what is folded over the stream for every feed-forward unit, and the tables made of it.

Statistics and findings themselves are computed in `statistics` and `findings`. Top tokens of value vectors are the business of
`readout` and the vocabulary lens; ablations, probes and explanations have modules of their own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import torch

from microtome.capture.lens import MAIN, PILOT, Results, Run, Stage
from microtome.core import Fold, Half
from microtome.examples import DecileContexts, PilotQuantiles, UnitSurvey, contexts_table, units_table
from microtome.neurons.basis import Neurons, neurons_of
from microtome.neurons.counts import TokenCounts, token_counts_table
from microtome.neurons.detectors import token_detectors
from microtome.neurons.findings import findings_table
from microtome.neurons.statistics import Surveyed, unit_stats_table, write_norms, written_stats_table
from microtome.neurons.words import spellings, texts_of

__all__ = ["NeuronsLens"]

_COUNTS: Final = "neurons.tokens"
_FEW: Final = {
    "held-out documents": "the text has fewer than four different documents, so discover and confirm are parts of the same ones and "
    "scores on the confirm half are too good; build with more documents"
}


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
        """A pilot for the deciles, then everything; neither where there is no text."""
        return () if run.corpus is None else (PILOT, MAIN)

    def folds(self, stage: Stage, run: Run, earlier: Results) -> Mapping[str, Fold]:
        """Per basis: quantiles in the pilot; then survey and decile contexts, and once the counts of tokens, if they are words."""
        bases = neurons_of(run.model.shape)
        if stage == PILOT:
            return {_named("pilot", basis): PilotQuantiles(basis, self.pilot, run.seed) for basis in bases}
        vocab = run.model.shape.vocab
        folds: dict[str, Fold] = {_COUNTS: TokenCounts(vocab)} if vocab else {}
        rate = min(1.0, self.sampled / max(1, run.corpus.tokens)) if run.corpus is not None else 0.0
        for basis in bases:
            edges = earlier.of(PILOT, _named("pilot", basis)).edges
            folds[_named("survey", basis)] = UnitSurvey(basis, self.k)
            folds[_named("deciles", basis)] = DecileContexts(basis, edges, self.per_decile, rate, run.seed)
        return folds

    def tables(self, run: Run, results: Results) -> Mapping[str, pa.Table]:
        """units, unit_stats, contexts, token_counts and findings; without a corpus units and the norms of what they write."""
        bases = neurons_of(run.model.shape)
        norms = [write_norms(run.model.weights, basis) for basis in bases]
        if run.corpus is None:
            return {"units": units_table(bases), "unit_stats": written_stats_table(bases, norms, run.name)}
        vocab = run.model.shape.vocab
        counts = results.of(MAIN, _COUNTS) if vocab else torch.zeros((len(Half), 0), dtype=torch.int64)
        texts = texts_of(run.model.tokenizer, vocab)
        spelling = spellings(texts, counts)
        surveyed: list[Surveyed] = []
        contexts = []
        for basis, norm in zip(bases, norms, strict=True):
            survey = results.of(MAIN, _named("survey", basis))
            deciles = results.of(MAIN, _named("deciles", basis))
            surveyed.append(Surveyed(basis, survey.moments, norm, token_detectors(survey.contexts, counts, spelling, run.seed)))
            contexts += [(basis, survey.contexts), (basis, deciles.contexts)]
        return {
            "units": units_table(bases),
            "unit_stats": unit_stats_table(surveyed, run.name),
            "contexts": contexts_table(contexts, run.name),
            "token_counts": token_counts_table(counts, run.name),
            "findings": findings_table(surveyed, texts, run.name),
        }

    def absent(self, run: Run) -> Mapping[str, str]:
        """What needs text, where there is none; and what needs words, where tokens are patches."""
        if run.corpus is not None:
            patches = "the tokens of an image are patches, which belong to no vocabulary"
            missing = {} if run.model.shape.vocab else {"token_counts": patches, "token detectors": patches}
            return missing | (_FEW if run.corpus.shared_halves else {})
        why = "needs text: run `microtome build MODEL TEXT -o ATLAS`"
        return {"contexts": why, "token_counts": why, "statistics of activations": why}


def _named(what: str, basis: Neurons) -> str:
    expert = "" if basis.expert is None else f".e{basis.expert}"
    return f"neurons.{what}.{basis.layer}{expert}"
