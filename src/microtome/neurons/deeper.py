"""What a build deeper than quick asks of every unit, beside its statistics: folds over the text, and rows, labels and findings of them.

Roles by weights, families by questions about the token, runs of tokens, places in the window, what contexts have in common, what values say of
the next token, and what fires with what. Each has a module of its own; here they meet a run. Effects on the loss are in `causal`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final, TypeVar

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from microtome.capture.lens import MAIN, Results, Run
from microtome.core import Batch, Fold, Half
from microtome.examples import UnitSurveyRecord, in_order_of_text
from microtome.examples.detectors import q_values
from microtome.examples.said import Said, together
from microtome.model import Model
from microtome.neurons.basis import Neurons, fold_name
from microtome.neurons.coactivation import SampledRows, coactivation_operations, coactivation_rows, coactivations
from microtome.neurons.cohesion import WIDTH, Cohesion, cohesion, enough_before, places_of
from microtome.neurons.deeper_rows import (
    agreement_findings,
    cohesion_rows,
    family_findings,
    family_rows,
    place_rows,
    role_findings,
    role_rows,
    run_rows,
)
from microtome.neurons.families import Families, FamilyMoments, families, spelling_tests
from microtome.neurons.links import AFFORDED
from microtome.neurons.memories import value_agreement, value_tokens
from microtome.neurons.ngrams import ngram_detectors
from microtome.neurons.positional import Positional, PositionalActivity, positional
from microtome.neurons.roles import role_names, write_roles
from microtome.neurons.unit_labels import place_labels, question_labels, role_labels, run_labels
from microtome.readout import output_reader
from microtome.readout.words import texts_of

__all__ = ["deeper", "deeper_folds", "why_no_agreement", "why_not_alike", "why_not_deeper", "why_not_together"]

_Tested = TypeVar("_Tested", Families, Positional, Cohesion)

_TOGETHER: Final = 2048
"""Tokens, about, whose activations say which units fire alike."""
_PLACES: Final = 32
"""Places of a window in which a unit's being active is counted."""
_ORDERS: Final = (2, 3)
"""Tokens of the runs that are asked for."""
_TOKENS_PER_BATCH: Final = 8192
_SEED: Final = 0
"""Of what the weights alone decide, which is the same in every run."""


def why_not_deeper(run: Run) -> str:
    """Why all of it is left out; empty where it is not."""
    if run.depth == "quick":
        return "not part of depth quick: microtome neurons MODEL TEXT -o ATLAS"
    if run.model.shape.experts:
        return "units inside experts are met by some tokens only"
    return "" if run.model.shape.vocab else "the tokens of an image belong to no vocabulary"


def why_not_together(run: Run) -> str:
    """Why what fires alike is left out; empty where it is not."""
    if why := why_not_deeper(run):
        return why
    shape = run.model.shape
    operations = coactivation_operations(shape.d_mlp, shape.layers, _TOGETHER)
    if run.depth == "standard" and operations > AFFORDED:
        return f"it takes {operations:.0e} operations, which is too much for depth standard: --depth full computes it"
    return ""


def why_not_alike(run: Run) -> str:
    """Why contexts are not compared by the texts before them; empty where they are. Reads the text up to the first token that has enough."""
    if why := why_not_deeper(run):
        return why
    if any(bool(enough_before(batch, Half.CONFIRM, WIDTH).any()) for batch in _batches(run)):
        return ""
    return f"no token of the held-out documents has {WIDTH} ordinary ones before it in its window; build with longer texts"


def why_no_agreement(run: Run) -> str:
    """Why values are not compared with the token that follows; empty where they are."""
    if why := why_not_deeper(run):
        return why
    return "" if run.model.shape.causal else "every token attends to those after it, so that units need not predict them"


def deeper_folds(bases: Sequence[Neurons], run: Run, edges: Callable[[Neurons], Tensor]) -> Mapping[str, Fold]:
    """Families, places, and activations at sampled tokens; `edges` gives the deciles of the units of a basis, as a pilot found them."""
    assert run.corpus is not None, "folds are of a text"
    tests = spelling_tests(texts_of(run.model.tokenizer, run.model.shape.vocab))
    window, folds = run.corpus.window, {}
    for basis in bases:
        folds[fold_name("families", basis)] = FamilyMoments(basis, tests, window, draws=4, seed=run.seed)
        deciles = edges(basis)
        folds[fold_name("places", basis)] = PositionalActivity(
            basis.layer, torch.maximum(deciles[1].abs(), deciles[-2].abs()), window, seed=run.seed, width=_place_width(window)
        )
    if not why_not_together(run):
        rate = min(1.0, _TOGETHER / max(1, run.corpus.tokens))
        folds |= {fold_name("tokens", basis): SampledRows(basis, rate, run.seed) for basis in bases}
    return folds


def deeper(
    bases: Sequence[Neurons],
    run: Run,
    results: Results,
    spelling: Int64[Tensor, " vocab"],
    texts: Sequence[str],
) -> Said:
    """Everything that was asked, of all units; `spelling` and `texts` say which token stands for the word of each, and how it is written."""
    parts = [
        _roles(bases, run, results),
        _families(bases, run, results),
        _places(bases, run, results),
        _runs(bases, run, results, spelling, texts),
        _common(bases, run, results),
        _values(bases, run, results),
        _together(bases, run, results),
    ]
    return together(parts)


