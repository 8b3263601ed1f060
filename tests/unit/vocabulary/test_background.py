"""Closed forms against all entries of dense matrices."""

import pytest
import torch

from microtome.readout import input_reader, output_reader
from microtome.readout.bases import paired
from microtome.vocabulary.background import background, expected_beyond, mapped, reader_moments, side_moments
from microtome.vocabulary.heads import rotations
from tests.unit.model.tiny import opened


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_moments_are_those_of_all_entries() -> None:
    left, right = draw(40, 5, seed=0) + 1, draw(17, 5, seed=1) - 0.5
    found, dense = background(side_moments(left), side_moments(right)), (left.double() @ right.double().T)
    assert found.mean == pytest.approx(float(dense.mean()), rel=1e-6)
    assert found.spread == pytest.approx(float(dense.std(correction=0)), rel=1e-6)
    assert found.norm == pytest.approx(float(dense.norm()), rel=1e-6)
    torch.testing.assert_close(found.z(dense[3]), ((dense[3] - dense.mean()) / dense.std(correction=0)).float())


def test_no_side_need_be_formed() -> None:
    embedding, value, out = draw(50, 12, seed=2) + 0.3, draw(4, 12, seed=3), draw(4, 12, seed=4)
    moments = side_moments(embedding)
    found = background(mapped(moments, value), mapped(moments, out))
    dense = (embedding @ value.T @ out @ embedding.T).double()
    assert found.mean == pytest.approx(float(dense.mean()), rel=1e-5)
    assert found.spread == pytest.approx(float(dense.std(correction=0)), rel=1e-5)
    assert found.norm == pytest.approx(float(dense.norm()), rel=1e-5)


@pytest.mark.parametrize("basis", ["transpose", "ridge"])
@pytest.mark.parametrize("folding", ["folded", "raw"])
def test_a_reader_has_its_moments_already(folding: str, basis: str) -> None:
    weights = opened("llama").weights
    for make in (output_reader, input_reader):
        reader = paired(make(weights, folding=folding), basis).read  # pyright: ignore[reportArgumentType]
        rows = reader.matrix.T if reader.through is None else reader.matrix.T @ reader.through.T.float()
        found, expected = reader_moments(reader), side_moments(rows)
        assert found.count == expected.count
        torch.testing.assert_close(found.mean, expected.mean, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(found.second, expected.second, rtol=1e-3, atol=1e-4)


def test_entries_that_are_all_alike_have_no_z() -> None:
    ones = torch.ones(6, 2)
    found = background(side_moments(ones), side_moments(ones))
    assert (found.mean, found.spread) == (2.0, 0.0)
    assert bool(found.z(torch.tensor([2.0])).isnan())


@pytest.mark.parametrize("score", [-3.0, 0.0, 2.5, 6.0])
def test_entries_beyond_a_score_are_as_many_as_under_rotations_drawn(score: float) -> None:
    left, right = draw(30, 5, seed=5) * draw(30, 1, seed=6).exp(), draw(20, 5, seed=7) + 0.5
    drawn = rotations(2000, 1, 5, seed=8)[:, 0]
    counts = ((left @ drawn @ right.T) >= score).flatten(1).sum(1).double()
    error = 4 * float(counts.std()) / len(counts) ** 0.5
    assert expected_beyond(left, right, score) == pytest.approx(float(counts.mean()), abs=error + 0.02 * float(counts.mean()))


def test_no_rotation_reaches_beyond_the_longest() -> None:
    left, right = torch.eye(3), 2 * torch.eye(3)
    assert expected_beyond(left, right, 2.05) == 0.0
    assert expected_beyond(left, right, -2.05) == 9.0
    assert expected_beyond(torch.zeros(4, 3), right, 0.1) == 0.0
