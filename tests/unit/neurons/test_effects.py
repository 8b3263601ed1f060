"""Effects of units on the loss, against the model's own loss with weights changed by hand."""

from dataclasses import replace

import pytest
import torch

from microtome.core import Half, Role, Site, WeightAddress
from microtome.intervene import Edit, Scale, SetVector, edited, reweighted
from microtome.model import Model, forward, wrap
from microtome.neurons.effects import FirstOrderEffects, UnitAblations, why_no_effects
from tests.unit.model.tiny import batch_for, built, opened


def batch_of(model: Model):
    """Three windows, one of them shorter, two in the confirm half; the first token of each predicts and is not predicted."""
    batch = batch_for(model, (9, 6, 9))
    return replace(batch, half=torch.tensor([Half.DISCOVER, Half.CONFIRM, Half.CONFIRM], dtype=torch.uint8))


def losses(model: Model, batch) -> torch.Tensor:
    """Mean loss of the next token of each window, from the whole model's logits."""
    logits, found = forward(model, batch)["logits"].double(), []
    for row, ids in enumerate(batch.ids):
        length = int((batch.roles[row] != Role.PAD).sum())
        found.append(torch.nn.functional.cross_entropy(logits[row, : length - 1], ids[1:length]))
    return torch.stack(found)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "opt"])
def test_first_order_effects_are_slopes_of_the_loss(name: str) -> None:
    model = opened(name)
    batch, fold = batch_of(model), FirstOrderEffects(model)
    state = fold.init()
    fold.update(state, {}, batch)
    found = fold.result(state)
    assert found.windows.tolist() == [1, 2]
    step = 0.02
    for layer, unit in ((0, 3), (1, 7), (2, 20)):
        ends = []
        for factor in (1 - step, 1 + step):
            with edited(model, batch, [Edit(Site("mlp_act", layer), Scale(factor), [unit])]):
                ends.append(losses(model, batch))
        slope = -(ends[1] - ends[0]) / (2 * step)
        assert float(found.value[0, layer, unit]) == pytest.approx(float(slope[0]), rel=2e-2, abs=2e-6)
        assert float(found.value[1, layer, unit]) == pytest.approx(float(slope[1:].mean()), rel=2e-2, abs=2e-6)
        error = float(slope[1:].std() / 2**0.5)
        assert float(found.error[1, layer, unit]) == pytest.approx(error, rel=5e-2, abs=2e-6)


def test_the_parts_are_the_whole_and_the_control_is_another_number() -> None:
    model = opened("llama")
    batch, fold = batch_of(model), FirstOrderEffects(model)
    whole, parts = fold.init(), []
    fold.update(whole, {}, batch)
    for row in range(3):
        state = fold.init()
        fold.update(state, {}, batch.take(torch.tensor([row])))
        parts.append(state)
    merged = fold.merge(fold.merge(parts[0], parts[1]), parts[2])
    for name, tensor in whole.items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-6, atol=1e-12)
    found = fold.result(whole)
    assert not torch.equal(found.value, found.control)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_ablations_are_the_loss_without_what_the_unit_writes(name: str) -> None:
    model = wrap(built(name), name=name)
    batch = batch_of(model)
    units = ((1, 4), (0, 2), (1, 9), (2, 0))
    fold = UnitAblations(model, tuple(layer for layer, _ in units), tuple(unit for _, unit in units))
    state = fold.init()
    fold.update(state, {}, batch)
    found = fold.result(state)
    assert found.half.tolist() == [0, 1, 1]
    clean = losses(model, batch)
    for place, (layer, unit) in enumerate(units):
        with reweighted(model, [SetVector(WeightAddress("W_out", layer, unit), torch.zeros(16))]):
            torch.testing.assert_close(found.change[:, place], losses(model, batch) - clean, atol=2e-6, rtol=1e-3)


def test_what_has_no_loss_says_why() -> None:
    assert why_no_effects(opened("llama")) is None
    assert "without a language-model head" in str(why_no_effects(opened("bert-headless")))
    assert "mixture of experts" in str(why_no_effects(opened("mixtral")))
