"""Rotary previous-token scores against models that see nothing but their mean token, and a planted head."""

from typing import Any

import pytest
import torch

from microtome.core import Batch, Refusal, Site
from microtome.model import Model, capture, wrap
from microtome.model.rotation import scorings_of
from microtome.vocabulary.heads import Rotations, rotations
from microtome.vocabulary.positional import rotary_previous_token_scores
from tests.unit.model.tiny import batch_for, built, opened

POSITIONS = 20


def of_one_token(name: str) -> tuple[Model, Any]:
    """A model all of whose embeddings are their mean, which leaves the mean as it is."""
    module = built(name)
    with torch.no_grad():
        weight = module.get_input_embeddings().weight
        weight.copy_(weight.mean(0).expand_as(weight))
    return wrap(module, name=name), module


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "gpt_neox", "gptj", "modernbert"])
def test_it_is_the_attention_of_a_model_that_sees_one_token_only(name: str) -> None:
    model, module = of_one_token(name)
    windowed = name.startswith("gemma") or name == "modernbert"  # layer 0 sees a few tokens only
    positions = 3 if windowed else POSITIONS
    batch: Batch = batch_for(model, (positions,))
    probs = capture(model, batch, [Site("attn_probs", 0)])[Site("attn_probs", 0)][0]
    expected = probs.diagonal(-1, -2, -1).mean(-1)
    scoring = scorings_of(model, [0], positions)[0]
    turns = rotations(3, model.shape.heads, model.shape.d_head, seed=0)
    found = rotary_previous_token_scores(model.weights, 0, scoring, [turns], positions)
    torch.testing.assert_close(found.values, expected, rtol=1e-4, atol=1e-5)
    assert found.draws.shape == (3, model.shape.heads)


def test_a_planted_head_looks_back_and_its_rotations_do_not() -> None:
    model, module = of_one_token("llama")
    attention = module.model.layers[0].self_attn
    scoring = scorings_of(model, [0], POSITIONS)[0]
    assert scoring.turn is not None
    row = model.weights.get("W_E")[0]
    norm = model.weights.norm("attn_norm", 0)
    row = row / (row.square().mean() + norm.eps).sqrt() * norm.gain
    key = torch.zeros(6)
    key[:3] = 12
    ahead = key * scoring.turn.cos[1] - key[scoring.turn.partner] * scoring.turn.sin[1]  # turned back by one
    with torch.no_grad():
        for weight, side in ((attention.k_proj.weight[:6], key), (attention.q_proj.weight[:6], ahead)):
            weight.copy_(torch.outer(side, row) / row.square().sum())
    found = rotary_previous_token_scores(model.weights, 0, scoring, Rotations(200, 4, 6, seed=1), POSITIONS)
    assert float(found.values[0]) > 0.95
    assert float(found.draws[:, 0].median()) < 0.2
    assert float(found.values[1:].max()) < 0.3


def test_a_layer_that_does_not_rotate_is_refused() -> None:
    model = opened("gpt2")
    scoring = scorings_of(model, [1], 4)[1]
    with pytest.raises(Refusal, match=r"its heads do not rotate; use heads\.previous_token_scores"):
        rotary_previous_token_scores(model.weights, 1, scoring, [])
