"""Intrinsic dimension of manifolds whose dimension is known, neighbours against scikit-learn, ceilings against clouds."""

import math

import numpy as np
import pytest
import torch

from microtome.core import Refusal
from microtome.geometry.dimension import dimension, gride, levina_bickel, nearest, two_nn


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def embed(x: torch.Tensor, width: int = 30, seed: int = 5) -> torch.Tensor:
    """Into more dimensions by an isometry."""
    return x @ torch.linalg.qr(normal(width, x.shape[1], seed=seed))[0].T


def swiss_roll(n: int, seed: int = 0) -> torch.Tensor:
    angle = 1.5 * math.pi * (1 + 2 * uniform(n, seed=seed))
    return torch.stack([angle * angle.cos(), 20 * uniform(n, seed=seed + 1), angle * angle.sin()], 1)


def sphere(n: int, m: int) -> torch.Tensor:
    return torch.nn.functional.normalize(normal(n, m + 1), dim=1)


@pytest.mark.parametrize(
    ("rows", "truth"),
    [
        pytest.param(embed(uniform(800, 1)), 1, id="line"),
        pytest.param(embed(uniform(800, 2)), 2, id="square"),
        pytest.param(embed(swiss_roll(800)), 2, id="swiss roll"),
        pytest.param(embed(sphere(800, 3)), 3, id="sphere"),
        pytest.param(embed(normal(800, 5)), 5, id="normal"),
    ],
)
def test_known_dimensions_are_found(rows: torch.Tensor, truth: int) -> None:
    found = dimension(rows, ks=(5, 15), draws=20)
    assert found.two_nn.value == pytest.approx(truth, rel=0.15)
    assert found.mle.value == pytest.approx(truth, rel=0.15)
    assert found.two_nn.lo < found.two_nn.value < found.two_nn.hi < found.two_nn.ceiling
    assert found.by_scale[:3].tolist() == pytest.approx([truth] * 3, rel=0.2)
    assert found.mle.value == pytest.approx(float(found.by_k.mean()))
    assert (found.ks, found.scales, found.rows + found.copies) == (tuple(range(5, 16)), (1, 2, 4), 800)


def test_small_scales_see_noise_and_large_ones_the_curve() -> None:
    t = uniform(1000, 1) * 2 * math.pi
    rows = embed(torch.cat([t.cos(), t.sin()], 1)) + 0.005 * normal(1000, 30)
    found = dimension(rows, ks=(5, 60), draws=20)
    assert found.two_nn.value > 4
    assert float(found.by_scale[-1]) < 2
    assert bool((found.by_scale.diff() < 0).all())


def test_estimators_are_right_on_average_for_exact_ratios() -> None:
    """In dimension d the volumes (r_j / r_k)^d of a Poisson process are ordered uniforms: neighbours without any geometry."""
    d = 7.0
    gaps = -uniform(40000, 9).log()
    distance = gaps.cumsum(1) ** (1 / d)
    assert two_nn(distance) == pytest.approx(d, rel=0.02)
    assert levina_bickel(distance, (3, 5, 9)).tolist() == pytest.approx([d] * 3, rel=0.02)
    assert [gride(distance, s) for s in (1, 2, 4)] == pytest.approx([d] * 3, rel=0.02)


def test_estimators_by_hand() -> None:
    """Two rows with distances 1, e, e^2 and 1, e, e^4. Mean of log(r3/r1) + log(r3/r2): (2 + 1 + 4 + 3) / 2, over k - 1 = 2."""
    distance = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 4.0]], dtype=torch.float64).exp()
    assert float(levina_bickel(distance, (3,))) == pytest.approx(2 / 5)
    assert gride(distance, 1) == pytest.approx(1)  # all ratios e: d = 1 / mean log ratio
    ratios = torch.tensor([0.1, 0.2, 0.4, 0.8], dtype=torch.float64).exp()
    pairs = torch.stack([torch.ones(4, dtype=torch.float64), ratios], 1)
    heights = [-math.log(1 - i / 4) for i in (1, 2, 3)]
    expected = (0.1 * heights[0] + 0.2 * heights[1] + 0.4 * heights[2]) / (0.01 + 0.04 + 0.16)
    assert two_nn(pairs) == pytest.approx(expected)  # the largest tenth, rounded up, is the fourth


def test_gride_finds_the_maximum_of_its_likelihood() -> None:
    distance = nearest(embed(normal(300, 4)), 8).distance
    ratio = (distance[:, 7] / distance[:, 3]).numpy()

    def likelihood(d: float) -> float:
        return float(np.sum(np.log(d) + 3 * np.log(ratio**d - 1) - (7 * d + 1) * np.log(ratio)))

    found = gride(distance, 4)
    assert likelihood(found) > max(likelihood(found * 0.999), likelihood(found * 1.001))


