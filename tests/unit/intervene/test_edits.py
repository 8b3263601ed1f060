"""Edits as values: sums by place and by token, composition, exact undo, refusals."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from microtome.core import Refusal, Site
from microtome.intervene import Add, Change, Edit, Scale, Set, edited, unit_edit
from microtome.model import capture, forward
from tests.unit.model.tiny import batch_for, opened

SITE = Site("resid_post", 1)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_vectors_are_added_by_token_or_by_place_and_edits_of_a_site_add_up() -> None:
    model = opened("gpt2")
    batch = batch_for(model, (7, 5))
    before = capture(model, batch, [SITE])[SITE].clone()
    mine, shared = drawn(2, 7, 16), drawn(7, 16, seed=1)
    assert isinstance(Add(mine), Change)
    with edited(model, batch, [Edit(SITE, Add(mine)), Edit(SITE, Add(shared))]):
        after = capture(model, batch, [SITE])[SITE]
    there = batch.roles > 0
    torch.testing.assert_close(after[there], (before + mine + shared[None])[there])
    assert torch.equal(after[~there], before[~there])


def test_edits_at_different_sites_act_together_and_nested_blocks_add_up() -> None:
    model = opened("llama")
    batch = batch_for(model)
    values, first = drawn(2, 7, 16), Site("resid_pre", 0)
    with edited(model, batch, [Edit(first, Add(values)), Edit(SITE, Add(values))]):
        together = forward(model, batch)["logits"]
    with edited(model, batch, [Edit(first, Add(values))]), edited(model, batch, [Edit(SITE, Add(values))]):
        assert torch.equal(forward(model, batch)["logits"], together)
    with edited(model, batch, [Edit(first, Add(values))]):
        assert not torch.equal(forward(model, batch)["logits"], together)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "mixtral", "gpt_neox", "gemma2"])
def test_undo_is_bitwise_even_after_an_error(name: str) -> None:
    model = opened(name)
    batch = batch_for(model)
    bare = forward(model, batch)["logits"]
    hooks = [(*module._forward_hooks, *module._forward_pre_hooks) for module in model.module.modules()]
    with edited(model, batch, []):
        assert torch.equal(forward(model, batch)["logits"], bare)
    with pytest.raises(Refusal, match="give one number"), edited(model, batch, [Edit(SITE, Add(drawn(3, 7, 16)))]):
        forward(model, batch)
    with edited(model, batch, [Edit(SITE, Add(drawn(2, 7, 16)))]):
        assert not torch.equal(forward(model, batch)["logits"], bare)
    assert torch.equal(forward(model, batch)["logits"], bare)
    assert hooks == [(*module._forward_hooks, *module._forward_pre_hooks) for module in model.module.modules()]


def test_half_precision_sums_are_rounded_as_the_model_s_own() -> None:
    model = opened("llama", torch.bfloat16)
    batch, values = batch_for(model), drawn(2, 7, 16)
    before = capture(model, batch, [SITE])[SITE]
    with edited(model, batch, [Edit(SITE, Add(values))]):
        assert torch.equal(capture(model, batch, [SITE])[SITE], before + values.bfloat16())


@dataclass(frozen=True)
class Does:
    """A change of a user."""

    does: Callable[[torch.Tensor], Any]

    def of(self, rows: torch.Tensor, chosen: object) -> Any:
        return self.does(rows)


@pytest.mark.parametrize(
    ("does", "why"),
    [
        (lambda rows: None, "its change makes NoneType of rows of shape"),
        (lambda rows: rows[:, :1], "return a number for each that is given"),
        (lambda rows: rows / 0, "it makes NaN or infinity"),
    ],
)
def test_a_change_that_is_none_or_makes_nan_is_refused(does: Callable[[torch.Tensor], Any], why: str) -> None:
    model = opened("llama")
    batch = batch_for(model)
    with pytest.raises(Refusal, match=why), edited(model, batch, [Edit(SITE, Does(does))]):
        forward(model, batch)


def test_a_change_that_writes_to_what_it_is_given_changes_nothing_else() -> None:
    model = opened("llama")
    batch = batch_for(model)
    with edited(model, batch, [Edit(SITE, Scale(0.0), units=[3])]):
        expected = forward(model, batch)["logits"]
    with edited(model, batch, [Edit(SITE, Does(lambda rows: rows.mul_(0)), units=[3])]):
        assert torch.equal(forward(model, batch)["logits"], expected)


def test_an_edit_names_a_site_and_units_that_are_there() -> None:
    with pytest.raises(Refusal, match="one is named twice"):
        Edit(SITE, Set(0.0), units=[1, 1])
    model = opened("llama")
    batch = batch_for(model)
    with pytest.raises(Refusal, match="there are units 0 to 15"), edited(model, batch, [Edit(SITE, Set(0.0), units=[16])]):
        forward(model, batch)


def test_a_unit_by_its_address() -> None:
    model = opened("llama")
    neuron, head = unit_edit(model, "neurons.1/5", Set(0.0)), unit_edit(model, "heads.2/3", Set(0.0))
    assert (str(neuron.site), list(neuron.units or ())) == ("mlp_act.1", [5])
    assert (str(head.site), list(head.units or ())) == ("z.2", [18, 19, 20, 21, 22, 23])
    for address in ("neurons.3/0", "neurons.1/24", "heads.0/4", "factors/1"):
        with pytest.raises(Refusal, match=f"an edit of {address}"):
            unit_edit(model, address, Set(0.0))


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "gemma2", "opt"])
def test_zero_ablation_takes_off_what_the_unit_writes(name: str) -> None:
    model = opened(name)
    batch = batch_for(model)
    act, out = Site("mlp_act", 1), Site("mlp_out", 1)
    clean = capture(model, batch, [act, out])
    with edited(model, batch, [unit_edit(model, "neurons.1/7", Set(0.0))]):
        changed = capture(model, batch, [out])[out]
    written = clean[act][..., 7:8].reshape(2, 7, 1) * model.weights.get("W_out", 1)[7]
    there = batch.roles > 0
    torch.testing.assert_close((clean[out] - changed)[there], written[there], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_patching_a_run_with_itself_changes_nothing(name: str) -> None:
    model = opened(name)
    batch = batch_for(model)
    bare = forward(model, batch)["logits"]
    sites = [Site("resid_post", 0), Site("z", 1), Site("mlp_act", 2)]
    held = {site: value.clone() for site, value in capture(model, batch, sites).items()}
    with edited(model, batch, [Edit(site, Set(value)) for site, value in held.items()]):
        assert torch.equal(forward(model, batch)["logits"], bare)


def test_heads_are_ablated_alone() -> None:
    model = opened("gpt2")
    batch = batch_for(model)
    z, out = Site("z", 0), Site("attn_out", 0)
    clean = capture(model, batch, [z, out])
    with edited(model, batch, [unit_edit(model, "heads.0/2", Set(0.0))]):
        changed = capture(model, batch, [out])[out]
    torch.testing.assert_close(clean[out] - changed, clean[z][:, :, 2] @ model.weights.get("W_O", 0)[2], atol=1e-6, rtol=1e-5)


def test_hidden_units_of_experts_cannot_be_edited() -> None:
    model = opened("mixtral")
    added = Edit(Site("mlp_act", 1), Add(1.0))
    with (
        pytest.raises(Refusal, match="inside fused experts, where no module passes it on"),
        edited(model, batch_for(model), [added]),
    ):
        pass
