"""Units that fire alike, against dense correlations, a planted pair, and directions turned at random."""

import numpy as np
import pytest
import torch

from microtome.core import Batch, Role
from microtome.neurons import Neurons
from microtome.neurons.coactivation import ALIKE, SampledRows, coactivation_rows, coactivations
from microtome.store import TABLES

UNITS, ROWS = 12, 600


def activations(layers: int = 3) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
    """Independent units but for 0/3 and 2/7, opposite up to noise, and 1/5, which is constant."""
    generator = torch.Generator().manual_seed(1)
    found = {layer: torch.randn(ROWS, UNITS, generator=generator) for layer in range(layers)}
    found[2][:, 7] = 0.1 * found[2][:, 7] - 3 * found[0][:, 3] + 2
    found[1][:, 5] = 4
    return found, torch.arange(ROWS) // 20 % 2


def test_the_nearest_are_chosen_in_one_half_and_measured_in_the_other() -> None:
    found, half = activations()
    side = {number: np.concatenate([found[layer][half == number].numpy() for layer in range(3)], 1) for number in (0, 1)}
    with np.errstate(invalid="ignore", divide="ignore"):
        discover, confirm = (np.nan_to_num(np.corrcoef(side[number].T)) for number in (0, 1))
    np.fill_diagonal(discover, 0)
    for each in coactivations(found.__getitem__, half, (0, 1, 2), (0, 1, 2), k=4):
        own = slice(UNITS * each.layer, UNITS * (each.layer + 1))
        there = (each.other_layer >= 0).numpy()
        place = (UNITS * each.other_layer + each.other).numpy() * there
        sizes = np.abs(discover[own])
        np.testing.assert_allclose(np.take_along_axis(sizes, place, 1) * there, -np.sort(-sizes, 1)[:, :4], atol=1e-5)
        assert np.isnan(each.cosine.numpy()[~there]).all()
        held = np.nan_to_num(each.cosine.numpy())
        np.testing.assert_allclose(held, np.take_along_axis(confirm[own], place, 1) * there, atol=1e-5)


def test_a_planted_pair_stands_out_and_chance_does_not() -> None:
    found, half = activations()
    first, _, last = coactivations(found.__getitem__, half, (0, 1, 2), (0, 1, 2), k=3)
    assert (int(first.other_layer[3, 0]), int(first.other[3, 0])) == (2, 7)
    assert (int(last.other_layer[7, 0]), int(last.other[7, 0])) == (0, 3)
    assert float(first.cosine[3, 0]) < -0.99
    assert float(first.control[0]) < 0.7  # of 12 units, a turned direction has part of each
    assert float(first.cosine[4].abs().max()) < 0.3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_beyond_float16_are_kept_as_its_largest(dtype: torch.dtype) -> None:
    index = torch.arange(2)
    batch = Batch(
        torch.zeros(2, 3, dtype=torch.int64), torch.full((2, 3), int(Role.CONTENT), dtype=torch.uint8), index, index, index * 0,
        index.to(torch.uint8), index * 0, {},
    )  # fmt: skip
    x = torch.tensor([1e6, -3e8, 65504.0, 66000.0, 2.5, -0.25]).view(2, 3, 1).repeat(1, 1, 2).to(dtype)
    fold = SampledRows(Neurons(0, 2), 1.0, 0)
    state = fold.init()
    fold.update(state, {fold.sites[0]: x}, batch)
    found = fold.result(state)
    assert found.values.isfinite().all()
    assert found.values[:, 0].tolist() == [65504, -65504, 65504, 65504, 2.5, -0.25]
    assert found.half.tolist() == [0, 0, 0, 1, 1, 1]


def test_rows_are_those_of_the_table_and_name_the_run() -> None:
    found, half = activations()
    (each,) = coactivations(found.__getitem__, half, (1,), (0, 1), k=2)
    rows = coactivation_rows(each, "main")
    assert set(rows.column_names) == set(TABLES["coactivations"].schema.names)
    assert rows.num_rows == 2 * (UNITS - 1)  # one is constant
    row = rows.to_pylist()[0]
    assert (row["run"], row["unit"]) == ("main", "neurons.1/0")
    assert row["score"] == pytest.approx(float(each.cosine[0, 0]))
    assert each.kind == ALIKE