def test_neighbours_are_those_of_brute_force() -> None:
    from sklearn.neighbors import NearestNeighbors

    rows = normal(700, 6) + 40
    distance, index = NearestNeighbors(n_neighbors=8, algorithm="brute").fit(rows.numpy()).kneighbors()
    found = nearest(rows, 8)
    assert np.array_equal(found.window.numpy(), index)
    assert np.allclose(found.distance.numpy(), distance, rtol=1e-9)


def test_no_neighbour_is_of_the_window_or_at_an_adjacent_position_and_none_is_of_a_window_twice() -> None:
    rows, window, position = normal(120, 3), torch.arange(120) // 12, torch.arange(120) % 12
    found = nearest(rows, 5, window, position, gap=2)
    for row in range(120):
        distance = (rows - rows[row]).norm(dim=1)
        allowed = (window != window[row]) & ((position - position[row]).abs() > 2)
        best = sorted((float(distance[(window == w) & allowed].min()), w) for w in range(10) if w != window[row])[:5]
        assert found.distance[row].tolist() == pytest.approx([each[0] for each in best])
        assert found.window[row].tolist() == [each[1] for each in best]
    few = nearest(rows[:24], 20, window[:24], position[:24], gap=11)
    assert bool((few.window == -1).all())
    assert bool(few.distance.isinf().all())


def test_tokens_of_a_window_do_not_set_the_dimension() -> None:
    """Windows on a square, tokens of a window along a line inside: with them as neighbours 1 is seen, without them 2."""
    centre = uniform(150, 2).repeat_interleave(6, 0)
    rows = embed(centre + 0.02 * uniform(900, 1, seed=3) * torch.tensor([[1.0, 1.0]], dtype=torch.float64))
    window = torch.arange(900) // 6
    assert dimension(rows, ks=(3, 5), draws=20).two_nn.value == pytest.approx(1, rel=0.2)
    assert dimension(rows, window=window, ks=(3, 30), draws=20).mle.value == pytest.approx(2, rel=0.25)


def test_intervals_are_as_wide_as_the_spread_of_fresh_samples() -> None:
    """The standard deviation over 30 samples of windows beside the mean width of the intervals, 3.9 standard deviations."""
    values, widths = [], []
    for seed in range(30):
        rows = embed(uniform(60, 3, seed=seed).repeat_interleave(4, 0) + 0.3 * normal(240, 3, seed=200 + seed))
        found = dimension(rows, window=torch.arange(240) // 4, ks=(4, 12), draws=40, seed=seed)
        values.append((found.two_nn.value, found.mle.value))
        widths.append((found.two_nn.hi - found.two_nn.lo, found.mle.hi - found.mle.lo))
    ratio = np.mean(widths, 0) / (3.92 * np.std(values, 0))
    assert np.all((ratio > 0.7) & (ratio < 1.5)), ratio


@pytest.mark.parametrize("width", [1, 8, 60])
def test_the_ceiling_is_what_a_cloud_of_full_width_gives(width: int) -> None:
    found = dimension(normal(400, width, seed=3), ks=(5, 20), draws=20)
    assert found.two_nn.value == pytest.approx(found.two_nn.ceiling, rel=0.15)
    assert found.mle.value == pytest.approx(found.mle.ceiling, rel=0.1)
    if width == 60:
        assert found.mle.ceiling < 30  # 400 rows do not reveal 60 dimensions


def test_copies_are_left_out_and_counted() -> None:
    rows = embed(uniform(300, 2))
    doubled = torch.cat([rows, rows[:40] + 1e-9])
    one, other = dimension(rows, ks=(3, 10), draws=20), dimension(doubled, ks=(3, 10), draws=20)
    assert (one.copies, other.copies, other.rows) == (0, 40, 300)
    assert other.two_nn.value == pytest.approx(one.two_nn.value, rel=1e-6)


def test_too_little_is_undefined() -> None:
    assert dimension(torch.ones(50, 4)).two_nn.undefined == "there are too few different rows for 5 neighbours and more: 1"
    assert dimension(torch.ones(50, 4)).copies == 49
    assert dimension(normal(12, 4)).mle.undefined == "there are too few different rows for 5 neighbours and more: 12"
    alone = dimension(normal(60, 4), window=torch.arange(60) // 6, ks=(3, 5))
    assert alone.mle.undefined == "there are too few different rows for 3 neighbours and more: 60, in 10 of the windows"
    near = dimension(normal(60, 4), position=torch.arange(60), gap=58, ks=(3, 5))
    assert near.mle.undefined == "more than a tenth of 60 rows have fewer than 5 neighbours that count"
    with pytest.raises(Refusal, match=r"neighbours 1 to 5: an estimate needs a range"):
        dimension(normal(60, 4), ks=(1, 5))
    with pytest.raises(Refusal, match="NaN"):
        dimension(normal(60, 4) * math.nan)


def test_the_same_seed_gives_the_same_numbers() -> None:
    rows = embed(uniform(200, 2))
    one, other = (dimension(rows, ks=(3, 10), draws=20, seed=4) for _ in range(2))
    assert (one.two_nn, one.mle) == (other.two_nn, other.mle)
