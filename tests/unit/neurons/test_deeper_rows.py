"""Rows and findings of a deeper build: planted records and models, whose names and numbers are known, and at chance no finding."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats
import torch
from torch import Tensor

from microtome.core import Batch, Half, Role
from microtome.model import Model, wrap
from microtome.neurons.basis import Neurons
from microtome.neurons.cohesion import Cohesion, cohesion, places_of
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
from microtome.neurons.families import Families, FamilyMoments, families, question_names, spelling_tests
from microtome.neurons.memories import Agreement, value_agreement, value_tokens
from microtome.neurons.ngrams import NgramDetectors, ngram_detectors
from microtome.neurons.positional import Activity, Positional, positional
from microtome.neurons.roles import CosineMoments, Roles, role_names, write_roles
from microtome.numerics import window_shifts
from microtome.readout import output_reader
from microtome.store import TABLES
from tests.unit.model.tiny import opened
from tests.unit.neurons import test_cohesion, test_families, test_memories, test_ngrams
from tests.unit.neurons.planted_models import KINDS, Cell, Kind, Stream, following, planted

NAN = float("nan")
DIGITS, PUNCTUATION = question_names().index("is of digits"), question_names().index("is punctuation")


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def by_name(rows: pa.Table) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows by unit and statistic, each once."""
    found = {(row["unit"], row["stat"]): row for row in rows.to_pylist()}
    assert len(found) == rows.num_rows
    assert set(rows.column_names) == set(TABLES["unit_stats"].schema.names)
    assert {row["run"] for row in found.values()} == {"second"}
    return found


def told(row: dict[str, Any]) -> tuple[Any, ...]:
    """What a row says, exactly; no test here has an interval."""
    assert (row["lo"], row["hi"]) == (None, None)
    return row["value"], row["control"], row["q"]


# ------------------------------------------------------------------------------------------------------------------ roles


def role_record(layer: int, units: int, **given: Tensor) -> Roles:
    """Every number is another: before the point which it is, behind it the layer and the unit; `given` ones stand for theirs."""

    def column(place: int) -> Tensor:
        return numbers(*(place + layer / 16 + unit / 128 for unit in range(units)))

    names = ("mean", "variance", "skewness", "kurtosis")
    moments = CosineMoments(*(given.get(name, column(place)) for place, name in enumerate(names)))
    control = CosineMoments(*(given.get(f"control_{name}", column(4 + place)[:1]) for place, name in enumerate(names)))
    logits, length, *q = (column(place) for place in range(8, 13))
    return Roles(layer, moments, control, given.get("logit_variance", logits), 13 + layer / 16, length, *q)


def test_rows_of_roles_are_the_moments_of_each_layer_beside_its_own_random_directions() -> None:
    rows = by_name(role_rows([Neurons(2, 3), Neurons(5, 2)], [role_record(2, 3), role_record(5, 2)], "second"))
    assert len(rows) == 4 * 5
    stats = {
        "vocab_variance": (1, 5, 11),
        "vocab_skewness": (2, 6, None),
        "vocab_kurtosis": (3, 7, 10),
        "logit_variance": (8, 13, 12),
    }
    for layer, units in ((2, 3), (5, 2)):
        for unit in range(units):
            for stat, (value, control, q) in stats.items():
                own = layer / 16 + unit / 128
                row = rows[f"neurons.{layer}/{unit}", stat]
                assert told(row) == (value + own, control + layer / 16, None if q is None else q + own), stat
                assert (row["site"], row["control_kind"]) == (f"mlp_act.{layer}", "random directions of the layer")


