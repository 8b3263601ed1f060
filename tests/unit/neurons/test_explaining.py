"""Explanations for an atlas, on models whose units fire at one word each, on planted streams, and against slower computations."""

import functools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from microtome.capture import fold_batch
from microtome.capture.lens import Results
from microtome.core import Batch, Role, Site
from microtome.examples.chosen import Chosen
from microtome.explain import ByRule, Explanation, scores
from microtome.explain.tables import fitted
from microtome.model import Model
from microtome.neurons import Neurons
from microtome.neurons.causal import Picked
from microtome.neurons.explained import Turned
from microtome.neurons.explaining import (
    DIRECTIONS,
    EXPLAINED,
    METHODS,
    ExplainedEnd,
    LayerRecords,
    explain_layers,
    explained_folds,
    explained_layers,
    explanation_findings,
    explanation_rows,
)
from tests.toys import toy_encoder
from tests.unit.neurons.planted_models import GATED, KINDS, Kind, dictionary_model

WORDS, UNITS, WINDOWS, LONG = 40, 16, 64, 40
TEXTS = [f" w{token}" for token in range(40)]
BASIS = Neurons(0, UNITS)
PICKED = Picked(torch.zeros(14, dtype=torch.int64), torch.arange(14))
SPOKEN = range(10, 20)
OF_WORDS = Picked(torch.zeros(12, dtype=torch.int64), torch.tensor([*SPOKEN, WORDS, WORDS + 1]))


def batches(vocab: int = WORDS, windows: int = WINDOWS, seed: int = 1) -> list[Batch]:
    """Random words, halves by turns."""
    ids = torch.randint(0, vocab, (windows, LONG), generator=torch.Generator().manual_seed(seed))
    roles = torch.full(ids.shape, int(Role.CONTENT), dtype=torch.uint8)
    roles[:, 0] = int(Role.FIRST)
    number, none = torch.arange(windows), torch.zeros(windows, dtype=torch.int64)
    whole = Batch(ids, roles, number, number, none, (number % 2).to(torch.uint8), none - 1, extra={})
    return [whole.take(rows) for rows in number.split(16)]


def found_in(
    model_or_h: Model | Tensor, texts: list[Batch], picked: Picked = PICKED, signed: bool = True, units: int = UNITS
) -> list[LayerRecords]:
    """What the stage finds in a model, or in activations (window, token, unit) of layer 0."""
    layers = int(picked.layer.max()) + 1
    folds = explained_folds(
        [Neurons(layer, units) for layer in range(layers)],
        picked,
        windows=sum(len(each.ids) for each in texts),
        signed=signed,
        seed=3,
    )
    states = {name: fold.init() for name, fold in folds.items()}
    for batch in texts:
        if isinstance(model_or_h, Tensor):
            for name, fold in folds.items():
                fold.update(states[name], {Site("mlp_act", 0): model_or_h[batch.window]}, batch)
        else:
            fold_batch(model_or_h, batch, folds, states)
    results = Results()
    for name, fold in folds.items():
        results.add(EXPLAINED, name, functools.partial(fold.result, states[name]))
    return explained_layers(results, picked)


@functools.cache
def of_words(kind: Kind) -> list[ExplainedEnd]:
    return explain_layers(
        found_in(dictionary_model(kind, WORDS), batches(), OF_WORDS, signed=kind in GATED, units=WORDS + 4), TEXTS
    )


@functools.cache
def of_noise() -> tuple[Tensor, list[Batch], list[LayerRecords]]:
    """Units 0 to 9 fire at a word, more or less; the others at nothing that the text has; 13 never does, whatever its sign."""
    texts = batches(30)
    ids = torch.cat([each.ids for each in texts])
    h = torch.randn(*ids.shape, UNITS, generator=torch.Generator().manual_seed(5)).abs() * 0.3
    for unit in range(10):
        h[..., unit] += 3.0 * (ids == unit + 2)
    h[..., 13] = 0
    return h, texts, found_in(h, texts)


