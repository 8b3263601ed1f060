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


@pytest.mark.parametrize(
    ("rows", "variants", "targets", "why"),
    [
        (4, 1, [0, 1, 2, -100], "targets go from -100 to 2, and ids from 0 to 49; leave out the rows that have no target"),
        (4, 1, [0, 1, 2, 50], "targets go from 0 to 50, and ids from 0 to 49"),
        (4, 0, [0, 1, 2, 3], "there is nothing to predict: .* clean, .0, 4, 16. edited and 4 targets"),
        (0, 1, [], "there is nothing to predict"),
    ],
)
def test_predictions_that_cannot_be_made_are_refused(rows: int, variants: int, targets: list[int], why: str) -> None:
    model = opened("llama")
    assert model.shape.vocab == 50
    states = torch.zeros(rows, 16)
    with pytest.raises(Refusal, match=why):
        predictions(model, states, states[None].repeat(variants, 1, 1), torch.tensor(targets, dtype=torch.int64))


def test_sizes_that_do_not_fit_are_refused() -> None:
    model, states = opened("llama"), torch.zeros(4, 16)
    for clean, edited, targets in ((states, states, 4), (states, states[None, :3], 4), (states, states[None], 3)):
        with pytest.raises(Refusal, match=r"do not fit: there are \(4, 16\) clean"):
            effects._require_fitting(model, clean, edited, torch.zeros(targets, dtype=torch.int64))