def test_a_role_is_said_of_all_its_units_and_the_foremost_beside_their_layers_are_named() -> None:
    """Variances of layer 1 are smaller, and so are those of its random directions; few logits are beside many in layer 0."""
    first = role_record(0, 3, variance=numbers(0.5, 0.3, 9.0), control_variance=numbers(0.1), logit_variance=numbers(1, 1, 6.5))
    second = role_record(
        1, 5, variance=numbers(0.08, 0.04, 0.02, 9.0, 9.0), control_variance=numbers(0.01), logit_variance=numbers(*[3.0] * 5)
    )
    names = [["partition", "partition", "scale"], ["partition", "partition", "partition", "", "scale"]]
    found = role_findings([Neurons(0, 3), Neurons(1, 5)], [first, second], names)
    assert [(each.kind, each.subject) for each in found] == [("role: partition", "neurons.1/0"), ("role: scale", "neurons.1/4")]
    assert found[0].sentence == (
        "5 of 8 units have weights that divide the vocabulary in two (q at most 0.01 against random directions of the layer: of "
        "these, about 0.05 by chance), in layers 1 (3), 0 (2): neurons.1/0, neurons.0/0, neurons.1/1"
    )
    assert found[1].sentence.endswith("in layers 0 (1), 1 (1): neurons.1/4, neurons.0/2")
    assert (found[0].value, found[0].control) == (5 / 8, pytest.approx(0.05 / 8))
    assert (found[1].value, found[1].control) == (2 / 8, pytest.approx(0.02 / 8))
    assert {(each.control_kind, each.q) for each in found} == {("expected by chance", None)}


def test_units_about_few_tokens_come_by_their_kurtosis() -> None:
    records = [role_record(layer, 2, kurtosis=kurtosis) for layer, kurtosis in ((0, numbers(8, 3)), (1, numbers(5, NAN)))]
    bases = [Neurons(0, 2), Neurons(1, 2)]
    (found,) = role_findings(bases, records, [["few tokens"] * 2, ["few tokens", ""]])
    assert found.sentence.startswith("3 of 4 units have weights that write about few tokens (")
    assert found.sentence.endswith("in layers 0 (2), 1 (1): neurons.0/0, neurons.1/0, neurons.0/1")
    (found,) = role_findings(bases, records, [["", "suppression"], ["", ""]])
    assert found.sentence.startswith("1 of 4 units has weights that write about few tokens and suppress them where they fire (")


def of_weights(change: bool) -> Model:
    """A tiny Llama of random values; with `change` unit 5 of layer 0 writes token 0, and unit 7 of layer 1 what is its opposite."""
    model = opened("llama")
    state = {name: value.clone() for name, value in model.module.state_dict().items()}
    generator = torch.Generator().manual_seed(2)
    head = torch.randn(50, 16, generator=generator)
    values = [torch.randn(16, 24, generator=generator) for _ in range(model.shape.layers)]
    if change:
        head[0], head[1:, 2] = torch.eye(16)[2] * 10, 0
        values[0][:, 5], values[1][:, 7] = torch.eye(16)[2], -torch.eye(16)[2]
    state |= {"lm_head.weight": head}
    state |= {f"model.layers.{layer}.mlp.down_proj.weight": value for layer, value in enumerate(values)}
    state |= {name: torch.ones_like(value) for name, value in state.items() if name == "model.norm.weight"}
    module = type(model.module)(model.module.config)
    module.load_state_dict(state)
    return wrap(module.eval(), tokenizer=None)


def roles_found(model: Model, side: float) -> tuple[list[Neurons], list[Roles], list[list[str]]]:
    found = write_roles(model.weights, output_reader(model.weights), draws=2048)
    return [Neurons(each.layer, 24) for each in found], found, role_names(found, [torch.full((24,), side)] * len(found))


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_of_planted_weights_the_promoting_and_the_suppressing_unit_are_found_and_no_other(side: float) -> None:
    found = role_findings(*roles_found(of_weights(change=True), side))
    subjects = {each.kind: each.subject for each in found}
    promoting, suppressing = ("neurons.0/5", "neurons.1/7") if side > 0 else ("neurons.1/7", "neurons.0/5")
    assert subjects == {"role: prediction": promoting, "role: suppression": suppressing}
    assert {(each.value, each.control) for each in found} == {(1 / 72, 0.01 / 72)}
    assert all(f"1 of 72 units has weights that write about few tokens and {word} them" in each.sentence
               for each, word in zip(sorted(found, key=lambda each: each.kind), ("promote", "suppress"), strict=True))  # fmt: skip


