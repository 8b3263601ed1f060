"""Turns of the stream, and directions of units in it."""

import pytest
import torch

from microtome.readout.directions import Nearest, orthogonal, unit_directions
from tests.unit.model.tiny import opened


@pytest.mark.parametrize("width", [1, 2, 24, 300])
def test_what_is_turned_keeps_its_lengths_and_angles(width: int) -> None:
    turn = orthogonal(width, 5).double()
    torch.testing.assert_close(turn @ turn.T, torch.eye(width, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(turn.T @ turn, torch.eye(width, dtype=torch.float64), atol=1e-5, rtol=0)
    assert torch.equal(orthogonal(width, 5), turn.float())
    assert width == 1 or not torch.equal(orthogonal(width, 6), turn.float())


def test_turns_prefer_no_direction() -> None:
    """Haar-distributed: entries have mean 0 and second moment 1 / d, the diagonal too, which a bare QR would make of one sign."""
    drawn = torch.stack([orthogonal(4, seed) for seed in range(500)])
    torch.testing.assert_close(drawn.mean(0), torch.zeros(4, 4), atol=0.1, rtol=0)
    torch.testing.assert_close(drawn.square().mean(0), torch.full((4, 4), 0.25), atol=0.06, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_directions_of_units_have_length_one_in_the_stream(family: str) -> None:
    weights = opened(family).weights
    for name in ("W_in", "W_gate", "W_up", "W_out"):
        if weights.has(name, 0):
            rows = unit_directions(weights, name, 0)
            assert rows.shape == (weights.shape.d_mlp, weights.shape.d_model)
            torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)))


def test_what_is_read_behind_a_layer_norm_has_no_mean() -> None:
    rows = unit_directions(opened("gpt2").weights, "W_in", 1)
    torch.testing.assert_close(rows.sum(1), torch.zeros(len(rows)), atol=1e-5, rtol=0)


def test_the_nearest_are_those_of_all_layers_by_size() -> None:
    generator = torch.Generator().manual_seed(2)
    layers = [torch.randn(5, 7, generator=generator) for _ in range(3)]
    nearest = Nearest(5, 4)
    for layer, cosines in enumerate(layers):
        nearest.add(cosines, layer)
    every = torch.cat(layers, 1)
    order = every.abs().argsort(dim=1, descending=True)[:, :4]
    torch.testing.assert_close(nearest.cosine, every.gather(1, order))
    assert torch.equal(nearest.layer * 7 + nearest.index, order)
