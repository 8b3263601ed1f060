"""The lens ends in the model's own answer, units are told by what they add, and a text that cannot be read is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from microtome.core import Refusal, Site, UnitAddress
from microtome.live import Clock, Loaded, Overdue, attention, largest_of, look, predicts, read_text, spelt
from microtome.model import Model, capture, forward
from tests import toys
from tests.unit.factors.test_steering import SITES, dictionary
from tests.unit.model.tiny import TINY, batch_for, opened

TEXT = [name for name in TINY if not name.startswith(("vit", "dinov2"))]
SENTENCE = "The river holds the stone. The teacher finds the letter."


@pytest.fixture(scope="module", params=["decoder", "encoder"])
def model(request: pytest.FixtureRequest) -> Model:
    return toys.toy_decoder() if request.param == "decoder" else toys.toy_encoder()


@pytest.mark.parametrize("name", TEXT)
def test_the_last_site_says_what_the_model_says(name: str) -> None:
    model = opened(name)
    batch = batch_for(model, (7,))
    found = look(Loaded(model), batch).lens
    if predicts(model) == "nothing":
        assert found is None
        return
    assert found is not None
    output = forward(model, batch)
    logits = (output.prediction_logits if name == "bert-pretraining" else output.logits)[0].float()
    chances = logits.softmax(1)
    top = logits.topk(5, dim=1)
    assert torch.equal(found.top[-1], top.indices)
    torch.testing.assert_close(found.probability[-1], chances.gather(1, top.indices))
    torch.testing.assert_close(found.entropy[-1], -(chances * chances.log()).sum(1))
    last = found.rank.shape[1] - (predicts(model) == "next")
    target = (batch.ids[0].roll(-1) if predicts(model) == "next" else batch.ids[0])[:last, None]
    torch.testing.assert_close(found.target[-1, :last], chances[:last].gather(1, target)[:, 0])
    ranked = logits[:last].argsort(1, descending=True).gather(1, found.rank[-1, :last, None])
    assert torch.equal(ranked, target)
    assert (found.rank[:, last:] == -1).all()
    assert torch.isnan(found.target[:, last:]).all()


def test_neurons_are_in_order_of_what_they_add(model: Model) -> None:
    batch = read_text(model, SENTENCE)
    sites = [Site("mlp_act", layer) for layer in range(model.shape.layers)]
    names = ("mlp_out", "resid_mid") if model.shape.norm == "post" else ()
    seen = capture(model, batch, [*sites, *(Site(name, layer) for name in names for layer in range(model.shape.layers))])
    sizes = []
    for layer, site in enumerate(sites):
        rows = model.weights.get("W_out", layer)
        if names:  # the vectors as the norm behind the block leaves them, its division that of the token
            whole = (seen[Site("mlp_out", layer)] + seen[Site("resid_mid", layer)])[0]
            norm = model.weights.norm("mlp_norm_post", layer)
            rows = (rows - rows.mean(1, keepdim=True)) * norm.gain
            scale = (whole.var(1, unbiased=False) + norm.eps).rsqrt()[:, None]
        else:
            scale = 1.0
        sizes.append(seen[site][0].abs() * rows.norm(dim=1) * scale)
    best = torch.cat(sizes, 1).topk(10, dim=1)
    found = look(Loaded(model), batch).neurons
    torch.testing.assert_close(found.size, best.values)
    width = model.shape.d_mlp
    for token in range(batch.ids.shape[1]):
        units = [found.units[index] for index in found.index[token]]
        assert units == [f"neurons.{place // width}/{place % width}" for place in best.indices[token].tolist()]
        for unit, value in zip(units, found.value[token].tolist(), strict=True):
            address = UnitAddress.parse(unit)
            assert value == pytest.approx(float(seen[Site("mlp_act", address.layer)][0, token, address.index]), rel=1e-5)


def test_heads_are_told_by_the_length_of_what_they_add() -> None:
    model = toys.toy_decoder()
    batch = read_text(model, SENTENCE)
    z = [Site("z", layer) for layer in range(3)]
    seen = capture(model, batch, z)
    sizes = torch.cat(
        [torch.einsum("the,hed->thd", seen[site][0], model.weights.get("W_O", site.layer)).norm(dim=2) for site in z], 1
    )
    found = look(Loaded(model), batch).heads
    torch.testing.assert_close(found.size, sizes.topk(10, dim=1).values)


def test_neurons_near_their_largest_are_those_of_the_largest_share() -> None:
    model = toys.toy_decoder()
    batch = read_text(model, SENTENCE)
    rows = [(layer, -1, index, 0.5 + index, -100.0) for layer in range(3) for index in range(40)]
    largest = largest_of(*(np.array(column) for column in zip(*rows, strict=True)))
    seen = capture(model, batch, [Site("mlp_act", layer) for layer in range(3)])
    acts = torch.stack([seen[site][0] for site in sorted(seen)], 1)
    ends = torch.where(acts >= 0, torch.arange(40) + 0.5, 100.0)
    shares = (acts.abs() / ends).clamp(max=2.0).flatten(1)
    found = look(Loaded(model), batch, largest=largest).near
    torch.testing.assert_close(found.size, shares.topk(10, dim=1).values)
    assert look(Loaded(model), batch).near.units == ()


def test_factors_are_seen_at_each_site_with_their_largest_codes(model: Model) -> None:
    toy, batch = dictionary(model.shape.d_model), read_text(model, SENTENCE)
    seen = capture(model, batch, SITES)
    found = look(Loaded(model), batch, [toy]).factors
    for token in range(batch.ids.shape[1]):
        told = {
            found.units[index]: (value, size)
            for index, value, size in zip(
                *(each[token].tolist() for each in (found.index, found.value, found.size)), strict=True
            )
            if index >= 0
        }
        for place, site in enumerate(SITES):
            codes = toy.encode({site: seen[site][0, token]})
            best = codes.topk(5)
            for code, unit in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                if code > 0:
                    assert told.pop(f"factors@toy/{unit}@{site}") == pytest.approx((code, code * (place + 2)), rel=1e-4)
        assert not told, "no more than five of each site"


def test_attention_is_of_a_layer_and_sums_to_one(model: Model) -> None:
    batch = read_text(model, SENTENCE)
    found = attention(Loaded(model), batch, 1)
    assert torch.equal(found, capture(model, batch, [Site("attn_probs", 1)])[Site("attn_probs", 1)][0])
    torch.testing.assert_close(found.sum(2), torch.ones(found.shape[:2]))
    with pytest.raises(Refusal, match="attention of layer 3"):
        attention(Loaded(model), batch, 3)


@pytest.mark.parametrize(
    ("text", "why"),
    [("", "no token"), ("river " * 300, "at most 64 are read by toy-llama"), ("x" * 5000, "tokens, and at most")],
)
def test_a_text_that_cannot_be_read_is_refused(text: str, why: str) -> None:
    with pytest.raises(Refusal, match=why):
        read_text(toys.toy_decoder(), text)


def test_a_text_of_as_many_tokens_as_may_be_is_read() -> None:
    model = toys.toy_decoder()
    count = read_text(model, SENTENCE).ids.shape[1]
    assert read_text(model, SENTENCE, count).ids.shape[1] == count
    with pytest.raises(Refusal, match=f"it has {count} tokens, and at most {count - 1} are read here"):
        read_text(model, SENTENCE, count - 1)


@pytest.mark.parametrize("text", ["naïve 😀 日本", "\x00\u202e\u200b<script>", SENTENCE])
def test_pieces_spell_the_text_each_character_once(text: str) -> None:
    model = toys.toy_decoder()
    found = model.tokenizer.backend_tokenizer.encode(text)
    assert "".join(spelt(Loaded(model).texts, found.ids, text, found.offsets)) == text


def test_a_run_ends_when_its_time_is_over(model: Model) -> None:
    batch = read_text(model, SENTENCE)
    with pytest.raises(Overdue, match="longer than 0 seconds"):
        look(Loaded(model), batch, clock=Clock(0.0))
    with pytest.raises(Overdue):
        attention(Loaded(model), batch, 1, Clock(0.0))


def test_a_dictionary_of_another_model_is_refused(model: Model) -> None:
    other = replace(dictionary(model.shape.d_model), model="another")
    with pytest.raises(Refusal, match="states of another model"):
        look(Loaded(model), read_text(model, SENTENCE), [other])
