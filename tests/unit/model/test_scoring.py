"""What a layer's scoring is found to be, against numbers of the configurations and against the model's own rotations."""

import math

import pytest
import torch

from microtome.core import Refusal, Site
from microtome.model import capture
from microtome.model.scoring import allowed_keys, scorings, turned
from microtome.store import fingerprint
from tests.unit.model.tiny import batch_for, opened

TURNING = ("llama", "gpt_neox", "gptj", "phi", "modernbert")
"""Families of each kind of rotation, none of them with a QK-norm."""


@pytest.mark.parametrize("name", TURNING)
def test_the_table_turns_queries_and_keys_as_the_model_does(name: str) -> None:
    model = opened(name)
    batch = batch_for(model)
    places = torch.arange(batch.ids.shape[1])
    for layer, scoring in scorings(model, batch, range(model.shape.layers)).items():
        seen = capture(model, batch, [Site(part, layer) for part in ("q", "q_rot", "k", "k_rot")])
        for part in "qk":
            found = turned(scoring.turn, seen[Site(part, layer)], places)
            torch.testing.assert_close(found, seen[Site(f"{part}_rot", layer)], rtol=1e-5, atol=1e-7)


def test_layers_that_turn_at_other_speeds_have_their_own_tables() -> None:
    found = scorings(opened("modernbert"), batch_for(opened("modernbert")), (0, 1))
    assert found[0].turn is not None
    assert found[1].turn is not None
    assert not torch.equal(found[0].turn.cos, found[1].turn.cos)


@pytest.mark.parametrize(
    ("name", "scale", "cap"),
    [
        ("gpt2", 0.5, None),
        ("gpt_neo", 1.0, None),
        ("llama", 6**-0.5, None),
        ("qwen3", 6**-0.5, None),
        ("gemma2", 10**-0.5, 2.0),
        ("bert", 0.5, None),
    ],
)
def test_scale_and_cap_are_those_of_the_configuration(name: str, scale: float, cap: float | None) -> None:
    scoring = scorings(opened(name), batch_for(opened(name)), [1])[1]
    assert math.isclose(scoring.scale, scale, rel_tol=1e-5)
    assert scoring.cap == cap


def test_the_bias_of_alibi_is_a_slope_times_the_position_of_the_key() -> None:
    bias = scorings(opened("bloom"), batch_for(opened("bloom")), [2])[2].bias
    slopes = torch.tensor([2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3])  # of 4 heads, and of every other one of 8
    assert bias is not None
    torch.testing.assert_close(bias, slopes[:, None] * torch.arange(7))


def test_positions_are_those_of_the_longest_window() -> None:
    model = opened("llama")
    turn = scorings(model, batch_for(model, (5, 9)), [0])[0].turn
    assert turn is not None
    assert turn.cos.shape == (9, 6)
    with pytest.raises(Refusal, match="learnt from has 9 tokens; call `scorings` with a longer window"):
        turned(turn, torch.zeros(1, 2, 6), torch.tensor([9]))


def test_asking_leaves_the_model_as_it_was() -> None:
    model = opened("qwen3")
    before = capture(model, batch_for(model), [Site("attn_scores", 1)])[Site("attn_scores", 1)]
    found = scorings(model, batch_for(model), [1])
    assert torch.equal(before, capture(model, batch_for(model), [Site("attn_scores", 1)])[Site("attn_scores", 1)])
    assert fingerprint(found[1]) == fingerprint(scorings(model, batch_for(model), [1])[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_masked_scores_are_told_from_low_ones(dtype: torch.dtype) -> None:
    lowest = max(torch.finfo(dtype).min, torch.finfo(torch.float32).min)
    scores = torch.tensor([[-3e4, lowest, -torch.inf, 5.0]], dtype=dtype)
    assert allowed_keys(scores).tolist() == [[True, False, False, True]]