@pytest.mark.parametrize("kind", KINDS)
def test_units_of_words_are_explained_by_them(kind: Kind) -> None:
    found = {(str(each.unit), each.end): each for each in of_words(kind)}
    assert not any(
        (f"neurons.0/{unit}", end) in found for unit in (WORDS, WORDS + 1) for end in ("top", "bottom")
    )  # they are dead
    for unit in SPOKEN:
        each = found[f"neurons.0/{unit}", "top"]
        assert (each.method, each.text.split(" (")[0]) == ("tokens", f"active at ‘w{unit}’")
        assert each.pearson == pytest.approx(1, abs=1e-3)
        assert each.control < 0.3
        assert each.q <= 0.05
        assert each.fuzzing == 1
        assert each.detection > 0.9  # some excerpts begin with the word, where no activation counts
        assert max(each.detection_control, each.fuzzing_control) < 0.8
    if kind not in GATED:
        assert {end for _, end in found} == {"top"}


def test_a_unit_of_a_word_after_another_needs_runs() -> None:
    texts = batches(8)
    ids = torch.cat([each.ids for each in texts])
    h = torch.rand(*ids.shape, 4, generator=torch.Generator().manual_seed(5)) * 0.1
    h[:, 1:, 0] += 1.0 * ((ids[:, 1:] == 3) & (ids[:, :-1] == 2))
    h[..., 1] += 1.0 * (ids == 3)
    picked = Picked(torch.zeros(2, dtype=torch.int64), torch.tensor([0, 1]))
    pair, word = explain_layers(found_in(h, texts, picked, units=4), TEXTS)
    assert (pair.method, pair.text.split(" (")[0]) == (METHODS[1], "active at ‘w2’ ‘w3’")
    assert pair.pearson > 0.9
    assert (word.method, word.text.split(" (")[0]) == (METHODS[0], "active at ‘w3’")
    assert math.isnan(pair.p)  # of one other nobody knows what is usual
    assert pair.control < 0.5


def test_scores_are_those_of_single_explanations_and_nothing_held_out_is_explained() -> None:
    """By hand: the table of the method said, of the discover half, on the validation excerpts of each end."""
    h, texts, (layer,) = of_noise()
    found = explain_layers([layer], TEXTS)
    assert [each.unit.index for each in found] == [unit for unit in range(14) if unit != 13]
    tables = []
    for each in found:
        examples = layer.units.examples(each.unit.index)
        for part, half in ((examples.train, 0), (examples.calibration, 0), (examples.valid, 1), (examples.test, 1)):
            assert set((part.window % 2).tolist()) == {half}
        train, calibration = examples.train, examples.calibration
        ids, counted = (torch.cat([getattr(part, name) for part in (train, calibration)]) for name in ("ids", "counted"))
        activation = torch.cat([examples.scaled(train), examples.scaled(calibration)])
        tables.append(fitted(ids, activation, counted, 1 + METHODS.index(each.method)))
    cross = torch.tensor(
        [
            [
                scores(Explanation("", table), ByRule(), layer.units.examples(each.unit.index), draws=0).pearson
                for table in tables
            ]
            for each in found
        ]
    )
    assert [each.pearson for each in found] == pytest.approx(cross.diagonal().tolist(), abs=1e-6)
    others = [float(row[torch.arange(len(row)) != place].mean()) for place, row in enumerate(cross)]
    assert [each.control for each in found] == pytest.approx(others, abs=1e-6)
    # the confirm half may be anything, and explanations stay as they are
    other = h.clone()
    other[1::2] = torch.rand_like(other[1::2])
    again = {str(each.unit): each for each in explain_layers(found_in(other, texts), TEXTS)}
    assert all(again[str(each.unit)].text == each.text and again[str(each.unit)].method == each.method for each in found)
    assert max(each.pearson for each in again.values()) < 0.2


def test_noise_is_not_found_and_words_are() -> None:
    _, _, layers = of_noise()
    found = {each.unit.index: each for each in explain_layers(layers, TEXTS)}
    assert all(found[unit].q <= 0.05 and found[unit].pearson > 0.8 for unit in range(10))
    assert all(found[unit].q > 0.05 and abs(found[unit].pearson) < 0.2 for unit in (10, 11, 12))
    # as if there were more of them to compare with, and directions that do not fire at words themselves
    told = [replace(each, q=each.q / 10, best_direction=0.5) for each in found.values()]
    *single, summary = explanation_findings(told)
    assert len(single) == 8
    assert {each.kind for each in single} == {"explained unit"}
    assert {each.subject for each in single} <= {f"neurons.0/{unit}" for unit in range(10)}
    assert [each.value for each in single] == sorted((each.value for each in single), reverse=True)
    assert (summary.subject, summary.control_kind) == ("", DIRECTIONS)
    assert summary.value == pytest.approx(sum(each.pearson for each in found.values()) / 13)
    assert summary.control == pytest.approx(found[0].directions)


