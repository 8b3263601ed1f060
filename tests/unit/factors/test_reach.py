"""Reach: planted units whose span is known, truncation against windows cut by hand, and the two controls."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from microtome.core import Batch, Refusal, Role, Site
from microtome.corpus import prompt_batch
from microtome.examples import UnitSurvey
from microtome.factors.basis import Factors
from microtome.factors.coding import Lasso
from microtome.factors.dictionary import Dictionary
from microtome.factors.reach import (
    Targets,
    active_targets,
    codes_at,
    reach,
    recovered,
    shuffled,
    top_targets,
    truncated,
)
from microtome.factors.scaling import identity
from microtome.model import Model, capture
from microtome.neurons import Neurons
from tests.toys import toy_decoder, toy_encoder, toy_texts
from tests.unit.factors.planted_dictionaries import planted_dictionary
from tests.unit.neurons.planted_models import bigram_model, shared_fact_model


def _words(model: Model, words: Sequence[str]) -> Batch:
    return prompt_batch(model.tokenizer, [" ".join(words)])


def _targets(*places: tuple[int, int, int]) -> Targets:
    row, position, unit = torch.tensor(places).T
    return Targets(row, position, unit)


def test_a_word_unit_looks_nowhere_and_a_bigram_unit_one_token_back() -> None:
    model = bigram_model("relu")
    batch = _words(model, ["w2", "w3", "w6", "w7", "w4", "w5", "w8", "w9", "w3", "w4", "w5"])
    targets = _targets(*((0, place, unit) for unit in range(3) for place in (5, 10)))
    found = reach(recovered(model, Neurons(0, 5), batch, targets), [0, 1, 2, 3])
    assert found.width[:3].tolist() == [1, 0, 1]
    assert math.isnan(found.width[3]), "a unit without a context has no reach"
    assert found.contexts.tolist() == [2, 2, 2, 0]
    assert found.share[0, 0] == 0
    assert found.share[0, 1] == pytest.approx(1, abs=1e-5)
    assert not found.high.any()


@pytest.mark.parametrize(("distance", "expected"), [(2, 2), (3, 4), (9, 16), (17, 32), (40, math.inf)])
def test_a_unit_that_waits_for_a_word_far_back_reaches_as_far_as_it_is(distance: int, expected: float) -> None:
    """Unit of the fact (capital, norland): it fires at the subject if the relation is anywhere before."""
    fact = shared_fact_model("relu")
    (unit,) = fact.units["capital", "norland"]
    words = ["the", "a", "capital", *["we", "say", "in", "a"] * 10][: 2 + distance]
    batch = _words(fact.model, [*words, "norland"])
    basis = Neurons(1, fact.model.shape.d_mlp)
    found = reach(recovered(fact.model, basis, batch, _targets((0, 2 + distance, unit.index))), [unit.index])
    assert float(found.width) == expected
    assert bool(found.high) == (distance > 16)
    assert float(found.room) == 2 + distance


def test_a_bag_of_context_survives_shuffling_and_an_order_does_not() -> None:
    fact = shared_fact_model("relu")
    (unit,) = fact.units["capital", "norland"]
    bag = _words(fact.model, [*["the", "a", "we", "say", "capital", "of", "in", "is", "the", "city"], "norland"])
    targets = _targets((0, 10, unit.index))
    basis = Neurons(1, fact.model.shape.d_mlp)
    codes = recovered(fact.model, basis, bag, targets).codes[:, -1]
    mixed, there = shuffled(bag, targets, causal=True, seed=1)
    again = recovered(fact.model, basis, mixed, there)
    assert torch.allclose(again.codes[:, -1], codes, atol=1e-4)

    model = bigram_model("relu")
    order = _words(model, ["w2", "w3", "w6", "w7", "w8", "w9", "w3", "w7", "w8", "w9", "w4", "w5"])
    pair = _targets(*[(0, 11, 0)] * 40)
    whole = recovered(model, Neurons(0, 5), order, pair, (0,)).codes[:, -1]
    mixed, there = shuffled(order, pair, causal=True, seed=1)
    control = reach(recovered(model, Neurons(0, 5), mixed, there, (0, 1)), [0], whole=whole)
    assert float(control.share[0, -1]) < 0.3, "w4 comes to stand before w5 once in ten"
    assert math.isnan(control.width), "not even the whole shuffled window is enough"


def test_shuffling_keeps_the_target_the_first_token_and_what_comes_after() -> None:
    model = toy_decoder()
    batch = prompt_batch(model.tokenizer, toy_texts(3, 30), context=64)
    targets = _targets((0, 12, 0), (2, 20, 1), (0, 12, 2))
    mixed, there = shuffled(batch, targets, causal=True, seed=3)
    for number, (row, position) in enumerate(zip(targets.row.tolist(), targets.position.tolist(), strict=True)):
        was, now = batch.ids[row], mixed.ids[number]
        assert torch.equal(was[position:], now[position:])
        assert was[0] == now[0]
        assert sorted(was.tolist()) == sorted(now.tolist())
        assert not torch.equal(was, now)
    assert there.row.tolist() == [0, 1, 2]


def test_shuffling_an_encoders_window_moves_both_sides_and_no_special_token() -> None:
    model = toy_encoder()
    batch = prompt_batch(model.tokenizer, toy_texts(2, 30), context=64)
    mixed, _ = shuffled(batch, _targets((1, 9, 0)), causal=False)
    was, now = batch.ids[1], mixed.ids[0]
    special = batch.roles[1] != Role.CONTENT
    assert torch.equal(was[special], now[special])
    assert was[9] == now[9]
    assert sorted(was.tolist()) == sorted(now.tolist())
    assert not torch.equal(was[10:], now[10:])


def _by_hand(model: Model, batch: Batch, row: int, position: int, width: int, basis: Factors) -> Tensor:
    length = int((batch.roles[row] != Role.PAD).sum())
    ids = batch.ids[row, :length].tolist()
    if model.shape.causal:
        first = max(1, position - width)
        kept, place = [ids[0], *ids[first : position + 1]], position - first + 1
    else:
        first, last = max(1, position - width), min(length - 2, position + width)
        kept, place = [ids[0], *ids[first : last + 1], ids[-1]], position - first + 1
    module = model.module
    with torch.no_grad():
        states = module(torch.tensor([kept]), output_hidden_states=True).hidden_states[basis.site.layer]
    return basis.dictionary.encode({basis.site: states[:, place]})[0]


def _factors(model: Model, units: int = 40) -> Factors:
    site = Site("resid_pre", 1)
    width = model.shape.d_model
    directions = planted_dictionary(units, width, seed=2)
    coder = Lasso(0.3, tolerance=1e-6)
    made = Dictionary("toy", "shared", (site,), (site,), coder, identity(1, width), directions[None], torch.zeros(1, width))
    return Factors(made, site)


@pytest.mark.parametrize("make", [toy_decoder, toy_encoder])
def test_codes_of_truncated_windows_are_those_of_windows_cut_by_hand(make: Callable[[], Model]) -> None:
    model = make()
    batch = prompt_batch(model.tokenizer, toy_texts(4, 24), context=64)
    basis = _factors(model)
    places = [(0, 3), (1, 11), (2, 20), (3, 8), (1, 11)]
    targets = _targets(*((row, position, unit) for (row, position), unit in zip(places, (1, 7, 30, 4, 9), strict=True)))
    widths = (0, 1, 3, 8)
    found = recovered(model, basis, batch, targets, widths, tokens=64)
    for number, (row, position) in enumerate(places):
        unit = int(targets.unit[number])
        by_hand = [float(_by_hand(model, batch, row, position, width, basis)[unit]) for width in (*widths, 1000)]
        assert found.codes[number].tolist() == pytest.approx(by_hand, abs=2e-4)
    assert float(found.codes.abs().max()) > 0.05


def test_truncation_keeps_special_tokens_and_a_decoder_sees_nothing_behind_the_target() -> None:
    encoder, decoder = toy_encoder(), toy_decoder()
    for model in (encoder, decoder):
        batch = prompt_batch(model.tokenizer, toy_texts(1, 30), context=64)
        cut, place = truncated(batch, torch.tensor([0]), torch.tensor([10]), 2, causal=model.shape.causal)
        assert cut.ids[0, place[0]] == batch.ids[0, 10]
        if model.shape.causal:
            assert cut.ids[0].tolist() == [int(batch.ids[0, 0]), *batch.ids[0, 8:11].tolist()]
        else:
            assert cut.ids[0].tolist() == [int(batch.ids[0, 0]), *batch.ids[0, 8:13].tolist(), int(batch.ids[0, -1])]


def test_reach_is_the_width_from_which_on_enough_is_there() -> None:
    """A code that is there at width 1, gone at 2 and back from 4 on has reach 4."""
    model = bigram_model("relu")
    batch = _words(model, ["w2", "w3", "w4", "w5"])
    found = recovered(model, Neurons(0, 5), batch, _targets((0, 3, 0)), (0, 1, 2, 4))
    planted = type(found)(found.targets, found.widths, torch.tensor([[0.0, 0.9, 0.1, 0.8, 1.0]]), found.room)
    assert float(reach(planted, [0]).width) == 4
    assert float(reach(planted, [0], least=0.95).width) == math.inf


def test_targets_are_the_contexts_that_a_survey_found() -> None:
    model = bigram_model("relu")
    texts = ["w2 w3 w4 w5 w6", "w7 w8 w5 w9 w2", "w3 w4 w5 w4 w2"]
    batch = prompt_batch(model.tokenizer, texts)
    basis = Neurons(0, 5)
    survey = UnitSurvey(basis, k=5)
    state = survey.init()
    survey.update(state, capture(model, batch, basis.sites), batch)
    contexts = survey.result(state).contexts
    moved = batch.take(torch.tensor([2, 0, 1]))
    found = top_targets(contexts, moved, [0], most=2)
    spelled = {(int(moved.window[row]), int(place)) for row, place in zip(found.row, found.position, strict=True)}
    assert spelled == {(0, 3), (2, 2)}
    with pytest.raises(Refusal, match="does not have it"):
        top_targets(contexts, batch.take(torch.tensor([1])), [0])


def test_random_targets_are_active_and_the_same_for_every_batch_size() -> None:
    model = toy_decoder()
    batch = prompt_batch(model.tokenizer, toy_texts(4, 24), context=64)
    basis = _factors(model)
    one = active_targets(model, basis, batch, range(basis.units), most=3, tokens=64)
    other = active_targets(model, basis, batch, range(basis.units), most=3)
    codes = codes_at(model, basis, batch.take(one.row), one.position)
    assert bool((codes[torch.arange(len(one.row)), one.unit] > 0).all())
    assert {*zip(*(part.tolist() for part in (one.row, one.position, one.unit)), strict=True)} == {
        *zip(*(part.tolist() for part in (other.row, other.position, other.unit)), strict=True)
    }
    assert int(one.unit.bincount().max()) <= 3


def test_bad_widths_are_refused() -> None:
    model = bigram_model("relu")
    batch = _words(model, ["w2", "w3", "w4", "w5"])
    with pytest.raises(Refusal, match="do not rise"):
        recovered(model, Neurons(0, 5), batch, _targets((0, 3, 0)), (4, 2))
