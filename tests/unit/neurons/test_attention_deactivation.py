"""Units and the first token's key: directions against the model's own scores, a planted unit, and what its removal does."""

import pytest
import torch
from torch import Tensor

from microtome.core import Batch, Refusal, Role, Site, UnitAddress
from microtome.model import Model, capture, wrap
from microtome.neurons.attention_deactivation import (
    Wanted,
    as_much,
    attention_changes,
    deactivation,
    first_token_heads,
)
from tests import toys
from tests.unit.model.tiny import built, opened

FIRST, CONTENT = int(Role.FIRST), int(Role.CONTENT)


def batch(windows: int = 6, tokens: int = 10) -> Batch:
    ids = torch.randint(5, 50, (windows, tokens), generator=torch.Generator().manual_seed(0))
    roles = torch.full(ids.shape, CONTENT, dtype=torch.uint8)
    roles[:, 0] = FIRST
    index = torch.arange(windows)
    return Batch(ids, roles, index, index, index * 0, index.to(torch.uint8) * 0, index * 0, {})


def scores_by_direction(model: Model, one: Batch, layer: int, place: int, wanted: Wanted) -> tuple[Tensor, Tensor]:
    """Scaled products of a query's normed stream with each head's direction, and the model's own scores of that query."""
    heads = first_token_heads(model, [one], [layer], wanted=wanted, distances=range(place, place + 1))
    assert heads.queries.tolist() == [len(one.ids)] * model.shape.heads
    sites = Site("resid_pre", layer), Site("attn_scores", layer)
    stream, scores = (capture(model, one, sites)[site] for site in sites)
    x = stream[0, place]
    if model.weights.has("attn_norm", layer):
        norm = model.weights.norm("attn_norm", layer)
        centred = x - x.mean() if norm.kind == "layer" else x
        x = x / (centred.square().mean() + norm.eps).sqrt()
    return heads.direction @ x * model.shape.d_head**-0.5, scores[0, :, place]


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "gpt_neox"])
@pytest.mark.parametrize("wanted", ["key", "key less others"])
def test_a_state_has_the_score_that_its_product_with_the_direction_says(family: str, wanted: Wanted) -> None:
    model = wrap(built(family), name=family)
    for name, parameter in model.module.named_parameters():
        with torch.no_grad():
            if parameter.dim() == 1 and ("ln" in name or "norm" in name.lower()) and name.endswith("weight"):
                parameter.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(3))
            if name.endswith("bias"):
                parameter.zero_()  # a query's bias is no part of the product
    found, scores = scores_by_direction(model, batch(1), 1, 6, wanted)
    seen = scores[:, 1:7] if model.shape.causal else scores[:, 1:]
    expected = scores[:, 0] - (seen.mean(1) if wanted == "key less others" else 0.0)
    assert expected.abs().max() > 1e-5
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()) + 1e-7, rtol=1e-3)


def test_directions_are_means_over_queries_and_windows() -> None:
    model, given = opened("llama"), batch(3, 7)
    whole = first_token_heads(model, [given], [2])
    single = [
        first_token_heads(model, [given.alone(row)], [2], distances=range(place, place + 1))
        for row in range(3)
        for place in range(1, 7)
    ]
    assert torch.allclose(whole.direction, torch.stack([each.direction for each in single]).mean(0), atol=1e-6)
    attention = capture(model, given, [Site("attn_probs", 2)])[Site("attn_probs", 2)][:, :, 1:, 0].mean((0, 2))
    assert torch.allclose(whole.attention, attention.double(), atol=1e-6)
    assert (whole.windows, whole.queries.tolist()) == (3, [18] * 4)


def test_padding_is_no_key() -> None:
    model, given = opened("bert"), batch(1, 7)
    longer = batch(1, 11)
    longer.ids[:, :7], longer.roles[:, 7:] = given.ids, int(Role.PAD)
    one, other = (first_token_heads(model, [each], wanted="key less others") for each in (given, longer))
    assert torch.allclose(one.direction, other.direction, atol=1e-6)


def sunk() -> Batch:
    """Windows that all begin with one token."""
    given = batch(8, 12)
    given.ids[:, 0] = 4
    return given


def planted(size: float) -> Model:
    """A toy Llama in which nothing writes or reads coordinate 0 but units 3 and 4 of layer 0, up and down, and head 1 of layer 2.

    What that head's queries make of coordinate 0 is the first token's key less that of others, in planes that turn slowly. Unit 5 writes nothing,
    unit 6 as much as 3 elsewhere.
    """
    module = toys.llama()
    model, slow = wrap(module, toys.decoder_tokenizer()), torch.tensor([0.0, 1, 1, 1, 0, 1, 1, 1])
    layers = module.model.layers
    with torch.no_grad():
        module.model.embed_tokens.weight[:, 0] = 0
        for layer in layers:
            layer.self_attn.o_proj.weight[0] = layer.mlp.down_proj.weight[0] = 0
            for read in (*(getattr(layer.self_attn, f"{name}_proj") for name in "qkv"), layer.mlp.gate_proj, layer.mlp.up_proj):
                read.weight[:, 0] = 0
        out = layers[0].mlp.down_proj.weight
        out[:, 3:6], out[0, 3], out[0, 4] = 0.0, size, -size
        out[:, 6] *= size / out[:, 6].norm()
        keys = capture(model, sunk(), [Site("k", 2)])[Site("k", 2)][:, :, 0]
        layers[2].self_attn.q_proj.weight[8:16, 0] = 3 * slow * (keys[:, 0].mean(0) - keys[:, 1:].mean((0, 1)))
    return model