def test_a_unit_below_a_random_direction_is_no_finding() -> None:
    each = replace(of_words("relu")[0], q=0.001)
    better = replace(each, best_direction=each.pearson + 0.01)
    unknown = replace(each, best_direction=math.nan)
    assert [len(explanation_findings([one])) for one in (replace(each, best_direction=0.5), better, unknown)] == [2, 1, 1]
    ends = [replace(each, best_direction=0.5, end="bottom", pearson=0.9), replace(each, best_direction=0.5, pearson=0.8)]
    best, _ = explanation_findings(ends)
    assert best.value == 0.9
    assert "its bottom end" in best.sentence
    assert explanation_findings([replace(each, q=0.02, directions=math.nan)]) == []


def test_each_layer_that_has_units_gets_as_many_directions() -> None:
    bases = [Neurons(layer, UNITS) for layer in range(4)]
    picked = Picked(torch.tensor([3, 1, 3, 1]), torch.tensor([7, 2, 5, 0]))
    folds = explained_folds(bases, picked, windows=128, signed=True, seed=3)
    found = {fold.basis.sites[0].layer: fold.basis for name, fold in folds.items() if ".units." in name}
    assert found == {1: Chosen(bases[1], (0, 2)), 3: Chosen(bases[3], (5, 7))}
    turned = [fold.basis for name, fold in folds.items() if ".directions." in name]
    assert all(isinstance(basis, Turned) and basis.units == 2 for basis in turned)
    assert [basis.sites[0].layer for basis in turned] == [1, 3]
    assert turned[0].address(0) != turned[1].address(0)
    assert all(name.startswith("neurons.explained.") for name in folds)
    many = explained_folds([Neurons(layer, 1536) for layer in range(24)], _in_every_layer(), windows=128, signed=True, seed=0)
    size = sum(each.numel() * each.element_size() for fold in many.values() for each in fold.init().values())
    assert size < 13e6


def _in_every_layer() -> Picked:
    return Picked(torch.arange(48) % 24, torch.arange(48))


def test_rows_say_what_was_found() -> None:
    found = of_words("silu")
    unheard = replace(found[0], detection=math.nan)
    rows = explanation_rows([*found, unheard], "main").to_pylist()
    assert (rows[0]["unit"], rows[0]["end"], rows[0]["run"], rows[0]["excerpts"]) == (
        "neurons.0/10",
        "top",
        "main",
        found[0].excerpts,
    )
    for name in ("pearson", "control", "directions", "q", "detection", "detection_control", "fuzzing", "fuzzing_control"):
        assert rows[0][name] == getattr(found[0], name)
    assert rows[-1]["detection"] is None
    assert explanation_rows([], "main").schema == explanation_rows(found, "main").schema


@pytest.mark.parametrize("windows", [1, 3])
def test_with_too_little_text_nothing_is_explained(windows: int) -> None:
    found = explain_layers(
        found_in(dictionary_model("silu", WORDS), batches(windows=windows), OF_WORDS, units=WORDS + 4), TEXTS
    )
    assert found == []
    assert explanation_findings(found) == []
    assert explanation_rows(found, "main").num_rows == 0


def test_an_encoder_is_explained_as_well() -> None:
    model = toy_encoder()
    picked = Picked(torch.tensor([0, 1, 0, 1]), torch.tensor([3, 4, 5, 6]))
    texts = batches(30, windows=24)
    found = explain_layers(found_in(model, texts, picked, signed=False, units=model.shape.d_mlp), TEXTS)
    assert {str(each.unit) for each in found} == {"neurons.0/3", "neurons.0/5", "neurons.1/4", "neurons.1/6"}
    assert all(-1 <= each.pearson <= 1 and each.end == "top" and each.text.startswith("active at ‘w") for each in found)


def test_where_every_excerpt_is_active_there_are_no_others() -> None:
    layers = found_in(dictionary_model("silu", WORDS), batches(windows=8), OF_WORDS, units=WORDS + 4)
    found = explain_layers(layers, TEXTS)
    assert found
    assert all(math.isnan(each.pearson) or abs(each.pearson) <= 1 + 1e-9 for each in found)
