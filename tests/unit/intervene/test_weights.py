"""Weight edits: what they do to the model's outputs, what else they change, and that nothing is left of them."""

import pytest
import torch

from microtome.core import Refusal, Site, WeightAddress
from microtome.intervene import Edit, RankOne, Set, SetVector, edited, reweighted
from microtome.model import Model, capture, forward, wrap
from tests.unit.model.tiny import batch_for, built


def own(name: str) -> Model:
    """A model of the test's own: others share theirs."""
    return wrap(built(name), name=name)


def bits(model: Model) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.module.parameters()]


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "opt"])
def test_a_unit_writes_what_it_is_told_to_and_the_undo_is_bitwise(name: str) -> None:
    model = own(name)
    batch, before = batch_for(model), bits(model)
    act, out = Site("mlp_act", 1), Site("mlp_out", 1)
    clean = capture(model, batch, [act, out])
    old, new = model.weights.get("W_out", 1)[5].clone(), torch.arange(16.0) / 16
    with reweighted(model, [SetVector(WeightAddress.parse("W_out.1/5"), new)]) as touched:
        assert touched == ("W_out.1",)
        changed = capture(model, batch, [out])[out]
    torch.testing.assert_close(changed - clean[out], clean[act].reshape(2, 7, -1)[..., 5:6] * (new - old), atol=1e-5, rtol=1e-4)
    assert all(torch.equal(one, other) for one, other in zip(before, bits(model), strict=True))


def test_a_gate_reads_what_it_is_told_to() -> None:
    model = own("llama")
    batch, site = batch_for(model), Site("mlp_pre", 0)
    read = capture(model, batch, [Site("mlp_in", 0)])[Site("mlp_in", 0)].clone()
    vector = torch.linspace(-1, 1, 16)
    with reweighted(model, [SetVector(WeightAddress.parse("W_gate.0/3"), vector)]):
        torch.testing.assert_close(capture(model, batch, [site])[site][..., 3], read @ vector, atol=1e-5, rtol=1e-4)


def test_a_rank_one_change_adds_an_outer_product_and_errors_leave_nothing_behind() -> None:
    model = own("gpt2")
    batch, before = batch_for(model), bits(model)
    left, right = torch.linspace(0, 1, 64), torch.linspace(1, -1, 16)
    weight = model.weights.get("W_out", 2).clone()
    with reweighted(model, [RankOne("W_out", 2, left, right)] * 2):
        torch.testing.assert_close(model.weights.get("W_out", 2), weight + 2 * torch.outer(left, right))
    edit = Edit(Site("resid_post", 1), Set(torch.zeros(3)))
    with pytest.raises(Refusal), reweighted(model, [RankOne("W_out", 2, left, right)]), edited(model, batch, [edit]):
        forward(model, batch)
    bad = [RankOne("W_out", 2, left, right), RankOne("W_out", 1, left, right / 0)]
    with pytest.raises(Refusal, match=r"changing W_out.1: it makes NaN or infinity"), reweighted(model, bad):
        pass
    assert all(torch.equal(one, other) for one, other in zip(before, bits(model), strict=True))


def test_tied_and_shared_weights_are_named() -> None:
    tied = own("gpt2")
    with reweighted(tied, [SetVector(WeightAddress.parse("W_E/7"), torch.ones(16))]) as touched:
        assert touched == ("W_E", "W_U")
        assert torch.equal(tied.weights.get("W_U")[:, 7], torch.ones(16))
    shared = own("albert")
    with reweighted(shared, [SetVector(WeightAddress.parse("W_out.0/2"), torch.ones(16))]) as touched:
        assert touched == ("W_out.0", "W_out.1")
    fused = own("gpt_neox")
    shape = fused.weights.get("W_Q", 1).shape
    with reweighted(fused, [SetVector(WeightAddress.parse("W_Q.1.0/2"), torch.ones(shape[2]))]) as touched:
        assert touched == ("W_Q.1",)


def test_bad_weight_edits_are_refused() -> None:
    model = own("llama")
    vector = torch.ones(16)
    for address, given, why in (
        ("W_out.1/24", vector, "name a vector that is there"),
        ("W_out.1/2", torch.ones(5), "give one as wide"),
        ("W_in.1/2", vector, "weight W_in.1 of llama"),
        ("W_out.9/2", vector, "it exists once per layer"),
    ):
        with pytest.raises(Refusal, match=why), reweighted(model, [SetVector(WeightAddress.parse(address), given)]):
            pass
    with (
        pytest.raises(Refusal, match="give vectors of its two sizes"),
        reweighted(model, [RankOne("W_out", 1, vector, vector)]),
    ):
        pass
