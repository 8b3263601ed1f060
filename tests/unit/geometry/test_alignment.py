"""Alignment: invariances, exact nulls against enumeration, and subspaces with angles that were put there."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from microtome.core import Refusal
from microtome.geometry.alignment import gram_alignment, linear_alignment, overlap, procrustes, random_frames, span


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(width: int, seed: int = 1) -> torch.Tensor:
    return torch.linalg.qr(normal(width, width, seed=seed))[0]


def brute_hsic(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
    """The unbiased criterion as the average of its kernel over all ordered fours of different rows."""
    n = len(k)
    total = 0.0
    for i, j, q, r in itertools.permutations(range(n), 4):
        total += k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q])
    return total / (n * (n - 1) * (n - 2) * (n - 3))


def test_debiased_alignment_is_the_average_over_fours() -> None:
    x, y = normal(7, 3), normal(7, 2, seed=1) + normal(7, 3)[:, :2]
    k, l = (x @ x.T).numpy(), (y @ y.T).numpy()  # noqa: E741
    expected = brute_hsic(k, l) / math.sqrt(brute_hsic(k, k) * brute_hsic(l, l))
    assert linear_alignment(x, y).debiased == pytest.approx(expected, rel=1e-9)
    assert gram_alignment(x @ x.T, y @ y.T).debiased == pytest.approx(expected, rel=1e-9)


def test_plain_alignment_by_hand() -> None:
    """Centred: x = (-1, 0, 1, 0), y = (-1, 1, 1, -1): <x, y>^2 / (|x|^2 |y|^2) = 4 / (2 * 4)."""
    x = torch.tensor([[2.0], [3.0], [4.0], [3.0]])
    y = torch.tensor([[0.0], [2.0], [2.0], [0.0]])
    found = linear_alignment(x, y)
    assert found.plain.value == pytest.approx(0.5)
    assert found.plain.control == pytest.approx(1 / 3)  # a correlation's square, n - 1 = 3 degrees of freedom


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 100), st.sampled_from([(12, 3, 5), (12, 20, 4), (12, 15, 30)]))
def test_alignment_ignores_rotation_shift_and_scale(seed: int, scale: float, shape: tuple[int, int, int]) -> None:
    rows, left, right = shape
    x, y = normal(rows, left, seed=seed), normal(rows, right, seed=seed + 1)
    moved = scale * x @ rotation(left, seed + 2) + 3.0
    one, other = linear_alignment(x, y), linear_alignment(moved, y)
    assert other.plain.value == pytest.approx(one.plain.value, rel=1e-7)
    assert other.plain.control == pytest.approx(one.plain.control, rel=1e-7)
    assert linear_alignment(x, moved).plain.value == pytest.approx(1)
    assert 0 <= one.plain.value <= 1 + 1e-12
    gram = gram_alignment(x @ x.T, y @ y.T)
    assert gram.plain.value == pytest.approx(one.plain.value, rel=1e-7)
    assert gram.debiased == pytest.approx(one.debiased, rel=1e-6) or math.isnan(one.debiased) == math.isnan(gram.debiased)


def test_the_control_is_the_mean_over_all_orders() -> None:
    x, y = normal(5, 2), normal(5, 3, seed=3)
    values = [linear_alignment(x, y[list(order)]).plain.value for order in itertools.permutations(range(5))]
    assert linear_alignment(x, y).plain.control == pytest.approx(np.mean(values), rel=1e-9)


def test_few_unrelated_rows_look_aligned_and_the_debiased_number_does_not() -> None:
    pairs = [linear_alignment(normal(20, 100, seed=s), normal(20, 100, seed=1000 + s)) for s in range(40)]
    assert np.mean([pair.plain.value for pair in pairs]) > 0.8
    assert np.mean([pair.plain.value for pair in pairs]) == pytest.approx(
        np.mean([pair.plain.control for pair in pairs]), abs=0.02
    )
    assert abs(np.mean([pair.debiased for pair in pairs])) < 0.03


def test_rows_that_share_a_part_are_found() -> None:
    shared = normal(40, 3)
    x = torch.cat([shared, normal(40, 5, seed=1)], 1)
    y = torch.cat([shared, normal(40, 6, seed=2)], 1) @ rotation(9)
    found = linear_alignment(x, y, draws=200)
    assert found.plain.p == pytest.approx(1 / 201)
    assert found.plain.control_lo < found.plain.control < found.plain.control_hi < found.plain.value


def test_smooth_rows_are_tested_by_shifts() -> None:
    """Two unrelated slow curves are far from exchangeable, and random orders call them aligned; shifts do not."""
    t = torch.arange(120, dtype=torch.float64) * 2 * math.pi / 120
    x, y = torch.stack([t.cos(), t.sin()], 1), torch.stack([(t + 0.9).cos(), (t + 0.9).sin()], 1)
    assert linear_alignment(x, y, draws=100).plain.p < 0.05
    assert linear_alignment(x, y, rows="ordered", draws=100).plain.p > 0.5


def test_a_null_needs_a_hundred_draws() -> None:
    with pytest.raises(Refusal, match="draw at least 100"):
        linear_alignment(normal(8, 3), normal(8, 3, seed=1), draws=10)


@pytest.mark.parametrize("width", [3, 50])
def test_rows_without_shape_are_undefined(width: int) -> None:
    flat = torch.full((10, width), 3.7)
    found = linear_alignment(flat, normal(10, 4))
    assert math.isnan(found.plain.value)
    assert found.plain.undefined == "all rows of a side are the same"
    assert procrustes(normal(10, 4), flat).undefined == "all rows of a side are the same"
    assert (
        linear_alignment(normal(3, width), normal(3, 4)).plain.undefined
        == "there are too few rows: four are needed, here are 3"
    )
    with pytest.raises(Refusal, match="NaN or infinity"):
        linear_alignment(flat * math.nan, normal(10, 4))


@pytest.mark.parametrize(("rows", "left", "right"), [(30, 4, 4), (10, 25, 6)])
def test_procrustes_is_the_least_distance_over_rotations(rows: int, left: int, right: int) -> None:
    from scipy.linalg import orthogonal_procrustes

    x, y = normal(rows, left), normal(rows, right, seed=5)
    a, b = x - x.mean(0), torch.nn.functional.pad(y - y.mean(0), (0, left - right))
    a, b = (a / a.norm()).numpy(), (b / b.norm()).numpy()
    best, _ = orthogonal_procrustes(a, b)
    assert procrustes(x, y, draws=0).value == pytest.approx(np.linalg.norm(a @ best - b), rel=1e-7)
    assert procrustes(y, x, draws=0).value == pytest.approx(procrustes(x, y, draws=0).value)


def test_procrustes_finds_a_rotated_copy() -> None:
    x = normal(30, 6)
    assert procrustes(x, 4 * x @ rotation(6) + 1, draws=0).value == pytest.approx(0, abs=1e-6)
    near = procrustes(x, x @ rotation(6) + 0.3 * normal(30, 6, seed=7))
    assert near.value < near.control_lo
    assert near.p == pytest.approx(1 / 101)
    assert 0.02 < procrustes(x, normal(30, 6, seed=8)).p < 0.98


def test_planted_angles_come_back() -> None:
    angles = torch.tensor([0.1, 0.7, 1.2], dtype=torch.float64)
    frame = rotation(12)
    u = frame[:3]
    v = angles.cos()[:, None] * frame[:3] + angles.sin()[:, None] * frame[3:6]
    mixed = normal(3, 3, seed=9) @ v  # another basis of the same span
    found = overlap(u * 5, mixed)
    assert found.cosines.tolist() == pytest.approx(angles.cos().tolist(), abs=1e-9)
    assert found.mean_square.value == pytest.approx(float(angles.cos().square().mean()))
    assert found.largest.value == pytest.approx(math.cos(0.1))
    assert found.largest.p < 0.05


@pytest.mark.parametrize(("left", "right", "width"), [(3, 5, 20), (5, 3, 20), (6, 6, 8)])
def test_random_subspaces_overlap_as_expected(left: int, right: int, width: int) -> None:
    found = overlap(normal(left, width), normal(right, width, seed=2), draws=400)
    drawn = torch.stack([block.square().sum() for block in random_frames(right, left, width, 400, 3)]) / min(left, right)
    assert found.mean_square.control == max(left, right) / width
    assert float(drawn.mean()) == pytest.approx(max(left, right) / width, abs=4 * float(drawn.std()) / 20)
    assert found.mean_square.control_lo < max(left, right) / width < found.mean_square.control_hi


def test_p_values_of_unrelated_subspaces_are_uniform() -> None:
    p = [overlap(normal(3, 20, seed=s), normal(5, 20, seed=700 + s), draws=100, seed=s).mean_square.p for s in range(60)]
    assert 0.35 < np.mean(p) < 0.65
    assert np.mean(np.array(p) < 0.2) == pytest.approx(0.2, abs=0.16)


@pytest.mark.parametrize(("rows", "columns", "width"), [(2, 3, 12), (3, 2, 12), (4, 4, 5), (5, 5, 5)])
def test_corners_of_rotations_have_their_moments(rows: int, columns: int, width: int) -> None:
    """Haar: E q_ij^2 = 1 / d, E q_ij^4 = 3 / (d (d + 2)), E q_11 q_22 q_12 q_21 = -1 / (d (d - 1) (d + 2))."""
    q = torch.stack(list(random_frames(rows, columns, width, 6000, 0)))
    assert q.shape == (6000, rows, columns)
    assert float(q.square().mean()) == pytest.approx(1 / width, rel=0.02)
    assert float(q.pow(4).mean()) == pytest.approx(3 / (width * (width + 2)), rel=0.05)
    cross = q[:, 0, 0] * q[:, 1, 1] * q[:, 0, 1] * q[:, 1, 0]
    expected = -1 / (width * (width - 1) * (width + 2))
    assert float(cross.mean()) == pytest.approx(expected, abs=4 * float(cross.std()) / 6000**0.5)
    if rows == width:
        assert torch.allclose(q[0] @ q[0].T, torch.eye(width, dtype=torch.float64), atol=1e-12)


def test_leading_directions_span_what_was_planted() -> None:
    frame = rotation(9)[:2]
    x = normal(30, 2, seed=4) @ (torch.tensor([[9.0], [4.0]], dtype=torch.float64) * frame)
    assert overlap(span(x, 2), frame).cosines.tolist() == pytest.approx([1, 1])
    with pytest.raises(Refusal, match="3 directions: the rows span 2; ask for fewer"):
        span(x, 3)
    with pytest.raises(Refusal, match="31 directions: 30 rows of width 9 have 9 at most"):
        span(x, 31)
    assert span(x, 0).shape == (0, 9)
    assert overlap(span(x, 0), frame).mean_square.undefined == "a subspace has no directions"
    with pytest.raises(Refusal, match="not independent"):
        overlap(torch.ones(2, 9), frame)
