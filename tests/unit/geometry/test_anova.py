"""The analysis of variance on four numbers that a pencil can check."""

import pytest
import torch

from microtome.geometry.anova import PARTS, Kept, Moments, fit, split

# h = [[1, 3], [5, 11]], windows in rows: mu 5, pos -2 2, ctx -3 3, resid 1 -1 -1 1; squares 16 + 36 + 4 = 56.
MOMENTS = Moments(
    lengths=torch.tensor([2]),
    windows=torch.tensor([2]),
    sums=torch.tensor([[6.0], [14.0]], dtype=torch.float64),
    means=torch.tensor([[10.0]], dtype=torch.float64),
    squares=torch.tensor([156.0], dtype=torch.float64),
    mean_squares=torch.tensor([136.0], dtype=torch.float64),
)


def test_shares_of_four_numbers() -> None:
    found = fit(MOMENTS)
    assert found.mu.tolist() == pytest.approx([5])
    assert found.pos.flatten().tolist() == pytest.approx([-2, 2])
    assert found.total == pytest.approx(56)
    assert found.share == pytest.approx({"pos": 16 / 56, "ctx": 36 / 56, "resid": 4 / 56})
    assert found.norm == pytest.approx({"pos": 2, "ctx": 3, "resid": 1})
    assert (found.windows, found.tokens, found.counts.tolist()) == (2, 4, [2, 2])


def test_controls_of_four_numbers() -> None:
    """Each window keeps or swaps its two numbers: position sums of squares 16, 4, 4, 16, mean 10. Three splits into pairs: 36, 16, 4."""
    found = fit(MOMENTS)
    assert found.control == pytest.approx({"pos": 10 / 56, "ctx": (36 + 16 + 4) / 3 / 56, "resid": 1 / 3})


def masked(kept: torch.Tensor, h: torch.Tensor) -> Kept:
    """Windows of which only the kept tokens count."""
    inside = torch.where(kept[..., None], h, 0.0)
    means = inside.sum(1) / kept.sum(1).clamp(min=1)[:, None]
    return Kept(kept, means, inside.square().sum((1, 2)), inside.sum(0))


def squares_of(h: torch.Tensor, *columns: torch.Tensor) -> float:
    """Sum of squares about 0 that the dense design explains."""
    design = torch.cat([torch.nn.functional.one_hot(each).double() for each in columns], 1)
    return float((design @ torch.linalg.lstsq(design, h, driver="gelsd").solution).square().sum())


def random_masks(seed: int, windows: int = 9, tokens: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(windows, tokens, generator=generator) < 0.6
    kept[4], kept[:, 5] = False, False
    h = torch.randn(windows, tokens, 3, generator=generator, dtype=torch.float64)
    return kept, h + 2 * torch.randn(tokens, 3, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(5))
def test_with_any_tokens_left_out_it_is_dense_least_squares(seed: int) -> None:
    """One window has no token left, and one position no window."""
    kept, h = random_masks(seed)
    found = fit(masked(kept, h))
    window, place = kept.nonzero(as_tuple=True)
    flat, nothing = h[kept], torch.zeros(int(kept.sum()), dtype=torch.int64)
    about, context, both = (squares_of(flat, *each) for each in ((nothing,), (window,), (window, place)))
    total = float(flat.square().sum()) - about
    assert found.total == pytest.approx(total, rel=1e-10)
    assert found.share["ctx"] == pytest.approx((context - about) / total, abs=1e-10)
    assert found.share["pos"] == pytest.approx((both - context) / total, abs=1e-10)
    assert (found.windows, found.tokens, found.counts.tolist()) == (8, len(flat), kept.sum(0).tolist())
    without = flat - found.pos[place]
    left = without - torch.zeros(9, 3).double().index_add_(0, window, without)[window] / kept.sum(1)[window, None]
    assert float(left.square().sum()) == pytest.approx(float(flat.square().sum()) - both, rel=1e-10)
    assert float(found.pos[5].abs().max()) == 0
    assert float((found.counts.double() @ found.pos).abs().max()) < 1e-10


def test_masks_that_are_tails_are_windows_of_these_lengths() -> None:
    lengths = torch.tensor([7, 3, 5, 7, 1, 3])
    _, h = random_masks(1, windows=6)
    kept = torch.arange(7) < lengths[:, None]
    data, distinct = masked(kept, h), lengths.unique()
    of = (lengths == distinct[:, None]).double()
    ragged = Moments(
        lengths=distinct,
        windows=of.sum(1).long(),
        sums=data.sums,
        means=of @ data.means,
        squares=of @ data.squares,
        mean_squares=of @ (lengths * data.means.square().sum(1)),
    )
    one, other = fit(data), fit(ragged)
    torch.testing.assert_close(one.pos, other.pos, atol=1e-12, rtol=0)
    for part in PARTS:
        assert one.share[part] == pytest.approx(other.share[part], abs=1e-12)
        assert one.control[part] == pytest.approx(other.control[part], abs=1e-12), part
        assert one.norm[part] == pytest.approx(other.norm[part], abs=1e-12)


def test_windows_with_no_position_in_common_have_a_constant_each() -> None:
    """Two sets of windows, two sets of positions: what differs between the sets is context."""
    kept = torch.tensor([[1, 1, 0, 0]] * 3 + [[0, 0, 1, 1]] * 3).bool()
    h = torch.tensor([1.0, 3.0, 11.0, 15.0], dtype=torch.float64)[:, None] + torch.zeros(6, 4, 1, dtype=torch.float64)
    found = fit(masked(kept, h))
    assert found.pos.flatten().tolist() == pytest.approx([-1, 1, -2, 2])
    assert found.share == pytest.approx({"pos": 30 / 393, "ctx": 363 / 393, "resid": 0}, abs=1e-12)
    assert found.control["resid"] == pytest.approx(1 - (5 + 4 - 2) / 11)


def test_without_an_effect_the_control_is_the_mean_over_orders_of_the_kept_tokens() -> None:
    kept, h = random_masks(3)
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for _ in range(400):
        shuffled = h.clone()
        for row, mask in enumerate(kept):
            places = mask.nonzero()[:, 0]
            shuffled[row, places] = h[row, places[torch.randperm(len(places), generator=generator)]]
        drawn.append(fit(masked(kept, shuffled)).share["pos"])
    shares = torch.tensor(drawn)
    assert fit(masked(kept, h)).control["pos"] == pytest.approx(float(shares.mean()), abs=4 * float(shares.std()) / 20)


def test_a_position_part_that_is_given_takes_off_what_subtracting_it_takes_off() -> None:
    kept, h = random_masks(2)
    data, given = masked(kept, h), torch.randn(7, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    given = 0.1 * given + fit(data).pos
    found = split(data.equations(), given)

    def within(states: torch.Tensor) -> float:
        left = masked(kept, states)
        return float((left.squares - kept.sum(1) * left.means.square().sum(1)).sum())

    assert found.share["pos"] * found.total == pytest.approx(within(h) - within(h - given), rel=1e-9)
    assert found.share["pos"] < fit(data).share["pos"]
