"""Losses, divergences and turns of states, beside the same computed plainly."""

import pytest
import torch

from microtome.core import Refusal
from microtome.intervene import effects
from microtome.intervene.effects import final_states, predictions, state_change
from microtome.model import forward
from tests.unit.model.tiny import batch_for, opened


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "mixtral"])
def test_losses_and_divergences_equal_plain_computation_in_any_tiles(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened(name)
    batch = batch_for(model)
    clean = final_states(model, batch)[0]
    variants = torch.stack([clean, clean + 0.5 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))])
    targets = batch.ids[0].roll(-1)
    bare = forward(model, batch)["logits"][0].double().log_softmax(-1)
    whole = predictions(model, clean, variants, targets)
    torch.testing.assert_close(whole.clean, -bare.gather(1, targets[:, None])[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole.loss[0], whole.clean)
    assert float(whole.kl[0].abs().max()) < 1e-6
    head = torch.nn.functional.kl_div
    after = model.module.lm_head(variants[1]).double()
    if name == "gemma2":
        after = 1.5 * torch.tanh(after / 1.5)
    expected = head(after.log_softmax(-1), bare, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(whole.kl[1], expected.detach(), rtol=1e-3, atol=1e-5)
    monkeypatch.setattr(effects, "_HELD", 3 * model.shape.vocab)
    tiled = predictions(model, clean, variants, targets)
    torch.testing.assert_close(tiled.loss, whole.loss)
    torch.testing.assert_close(tiled.kl, whole.kl, rtol=1e-4, atol=1e-6)


def test_a_turn_of_states_does_not_see_their_length() -> None:
    clean = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    variants = torch.stack([3 * clean, clean.flip(1), -clean])
    expected = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]).double()
    torch.testing.assert_close(state_change(clean, variants), expected)


def test_a_model_without_a_head_has_no_predictions() -> None:
    model = opened("llama-headless")
    states = final_states(model, batch_for(model))[0]
    with pytest.raises(Refusal, match="without a language-model head"):
        predictions(model, states, states[None], torch.zeros(7, dtype=torch.int64))
