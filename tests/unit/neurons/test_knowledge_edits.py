"""Edits of planted facts: the formula by hand, the new answer, what stays, signs of gated units, erasing, refusals."""

import math

import pytest
import torch

from microtome.core import Refusal, Site, UnitAddress, WeightAddress
from microtome.intervene import Edit, Set, SetVector, answers, edited, reweighted
from microtome.model import capture, wrap
from microtome.neurons.facts import AskedFact, Fact, ask
from microtome.neurons.knowledge import Refinement, attributed, refined, scaled_effect
from microtome.neurons.knowledge_edits import (
    DAI,
    Swap,
    answers_changed,
    erasing,
    particular_units,
    perplexity,
    random_swaps,
    swap_answer,
)
from tests.unit.neurons.planted_models import (
    GATED,
    KINDS,
    FactModel,
    Kind,
    dictionary_model,
    fact_model,
    following,
    planted_facts,
    shared_fact_model,
)
from tests.unit.neurons.test_knowledge import score


def asked(planted: FactModel) -> list[AskedFact]:
    return [ask(planted.model, fact) for fact in planted_facts()]


@pytest.mark.parametrize("kind", KINDS)
def test_the_edit_is_the_formula_with_lengths(kind: Kind) -> None:
    planted = shared_fact_model(kind)
    units = planted.units["capital", "norland"]
    (edit,) = swap_answer(planted.model, asked(planted)[0], units, "bem", Swap(0.5, 3.0))
    head, vector = planted.model.weights.get("W_U"), planted.model.weights.get("W_out", 1)[units[0].index]
    old, new = (head[:, planted.model.tokenizer.convert_tokens_to_ids(word)] for word in ("aro", "bem"))
    length = vector.norm()
    torch.testing.assert_close(edit.vector, vector - 0.5 * length / old.norm() * old + 3.0 * length / new.norm() * new)
    assert edit.address == WeightAddress("W_out", 1, units[0].index)
    assert (DAI.away, DAI.to) == (1.0, 8.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_planted_fact_has_another_answer_and_others_theirs(kind: Kind, dtype: torch.dtype) -> None:
    planted = fact_model(kind, dtype=dtype)
    facts = asked(planted)
    units = planted.units["capital", "norland"]
    found = answers_changed(planted.model, facts[0], "bem", swap_answer(planted.model, facts[0], units, "bem"), facts)
    assert (found.changed, found.success, found.rank[1]) == (1.0, 1.0, 1.0)
    assert found.probability[0] == pytest.approx(0.0145, abs=0.001)
    assert found.probability[1] > 0.9
    assert (
        answers_changed(planted.model, facts[0], "bem", swap_answer(planted.model, facts[0], units, "bem", DAI)).success == 1.0
    )
    for pair in (found.same_relation, found.other_relations):
        assert pair is not None
        assert pair[1] == pytest.approx(pair[0], rel=0.01)
    for swaps in random_swaps(planted.model, facts[0], units, "bem", draws=5):
        null = answers_changed(planted.model, facts[0], "bem", swaps)
        assert (null.changed, null.success, null.same_relation) == (0.0, 0.0, None)
        assert {swap.address.index for swap in swaps} != {units[0].index}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_dictionary_s_entry_is_one_unit_that_is_found_suppressed_and_edited(kind: Kind, dtype: torch.dtype) -> None:
    """Without the unit of w5 all words are alike behind it; with another vector it says w9, and other words say what they said."""
    model = dictionary_model(kind, dtype=dtype)
    prompts = ("w3 {subject}", "w9 w2 {subject}", "w4 w7 w8 {subject}", "w11 {subject}")
    facts = [ask(model, Fact("next", f"w{word}", f"w{following(word)}", prompts)) for word in (5, 3, 10)]
    (found,) = refined([attributed(model, facts[0])], Refinement(fewest=1.0)).facts
    unit = UnitAddress("neurons", 5, layer=0)
    assert (found.units, found.share) == ((unit,), (1.0,))
    assert found.explained is not None
    assert found.error is not None
    likely, even = math.exp(4) / (math.exp(4) + 11), 1 / 12
    assert found.explained == pytest.approx(1 - even / likely, abs=0.02)
    assert found.error < 0.1

    off = scaled_effect(model, facts[0], [unit], 0.0, facts, draws=10)
    assert off.fact == pytest.approx(even / likely - 1, abs=0.01)
    assert off.same_relation == pytest.approx(0, abs=0.01)
    assert float(off.random.abs().max()) < 0.01
    with edited(model, facts[0].batch, [Edit(Site("mlp_act", 0), Set(0.0), [5])]):
        logits = capture(model, facts[0].batch, [Site("logits")])[Site("logits")].unflatten(0, (len(prompts), -1)).squeeze(1)
    at = logits[torch.arange(len(prompts)), facts[0].question.place].softmax(-1)
    torch.testing.assert_close(at, torch.full_like(at, even), atol=1e-3, rtol=0)

    edit = swap_answer(model, facts[0], [unit], "w9")
    changed = answers_changed(model, facts[0], "w9", edit, facts)
    assert (changed.changed, changed.success, changed.rank[1]) == (1.0, 1.0, 1.0)
    assert changed.probability[0] < 0.02
    assert changed.probability[1] > 0.5
    assert changed.same_relation is not None
    assert changed.same_relation[1] == pytest.approx(changed.same_relation[0], rel=0.01)


@pytest.mark.parametrize("kind", GATED)
def test_a_reversed_gated_unit_is_edited_to_the_same_effect(kind: Kind) -> None:
    """The same function with h and v reversed: the edit is reversed as well, and so the new answer comes."""
    planted = fact_model(kind)
    straight = swap_answer(planted.model, asked(planted)[0], planted.units["capital", "norland"], "bem")
    (unit,) = planted.units["capital", "norland"]
    with torch.no_grad():
        for name in ("W_up", "W_out"):
            place = planted.model.weights.get(name, 1)
            (place.T if name == "W_up" else place)[unit.index] *= -1
    model = wrap(planted.model.module, planted.model.tokenizer, name="reversed")
    fact = ask(model, planted_facts()[0])
    (edit,) = swap_answer(model, fact, [unit], "bem")
    torch.testing.assert_close(edit.vector, -straight[0].vector)
    assert answers_changed(model, fact, "bem", [edit]).success == 1.0


def test_an_erased_relation_is_forgotten_and_the_other_is_not() -> None:
    planted = shared_fact_model("gelu")
    facts = asked(planted)
    found = refined([attributed(planted.model, each) for each in facts[:6]], Refinement(fewest=1.0))
    edits = erasing(planted.model, found)
    assert {edit.address.index for edit in edits} == {
        planted.units["capital", each.fact.subject][0].index for each in facts[:6]
    }
    with reweighted(planted.model, edits):
        assert perplexity(planted.model, facts[:6]) == pytest.approx(30, rel=0.02)  # all words are alike
        assert perplexity(planted.model, facts[6:]) == pytest.approx(1.73, rel=0.02)
    assert len(erasing(planted.model, found, most=2)) == 2
    assert perplexity(planted.model, []) is None


def test_perplexity_is_that_of_the_answers() -> None:
    planted = shared_fact_model("relu")
    facts = asked(planted)[:2]
    logs = torch.cat([answers(planted.model, each.batch, each.question) for each in facts]).log()
    assert perplexity(planted.model, facts) == pytest.approx(math.exp(-float(logs.mean())), rel=1e-5)


def test_ranks_and_shares_by_hand() -> None:
    """No edit changes nothing; taking the answer away alone makes all words alike, and none the new answer."""
    planted = shared_fact_model("relu")
    facts = asked(planted)
    same = answers_changed(planted.model, facts[0], "aro", [], facts)
    assert (same.changed, same.success, same.rank) == (0.0, 1.0, (1.0, 1.0))
    assert same.same_relation is not None
    assert same.same_relation[0] == same.same_relation[1]
    unit = planted.units["capital", "norland"][0]
    silent = SetVector(WeightAddress("W_out", 1, unit.index), torch.zeros(planted.model.shape.d_model))
    mute = answers_changed(planted.model, facts[0], "fol", [silent])
    assert mute.changed == 1.0
    assert mute.success == 0.0
    assert mute.probability[1] == pytest.approx(1 / planted.model.shape.vocab, rel=0.01)


def test_units_of_the_relation_are_left_out_of_a_fact_s() -> None:
    facts = [
        score("capital", [dict.fromkeys(units, 1.0)] * 3, subject=f"s{number}")
        for number, units in enumerate(([1, 2], [1, 3], [1, 4, 5], [6, 5]))
    ]
    found = refined(facts, Refinement(rounds=0))
    indices = [[unit.index for unit in units] for units in particular_units(found, 0.5)]
    assert indices == [[2], [3], [4, 5], [5, 6]]
    assert [[unit.index for unit in units] for units in particular_units(found)] == [[2], [3], [4], [6]]


def test_bad_edits_are_refused() -> None:
    planted = shared_fact_model("relu")
    fact = asked(planted)[0]
    units = planted.units["capital", "norland"]
    with pytest.raises(Refusal, match="an edit of capital of norland: no unit is given"):
        swap_answer(planted.model, fact, [], "bem")
    with pytest.raises(Refusal, match="'aro' is its answer; name another"):
        swap_answer(planted.model, fact, units, "aro")
    with pytest.raises(Refusal, match="it is 2 tokens of planted-relu"):
        swap_answer(planted.model, fact, units, "bem bem")
    wrong = ask(planted.model, Fact("capital", "norland", "cil", planted_facts()[0].prompts))
    with pytest.raises(Refusal, match="planted-relu answers it in 0 % of its prompts; edit a fact that the model knows"):
        swap_answer(planted.model, wrong, units, "bem")
    empty = refined([score("capital", [{}] * 3)], Refinement(rounds=0))
    with pytest.raises(Refusal, match="erasing capital: no unit of its facts was found"):
        erasing(planted.model, empty)
    beyond = [UnitAddress("neurons", 500, layer=1)]
    with pytest.raises(Refusal, match=r"neurons.1/500"):
        swap_answer(planted.model, fact, beyond, "bem")