@pytest.mark.parametrize("wanted", ["key", "key less others"])
def test_a_planted_unit_is_found_with_its_head_and_side(wanted: Wanted) -> None:
    model = planted(0.5)
    heads = first_token_heads(model, [sunk()], wanted=wanted)
    first, second = deactivation(model.weights, heads, draws=2000)
    assert (first.layer, second.layer) == (0, 1)
    assert first.cosine.shape == (40, 8)
    assert second.cosine.shape == (40, 4)
    assert first.cosine[3, 5] > 0.8
    assert float(first.cosine[4, 5]) == pytest.approx(-float(first.cosine[3, 5]))
    assert first.cosine[3:5, [0, 1, 2, 3, 4, 6, 7]].abs().max() < 1e-6, "no other head reads the coordinate"
    assert [heads.number[first.later[first.strongest[unit]]].item() for unit in (3, 4)] == [1, 1]
    assert first.towards[3] > 0 > first.towards[4]
    assert set(first.strength.nan_to_num(0).topk(2).indices.tolist()) == {3, 4}
    assert first.p[5].isnan()
    assert float(first.p[3]) < 0.01


def test_random_units_are_not_found() -> None:
    model = wrap(toys.llama(), toys.decoder_tokenizer())
    heads = first_token_heads(model, [batch(8, 12)])
    found = deactivation(model.weights, heads, draws=1000)
    p = torch.cat([each.p for each in found])
    assert 0.3 < float(p.mean()) < 0.7
    assert all(float(each.q.min()) > 0.05 for each in found)
    assert all(abs(float(each.strength.mean()) - each.control) < 0.3 for each in found)


def test_removing_the_planted_unit_gives_attention_back() -> None:
    model, units = planted(0.1), [UnitAddress("neurons", unit, layer=0) for unit in (3, 4, 5, 6)]
    found = attention_changes(model, [sunk()], (2, 1), units)
    assert found.change.shape == (8, 4)
    assert not bool(found.change[:, 2].any()), "it writes nothing"
    sign = found.activation.sign()
    assert (found.when_active[:, 0] * sign[:, 0] < 0).all(), "what it held there is given back"
    assert (found.when_active[:, 1] * sign[:, 1] > 0).all()
    size = found.when_active.abs().mean(0)
    assert size[:2].min() > 2 * size[3], "a unit that writes as much elsewhere does less"
    probs = capture(model, sunk(), [Site("attn_probs", 2)])[Site("attn_probs", 2)][:, 1, 1:, 0]
    assert torch.allclose(found.attention, probs.double().mean(1), atol=1e-6)


def test_a_unit_set_to_what_it_is_changes_nothing_and_the_first_token_is_left_alone() -> None:
    model, one = planted(0.5), batch(1, 2)
    act = capture(model, one, [Site("mlp_act", 0)])[Site("mlp_act", 0)]
    unit = UnitAddress("neurons", 3, layer=0)
    same = attention_changes(model, [one], (2, 1), [unit], values=[float(act[0, 1, 3])])
    assert float(same.change.abs().max()) < 1e-6
    assert abs(float(act[0, 0, 3] - act[0, 1, 3])) > 1e-3
    assert float(same.activation) == pytest.approx(float(act[0, 1, 3]))


def test_norms_on_the_way_are_folded_in_a_post_norm_model() -> None:
    model = wrap(built("bert"))
    with torch.no_grad():
        for name, parameter in model.module.named_parameters():
            if "LayerNorm.weight" in name:
                parameter.uniform_(0.2, 3.0, generator=torch.Generator().manual_seed(len(name)))
    heads = first_token_heads(model, [batch()])
    found = deactivation(model.weights, heads, [0])[0]
    rows = model.weights.get("W_out", 0)
    for name, layer in (("mlp_norm_post", 0), ("attn_norm_post", 1), ("mlp_norm_post", 1)):
        rows = (rows - rows.mean(1, keepdim=True)) * model.weights.norm(name, layer).gain
    last = heads.direction[heads.layer == 2]
    ratio = (rows @ last.T) / found.cosine[:, found.later >= 8]
    # same products but for the lengths of the two vectors, which are a factor by unit and one by head
    assert torch.allclose(ratio / ratio[:1] / ratio[:, :1] * ratio[0, 0], torch.ones_like(ratio), rtol=2e-2)


def test_units_that_write_as_much() -> None:
    size = torch.tensor([1.0, 5.0, 2.0, 1.9, 2.2])
    assert as_much(size, 2, 2).tolist() == [3, 4]
    assert as_much(size, 2, 9, taken=[3]).tolist() == [4, 0, 1]


def test_refusals() -> None:
    model = opened("llama")
    unit = UnitAddress("neurons", 0, layer=2)
    with pytest.raises(Refusal, match="attention without a unit"):
        attention_changes(model, [batch()], (2, 0), [unit])
    with pytest.raises(Refusal, match="directions of first tokens"):
        first_token_heads(model, [batch(2, 1)])
    heads = first_token_heads(model, [batch()])
    with pytest.raises(Refusal, match="heads turned off by units"):
        deactivation(opened("mixtral").weights, heads)
