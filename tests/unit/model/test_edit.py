"""Edits inside running models: what is edited, what is computed by hand afterwards, and what cannot be edited."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from microtome.core import Refusal, Site
from microtome.model import Model, capture, forward
from microtome.model.edit import Change, edit_hooks
from microtome.model.hooks import Hook, attached
from tests.unit.model.tiny import TINY, batch_for, opened


def answer(output: Any) -> Tensor:
    """Logits, or final states of a model without a head."""
    return next(value for value in output.values() if isinstance(value, Tensor))


def run(model: Model, changes: dict[Site, Change]) -> Tensor:
    batch = batch_for(model)
    with attached(edit_hooks(model, batch, changes)):
        return answer(forward(model, batch))


def seen(model: Model, site: Site, changes: dict[Site, Change]) -> Tensor:
    batch = batch_for(model)
    with attached(edit_hooks(model, batch, changes)):
        return capture(model, batch, [site])[site]


def shift(model: Model, site: Site, seed: int = 0) -> Tensor:
    """A random change of the size of the tensor at a site."""
    here = capture(model, batch_for(model), [site])[site]
    return torch.randn(here.shape, generator=torch.Generator().manual_seed(seed)) * 0.3


def rest_by_hand(model: Model, layer: int, states: Tensor) -> Tensor:
    """Final states from those that enter `layer`, block after block, each called as the model itself calls it."""
    calls: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = []
    blocks = {model.block(each) for each in range(model.shape.layers)}
    with attached([Hook(block, "in", lambda *call: calls.append(call)) for block in blocks]):
        forward(model, batch_for(model))
    assert len(calls) == model.shape.layers
    with torch.inference_mode():
        for block, args, kwargs in calls[layer:]:
            kwargs |= {name: None for name in kwargs if name == "past_key_values"}
            given = ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})
            out = block.forward(*given[0], **given[1])
            states = out if isinstance(out, Tensor) else out[0]
        for path in model.family.final:
            states = model.trunk.get_submodule(path)(states)
    return states


@pytest.mark.parametrize("name", sorted(TINY))
def test_an_edit_of_the_stream_equals_the_rest_of_the_model_by_hand(name: str) -> None:
    model = opened(name)
    bare = answer(forward(model, batch_for(model)))
    entering = capture(model, batch_for(model), [Site("resid_pre", 1)])[Site("resid_pre", 1)]
    delta = shift(model, Site("resid_pre", 1))
    expected = rest_by_hand(model, 1, entering + delta)
    for site in (Site("resid_pre", 1), Site("resid_post", 0)):
        final = seen(model, Site("final_norm"), {site: lambda value: value + delta})
        torch.testing.assert_close(final, expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(run(model, {site: lambda value: value + delta}), bare, atol=1e-3)
    assert torch.equal(run(model, {}), bare)
    assert torch.equal(run(model, {Site("resid_pre", 1): lambda value: value.clone()}), bare)
    assert torch.equal(answer(forward(model, batch_for(model))), bare)


@pytest.mark.parametrize("name", ["gpt2", "opt", "bloom", "phi", "gpt_neox", "llama", "gemma2", "mixtral", "vit", "dinov2"])
def test_what_branches_add_reaches_the_stream(name: str) -> None:
    model, layer = opened(name), 1
    after = Site("resid_post", layer)
    before = capture(model, batch_for(model), [after])[after]
    # in parallel blocks nothing of the layer reads what attention adds, in the others its MLP does
    for branch in ("attn_out_post", "mlp_out_post") if model.shape.norm == "parallel" else ("mlp_out_post",):
        delta = shift(model, after)
        edited = seen(model, after, {Site(branch, layer): lambda value, delta=delta: value + delta})
        torch.testing.assert_close(edited, before + delta, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "opt", "bert", "gpt_neox", "llama", "gemma2", "modernbert", "vit", "albert"])
def test_units_and_heads_are_edited_where_they_are_written(name: str) -> None:
    """A change of mlp_act or z moves mlp_out or attn_out by that change through W_out or W_O."""
    model, layer = opened(name), 1
    delta = shift(model, Site("mlp_act", layer))
    before = capture(model, batch_for(model), [Site("mlp_out", layer), Site("attn_out", layer)])
    edited = seen(model, Site("mlp_out", layer), {Site("mlp_act", layer): lambda value: value + delta})
    expected = before[Site("mlp_out", layer)] + delta @ model.weights.get("W_out", layer)
    torch.testing.assert_close(edited, expected, rtol=1e-4, atol=1e-5)
    turned = shift(model, Site("z", layer))
    edited = seen(model, Site("attn_out", layer), {Site("z", layer): lambda value: value + turned})
    expected = before[Site("attn_out", layer)] + torch.einsum("wthe,hed->wtd", turned, model.weights.get("W_O", layer))
    torch.testing.assert_close(edited, expected, rtol=1e-4, atol=1e-5)


def test_calls_of_a_shared_block_are_counted_anew_in_every_pass() -> None:
    model = opened("albert")
    batch, site = batch_for(model), Site("resid_post", 1)
    before = capture(model, batch, [Site("resid_post", 0), site])
    with attached(edit_hooks(model, batch, {site: torch.zeros_like})):
        capture(model, batch, [Site("resid_post", 0)])  # leaves the pass before the site comes
        for _ in range(2):
            after = capture(model, batch, [Site("resid_post", 0), site])
            assert torch.equal(after[Site("resid_post", 0)], before[Site("resid_post", 0)])
            assert not after[site].any()


def test_edits_at_one_place_follow_one_another() -> None:
    model = opened("gpt2")
    site, same = Site("attn_out", 1), Site("attn_out_post", 1)
    before = capture(model, batch_for(model), [site])[site]
    edited = seen(model, same, {same: lambda value: value * 3, site: lambda value: value + 1})
    torch.testing.assert_close(edited, (before + 1) * 3)


@pytest.mark.parametrize(
    ("name", "site", "why"),
    [
        ("llama", Site("resid_mid", 1), "other modules read the same tensor"),
        ("gpt2", Site("attn_in", 0), "other modules read the same tensor"),
        ("llama", Site("mlp_in", 0), "other modules read the same tensor"),
        ("llama", Site("q_rot", 0), "computed from several tensors"),
        ("bert", Site("attn_probs", 0), "computed from several tensors"),
        ("mixtral", Site("mlp_act", 0), "inside fused experts"),
        ("mixtral", Site("router_logits", 0), "which experts it chose"),
        ("gpt2", Site("pos_embed"), "serves all windows"),
        ("gpt2", Site("logits"), "nothing in it reads them"),
        ("gpt2", Site("q", 0), "a piece of it"),
        ("phi3", Site("mlp_pre", 0), "a piece of it"),
        ("vit", Site("embed"), "a piece of it"),
        ("phi", Site("resid_mid", 0), "no state lies between them"),
        ("gpt2", Site("resid_post", 9), "counted from 0"),
    ],
)
def test_what_cannot_be_edited_is_refused_with_the_reason(name: str, site: Site, why: str) -> None:
    with pytest.raises(Refusal, match=why):
        run(opened(name), {site: torch.zeros_like})


def test_an_edit_keeps_shape_and_dtype() -> None:
    site = Site("resid_post", 0)
    with pytest.raises(Refusal, match="keep shape and dtype"):
        run(opened("gpt2"), {site: lambda value: value[:, :1]})
    with pytest.raises(Refusal, match="keep shape and dtype"):
        run(opened("gpt2"), {site: lambda value: value.double()})
