"""The vocabulary lens: what the weights and the layers say in the model's own vocabulary, as rows of an atlas.

How directions are read belongs in `readout`, how heads are scored in `heads`, sentences in `findings`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
from jaxtyping import Float
from torch import Tensor

from microtome.capture.lens import MAIN, MASKED, Results, Rows, Run, Stage
from microtome.core import Fold, Site, UnitAddress
from microtome.corpus.corpus import MASKED_SHARE
from microtome.model import Checkpoint, Model, Shape, final_norm, unembed
from microtome.model.allocator import give_back_freed_memory
from microtome.numerics import hash_parts
from microtome.readout import (
    LayerLoss,
    TargetCounts,
    TokenSample,
    layer_loss,
    unigram_entropy,
)
from microtome.store.schemas import TABLES
from microtome.vocabulary.composition import compositions, k_composition_scores
from microtome.vocabulary.deeper import deeper_tables
from microtome.vocabulary.deeper_heads import Described
from microtome.vocabulary.deeper_states import state_descriptions, state_folds
from microtome.vocabulary.findings import (
    SHUFFLED,
    Row,
    head_findings,
    in_turn,
    loss_findings,
    readable_findings,
    value_findings,
)
from microtome.vocabulary.heads import (
    PREVIOUS,
    HeadScores,
    Rotations,
    embedded,
    head_weights,
    mean_embedding,
    previous_token_scores,
    score_heads,
)
from microtome.vocabulary.subject import Subject, subject_of
from microtome.vocabulary.sweep import Lengths, sweep
from microtome.vocabulary.tables import corrected, head_rows
from microtome.vocabulary.values import read_values, readable_layers, strength_q, strength_rows, value_rows

__all__ = ["VocabularyLens", "all_head_scores", "loss_rows"]

_DIRECTIONS = 0
"""Seed of the random directions: `tokens` holds for any run of the model, so its control may not depend on the run's seed."""
_COUNTS = "vocabulary.targets"


