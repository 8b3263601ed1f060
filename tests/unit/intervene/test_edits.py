"""Edits as values: sums by place and by token, composition, exact undo, refusals."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from microtome.core import Refusal, Site
from microtome.intervene import Add, Edit, edited
from microtome.model import capture, forward
from tests.unit.model.tiny import batch_for, opened

SITE = Site("resid_post", 1)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_vectors_are_added_by_token_or_by_place_and_edits_of_a_site_add_up() -> None:
    model = opened("gpt2")
    batch = batch_for(model, (7, 5))
    before = capture(model, batch, [SITE])[SITE]
    mine, shared = drawn(2, 7, 16), drawn(7, 16, seed=1)
    assert isinstance(Add(SITE, mine), Edit)
    with edited(model, batch, [Add(SITE, mine), Add(SITE, shared)]):
        after = capture(model, batch, [SITE])[SITE]
    torch.testing.assert_close(after, before + mine + shared[None])


def test_edits_at_different_sites_act_together_and_nested_blocks_add_up() -> None:
    model = opened("llama")
    batch = batch_for(model)
    values, first = drawn(2, 7, 16), Site("resid_pre", 0)
    with edited(model, batch, [Add(first, values), Add(SITE, values)]):
        together = forward(model, batch)["logits"]
    with edited(model, batch, [Add(first, values)]), edited(model, batch, [Add(SITE, values)]):
        assert torch.equal(forward(model, batch)["logits"], together)
    with edited(model, batch, [Add(first, values)]):
        assert not torch.equal(forward(model, batch)["logits"], together)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "mixtral", "gpt_neox", "gemma2"])
def test_undo_is_bitwise_even_after_an_error(name: str) -> None:
    model = opened(name)
    batch = batch_for(model)
    bare = forward(model, batch)["logits"]
    hooks = [(*module._forward_hooks, *module._forward_pre_hooks) for module in model.module.modules()]
    with edited(model, batch, []):
        assert torch.equal(forward(model, batch)["logits"], bare)
    with pytest.raises(Refusal, match="give one vector"), edited(model, batch, [Add(SITE, drawn(3, 7, 16))]):
        forward(model, batch)
    with edited(model, batch, [Add(SITE, drawn(2, 7, 16))]):
        assert not torch.equal(forward(model, batch)["logits"], bare)
    assert torch.equal(forward(model, batch)["logits"], bare)
    assert hooks == [(*module._forward_hooks, *module._forward_pre_hooks) for module in model.module.modules()]


def test_half_precision_sums_are_rounded_as_the_model_s_own() -> None:
    model = opened("llama", torch.bfloat16)
    batch, values = batch_for(model), drawn(2, 7, 16)
    before = capture(model, batch, [SITE])[SITE]
    with edited(model, batch, [Add(SITE, values)]):
        assert torch.equal(capture(model, batch, [SITE])[SITE], before + values.bfloat16())


def test_an_edit_that_makes_nan_is_refused_where_it_is_made() -> None:
    with pytest.raises(Refusal, match="it adds NaN or infinity"):
        Add(SITE, torch.tensor([[[float("nan")]]]))


@dataclass(frozen=True)
class Given:
    """An edit of a user: any site, any change."""

    site: Any
    does: Callable[[torch.Tensor], Any]

    def change(self, value: torch.Tensor, batch: object) -> Any:
        return self.does(value)


@pytest.mark.parametrize(
    ("does", "why"),
    [
        (lambda value: None, "an edit at resid_post.1: its change is NoneType; return a tensor from change"),
        (lambda value: value.mul_(0), "it writes to the tensor that it is given"),
        (lambda value: value.clone() + 0 * value.add_(1), "it writes to the tensor that it is given"),
        (lambda value: value[:, :1], "keep shape and dtype"),
    ],
)
def test_a_change_that_is_none_or_in_place_is_refused(does: Callable[[torch.Tensor], Any], why: str) -> None:
    model = opened("llama")
    batch = batch_for(model)
    with pytest.raises(Refusal, match=why), edited(model, batch, [Given(SITE, does)]):
        forward(model, batch)


def test_an_edit_names_a_site_and_no_word() -> None:
    model = opened("llama")
    why = r"an edit at 'resid_post.1': its site is no Site; use Site.parse"
    with pytest.raises(Refusal, match=why), edited(model, batch_for(model), [Given("resid_post.1", lambda value: value)]):
        pass


def test_hidden_units_of_experts_cannot_be_edited() -> None:
    model = opened("mixtral")
    added = Add(Site("mlp_act", 1), torch.zeros(2, 7, 24))
    with (
        pytest.raises(Refusal, match="inside fused experts, where no module passes it on"),
        edited(model, batch_for(model), [added]),
    ):
        pass