def test_of_planted_weights_the_rows_are_moments_of_cosines() -> None:
    model = of_weights(change=True)
    bases, found, _ = roles_found(model, 1.0)
    rows = by_name(role_rows(bases, found, "second"))
    head = model.weights.get("W_U").double().detach().numpy()
    head = head - head.mean(1, keepdims=True)
    tokens = head / np.linalg.norm(head, axis=0)
    for layer in range(model.shape.layers):
        value = model.weights.get("W_out", layer).double().detach().numpy()
        value = value / np.linalg.norm(value, axis=1, keepdims=True)
        cosines = value @ tokens
        for stat, expected in (
            ("vocab_variance", cosines.var(1)),
            ("vocab_skewness", scipy.stats.skew(cosines, 1)),
            ("vocab_kurtosis", scipy.stats.kurtosis(cosines, 1)),
            ("logit_variance", (value @ head).var(1)),
        ):
            mine = [rows[f"neurons.{layer}/{unit}", stat]["value"] for unit in range(24)]
            np.testing.assert_allclose(mine, expected, atol=1e-4, rtol=1e-4)
    # at least as far out as all draws, and there are two such among 72 units
    tested, least = 72, 1 / (1 + 3 * 2048)
    for planted_unit in ("neurons.0/5", "neurons.1/7"):
        assert rows[planted_unit, "vocab_kurtosis"]["q"] == pytest.approx(tested * least / 2)


def test_random_weights_have_no_role_to_tell() -> None:
    assert role_findings(*roles_found(of_weights(change=False), 1.0)) == []


# --------------------------------------------------------------------------------------------------------------- families


def answered(x: Tensor, batch: Batch, draws: int = 6) -> Families:
    fold = FamilyMoments(Neurons(0, x.shape[-1]), spelling_tests(test_families.TEXTS), x.shape[1], draws)
    state = fold.init()
    fold.update(state, {fold.sites[0]: x}, batch)
    return families(fold.result(state))


def noise(seed: int) -> Tensor:
    sizes = test_families.WINDOWS, test_families.TOKENS, test_families.UNITS
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed))


def planted_layers() -> list[Tensor]:
    """The units of `test_families`, 0 on digits among them; and a layer where unit 7 is silent on digits, and others are random."""
    second = noise(3)
    second[..., 7] -= 8 * (test_families.batch().ids == 3)
    return [test_families.planted(), second]


def shares(x: Tensor, batch: Batch, answer: Tensor, draws: int = 6) -> tuple[float, float]:
    """r of a unit and an answer at the held-out tokens, and the mean r^2 of the answers turned round."""
    row, place = batch.counted(frozenset({Role.CONTENT})).nonzero(as_tuple=True)
    mine = (batch.half[row] == int(Half.CONFIRM)).numpy()
    unit, yes = x[row, place].numpy()[mine], answer[row, place].double().numpy()
    turned = [yes[order.numpy()][mine] for order in window_shifts(batch.window[row], draws, 0)]
    r = float(np.corrcoef(unit, yes[mine])[0, 1])
    return r, float(np.mean([np.corrcoef(unit, each)[0, 1] ** 2 for each in turned]))


