"""What `observe` promises: only what is needed runs, nothing is copied or kept, hooks are gone afterwards."""

import gc
import weakref

import pytest
import torch
from torch import nn

from microtome.core import Refusal, Site
from microtome.model import Model, capture, forward, observe
from microtome.model.hooks import Hook, attached
from tests.unit.model.tiny import batch_for, opened


def _hooks(model: Model) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.module.modules())


def _calls(model: Model, sites: list[Site]) -> set[str]:
    """Names of the modules that run when `sites` are observed."""
    ran: set[str] = set()
    named = {module: name for name, module in model.module.named_modules()}

    def note(module: nn.Module, args: object, kwargs: object) -> None:
        ran.add(named[module])

    with attached([Hook(module, "in", note) for module in named]):
        observe(model, batch_for(model), sites, lambda site, value: None)
    return ran


def test_the_pass_ends_after_the_deepest_site() -> None:
    model = opened("llama")
    ran = _calls(model, [Site("mlp_pre", 1), Site("q", 0)])
    assert "model.layers.1.mlp.gate_proj" in ran
    assert not {"model.layers.1.mlp.down_proj", "model.layers.2", "model.norm", "lm_head"} & ran


def test_the_head_runs_only_for_logits() -> None:
    model = opened("gpt2")
    assert "lm_head" not in _calls(model, [Site("final_norm"), Site("resid_post", 2)])
    assert "lm_head" in _calls(model, [Site("logits")])


def test_tensors_arrive_in_order_of_computation_and_each_once() -> None:
    model = opened("llama")
    sites = [Site("logits"), Site("resid_post", 2), Site("z", 1), Site("embed"), Site("z", 1)]
    order: list[Site] = []
    observe(model, batch_for(model), sites, lambda site, value: order.append(site))
    assert order == [Site("embed"), Site("z", 1), Site("resid_post", 2), Site("logits")]


def test_tensors_are_the_model_s_own_not_copies() -> None:
    model = opened("llama")
    pointers: dict[str, int] = {}

    def note(module: nn.Module, args: object, output: torch.Tensor) -> None:
        pointers["up"] = output.data_ptr()

    def receive(site: Site, value: torch.Tensor) -> None:
        pointers[str(site)] = value.data_ptr()

    block = model.block(1)
    with attached([Hook(block.get_submodule("mlp.up_proj"), "out", note)]):
        observe(model, batch_for(model), [Site("mlp_pre_linear", 1), Site("resid_post", 1), Site("resid_pre", 2)], receive)
    assert pointers["up"] == pointers["mlp_pre_linear.1"]
    assert pointers["resid_post.1"] == pointers["resid_pre.2"]


def test_nothing_is_kept_after_a_tensor_was_received() -> None:
    model = opened("llama")
    alive: list[weakref.ref[torch.Tensor]] = []
    counts: list[int] = []

    def receive(site: Site, value: torch.Tensor) -> None:
        gc.collect()
        counts.append(sum(ref() is not None for ref in alive))
        alive.append(weakref.ref(value))

    observe(model, batch_for(model), [Site("attn_probs", layer) for layer in range(3)], receive)
    assert counts == [0, 0, 0]


def test_hooks_are_gone_afterwards_even_when_the_receiver_fails() -> None:
    model = opened("bert")
    before = _hooks(model)

    def fail(site: Site, value: torch.Tensor) -> None:
        raise RuntimeError(str(site))

    with pytest.raises(RuntimeError, match=r"resid_post\.0"):
        observe(model, batch_for(model), [Site("resid_post", 0)], fail)
    assert _hooks(model) == before
    capture(model, batch_for(model), [Site("resid_post", 0)])
    assert _hooks(model) == before


def test_inference_mode_is_on_in_the_pass() -> None:
    model = opened("llama")
    value = capture(model, batch_for(model), [Site("mlp_act", 0)])[Site("mlp_act", 0)]
    assert isinstance(value, torch.Tensor)
    assert value.is_inference()


def test_no_sites_means_no_pass() -> None:
    assert _calls(opened("llama"), []) == set()


def test_shared_blocks_are_told_apart_by_their_calls() -> None:
    model = opened("albert")
    assert model.block(0) is model.block(1)
    assert model.block(1) is not model.block(2)
    seen = capture(model, batch_for(model), [Site("resid_post", layer) for layer in range(4)])
    pre = capture(model, batch_for(model), [Site("resid_pre", layer) for layer in range(4)])
    for layer in range(3):
        assert torch.equal(seen[Site("resid_post", layer)], pre[Site("resid_pre", layer + 1)])
    assert not torch.equal(seen[Site("resid_post", 0)], seen[Site("resid_post", 1)])


@pytest.mark.parametrize(
    ("name", "site", "message"),
    [
        ("phi", Site("resid_mid", 1), "resid_mid.1 of phi: attention and MLP run in parallel"),
        ("llama", Site("pos_embed"), "pos_embed of llama: positions enter by rotating queries and keys"),
        ("bloom", Site("pos_embed"), "positions enter as ALiBi"),
        ("gpt2", Site("mlp_pre_linear", 0), "the MLP has no gate"),
        ("gpt2", Site("router_logits", 0), "there is no router"),
        ("bert-headless", Site("logits"), "opened without a head"),
        ("albert", Site("embed"), "fewer coordinates than the stream"),
        ("llama", Site("resid_post", 3), "the model has 3 layers, counted from 0; use resid_post.2"),
    ],
)
def test_absent_sites_are_refused_with_the_reason(name: str, site: Site, message: str) -> None:
    model = opened(name)
    with pytest.raises(Refusal) as refusal:
        capture(model, batch_for(model), [Site("resid_pre", 0), site])
    assert message in str(refusal.value)


def test_a_hook_that_returns_something_replaces_what_passes() -> None:
    model = opened("llama")
    batch = batch_for(model)
    before = forward(model, batch).logits
    norm = model.trunk.norm
    with attached([Hook(norm, "out", lambda module, args, output: output * 2)]):
        doubled = forward(model, batch).logits
    torch.testing.assert_close(doubled, before * 2)
    with attached([Hook(model.module.lm_head, "in", lambda module, args, kwargs: ((args[0] * 3,), kwargs))]):
        torch.testing.assert_close(forward(model, batch).logits, before * 3)
    assert torch.equal(forward(model, batch).logits, before)


def test_a_batch_that_is_somewhere_else_is_refused() -> None:
    model = opened("gpt2")
    with pytest.raises(Refusal, match=r"a batch on meta: gpt2\S* is on cpu; move it there: batch.to\(model.device\)"):
        capture(model, batch_for(model).to("meta"), [Site("resid_post", 0)])
