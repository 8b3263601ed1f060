"""P-values of sets that have few draws each, against plain counting and under the null."""

import pytest
import torch

from microtome.readout import pooled_chance


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_by_hand() -> None:
    """Draws 0, 2, 4: each lies from the others' mean -3, 0, 3, in units of sqrt(variance of the others * 3/2)."""
    draws = torch.tensor([[0.0], [2.0], [4.0]])
    values = torch.tensor([2.0, 100.0, -100.0])
    greater = pooled_chance([values], [draws], "greater")[0]
    assert greater.tolist() == pytest.approx([3 / 4, 1 / 4, 1.0])
    assert pooled_chance([values], [draws], "both")[0].tolist() == pytest.approx([1.0, 1 / 4, 1 / 4])


@pytest.mark.parametrize("tail", ["greater", "both"])
def test_p_values_of_values_like_their_draws_are_uniform_whatever_place_and_width(tail) -> None:
    place, width = 7 * draw(30, seed=1), draw(30, seed=2).exp()
    values = [place[i] + width[i] * draw(40, seed=10 + i) for i in range(30)]
    draws = [place[i] + width[i] * draw(100, 40, seed=100 + i) for i in range(30)]
    p = torch.cat(pooled_chance(values, draws, tail))
    for level in (0.01, 0.05, 0.2, 0.5, 0.9):
        assert float((p <= level).double().mean()) == pytest.approx(
            level, abs=4 * (level * (1 - level) / len(p)) ** 0.5 + 0.005
        )


def test_one_column_is_the_null_of_all_values_and_a_far_one_is_beyond_all_draws() -> None:
    values, draws = draw(6, 2, seed=3), draw(50, 1, seed=4)
    values[0, 0] = 60.0
    p = pooled_chance([values], [draws], "greater")[0]
    assert p.shape == (6, 2)
    assert float(p[0, 0]) == pytest.approx(1 / 51)
    same = pooled_chance([values.flatten()], [draws.expand(50, 12)], "greater")[0].view(6, 2)
    assert float((p - same).abs().max()) < 1 / 51


def test_draws_without_any_width_give_no_small_p_value_to_their_own_value() -> None:
    assert pooled_chance([torch.ones(2)], [torch.ones(20, 2)], "both")[0].tolist() == [1.0, 1.0]
