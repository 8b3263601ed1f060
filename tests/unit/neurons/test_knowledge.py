"""Knowledge neurons: planted ones are found and do what they must, thresholds are reported, and what a reserve hides is said."""

import pytest
import torch
from transformers import LlamaForCausalLM

from microtome.core import Refusal, Role, Site, UnitAddress
from microtome.intervene import Edit, Path, Set, answers, edited, gradient_times_activation
from microtome.intervene import integrated as preset
from microtome.model import capture, wrap
from microtome.neurons import knowledge
from microtome.neurons.facts import AskedFact, Fact, ask
from microtome.neurons.knowledge import (
    DAI,
    DAI_ACTIVATION,
    ELEUTHER,
    Attributed,
    Refinement,
    activations,
    attributed,
    refined,
    relation_units,
    scaled_effect,
    shared_units,
    units_alike,
)
from tests.toys import toy_encoder
from tests.unit.model.tiny import opened
from tests.unit.neurons.planted_models import GATED, KINDS, FactModel, Kind, fact_model, planted_facts, shared_fact_model

ANY = Refinement(fewest=1.0)


def asked(planted: FactModel, tail: str = "") -> list[AskedFact]:
    return [ask(planted.model, fact) for fact in planted_facts(tail)]


def score(relation: str, prompts: list[dict[int, float]], units: int = 30, subject: str = "norland") -> Attributed:
    """Attributions in one layer, 0 but where they are given."""
    values = torch.zeros(len(prompts), 1, units)
    for row, given in enumerate(prompts):
        for unit, value in given.items():
            values[row, 0, unit] = value
    fact = ask(shared_fact_model("relu").model, Fact(relation, subject, "aro", ("the {subject}",) * len(prompts)))
    return Attributed(fact, (4,), values, torch.ones(len(prompts)), torch.zeros(len(prompts), 1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("parts", [1, 3])
def test_the_planted_units_are_found_whole(kind: Kind, dtype: torch.dtype, parts: int) -> None:
    planted = shared_fact_model(kind, parts=parts, dtype=dtype)
    facts = asked(planted)
    found = refined([attributed(planted.model, each) for each in facts[:3]], ANY)
    assert (found.prompts, found.rounds, found.settled, found.mean) == (0.7, 0, True, parts)
    for fact in found.facts:
        assert set(fact.units) == set(planted.units[fact.asked.fact.relation, fact.asked.fact.subject])
        assert fact.share == (1.0,) * parts
        assert fact.explained == pytest.approx(0.95, abs=0.01)  # P = e^3.8 / (e^3.8 + 29) falls to 1 / 30
        assert fact.worth == pytest.approx([fact.worth[0]] * parts, rel=0.02)
        assert fact.error is not None
        assert fact.error < 0.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_suppressing_and_amplifying_moves_the_fact_and_nothing_else(kind: Kind, dtype: torch.dtype) -> None:
    planted = shared_fact_model(kind, dtype=dtype)
    facts = asked(planted)
    units = planted.units["capital", "norland"]
    off, twice = (scaled_effect(planted.model, facts[0], units, factor, facts, draws=30) for factor in (0.0, 2.0))
    assert off.fact == pytest.approx(-0.942, abs=0.002)
    assert twice.fact == pytest.approx(0.65, abs=0.02)
    for effect in (off, twice):
        assert effect.same_relation == pytest.approx(0, abs=1e-4)
        assert effect.other_relations == pytest.approx(0, abs=1e-4)
        assert float(effect.random.abs().max()) < 0.02  # the unit of norland's language writes here, too
        assert effect.p == pytest.approx(1 / 31)
    alone = scaled_effect(planted.model, facts[0], units, 0.0, draws=3)
    assert (alone.same_relation, alone.other_relations) == (None, None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_reserve_hides_a_unit_and_the_result_says_so(kind: Kind, dtype: torch.dtype) -> None:
    """With a unit that stands in, the fact survives the loss of the one that knows it, and attributions from zero add up to nothing."""
    planted = shared_fact_model(kind, reserve=1, dtype=dtype)
    fact = asked(planted)[0]
    (unit,) = planted.units["capital", "norland"]
    assert abs(scaled_effect(planted.model, fact, [unit], 0.0, draws=1).fact) < 0.1
    both = [unit, planted.reserve["capital", "norland"]]
    assert scaled_effect(planted.model, fact, both, 0.0, draws=1).fact < -0.9
    (found,) = refined([attributed(planted.model, fact)], Refinement(rounds=0)).facts
    assert found.explained is not None
    assert abs(found.explained) < 0.1
    site = Site("mlp_act", 1)
    local = gradient_times_activation(planted.model, fact.batch, fact.question, [site])[site].flatten(2)
    assert float(local[0, int(fact.question.place[0]), unit.index]) > 0.5 * float(
        answers(planted.model, fact.batch, fact.question)[0]
    )


def test_activations_do_not_know_the_answer() -> None:
    """The baseline takes the unit for its fact, and the distractors that fire at any subject too."""
    planted = shared_fact_model("relu")
    fact = asked(planted)[0]
    raw, written = (activations(planted.model, fact, measure) for measure in ("raw", "written"))
    assert raw.error is None
    (found,) = refined([raw], DAI_ACTIVATION).facts
    assert {unit.layer for unit in found.units} == {0, 1}
    assert len(found.units) == 3
    assert found.explained is None
    h = capture(planted.model, fact.batch, [Site("mlp_act", 1)])[Site("mlp_act", 1)].reshape(5, fact.batch.ids.shape[1], -1)
    torch.testing.assert_close(raw.values[:, 1], h[torch.arange(5), fact.question.place])
    torch.testing.assert_close(written.values[:, 1], raw.values[:, 1].abs() * planted.model.weights.get("W_out", 1).norm(dim=1))


@pytest.mark.parametrize("kind", GATED)
def test_what_a_unit_is_worth_does_not_depend_on_its_sign_or_scale(kind: Kind) -> None:
    """The up branch of the planted gated unit times -3, and what it writes over -3: the same fact, the same unit, the same effect."""
    planted = fact_model(kind)
    module = planted.model.module
    assert isinstance(module, LlamaForCausalLM)
    before = attributed(planted.model, asked(planted)[0])
    (unit,) = planted.units["capital", "norland"]
    up, down = (planted.model.weights.get(name, 1) for name in ("W_up", "W_out"))
    with torch.no_grad():
        up[:, unit.index] *= -3
        down[unit.index] /= -3
    model = wrap(module, planted.model.tokenizer, name="turned")
    fact = ask(model, planted_facts()[0])
    torch.testing.assert_close(attributed(model, fact).values, before.values, atol=1e-6, rtol=1e-4)
    assert scaled_effect(model, fact, [unit], 0.0, draws=1).fact == pytest.approx(-0.942, abs=0.002)
    torch.testing.assert_close(activations(model, fact).values, activations(planted.model, fact).values, atol=1e-6, rtol=1e-4)


def test_an_encoder_is_attributed_at_its_mask() -> None:
    """Completeness where the answer is asked, and suppressing all units of a layer there is that layer's start."""
    model = toy_encoder()
    fact = ask(
        model,
        Fact(
            "holds", "The river", "stone", ("{subject} holds the [MASK].", "[MASK] the {subject} finds", "The [MASK] {subject}")
        ),
    )
    found = attributed(model, fact, path=Path("gauss", 8))
    assert found.error is not None
    assert float((found.error.abs() / found.answer[:, None]).max()) < 0.01
    site, places = Site("mlp_act", 1), torch.arange(fact.batch.ids.shape[1]) == fact.question.place[:, None]
    held = capture(model, fact.batch, [site])[site].clone()
    held[places] = 0
    with edited(model, fact.batch, [Edit(site, Set(held))]):
        without = answers(model, fact.batch, fact.question)
    torch.testing.assert_close(found.values[:, 1].sum(1), found.answer - without, atol=1e-4, rtol=1e-2)


def test_layers_that_do_not_add_up_are_summed_again() -> None:
    """Two steps are too few for a sharp answer; with a tolerance they are doubled until they suffice, without one they stay."""
    planted = shared_fact_model("relu")
    fact = asked(planted)[0]
    coarse = attributed(planted.model, fact, path=Path("left", 2), tolerance=None)
    finer = attributed(planted.model, fact, path=Path("left", 2), tolerance=0.1)
    again = attributed(planted.model, fact, path=Path("left", 8), tolerance=None)
    assert coarse.error is not None
    assert finer.error is not None
    assert float(coarse.error[:, 1].abs().min() / coarse.answer.min()) > 0.3
    assert float(finer.error.abs().max() / finer.answer.min()) < 0.1
    torch.testing.assert_close(finer.values[:, 1], again.values[:, 1])
    torch.testing.assert_close(finer.values[:, 2], coarse.values[:, 2])
    paper = attributed(planted.model, fact, path=preset.DAI, tolerance=None)
    (unit,) = planted.units["capital", "norland"]
    assert int(paper.values[:, 1].mean(0).argmax()) == unit.index


def test_units_are_kept_by_share_of_the_best_and_of_prompts() -> None:
    """By hand: unit 1 is in 4 of 4 prompts, 2 in 3, 3 in 2; unit 4 is always below a fifth of the best; a prompt without a best keeps none."""
    prompts = [{1: 1.0, 2: 0.25, 4: 0.19}, {1: 0.5, 2: 0.5, 3: 0.3}, {1: 2.0, 3: 0.5, 2: 0.39}, {1: 0.1, 2: 0.025, 4: 0.019}]
    given = score("capital", prompts)

    def units(settings: Refinement) -> list[int]:
        return [unit.index for unit in refined([given], settings).facts[0].units]

    assert units(Refinement(rounds=0)) == [1, 2]
    assert units(Refinement(prompts=0.5, least=1, rounds=0)) == [1, 2, 3]
    assert units(Refinement(prompts=0.8, rounds=0)) == [1]
    assert refined([given], Refinement(rounds=0)).facts[0].share == (1.0, 0.75)
    assert refined([given], Refinement(rounds=0)).facts[0].units[0] == UnitAddress("neurons", 1, layer=4)
    empty = score("capital", [{1: -1.0}, {}, {2: 0.0}])
    assert refined([empty], Refinement(rounds=0)).facts[0].units == ()


def test_the_share_of_prompts_moves_until_facts_keep_a_few_units_and_is_reported() -> None:
    """Unit 1 is in all of ten prompts, unit 2 in six: 0.7 keeps one, 0.65 too, 0.6 two."""
    given = score("capital", [{1: 1.0, 2: 1.0}] * 6 + [{1: 1.0}] * 4)
    found = refined([given], DAI)
    assert (found.prompts, found.rounds, found.mean, found.settled) == (0.6, 2, 2.0, True)
    crowded = score("capital", [dict.fromkeys(range(10), 1.0)] * 8 + [{0: 1.0}] * 2)
    found = refined([crowded], DAI)
    assert (found.prompts, found.rounds, found.mean, found.settled) == (0.8, 6, 10.0, False)
    never = refined([score("capital", [{1: 1.0}] * 4)], DAI)
    assert (never.prompts, never.rounds, never.mean, never.settled) == (0.4, 6, 1.0, False)
    fixed = refined([score("capital", [{1: 1.0, 2: 0.3}, {3: 1.0}, {3: 1.0}])], ELEUTHER)
    assert (fixed.prompts, [unit.index for unit in fixed.facts[0].units]) == (0.3, [3, 1, 2])


def test_common_and_shared_units_are_counted() -> None:
    facts = [
        score("capital", [dict.fromkeys(units, 1.0)] * 3, subject=f"s{n}") for n, units in enumerate(([1, 2], [1, 3], [1, 4]))
    ]
    other = refined([score("language", [{2: 1.0, 9: 1.0}] * 3, subject="s0")], Refinement(rounds=0))
    found = refined(facts, Refinement(rounds=0))
    assert [(unit.index, count) for unit, count in relation_units(found, 0.5)] == [(1, 3)]
    assert [(unit.index, count) for unit, count in relation_units(found, 0.0)] == [(1, 3), (2, 1), (3, 1), (4, 1)]
    assert shared_units(found, found) == 1.0
    assert shared_units(found, other) == pytest.approx(1 / 3)
    assert shared_units(other, other) != shared_units(other, other)  # one fact has no other


def test_random_units_are_of_the_same_layers_and_not_the_given_ones() -> None:
    planted = shared_fact_model("relu", parts=3)
    units = [*planted.units["capital", "norland"], UnitAddress("neurons", 2, layer=0)]
    drawn = units_alike(planted.model, units, 50, 1)
    assert len(drawn) == 50
    for each in drawn:
        assert sorted(unit.layer or 0 for unit in each) == [0, 1, 1, 1]
        assert len(set(each)) == 4
        assert not set(each) & set(units)
    assert drawn == units_alike(planted.model, units, 50, 1) != units_alike(planted.model, units, 50, 2)
    assert len({unit for each in drawn for unit in each if unit.layer == 1}) == planted.model.shape.d_mlp - 3


def test_random_units_write_as_much_where_it_is_said_how_much() -> None:
    planted = shared_fact_model("relu", parts=3)
    width = planted.model.shape.d_mlp
    written = torch.arange(width, dtype=torch.float32).repeat(planted.model.shape.layers, 1)
    units = [UnitAddress("neurons", 2, layer=1), UnitAddress("neurons", 9, layer=1)]
    wide = {unit for each in units_alike(planted.model, units, 300, 1, written) for unit in each}
    assert len(wide) == width - 2, "no more than 64 units are there: all are near"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knowledge, "_NEAR", 4)
        drawn = units_alike(planted.model, units, 60, 1, written)
    assert {unit.index for each in drawn for unit in each} == {0, 1, 3, 4, 7, 8, 10, 11}
    assert all(len(set(each)) == 2 and not set(each) & set(units) for each in drawn)


def test_bad_requests_are_refused() -> None:
    planted = shared_fact_model("relu")
    fact = asked(planted)[0]
    with pytest.raises(Refusal, match="no unit is given"):
        scaled_effect(planted.model, fact, [], 0.0)
    many = [UnitAddress("neurons", index, layer=1) for index in range(planted.model.shape.d_mlp - 1)]
    with pytest.raises(Refusal, match="of its 19 units are given"):
        units_alike(planted.model, many, 1, 0)
    with pytest.raises(Refusal, match="there is none; give facts of one relation"):
        refined([])
    prompts = [{1: 1.0}] * 3
    with pytest.raises(Refusal, match="there are 2 relations among them: capital, language"):
        refined([score("capital", prompts), score("language", prompts)])
    with pytest.raises(Refusal, match="it has 2, and a unit must be found in 3"):
        refined([score("capital", prompts[:2])])
    experts = opened("mixtral")
    fact_of_experts = AskedFact(fact.fact, fact.texts, fact.batch, fact.question)
    for method in (attributed, activations):
        with pytest.raises(Refusal, match="its units are inside experts"):
            method(experts, fact_of_experts)
    with pytest.raises(Refusal):
        scaled_effect(planted.model, fact, [UnitAddress("neurons", 999, layer=1)], 0.0, draws=1)


def test_the_place_is_the_answer_s_and_padding_does_not_matter() -> None:
    """Prompts of several lengths together give each what it has alone."""
    planted = shared_fact_model("silu")
    fact = asked(planted)[0]
    assert len({int((row != Role.PAD).sum()) for row in fact.batch.roles}) > 1
    together = attributed(planted.model, fact).values
    for row, text in enumerate(planted_facts()[0].prompts):
        alone = attributed(planted.model, ask(planted.model, Fact("capital", "norland", "aro", (text,)))).values
        torch.testing.assert_close(alone[0], together[row], atol=1e-6, rtol=1e-4)
