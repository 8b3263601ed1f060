"""Rotations and scales from the configuration alone, against those observed in a pass, and frequencies scaled by hand."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from microtome.core import Refusal
from microtome.model import open_checkpoint, wrap
from microtome.model.rotation import scorings_of, turns
from microtome.model.scoring import Turn, scorings
from tests.unit.model.checkpoints import edit_config
from tests.unit.model.tiny import TINY, batch_for, built, opened

_SCALED: dict[str, dict[str, Any]] = {
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
}


def scaled_llama(kind: str) -> Any:
    torch.manual_seed(1)
    config = tf.LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        rope_parameters=_SCALED[kind],
    )
    return tf.LlamaForCausalLM(config).eval()


def assert_same(found: Turn | None, expected: Turn | None) -> None:
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert torch.equal(found.cos, expected.cos)
        assert torch.equal(found.sin, expected.sin)
        turning = expected.sin.abs().amax(0) > 0
        assert torch.equal(found.partner[turning], expected.partner[turning])


@pytest.mark.parametrize("name", sorted(TINY))
def test_they_are_those_observed_in_a_pass(name: str) -> None:
    model = opened(name)
    batch, layers = batch_for(model), range(model.shape.layers)
    found, expected = scorings_of(model, layers, batch.ids.shape[1]), scorings(model, batch, layers)
    for layer in layers:
        assert_same(found[layer].turn, expected[layer].turn)
        assert math.isclose(found[layer].scale, expected[layer].scale, rel_tol=1e-5)
        assert found[layer].cap == pytest.approx(expected[layer].cap)
        bias, seen = found[layer].bias, expected[layer].bias
        assert (bias is None) == (seen is None)
        if bias is not None and seen is not None:
            torch.testing.assert_close(bias, seen)


@pytest.mark.parametrize("kind", sorted(_SCALED))
def test_scaled_frequencies_are_scaled(kind: str) -> None:
    model = wrap(scaled_llama(kind), name="scaled")
    batch = batch_for(model, (40,))
    (found,) = turns(model, [0], 40).values()
    assert_same(found, scorings(model, batch, [0])[0].turn)
    plain = torch.outer(torch.arange(40.0), 10000.0 ** (-torch.arange(0, 8, 2) / 8)).cos()
    assert found is not None
    assert (kind == "dynamic") == torch.equal(found.cos[:, :4], plain)  # dynamic scaling begins beyond 64 positions


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gptj", "modernbert", "gpt_neo", "bert"])
def test_files_are_enough(name: str, tmp_path: Path) -> None:
    module = built(name)
    module.save_pretrained(tmp_path)
    checkpoint, model = open_checkpoint(tmp_path), opened(name)
    found, expected = scorings_of(checkpoint, [0, 1], 7), scorings(model, batch_for(model), [0, 1])
    for layer in (0, 1):
        assert_same(found[layer].turn, expected[layer].turn)
        assert math.isclose(found[layer].scale, expected[layer].scale, rel_tol=1e-5)


def test_layers_of_gemma_3_turn_at_the_speed_of_their_type() -> None:
    found = turns(opened("gemma3_text"), [0, 1, 2], 5)
    assert found[0] is not None
    assert found[1] is not None
    assert found[2] is not None
    assert torch.equal(found[0].cos, found[2].cos)
    assert not torch.equal(found[0].cos, found[1].cos)


def test_asking_leaves_the_model_as_it_was() -> None:
    model = wrap(scaled_llama("dynamic"), name="dynamic")
    before = model.trunk.rotary_emb.inv_freq.clone()
    turns(model, [0], 100)  # beyond the context, where frequencies change
    assert torch.equal(model.trunk.rotary_emb.inv_freq, before)


def test_a_table_that_no_rule_fills_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened("llama")
    monkeypatch.setattr(type(model.module), "_init_weights", lambda self, module: None)
    with pytest.raises(Refusal, match="the table inv_freq of LlamaRotaryEmbedding: no checkpoint holds it"):
        turns(model, [0], 4)


def test_positions_end_where_they_are_asked_to(tmp_path: Path) -> None:
    built("llama").save_pretrained(tmp_path)
    edit_config(tmp_path, max_position_embeddings=32)
    (turn,) = turns(open_checkpoint(tmp_path), [2], 9).values()
    assert turn is not None
    assert turn.cos.shape == (9, 6)