@dataclass(frozen=True)
class VocabularyLens:
    """Tokens at both ends of every value vector, head scores from the weights, and the loss of every layer.

    `k` tokens an end; `directions` random mixtures of value vectors in all as their control; `draws` rotations of each head; `sampled`
    tokens of the text for the losses. What is read from weights is read in those of the checkpoint, in float32, whatever the dtype and
    the device of the run: `tokens` is one table per model.
    Source: Dar et al. 2022, arXiv:2209.02535, section 3.
    """

    k: int = 10
    directions: int = 8192
    draws: int = 100
    sampled: int = 2048

    @property
    def name(self) -> str:
        """Writer of the tables."""
        return "vocabulary"

    def stages(self, run: Run) -> tuple[Stage, ...]:
        """One pass for the losses of a language model with a text; weights need none."""
        stage = _loss_stage(run)
        return () if stage is None else (stage,)

    def folds(self, stage: Stage, run: Run, earlier: Results) -> Mapping[str, Fold]:
        """A sample of tokens at every resid_post, and the counts of what they are to predict."""
        assert run.corpus is not None, "a stage has a corpus"
        shape = run.model.shape
        target = "masked" if stage.masked else "next"
        candidates = run.corpus.tokens * (MASKED_SHARE if stage.masked else 1)
        rate = min(1.0, self.sampled / max(candidates, 1))
        folds: dict[str, Fold] = {_COUNTS: TargetCounts(shape.vocab, target)}
        for site in _read_sites(shape):
            folds[_sample(site)] = TokenSample(site, shape.d_model, target, rate, run.seed)
        if run.depth != "quick" and isinstance(run.model, Model):
            folds |= state_folds(run.model, target, rate, run.seed)
        return folds

    def tables(self, run: Run, results: Results) -> Mapping[str, Rows]:
        """tokens, units and unit_stats (heads), layer_loss and findings, as far as the model has what they need."""
        tables: dict[str, Rows] = {}
        losses, found = self._losses(run, results)
        if losses is not None:
            tables["layer_loss"] = losses
        if run.model.weights.has("W_E"):
            read, sentences = self._read(run, results)
            tables, found = {**tables, **_joined(tables, read)}, in_turn(found, *sentences)
        rows = [{**row, "run": run.name, "rank": rank, "lens": self.name} for rank, row in enumerate(found)]
        tables["findings"] = pa.Table.from_pylist(rows, TABLES["findings"].schema)
        return tables

    def _read(self, run: Run, results: Results) -> tuple[dict[str, Rows], list[list[Row]]]:
        """What the weights alone say in terms of token vectors: tables, and findings by kind."""
        subject = subject_of(run.model)
        weights, shape, reader = subject.weights, subject.shape, subject.write
        if run.depth == "quick":
            swept, values = None, list(read_values(weights, shape, reader, self.k, self.directions, seed=_DIRECTIONS))
        else:
            swept = sweep(subject, Lengths(self.k), self.directions, seed=_DIRECTIONS)
            values = swept.values
        q = strength_q(values)
        scores = all_head_scores(subject, self.draws, run.seed)
        head_q = {stat: corrected(layers) for stat, layers in scores.items()}
        tables: dict[str, Rows] = {
            "tokens": value_rows(values),
            "units": _head_units(shape),
            "unit_stats": pa.concat_tables([strength_rows(values, q, run.name), head_rows(scores, head_q, run.name)]),
        }
        layers = readable_layers(values, seed=_DIRECTIONS)
        found = [readable_findings(layers, q), value_findings(values, q, subject.texts), head_findings(scores, head_q)]
        if swept is None:
            return tables, found
        states = self._states(run, results, subject)
        deeper, more = deeper_tables(subject, run.model, tables, swept, states, run.name)
        for each in states:
            deeper |= {name: rows for name, rows in each.tables.items() if name not in deeper}
        return deeper, found + more

    def _states(self, run: Run, results: Results, subject: Subject) -> list[Described]:
        """What hidden states say of the weights; nothing without a text, or where no token of it is to predict one."""
        stage, model = _loss_stage(run), run.model
        if stage is None or not isinstance(model, Model):
            return []
        samples = [results.of(stage, _sample(site)) for site in _read_sites(model.shape)]
        if not len(samples[0].target):
            return []
        return [state_descriptions(subject, model, samples, lambda name: results.of(stage, name), _objective(stage), run.name)]

    def absent(self, run: Run) -> Mapping[str, str]:
        """Why there are no losses, no token texts, no readings, or no output embedding."""
        weights, family, missing = run.model.weights, run.model.family, {}
        if run.corpus is None:
            missing["layer_loss"] = "losses need a text; build with a text"
        elif (why := _why_no_loss(run.model)) is not None:
            missing["layer_loss"] = why
        if not run.model.shape.vocab:
            missing["vocabulary"] = "images have no vocabulary"
        elif run.model.tokenizer is None:
            missing["vocabulary"] = "there is no tokenizer beside the checkpoint, so tokens are numbers"
        if not weights.has("W_E"):
            missing["tokens"] = missing["head scores"] = family.absent.get("W_E", "the model embeds no tokens")
        elif not weights.has("W_U"):
            missing["W_U"] = "the checkpoint has no head: value vectors are read in the input embedding"
        if weights.has("W_E") and run.depth == "quick":
            missing["pairs"] = (
                "pairs of tokens, and all parameters: not part of depth quick: microtome vocabulary MODEL -o ATLAS"
            )
        return missing

    def _losses(self, run: Run, results: Results) -> tuple[pa.Table | None, list[Row]]:
        stage, model = _loss_stage(run), run.model
        if stage is None or not isinstance(model, Model):
            return None, []
        samples = [results.of(stage, _sample(site)) for site in _read_sites(model.shape)]
        if not len(samples[0].target):
            return None, []

        def logits(states: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
            return unembed(model, final_norm(model, states.to(model.device, model.dtype)[None]))[0]

        losses = [layer_loss(sample, logits) for sample in samples]
        unigram = unigram_entropy(results.of(stage, _COUNTS))
        objective = _objective(stage)
        return loss_rows(losses, unigram, objective, run.name), [*loss_findings(losses, unigram, objective)]


def all_head_scores(subject: Subject, draws: int, seed: int) -> dict[str, list[HeadScores]]:
    """Every score of every head, by statistic and layer.

    Cost: two eigenvalue problems of size d_head per head and draw, on as many threads as torch uses; memory for the heads of a layer.
    """
    weights, shape = subject.weights, subject.shape
    tokens, mean = embedded(weights, subject.write), mean_embedding(weights) if weights.has("W_pos") else None
    found: list[HeadScores] = []
    for layer in range(shape.layers):
        give_back_freed_memory()
        turns = Rotations(draws, shape.heads, shape.d_head, seed=int(hash_parts(seed, layer)))
        found += score_heads(head_weights(weights, layer), tokens, turns)
        if weights.has("W_pos"):
            found.append(previous_token_scores(weights, layer, shape, turns, mean=mean))
    previous = [scores for scores in found if scores.stat == "previous_token_score"]
    if shape.causal and any(bool((scores.values >= PREVIOUS).any()) for scores in previous):
        found += k_composition_scores(list(compositions(subject, ["k"])), previous)
    return {stat: [each for each in found if each.stat == stat] for stat in dict.fromkeys(each.stat for each in found)}


def loss_rows(losses: Sequence[LayerLoss], unigram: float, objective: str, run: str) -> pa.Table:
    """Rows of `layer_loss`: each site against shuffled targets, and a row without a site for token frequencies alone."""
    rows: list[dict[str, object]] = [
        {
            "run": run,
            "objective": objective,
            "site": str(each.site),
            "layer": each.site.layer,
            "loss": each.loss,
            "control": each.control,
            "control_kind": SHUFFLED,
            "lo": each.low,
            "hi": each.high,
            "tokens": each.tokens,
        }
        for each in losses
    ]
    rows.append({"run": run, "objective": f"{objective}_unigram", "loss": unigram, "tokens": losses[0].tokens})
    return pa.Table.from_pylist(rows, TABLES["layer_loss"].schema)


def _head_units(shape: Shape) -> pa.Table:
    rows = [
        {"unit": str(UnitAddress("heads", head, layer=layer)), "basis": "heads", "layer": layer, "index": head}
        for layer in range(shape.layers)
        for head in range(shape.heads)
    ]
    return pa.Table.from_pylist(rows, TABLES["units"].schema)


def _joined(tables: Mapping[str, Rows], more: Mapping[str, Rows]) -> dict[str, Rows]:
    """`more`, with the rows of a table that `tables` has as well put behind those."""
    joined = dict(more)
    for name in set(tables) & set(more):
        one, other = tables[name], more[name]
        assert isinstance(one, pa.Table), f"{name} is written whole"
        assert isinstance(other, pa.Table), f"{name} is written whole"
        joined[name] = pa.concat_tables([one, other])
    return joined


def _objective(stage: Stage) -> str:
    return "masked_token" if stage.masked else "next_token"


def _loss_stage(run: Run) -> Stage | None:
    if run.corpus is None or _why_no_loss(run.model) is not None:
        return None
    return MASKED if run.model.shape.head == "masked" else MAIN


def _why_no_loss(model: Model | Checkpoint) -> str | None:
    """Why a text gives no losses, or None where it does."""
    if model.shape.head not in ("causal", "masked"):
        return "the checkpoint has no language-model head"
    if model.shape.head == "masked" and getattr(model.tokenizer, "mask_token_id", None) is None:
        return "the tokenizer has no mask token"
    return None


def _read_sites(shape: Shape) -> list[Site]:
    return [Site("resid_post", layer) for layer in range(shape.layers)]


def _sample(site: Site) -> str:
    return f"vocabulary.sample.{site}"