def test_planted_families_are_found_with_what_the_questions_explain_and_random_units_are_not() -> None:
    batch, layers = test_families.batch(), planted_layers()
    bases, found = [Neurons(2, 30), Neurons(6, 30)], [answered(x, batch) for x in layers]
    findings = family_findings(bases, found)
    digits, before = batch.ids == 3, torch.roll(batch.ids, 1, 1)
    repeats = torch.zeros_like(digits)
    repeats[:, 1:] = batch.ids[:, 1:] == batch.ids[:, :-1]
    quarter = (torch.arange(33) * 4 // 33 == 3).expand(80, -1)
    expected = [  # in the order of questions, and of one question the larger share first
        ("neurons.6/7", "less active where the token is of digits", layers[1][..., 7], digits, 2),
        ("neurons.2/0", "more active where the token is of digits", layers[0][..., 0], digits, 2),
        ("neurons.2/1", "less active where the token follows one that is punctuation", layers[0][..., 1], (before == 4) | (before == 5), 1),
        ("neurons.2/2", "more active where the token repeats the one before", layers[0][..., 2], repeats, 1),
        ("neurons.2/3", "more active where the token is in quarter 4 of the window", layers[0][..., 3], quarter, 1),
    ]  # fmt: skip
    assert [each.subject for each in findings] == [subject for subject, *_ in expected]
    for each, (subject, said, unit, answer, count) in zip(findings, expected, strict=True):
        r, control = shares(unit, batch, answer)
        assert each.value == pytest.approx(r**2, abs=1e-6)
        assert each.control == pytest.approx(control, abs=1e-6)
        others = "2 units have" if count == 2 else "1 unit has"
        assert each.sentence == (
            f"{subject} is {said}: that explains {100 * r**2:.0f} % of its variance in held-out documents (answers turned round in "
            f"their windows: {100 * control:.1f} %); {others} 25 % or more by this question"
        )
        assert (each.kind, each.control_kind) == ("family", "answers turned round in their windows")
        assert each.q is not None
        assert each.q < 0.01


def test_rows_of_families_are_the_correlations_with_the_answers() -> None:
    batch, layers = test_families.batch(), planted_layers()
    found = answered(layers[0], batch)
    rows = by_name(family_rows(Neurons(2, 30), found, "second"))
    assert len(rows) == 29, "unit 5 is constant"
    row = rows["neurons.2/0", "family: is of digits"]
    r, control = shares(layers[0][..., 0], batch, batch.ids == 3)
    assert told(row) == (pytest.approx(r, abs=1e-6), pytest.approx(math.sqrt(control), abs=1e-6), float(found.q[0]))
    assert (row["site"], row["control_kind"]) == ("mlp_act.2", "answers turned round in their windows")


def test_random_units_are_of_no_family() -> None:
    found = [answered(noise(seed), test_families.batch()) for seed in (4, 5)]
    assert all(float(each.explained.max()) < 0.01 for each in found)
    assert family_findings([Neurons(0, 30), Neurons(1, 30)], found) == []


def test_what_the_windows_explain_is_no_family() -> None:
    """Half of the windows are mostly of digits, and the unit is active all over them: digits explain much, and as much turned round."""
    batch, x = test_families.batch(), noise(6)
    there = (torch.arange(80) // 2 % 2 == 0)[:, None]
    drawn = torch.rand(batch.ids.shape, generator=torch.Generator().manual_seed(7)) < 0.95
    ids = torch.where(there & drawn, 3, torch.where(batch.ids == 3, 0, batch.ids))
    x[..., 4] += 8.0 * there
    found = answered(x, replace(batch, ids=ids))
    assert question_names()[int(found.test[4])].endswith("is of digits")
    assert float(found.explained[4]) > 0.8
    assert float(found.control[4]) == pytest.approx(float(found.explained[4]), abs=0.02)
    assert family_findings([Neurons(0, 30)], [found]) == []


def test_a_family_explains_a_quarter_at_a_q_of_a_hundredth_and_three_of_its_units_are_named() -> None:
    first = Families(
        torch.tensor([DIGITS, DIGITS, DIGITS, -1, PUNCTUATION]),
        numbers(0.5, 0.499, 0.9, NAN, -0.7),
        numbers(0.01, 0.02, 0.03, NAN, 0.05),
        numbers(0.01, 0.001, 0.0101, NAN, 0.002),
        numbers(*[0.001] * 5),
    )
    second = Families(
        torch.full((5,), DIGITS),
        numbers(0.6, -0.8, 0.7, 0.6, 0.1),
        numbers(*[0.0] * 5),
        *[numbers(*(n / 1e4 for n in range(5)))] * 2,
    )
    findings = family_findings([Neurons(0, 5), Neurons(1, 5)], [first, second])
    assert [each.subject for each in findings] == ["neurons.1/1", "neurons.1/2", "neurons.1/0", "neurons.0/4"]
    assert [each.value for each in findings] == pytest.approx([0.64, 0.49, 0.36, 0.49])
    assert [each.control for each in findings] == [0, 0, 0, 0.05]
    assert [each.q for each in findings] == [1e-4, 2e-4, 0.0, 0.002]
    assert all("; 5 units have 25 % or more" in each.sentence for each in findings[:3])
    assert "is less active where the token is of digits: that explains 64 %" in findings[0].sentence
    alone = replace(first, correlation=numbers(0.5, 0, 0, NAN, 0))
    assert [each.subject for each in family_findings([Neurons(0, 5)], [alone])] == ["neurons.0/0"]


def test_a_unit_without_a_family_has_no_row() -> None:
    found = Families(
        torch.tensor([PUNCTUATION, -1, DIGITS]),
        numbers(-0.6, NAN, 0.3),
        numbers(0.04, NAN, 0.09),
        *[numbers(0.5, NAN, 0.25)] * 2,
    )
    rows = by_name(family_rows(Neurons(3, 3), found, "second"))
    assert {name: told(row) for name, row in rows.items()} == {
        ("neurons.3/0", "family: is punctuation"): (-0.6, 0.2, 0.5),
        ("neurons.3/2", "family: is of digits"): (0.3, 0.3, 0.25),
    }


# ------------------------------------------------------------------------------------------------------------ value agreement


def of_values(kind: Kind, layers: Sequence[Sequence[int]]) -> Model:
    """In each layer unit i fires at word i, and writes the word that the layer says; four units are dead."""
    words = ("<unk>", "<end>", *(f"w{number}" for number in range(2, 12)))
    stream = Stream(("ballast", *(f"is:{word}" for word in words), *(f"out:{word}" for word in words)))
    cells = [
        {unit: Cell({f"is:{words[unit]}": 1.0}, 0.5, {f"out:{words[said]}": 4.0}) for unit, said in enumerate(layer)}
        for layer in layers
    ]
    return planted(kind, stream, words, cells, [None] * len(layers), units=16)


def agreements(model: Model) -> list[Agreement]:
    reader, text = output_reader(model.weights), test_memories.circle(model)
    return [
        value_agreement(
            model, test_memories.contexts_of(model, text, layer), value_tokens(model, layer, reader), reader, draws=1000
        )
        for layer in range(model.shape.layers)
    ]


NEXT = [following(word) for word in range(12)]
SHUFFLED = [NEXT[0], *NEXT[2:], NEXT[1]]
"""One of twelve is right, which is what shuffled values are in the mean."""


@pytest.mark.parametrize("kind", KINDS)
def test_the_layer_whose_values_say_the_next_token_is_found_and_the_shuffled_one_is_not(kind: Kind) -> None:
    found = agreements(of_values(kind, [SHUFFLED, NEXT]))
    assert [each.share for each in found] == [pytest.approx(1 / 12), 1.0]
    (only,) = agreement_findings(found)
    assert (only.kind, only.subject, only.value) == ("value agreement", "layer 1", 1.0)
    assert (only.control, only.control_kind) == (pytest.approx(1 / 12), "values shuffled among the units of the layer")
    assert (only.p, only.q) == (pytest.approx(1 / 1001), pytest.approx(2 / 1001))
    assert only.sentence == (
        "100.0 % of the values of layer 1 say first the token that follows their unit's strongest held-out context (12 units; values "
        "shuffled among the units of the layer: 8.33 %); 1 of 2 layers do so beyond chance"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_shuffled_values_are_no_finding(kind: Kind) -> None:
    assert agreement_findings(agreements(of_values(kind, [SHUFFLED, [*NEXT[3:], *NEXT[:3]]]))) == []


def agreement(layer: int, share: float, chance: float, p: float) -> Agreement:
    none = torch.full((4,), -1)
    tried = torch.tensor([5, 6, -1, 7])
    gap = torch.full((4,), torch.nan)
    return Agreement(layer, Half.CONFIRM, tried, none, none, gap, gap, share, chance, 0.0, 1.0, p, 1000, 0)


def test_layers_beyond_chance_are_counted_and_the_three_that_agree_most_are_named() -> None:
    """Layer 4 is surely below chance, layer 7 not surely above it, and layer 8 was not tried."""
    p = {0: 0.001, 1: 0.002, 2: 0.003, 3: 0.004, 4: 0.001, 7: 0.5, 8: NAN}
    share = {0: 0.3, 1: 0.2, 2: 0.5, 3: 0.4, 4: 0.01, 7: 0.9, 8: NAN}
    found = agreement_findings([agreement(layer, share[layer], 0.1 + layer / 100, p[layer]) for layer in p])
    assert [each.subject for each in found] == ["layer 2", "layer 3", "layer 0"]
    assert [each.value for each in found] == [0.5, 0.4, 0.3]
    assert [each.control for each in found] == pytest.approx([0.12, 0.13, 0.1])
    # six tests: the largest p of those found is the fifth, 0.004 * 6 / 5, the one before the fourth, 0.003 * 6 / 4
    assert [each.q for each in found] == pytest.approx([0.0045, 0.0048, 0.003])
    assert [each.p for each in found] == [0.003, 0.004, 0.001]
    assert all("(3 units; " in each.sentence and "; 4 of 7 layers do so" in each.sentence for each in found)


def test_one_layer_of_many_must_be_the_surer() -> None:
    """q is over layers: 0.004 alone is found, and among three layers at chance it is not."""
    sure, chance = agreement(0, 0.5, 0.1, 0.004), [agreement(layer, 0.2, 0.1, 0.6) for layer in (1, 2, 3)]
    assert [each.q for each in agreement_findings([sure])] == [pytest.approx(0.004)]
    assert agreement_findings([sure, *chance]) == []


# ---------------------------------------------------------------------------------------------------- runs, places, cohesion


def counted_run(windows: list[list[int]], place: int, order: int) -> tuple[float, float]:
    """The share of held-out contexts that have the run of most of the others, and what its end explains of it, by counting."""
    text = test_ngrams.text()
    confirm = [row for row, half in zip(text.ids.tolist(), text.half.tolist(), strict=True) if half == 1]
    runs = [[tuple(text.ids[window, place - order + 1 : place + 1].tolist()) for window in each] for each in windows]
    own = Counter(runs[0]).most_common(1)[0][0]
    everywhere = [tuple(row[at - order + 1 : at + 1]) for row in confirm for at in range(order - 1, len(row))]
    of_end = [run for run in everywhere if run[1:] == own[1:]]
    alike = [run for run in runs[1] if run[1:] == own[1:]]
    return runs[1].count(own) / len(runs[1]), len(alike) / len(runs[1]) * of_end.count(own) / len(of_end)


@pytest.mark.parametrize(("order", "name"), [(2, "bigram"), (3, "trigram")])
def test_rows_of_runs_are_shares_beside_what_the_end_of_the_run_explains(order: int, name: str) -> None:
    contexts = test_ngrams.cases()
    (found,) = ngram_detectors([contexts], test_ngrams.once, test_ngrams.SELF, order)
    q = np.array([[0.125, 0.25, 0.5]])
    rows = by_name(run_rows(Neurons(4, 3), found, q, "second"))
    assert len(rows) == 3
    for unit, place in enumerate((4, 4, 9)):
        row = rows[f"neurons.4/{unit}", f"{name}_share_top"]
        value, control = counted_run(contexts.window[:, unit].tolist(), place, order)
        assert told(row) == (pytest.approx(value), pytest.approx(control), q[0, unit])
        assert (row["site"], row["control_kind"]) == ("mlp_act.4", "what the end of the run alone explains")
    if order == 2:
        assert [rows[f"neurons.4/{unit}", "bigram_share_top"]["control"] for unit in range(3)] == [0.5, 0.5, 1.0]


def test_rows_of_runs_have_each_end_its_own_and_units_without_contexts_no_control() -> None:
    found = NgramDetectors(
        ends=("top", "bottom"),
        gram=torch.tensor([[[1, 2], [-1, -1]], [[3, 4], [5, 6]]]),
        hits=torch.tensor([[8, 0], [1, 6]]),
        alike=torch.tensor([[9, 0], [4, 8]]),
        tried=torch.tensor([[10, 0], [5, 8]]),
        expected=torch.tensor([[0.2, NAN], [0.25, 0.5]], dtype=torch.float64),
        p=np.array([[0.1, NAN], [0.2, 0.3]]),
    )
    rows = by_name(run_rows(Neurons(0, 2), found, np.array([[0.01, NAN], [0.02, 0.03]]), "second"))
    assert {name: told(row) for name, row in rows.items()} == {
        ("neurons.0/0", "bigram_share_top"): (0.8, pytest.approx(0.18), 0.01),
        ("neurons.0/1", "bigram_share_top"): (0.0, None, None),
        ("neurons.0/0", "bigram_share_bottom"): (0.2, pytest.approx(0.2), 0.02),
        ("neurons.0/1", "bigram_share_bottom"): (0.75, pytest.approx(0.5), 0.03),
    }


def entropy(share: float) -> float:
    return 0.0 if share in (0, 1) else -share * math.log(share) - (1 - share) * math.log(1 - share)


def test_rows_of_places_are_informations_less_what_chance_makes_of_them() -> None:
    """Four places of 8 tokens: unit 0 is open at the first only, unit 1 everywhere, unit 2 at half of the tokens of every place."""
    active = torch.tensor([[[8, 8, 4], [0, 8, 4], [0, 8, 4], [0, 8, 4]], [[0, 1, 4], [8, 1, 0], [8, 1, 4], [0, 1, 0]]])
    turned = torch.tensor([[3, 1, 2, 2], [1, 1, 4, 2], [2, 2, 2, 2]])
    shifted = active.expand(3, -1, -1, -1).clone()
    shifted[:, 0, :, 0] = turned
    found = positional(Activity(torch.full((4,), 8), active, shifted))
    rows = by_name(place_rows(Neurons(1, 3), found, "second"))
    assert len(rows) == 6
    bias = 3 / (2 * 32)
    drawn = [entropy(0.25) - sum(entropy(count / 8) for count in draw) / 4 for draw in turned.tolist()]
    first = rows["neurons.1/0", "place_information_open"]
    assert told(first)[:2] == (pytest.approx(entropy(0.25) - bias), pytest.approx(sum(drawn) / 3 - bias))
    assert told(rows["neurons.1/1", "place_information_open"]) == (None, None, None), "always active: nothing was tested"
    assert rows["neurons.1/2", "place_information_open"]["value"] == pytest.approx(-bias)
    assert rows["neurons.1/0", "place_information_large"]["value"] == pytest.approx(math.log(2) - bias)
    assert rows["neurons.1/1", "place_information_large"]["value"] == pytest.approx(-bias)
    assert rows["neurons.1/2", "place_information_large"]["value"] == pytest.approx(entropy(0.25) - entropy(0.5) / 2 - bias)
    assert {(row["site"], row["control_kind"]) for row in rows.values()} == {
        ("mlp_act.1", "places turned round in their windows")
    }


def test_rows_of_places_are_of_their_own_criterion() -> None:
    columns = [torch.arange(4, dtype=torch.float64).view(2, 2) + 10 * number for number in range(4)]
    rows = by_name(place_rows(Neurons(7, 2), Positional(*columns, kind=(("", ""), ("", ""))), "second"))
    assert {name: told(row) for name, row in rows.items()} == {
        ("neurons.7/0", "place_information_open"): (0, 10, 30),
        ("neurons.7/1", "place_information_open"): (1, 11, 31),
        ("neurons.7/0", "place_information_large"): (2, 12, 32),
        ("neurons.7/1", "place_information_large"): (3, 13, 33),
    }


def test_rows_of_cohesion_are_cosines_of_the_texts_before() -> None:
    """Every token comes once in the text, so that nothing stands for a unit's own tokens but themselves."""
    windows, tokens, width = 12, 12, 4
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(windows * tokens).view(windows, tokens)
    vectors = torch.randn(windows * tokens, 8, generator=generator)
    vectors[:60] += 2 * torch.eye(8)[0]
    number, roles = torch.arange(windows), torch.full(ids.shape, int(Role.CONTENT), dtype=torch.uint8)
    batch = Batch(ids, roles, number, number, number * 0, torch.ones(windows, dtype=torch.uint8), number * 0 - 1, {})
    at, places = [[0, 1, 2, 3], [0, 5, 7, 9]], [[5, 6, 7, 8], [11, 4, 9, 5]]
    found = cohesion(test_cohesion.at(at, places, batch), places_of([batch], vectors, width=width), draws=2000)
    rows = by_name(cohesion_rows(Neurons(3, 2), found, "second"))
    assert len(rows) == 4

    def before(window: int, place: int) -> np.ndarray:
        bag = (vectors[ids[window, place - width : place]].mean(0) - vectors.mean(0)).double().numpy()
        return bag / np.linalg.norm(bag)

    all_places = [(window, place) for window in range(windows) for place in range(width, tokens)]
    bags = np.array([before(*each) for each in all_places])
    other = np.array([[one[0] != two[0] for two in all_places] for one in all_places])
    chance = (bags @ bags.T)[other].mean()
    for unit in range(2):
        own = np.array([before(*each) for each in zip(at[unit], places[unit], strict=True)])
        expected = (own @ own.T)[~np.eye(4, dtype=bool)].mean()
        value, control, q = told(rows[f"neurons.3/{unit}", "cohesion_top"])
        assert (value, control) == (pytest.approx(expected, abs=1e-5), pytest.approx(chance, abs=0.015))
        assert q == pytest.approx(float(found.q[0, unit]))
        alike, beside, untested = told(rows[f"neurons.3/{unit}", "cohesion_tokens_top"])
        assert (alike, beside, untested) == (pytest.approx(expected, abs=1e-5), control, None)
    assert rows["neurons.3/0", "cohesion_top"]["value"] > rows["neurons.3/1", "cohesion_top"]["value"] + 0.3
    assert {(row["site"], row["control_kind"]) for row in rows.values()} == {("mlp_act.3", "random places")}


def test_rows_of_cohesion_are_of_their_own_end_and_lack_what_was_not_compared() -> None:
    columns = {
        name: torch.tensor([[1.0, NAN], [2.0, 3.0]]) * scale
        for name, scale in (("value", 1), ("alike", 0.5), ("chance", 0.25), ("p", 0.0625), ("q", 0.125))
    }
    found = Cohesion(("top", "bottom"), Half.CONFIRM, torch.full((2, 2), 5), **columns, draws=10, seed=0)
    rows = by_name(cohesion_rows(Neurons(0, 2), found, "second"))
    assert {name: told(row) for name, row in rows.items()} == {
        ("neurons.0/0", "cohesion_top"): (1, 0.25, 0.125),
        ("neurons.0/1", "cohesion_top"): (None, None, None),
        ("neurons.0/0", "cohesion_bottom"): (2, 0.5, 0.25),
        ("neurons.0/1", "cohesion_bottom"): (3, 0.75, 0.375),
        ("neurons.0/0", "cohesion_tokens_top"): (0.5, 0.25, None),
        ("neurons.0/1", "cohesion_tokens_top"): (None, None, None),
        ("neurons.0/0", "cohesion_tokens_bottom"): (1, 0.5, None),
        ("neurons.0/1", "cohesion_tokens_bottom"): (1.5, 0.75, None),
    }