def _roles(bases: Sequence[Neurons], run: Run, results: Results) -> Said:
    found = write_roles(run.model.weights, output_reader(run.model.weights), seed=_SEED)
    names = role_names(found, [_orientation(run, _survey(results, basis)) for basis in bases])
    labels = list(role_labels(bases, found, names))
    return Said([role_rows(bases, found, run.name)], labels, role_findings(bases, found, names), {})


def _orientation(run: Run, survey: UnitSurveyRecord) -> Float64[Tensor, " unit"]:
    """1 in a plain block; else the side at which a unit is rarely and strongly active, by which it writes where it fires."""
    skewness = survey.moments.skewness.nan_to_num(0.0)
    return skewness if run.model.shape.gated else torch.ones_like(skewness)


def _families(bases: Sequence[Neurons], run: Run, results: Results) -> Said:
    found = _over_layers([families(results.of(MAIN, fold_name("families", basis))) for basis in bases])
    rows = [family_rows(basis, each, run.name) for basis, each in zip(bases, found, strict=True)]
    return Said(rows, list(question_labels(bases, found)), family_findings(bases, found), {})


def _places(bases: Sequence[Neurons], run: Run, results: Results) -> Said:
    """Of windows whose tokens are all in one place nothing can be said."""
    assert run.corpus is not None, "folds are of a text"
    window, rows, labels = run.corpus.window, [], []
    activities = {basis: results.of(MAIN, fold_name("places", basis)) for basis in bases}
    activities = {basis: each for basis, each in activities.items() if int((each.seen > 0).sum()) > 1}
    tests = _over_layers([positional(each) for each in activities.values()])
    for (basis, activity), found in zip(activities.items(), tests, strict=True):
        most = activity.share.nan_to_num(-1.0).max(1)
        mean = activity.active.sum(1).double() / activity.seen.sum().clamp_min(1)
        where = [
            [_place_named(*each, window) for each in zip(*own, strict=True)]
            for own in zip(most.indices.tolist(), most.values.tolist(), mean.tolist(), strict=True)
        ]
        rows.append(place_rows(basis, found, run.name))
        labels += place_labels(basis, found, where)
    return Said(rows, labels, [], {})


def _place_named(place: int, share: float, mean: float, window: int) -> str:
    width = _place_width(window)
    first, last = place * width + 1, min((place + 1) * width, window)
    tokens = f"token {first}" if first == last else f"tokens {first} to {last}"
    return f"{tokens}: {100 * share:.0f} % there, {100 * mean:.0f} % over all"


def _runs(
    bases: Sequence[Neurons], run: Run, results: Results, spelling: Int64[Tensor, " vocab"], texts: Sequence[str]
) -> Said:
    contexts = [_survey(results, basis).contexts for basis in bases]
    rows, labels = [], []
    for order in _ORDERS:
        found = ngram_detectors(contexts, lambda: _batches(run), spelling, order)
        q = q_values([each.p for each in found])
        rows += [run_rows(basis, tests, own, run.name) for basis, tests, own in zip(bases, found, q, strict=True)]
        labels += run_labels(bases, found, q, texts)
    return Said(rows, labels, [], {})


def _common(bases: Sequence[Neurons], run: Run, results: Results) -> Said:
    """What a unit's contexts have in common, by the texts before them."""
    if why_not_alike(run):
        return Said()
    places = places_of(_batches(run), run.model.weights.get("W_E"))
    found = _over_layers([cohesion(_survey(results, basis).contexts, places, seed=run.seed) for basis in bases])
    rows = [cohesion_rows(basis, each, run.name) for basis, each in zip(bases, found, strict=True)]
    return Said(rows, [], [], {})


def _values(bases: Sequence[Neurons], run: Run, results: Results) -> Said:
    """Whether values say the token that follows: asked of models that predict it."""
    if why_no_agreement(run):
        return Said()
    assert isinstance(run.model, Model), "a text is read by a model that was built"
    reader = output_reader(run.model.weights)
    found = [
        value_agreement(
            run.model,
            _survey(results, basis).contexts,
            value_tokens(run.model, basis.layer, reader),
            reader,
            seed=run.seed,
        )
        for basis in bases
    ]
    return Said([], [], agreement_findings(found), {})


def _together(bases: Sequence[Neurons], run: Run, results: Results) -> Said:
    if why_not_together(run):
        return Said()
    half = results.of(MAIN, fold_name("tokens", bases[0])).half
    layers = [basis.layer for basis in in_order_of_text(bases)]
    by_layer = {basis.layer: fold_name("tokens", basis) for basis in bases}
    found = coactivations(lambda layer: results.of(MAIN, by_layer[layer]).values, half, layers, sorted(layers), seed=run.seed)
    return Said([], [], [], {"coactivations": (coactivation_rows(each, run.name) for each in found)})


def _over_layers(found: Sequence[_Tested]) -> list[_Tested]:
    """The same tests, with q over those of all layers together."""
    if not found:
        return []
    q = q_values([each.p.double().numpy() for each in found])
    return [replace(each, q=torch.from_numpy(own)) for each, own in zip(found, q, strict=True)]


def _survey(results: Results, basis: Neurons) -> UnitSurveyRecord:
    return results.of(MAIN, fold_name("survey", basis))


def _batches(run: Run) -> Iterable[Batch]:
    """The text, afresh."""
    assert run.corpus is not None, "contexts are of a text"
    return run.corpus.batches(range(run.corpus.windows), _TOKENS_PER_BATCH)


def _place_width(window: int) -> int:
    return -(-window // _PLACES)
