"""The factors lens: a dictionary is trained on states that the first pass keeps, and a second pass sees each of its factors at each of its sites.

What is said of factors has modules of its own (`importance`, ...), their rows `tables`; evaluation belongs in `evaluation`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.capture.execution import flops_per_token
from microtome.capture.lens import MAIN, Results, Rows, Run, Stage, few_documents
from microtome.core import Fold, Refusal, RowFold, Site
from microtome.examples import DecileContexts, TokenCounts, UnitSurvey
from microtome.examples.counts import Counts
from microtome.factors.basis import Factors, factors_of
from microtome.factors.deeper import tokens_read, why_not_deeper
from microtome.factors.dictionary import Dictionary
from microtome.factors.harvest import Harvest, Harvested, Live
from microtome.factors.importance import TopCodes
from microtome.factors.plan import SMALLEST, Plan, default_units, sites_of, trained, training_operations
from microtome.factors.stored import open_dictionary, write_dictionary
from microtome.factors.tables import Seen, factor_tables
from microtome.model import Model, sites_named
from microtome.model.selection import vector_width
from microtome.store import fingerprint

__all__ = ["FACTORS", "FactorsLens", "active_edges"]

FACTORS: Final = Stage(8, "factors")
_ROWS: Final = 4096
"""Tokens on which tenths of the active codes of a factor are found."""


@dataclass(frozen=True)
class FactorsLens:
    """One dictionary: trained by `plan`, or `given`, and what its factors are active on at every site.

    `k` contexts per half of the documents, `per_decile` contexts per tenth of each factor's active codes, importance from the `top` largest codes
    of each half.
    Source: Yun et al. 2021, arXiv:2103.15949, sections 2 and 3.
    """

    plan: Plan = Plan()
    given: Dictionary | None = None
    k: int = 10
    per_decile: int = 2
    top: int = 100

    @property
    def name(self) -> str:
        """Writer of the tables: `factors`, or with the name of a dictionary that was asked for by name."""
        name = self.plan.name if self.given is None else self.given.name
        return f"factors-{name}" if name else "factors"

    @cached_property
    def fingerprint(self) -> str:
        """Of the plan, or of the dictionary."""
        return fingerprint((self.plan, self.given, self.k, self.per_decile, self.top))

    def stages(self, run: Run) -> tuple[Stage, ...]:
        """A pass that keeps states, and one that codes them. None where there is no text, or too little of it.

        Errors: `Refusal` for sites that the model does not have, and for a dictionary of another model.
        """
        if run.corpus is None:
            return ()
        self.sites(run)
        return () if self._why_not(run) else (MAIN, FACTORS)

    def folds(self, stage: Stage, run: Run, earlier: Results) -> Mapping[str, Fold | RowFold]:
        """States in the first pass; then for every site statistics, contexts and the largest codes."""
        vocab = run.model.shape.vocab
        if stage == MAIN:
            counts: dict[str, Fold | RowFold] = {_fold(self.name, "tokens"): TokenCounts(vocab)} if vocab else {}
            states = {} if self.plan.keep == "nothing" else {_fold(self.name, "states"): self._harvest(run)}
            return {**states, **counts}
        dictionary = self.dictionary(run, earlier)
        harvested = self._harvested(run, earlier)
        found: dict[str, Fold | RowFold] = {}
        for basis in factors_of(dictionary):
            edges = active_edges(basis, harvested)
            rate = min(1.0, self.plan.tokens / max(1, _corpus_tokens(run)))
            found[_fold(self.name, "survey", basis.site)] = UnitSurvey(basis, self.k)
            found[_fold(self.name, "deciles", basis.site)] = DecileContexts(
                basis, edges, self.per_decile, rate, run.seed, of="active"
            )
            found[_fold(self.name, "top", basis.site)] = TopCodes(basis, self.top)
        return found

    def tables(self, run: Run, results: Results) -> Mapping[str, Rows]:
        """dictionaries, units, unit_stats, unit_labels, contexts, histograms, tokens, links and findings; beyond the quick depth what `deeper` adds."""
        if run.corpus is None or self._why_not(run):
            return {}
        dictionary = self.dictionary(run, results)
        vocab = run.model.shape.vocab
        none = torch.zeros((2, 0), dtype=torch.int64)
        counts = results.of(MAIN, _fold(self.name, "tokens")) if vocab else Counts(none, none)
        seen = [
            Seen(
                basis,
                results.of(FACTORS, _fold(self.name, "survey", basis.site)),
                results.of(FACTORS, _fold(self.name, "deciles", basis.site)),
                results.of(FACTORS, _fold(self.name, "top", basis.site)),
            )
            for basis in factors_of(dictionary)
        ]
        return factor_tables(dictionary, seen, counts, self._harvested(run, results), run, self.name)

    def absent(self, run: Run) -> Mapping[str, str]:
        """What needs text, or more of it."""
        if run.corpus is None:
            return {self.name: "needs text: run `microtome build MODEL TEXT -o ATLAS`"}
        why = self._why_not(run)
        if why:
            return {self.name: why}
        shallow = why_not_deeper(run)
        deep = {"patterns, reach, saliency, places and links of factors": shallow} if shallow else {}
        return deep | few_documents(run)

    def dictionary(self, run: Run, earlier: Results) -> Dictionary:
        """The dictionary of this run: the one that was given, or one trained on the states that were kept, once."""
        name = self.given.name if self.given is not None else self.plan.name or run.name

        def write(path: Path) -> None:
            made = self.given
            if made is None:
                model = run.model
                assert isinstance(model, Model), "states are of a model that was built"
                made = trained(self.plan, name, self._units(run), self._harvested(run, earlier), model, seed=run.seed)
            write_dictionary(made, path)

        corpus = run.corpus
        assert corpus is not None, "states are of a text"
        identity = (self.fingerprint, name, run.model.fingerprint, corpus.fingerprint, run.seed)
        return open_dictionary(earlier.make(f"dictionaries/{self.name}.{run.name}.safetensors", identity, write))

    def operations(self, run: Run) -> float:
        """FLOP of the training, and of what is read again beyond the quick depth, roughly; 0 where there is neither."""
        model, corpus = run.model, run.corpus
        if corpus is None or not isinstance(model, Model) or not self.stages(run):
            return 0.0
        again = 0.0 if why_not_deeper(run) else flops_per_token(model) * tokens_read(corpus.window)
        if self.given is not None:
            return again
        return again + training_operations(self.plan, self._states(run), run.model.shape.d_model, self._units(run))

    def kept_bytes(self, run: Run) -> int:
        """What the states take on disk while a dictionary is trained."""
        if self.plan.keep == "nothing" or not self.stages(run):
            return 0
        tokens = min(self.plan.tokens, _corpus_tokens(run))
        return tokens * len(self.sites(run)) * run.model.shape.d_model * (1 if self.plan.keep == "int8" else 2)

    def _harvest(self, run: Run) -> Harvest:
        rate = min(1.0, self.plan.tokens / max(1, _corpus_tokens(run)))
        return Harvest(self.sites(run), rate, run.seed, "bfloat16" if self.plan.keep == "nothing" else self.plan.keep)

    def _harvested(self, run: Run, earlier: Results) -> Harvested | Live:
        if self.plan.keep == "nothing":
            model, corpus = run.model, run.corpus
            assert isinstance(model, Model), "a text is read by a model that was built"
            assert corpus is not None, "there is a text"
            return Live(self._harvest(run), model, corpus)
        found = earlier.of(MAIN, _fold(self.name, "states"))
        assert isinstance(found, Harvested), "what the first pass keeps"
        return found

    def sites(self, run: Run) -> tuple[Site, ...]:
        """Where states are kept."""
        model = run.model
        assert isinstance(model, Model), "states are of a model that was built"
        if self.given is not None:
            self.given.require_for(model.fingerprint, model.name)
            sites_named(model, (*self.given.reads, *self.given.writes))
            for site in self.given.reads:
                if vector_width(model, site) != self.given.width:
                    why = f"its states have {vector_width(model, site)} numbers there, and it was learnt on states of {self.given.width}"
                    raise Refusal(
                        f"dictionary {self.given.name} at {site} of {model.name}",
                        why=why,
                        instead="use the model that it is of",
                    )
            return tuple(dict.fromkeys((*self.given.reads, *self.given.writes)))
        return sites_of(self.plan, model)

    def _states(self, run: Run) -> int:
        """About how many states there are to learn from."""
        return (
            min(self.plan.tokens, _corpus_tokens(run)) // 2 * (len(self.sites(run)) if self.plan.arrangement == "shared" else 1)
        )

    def _units(self, run: Run) -> int:
        return default_units(self._states(run)) if self.plan.units is None else self.plan.units

    def _why_not(self, run: Run) -> str:
        """Why a text is too short for a dictionary; empty where it is not, or where the size was told."""
        if self.given is not None or self._units(run):
            return ""
        states, (units, needed) = self._states(run), SMALLEST
        return f"the text has about {states:,} states to learn from, and a dictionary of {units} factors needs {needed:,}: give more text"


def _fold(lens: str, what: str, site: Site | None = None) -> str:
    return f"{lens}.{what}" + ("" if site is None else f".{site}")


def _corpus_tokens(run: Run) -> int:
    if run.corpus is None:
        raise Refusal("states of a model", why="there is no text", instead="name one")
    return run.corpus.tokens


def active_edges(basis: Factors, harvested: Harvested | Live, rows: int = _ROWS) -> Float[Tensor, "decile_edge unit"]:
    """The quantiles 0, 0.1, ..., 1 of each factor's codes above 0, on the first `rows` tokens that were kept; zeros for one that is never active."""
    taken, states = 0, []
    for each in harvested.rows(1):
        states.append(each.states[: rows - taken])
        taken += len(states[-1])
        if taken >= rows:
            break
    place = {site: harvested.harvest.sites.index(site) for site in basis.sites}
    joined = torch.cat(states)
    codes = basis.dictionary.encode({site: joined[:, index] for site, index in place.items()})
    return _quantiles_above_zero(codes)


def _quantiles_above_zero(codes: Float[Tensor, "row unit"]) -> Float[Tensor, "decile_edge unit"]:
    ordered = codes.sort(dim=0, descending=True).values
    count = (codes > 0).sum(0)
    tenth = torch.linspace(1, 0, 11, dtype=torch.float64)[:, None] * (count - 1).clamp(min=0)
    low, high = tenth.floor().long(), tenth.ceil().long()
    below, above = ordered.gather(0, high), ordered.gather(0, low)
    return (above + (below - above) * (tenth - low).float()).where(count > 0, 0.0)
