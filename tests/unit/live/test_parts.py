"""A state is the sum of its parts, in every family; a logit is the sum of what they add to it, where the head is linear."""

from typing import Any

import pytest
import torch

from microtome.core import Refusal, Site
from microtome.live import Decomposition, Loaded, decompose, predicts
from microtome.model import capture, unembed
from tests import toys
from tests.unit.model.tiny import TINY, batch_for, opened

TEXT = [name for name in TINY if not name.startswith(("vit", "dinov2"))]
TRANSFORMED = ("bert", "roberta", "distilbert", "electra", "albert", "modernbert")
"""Heads that pass the state through a layer of their own."""


def taken_apart(name: str, place: int, **how: Any) -> tuple[Loaded, torch.Tensor, Decomposition]:
    """A family's model, the state at the token, and its parts."""
    model = opened(name)
    batch, site = batch_for(model, (7,)), Site("resid_post", how.get("layer", model.shape.layers - 1))
    return Loaded(model), capture(model, batch, [site])[site][0, place].double(), decompose(Loaded(model), batch, place, **how)


@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize("inside", [None, 1])
def test_parts_sum_to_the_state_and_to_the_logit(name: str, inside: int | None) -> None:
    how = {} if inside is None else {"inside": inside}
    loaded, state, found = taken_apart(name, 4, **how)
    assert found.length == pytest.approx(float(state.norm()), rel=1e-6)
    assert sum(part.share for part in found.parts) == pytest.approx(1, abs=1e-6)
    (rounding,) = (part for part in found.parts if part.kind == "rounding")
    assert rounding.length < 1e-5 * found.length
    opened_units = {part.kind for part in found.parts} & {"head", "neuron", "rest"}
    assert opened_units == (set() if inside is None else {"head", "neuron", "rest"})
    kinds = [part.kind for part in found.parts]
    assert kinds.count("attention") == kinds.count("feed-forward") == loaded.model.shape.layers - (inside is not None)
    if found.logit is None:
        assert name.startswith(TRANSFORMED) or predicts(loaded.model) == "nothing"
        assert all(part.logit is None for part in found.parts)
        assert found.why
        return
    assert found.sum == pytest.approx(sum(part.logit or 0 for part in found.parts), rel=1e-9)
    cap = getattr(loaded.model.config, "final_logit_softcapping", None)
    assert found.sum is not None
    made = found.sum if cap is None else cap * float(torch.tensor(found.sum / cap).tanh())
    assert made == pytest.approx(found.logit, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert-decoder", "gemma2", "olmo2", "phi"])
def test_a_logit_is_taken_apart_wherever_the_head_is_linear(name: str) -> None:
    assert (taken_apart(name, 3)[2].logit is None) == (name == "bert-decoder")


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_what_a_part_adds_to_the_mean_logit_is_that_of_all_logits(name: str) -> None:
    loaded, _, found = taken_apart(name, 5)
    final = Site("final_norm")
    states = capture(loaded.model, batch_for(loaded.model, (7,)), [final])[final]
    logits = unembed(loaded.model, states)[0, 5].double()
    assert sum(part.mean or 0 for part in found.parts) == pytest.approx(float(logits.mean()), rel=1e-4, abs=1e-5)
    assert found.token == int(logits.argmax())
    other = decompose(loaded, batch_for(loaded.model, (7,)), 5, token=7)
    assert other.logit == pytest.approx(float(logits[7]), rel=1e-5)
    assert other.sum == pytest.approx(float(logits[7]), rel=1e-4, abs=1e-5)


def test_units_of_an_opened_layer_are_what_they_write() -> None:
    model = toys.toy_decoder()
    batch, place = batch_for(model, (7,)), 3
    z, act, attn = (Site(name, 2) for name in ("z", "mlp_act", "attn_out"))
    seen = capture(model, batch, [z, act, attn])
    found = decompose(Loaded(model), batch, place, inside=2)
    parts = {part.unit: part for part in found.parts if part.unit}
    for head in range(4):
        expected = float((seen[z][0, place, head] @ model.weights.get("W_O", 2)[head]).norm())
        assert parts[f"heads.2/{head}"].length == pytest.approx(expected, rel=1e-5)
    neurons = [unit for unit in parts if unit.startswith("neurons.2/")]
    assert len(neurons) == 20, "of 40 those that add most to the logit"
    for unit in neurons:
        index = int(unit.rpartition("/")[2])
        expected = float((seen[act][0, place, index] * model.weights.get("W_out", 2)[index]).norm())
        assert parts[unit].length == pytest.approx(expected, rel=1e-5)


def test_a_state_behind_an_earlier_layer_is_read_there() -> None:
    _, state, found = taken_apart("llama", 2, layer=1)
    assert found.site == "resid_post.1"
    assert found.length == pytest.approx(float(state.norm()), rel=1e-6)
    assert max(part.layer for part in found.parts if part.layer is not None) == 1


@pytest.mark.parametrize(
    "asked", [{"place": 7}, {"place": 0, "layer": 3}, {"place": 0, "inside": 3}, {"place": 0, "token": 50}]
)
def test_what_is_not_there_is_refused(asked: dict[str, Any]) -> None:
    model = opened("llama")
    with pytest.raises(Refusal, match="name one that is there"):
        decompose(Loaded(model), batch_for(model, (7,)), **asked)
