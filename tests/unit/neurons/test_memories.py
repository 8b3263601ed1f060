"""Values that say what follows: known of planted dictionaries, whose every unit fires at a word and writes the next."""

from dataclasses import replace

import pytest
import torch

from microtome.capture import fold_batch
from microtome.core import Batch, Half, Refusal, Role
from microtome.corpus import prompt_batch
from microtome.examples import Contexts, UnitSurvey
from microtome.model import Model
from microtome.neurons import Neurons
from microtome.neurons.memories import Agreement, agreement_share, most_confident, value_agreement, value_tokens
from microtome.readout import output_reader
from tests.toys import toy_encoder
from tests.unit.model.tiny import opened
from tests.unit.neurons.planted_models import GATED, KINDS, Kind, dictionary_model, following

WORDS, DEAD = 12, 4
ALL = list(range(WORDS))


def circle(model: Model) -> Batch:
    """Windows that go round the dictionary, each from another word, in the confirm half; its special words are words like others."""
    words = model.tokenizer.convert_ids_to_tokens(list(range(WORDS)))
    texts = [" ".join(words[(start + place) % WORDS] for place in range(WORDS + 3)) for start in range(2, 6)]
    batch = prompt_batch(model.tokenizer, texts)
    roles = torch.where(batch.roles == Role.SPECIAL, int(Role.CONTENT), batch.roles).to(torch.uint8)
    return replace(batch, roles=roles, half=torch.full_like(batch.half, int(Half.CONFIRM)))


def contexts_of(model: Model, batch: Batch, layer: int = 0) -> Contexts:
    fold = UnitSurvey(Neurons(layer, model.shape.d_mlp), k=3, neighbours=2)
    states = {"survey": fold.init()}
    fold_batch(model, batch, {"survey": fold}, states)
    return fold.result(states["survey"]).contexts


def agreement_of(model: Model, contexts: Contexts | None = None) -> Agreement:
    reader = output_reader(model.weights)
    found = contexts_of(model, circle(model)) if contexts is None else contexts
    return value_agreement(model, found, value_tokens(model, 0, reader), reader, draws=200)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_dictionary_agrees_with_what_follows_and_its_dead_units_are_not_tried(kind: Kind, dtype: torch.dtype) -> None:
    model = dictionary_model(kind, words=WORDS, dead=DEAD, dtype=dtype)
    found = agreement_of(model)
    assert (found.following >= 0).nonzero()[:, 0].tolist() == ALL
    assert found.token[ALL].tolist() == [following(word) for word in ALL] == found.following[ALL].tolist()
    assert found.token[WORDS:].tolist() == [-1] * DEAD
    assert (found.share, found.median_rank) == (1.0, 0.0)
    assert found.chance == pytest.approx(1 / WORDS)
    assert found.p == pytest.approx(1 / 201)


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_token_off_by_one_agrees_with_nothing(shift: int) -> None:
    model = dictionary_model("relu")
    contexts = contexts_of(model, circle(model))
    moved = torch.where(contexts.following >= 0, (contexts.following + shift) % WORDS, -1)
    found = agreement_of(model, replace(contexts, following=moved))
    assert (found.tried, found.share) == (WORDS, 0.0)
    assert found.p == 1


@pytest.mark.parametrize("kind", GATED)
def test_the_spelling_of_a_gated_unit_changes_nothing(kind: Kind) -> None:
    plain, turned = (dictionary_model(kind) for _ in range(2))
    with torch.no_grad():
        for unit, factor in ((3, -1.0), (5, -4.0)):
            turned.weights.get("W_up", 0)[:, unit] *= factor
            turned.weights.get("W_out", 0)[unit] /= factor
    one, other = agreement_of(plain), agreement_of(turned)
    assert other.sign[3].item() == other.sign[5].item() == -1
    for name in ("following", "token", "rank"):
        assert torch.equal(getattr(one, name).nan_to_num(-1), getattr(other, name).nan_to_num(-1)), name
    assert torch.allclose(one.strength.nan_to_num(-1), other.strength.nan_to_num(-1))


def test_first_tokens_and_ranks_are_those_of_a_whole_product() -> None:
    model = opened("gemma2")
    reader = output_reader(model.weights, exclude=(0, 5))
    found = value_tokens(model, 1, reader)
    gain = model.weights.norm("mlp_norm_post", 1).gain.float()
    rows = model.weights.get("W_out", 1).float() * gain * model.weights.norm("final_norm").gain.float()
    scores = (rows @ model.weights.get("W_U").float()).detach().double()
    scores[:, [0, 5]] = torch.nan
    assert torch.equal(found.token[:, 0], scores.nan_to_num(-torch.inf).argmax(1))
    assert torch.equal(found.token[:, 1], scores.nan_to_num(torch.inf).argmin(1))
    kept = scores[:, ~scores.isnan().any(0)]
    strength = (kept.amax(1) - kept.mean(1)) / kept.std(1, unbiased=False)
    assert torch.allclose(found.strength[:, 0], strength, rtol=1e-4)


def test_chance_is_the_mean_over_exchanges_and_a_plain_example() -> None:
    one, other = torch.tensor([1, 1, 2, 3]), torch.tensor([1, 2, 2, 7])
    assert agreement_share(one, other) == pytest.approx((2 * 1 + 1 * 2) / 16)
    assert agreement_share(one[:0], other[:0]) != agreement_share(one[:0], other[:0])


def test_the_most_confident_are_counted_by_layer() -> None:
    found = agreement_of(dictionary_model("relu"))
    wrong = replace(found, token=(found.token + 1) % WORDS, strength=found.strength / 2)
    layers, share = most_confident([wrong, found], count=WORDS)
    assert (layers.tolist(), share) == ([0, WORDS], 1.0)
    layers, share = most_confident([wrong, found], count=100)
    assert (layers.tolist(), share) == ([WORDS] * 2, 0.5)


def test_no_trigger_leaves_nothing_defined() -> None:
    model = dictionary_model("relu")
    reader = output_reader(model.weights)
    contexts = contexts_of(model, circle(model))
    found = value_agreement(model, contexts, value_tokens(model, 0, reader), reader, half=Half.DISCOVER, draws=5)
    assert found.tried == 0
    assert all(value != value for value in (found.share, found.chance, found.p, found.median_rank))


def test_other_models_are_refused() -> None:
    encoder = toy_encoder()
    model = dictionary_model("relu")
    reader = output_reader(model.weights)
    contexts, values = contexts_of(model, circle(model)), value_tokens(model, 0, reader)
    with pytest.raises(Refusal, match="attends to the tokens that follow"):
        value_agreement(encoder, contexts, values, reader)
    with pytest.raises(Refusal, match="16 units, and the layer has 15"):
        value_agreement(model, contexts, replace(values, token=values.token[1:], strength=values.strength[1:]), reader)
    with pytest.raises(Refusal, match="router"):
        value_tokens(opened("mixtral"), 0, reader)
