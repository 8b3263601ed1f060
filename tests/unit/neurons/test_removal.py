"""Triggers without one of their tokens, and endings that triggers share: of planted units, and counted by hand."""

import math
from dataclasses import replace

import pytest
import scipy.stats
import torch

from microtome.capture import fold_batch
from microtome.core import Batch, Half, Refusal, Role, Site
from microtome.corpus import prompt_batch
from microtome.examples import UnitSurvey
from microtome.model import Model, capture
from microtome.neurons import Neurons
from microtome.neurons.removal import PARTS, Triggers, endings, patterns, removal, triggers
from tests.toys import toy_encoder
from tests.unit.model.tiny import batch_for, opened
from tests.unit.neurons.planted import contexts_at
from tests.unit.neurons.planted_models import GATED, KINDS, Kind, dictionary_model, shared_fact_model


def prefixes(model: Model, texts: list[str], units: list[int], layer: int) -> Triggers:
    return Triggers(layer, prompt_batch(model.tokenizer, texts), torch.tensor(units), torch.ones(len(units)))


def surveyed(model: Model, batch: Batch, layer: int):
    fold = UnitSurvey(Neurons(layer, model.shape.d_mlp), k=3, neighbours=2)
    states = {"survey": fold.init()}
    fold_batch(model, batch, {"survey": fold}, states)
    return fold.result(states["survey"]).contexts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_unit_of_one_word_loses_all_with_the_last_token_and_nothing_with_others(kind: Kind, dtype: torch.dtype) -> None:
    model = dictionary_model(kind, dtype=dtype)
    found = removal(model, prefixes(model, ["w2 w3 w4 w5", "w7 w3 w5 w9"], [5, 9], 0))
    assert found.change[0].tolist() == pytest.approx([-1, -1], abs=0.01)
    assert found.change[1:].flatten().tolist() == pytest.approx([0] * 4, abs=0.01)
    last, first, other = found.summary()
    assert (last.part, first.part, other.part) == PARTS
    assert (last.change, last.low, last.high) == pytest.approx((-1, -1, -1), abs=0.01)
    assert first.change == pytest.approx(0, abs=0.01)
    if kind == "silu":  # of the others most fire at neither word, and are as far from 0 as before
        assert last.control == pytest.approx(0, abs=0.01)
    else:  # they are 0 (so far below it GELU is as well), and of 0 there is no part
        assert math.isnan(last.control)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_unit_of_two_words_needs_both(kind: Kind, dtype: torch.dtype) -> None:
    planted = shared_fact_model(kind, dtype=dtype)
    unit = planted.units["capital", "norland"][0].index
    found = removal(planted.model, prefixes(planted.model, ["capital of norland", "the capital norland"], [unit, unit], 1))
    assert found.change[:, 0].tolist() == pytest.approx([-1, -1, 0], abs=0.01)
    assert found.change[:, 1].tolist() == pytest.approx([-1, 0, -1], abs=0.01)


@pytest.mark.parametrize("kind", GATED)
def test_a_reversed_unit_of_a_gated_block_has_the_same_changes(kind: Kind) -> None:
    texts, units = ["w2 w3 w4 w5", "w7 w3 w5 w9"], [5, 9]
    plain, turned = (dictionary_model(kind) for _ in range(2))
    with torch.no_grad():
        turned.weights.get("W_up", 0)[:, [3, 5]] *= -2
    one, other = (removal(model, prefixes(model, texts, units, 0)) for model in (plain, turned))
    assert other.value[0] < 0 < other.value[1]
    assert torch.allclose(one.change, other.change, atol=1e-5)
    assert torch.allclose(one.control, other.control, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_a_cut_prefix_has_the_activation_of_the_whole_text_and_tokens_are_left_out_by_hand(name: str) -> None:
    model = opened(name)
    batch = replace(batch_for(model, (9, 6, 9)), half=torch.full((3,), int(Half.CONFIRM), dtype=torch.uint8))
    contexts = surveyed(model, batch, 1)
    found = triggers([batch.take(torch.tensor([2])), batch.take(torch.tensor([0, 1]))], contexts, 1, most=1)
    assert (found.value < 0).any()
    assert (found.value > 0).any()
    gone = removal(model, found, seed=3)
    assert torch.allclose(gone.value.float(), found.value, rtol=1e-4, atol=1e-6)
    site = Site("mlp_act", 1)
    tried = 0
    for row in range(0, len(found.unit), 5):
        alone = found.batch.alone(row)
        length, unit = alone.ids.shape[1], int(found.unit[row])
        for part, place in ((0, length - 1), (1, 0)):
            kept = [each for each in range(length) if each != place]
            short = replace(alone, ids=alone.ids[:, kept], roles=alone.roles[:, kept])
            if length < 3:
                assert gone.change[part, row].isnan()
                continue
            tried += 1
            now = float(capture(model, short, [site])[site][0, -1, unit])
            before = float(found.value[row])
            assert float(gone.change[part, row]) == pytest.approx(now / before - 1, rel=1e-3, abs=1e-4)
    assert tried > 4


def test_triggers_are_of_one_half_and_their_windows_must_be_there() -> None:
    model = opened("gpt2")
    batch = batch_for(model, (9, 6, 9))
    contexts = surveyed(model, batch, 1)
    with pytest.raises(Refusal, match="no unit has a context in the confirm half"):
        triggers([batch], contexts, 1)
    with pytest.raises(Refusal, match="are in no batch"):
        triggers([batch.take(torch.tensor([0]))], contexts, 1, half=Half.DISCOVER)


def test_models_without_prefixes_are_refused() -> None:
    encoder = toy_encoder()
    with pytest.raises(Refusal, match="behind a trigger"):
        removal(encoder, prefixes(dictionary_model("relu"), ["w2 w3 w4"], [0], 0))
    with pytest.raises(Refusal, match="experts"):
        removal(opened("mixtral"), prefixes(dictionary_model("relu"), ["w2 w3 w4"], [0], 0))


def windows(rows: list[list[int]], halves: list[int]) -> Batch:
    """Windows of these ids behind a special token."""
    ids = torch.tensor([[0, *row] for row in rows])
    roles = torch.full(ids.shape, int(Role.CONTENT), dtype=torch.uint8)
    roles[:, 0] = int(Role.SPECIAL)
    number = torch.arange(len(rows))
    half = torch.tensor(halves, dtype=torch.uint8)
    return Batch(ids, roles, number, number, torch.zeros_like(number), half, number - number - 1, extra={})


def test_endings_that_triggers_share_are_counted_as_by_hand() -> None:
    discover, confirm = int(Half.DISCOVER), int(Half.CONFIRM)
    batch = windows([[5, 6, 7], [4, 6, 7], [1, 2, 7], [5, 6, 7], [3, 6, 7], [1, 8, 9]], [discover] * 3 + [confirm] * 3)
    filled = [[[0, 0, 0], [0, 0, -1]], [[0, 0, 0], [0, -1, -1]]]
    contexts = contexts_at(filled, signed=False)
    contexts = replace(
        contexts,
        window=torch.tensor([[[0, 1, 2], [0, 1, -1]], [[3, 4, 5], [5, -1, -1]]]),
        position=torch.tensor([[[3, 3, 3], [1, 1, 0]], [[3, 3, 3], [3, 0, 0]]], dtype=torch.int32),
    )
    read = endings([batch.take(torch.tensor([4, 5])), batch.take(torch.tensor([0, 1, 2, 3]))], contexts, vocab=10)
    assert read.contexts[:, 0, 0, 0].tolist() == [7, 67, 567]
    assert read.contexts[:, 0, 1, 0].tolist() == [5, -1, -1]
    assert [len(each) for each in read.usual] == [9, 6, 3]
    found = patterns(read)
    assert found.ends == ("top",)
    assert found.ending[:, 0, 0].tolist() == [7, 67, 127]  # of three endings of one each the lowest
    assert found.discover[:, 0, 0].tolist() == pytest.approx([1, 2 / 3, 1 / 3])
    assert found.confirm[:, 0, 0].tolist() == pytest.approx([2 / 3, 2 / 3, 0])
    assert found.usual[:, 0, 0].tolist() == pytest.approx([2 / 9, 2 / 6, 1 / 4])
    assert found.other[:, 0, 0].tolist() == [0, 0, 0]
    assert found.p[:2, 0, 0].tolist() == pytest.approx([scipy.stats.binom.sf(1, 3, 2 / 9), scipy.stats.binom.sf(1, 3, 1 / 3)])
    assert found.p[2, 0, 0] == 1
    assert found.ending[:, 0, 1].tolist() == [4, -1, -1]
    assert found.p[1:, 0, 1].isnan().all()
    assert (found.q[~found.q.isnan()] >= found.p[~found.p.isnan()]).all()


def test_a_vocabulary_too_large_to_number_is_refused() -> None:
    batch = windows([[1, 2, 3]], [0])
    with pytest.raises(Refusal, match="endings of 5 tokens"):
        endings([batch], contexts_at([[[0]], [[0]]], signed=False), vocab=50_000, longest=5)
