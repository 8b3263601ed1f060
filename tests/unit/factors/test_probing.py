"""Labels that a factor has are read from it, labels of a direction from the state and not from factors, and a factor that took another's place is found."""

import math

import pytest
import torch
from torch import Tensor

from microtome.core import Half, Refusal
from microtome.factors.probing import (
    COORDINATES,
    DENSE,
    KS,
    RANDOM_UNITS,
    SHIFTED,
    Probed,
    absorption,
    absorption_undefined,
    probe_stats,
    probed,
)
from tests.unit.factors.planted_dictionaries import planted_states

ROWS = 1200


def halves(rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """Windows of twenty rows, and their halves by turns."""
    window = torch.arange(rows) // 20
    return window, window % 2


def of_label(codes: Tensor, x: Tensor, y: Tensor) -> Probed:
    window, half = halves(len(x))
    return probed(codes, x, y, half, window)


def test_a_label_that_is_a_factor_is_read_from_it_alone() -> None:
    planted = planted_states(ROWS, units=40, d=20, k=3, noise=0.02)
    found = of_label(planted.codes, planted.x, planted.codes[:, 7] > 0)
    assert found.ks == KS
    assert found.factors[0] == 7
    assert found.scores[0].f1 == 1
    assert found.scores[0].f1 > found.coordinates[0].f1 + 0.3
    assert found.random[0].auroc == pytest.approx(0.5, abs=0.15)
    assert found.shifted[0].auroc == pytest.approx(0.5, abs=0.15)
    assert found.coordinates[0].auroc < found.dense.auroc


def test_a_label_of_a_direction_is_read_from_the_state_and_not_from_few_factors() -> None:
    planted = planted_states(ROWS, units=40, d=20, k=3, noise=0.02)
    direction = torch.randn(20, generator=torch.Generator().manual_seed(3))
    found = of_label(planted.codes, planted.x, planted.x @ direction > 0)
    assert found.dense.f1 > 0.95
    assert found.dense.f1 > found.scores[0].f1 + 0.15
    assert found.scores[2].f1 > found.scores[0].f1 + 0.05


def test_factors_are_chosen_on_the_discover_half() -> None:
    """A factor that is the label in the confirm half alone is not found."""
    codes = torch.rand(ROWS, 12, generator=torch.Generator().manual_seed(4))
    y = torch.rand(ROWS, generator=torch.Generator().manual_seed(5)) < 0.3
    _, half = halves()
    confirm = half == Half.CONFIRM
    codes[confirm, 3] = y[confirm].float()
    codes[~confirm, 5] += 0.5 * y[~confirm]
    found = of_label(codes, codes, y)
    assert found.factors[0] == 5
    assert found.scores[0].auroc == pytest.approx(0.5, abs=0.08)


def test_a_dense_probe_of_noise_is_worth_nothing() -> None:
    """More coordinates than it has rows to learn from."""
    x = torch.randn(200, 150, generator=torch.Generator().manual_seed(6))
    found = of_label(x, x, torch.rand(200, generator=torch.Generator().manual_seed(7)) < 0.5)
    assert found.dense.auroc == pytest.approx(0.5, abs=0.15)
    easy = of_label(x, x, x[:, 0] + x[:, 1] > 0)
    assert easy.dense.auroc > 0.65


def test_every_score_has_its_controls() -> None:
    planted = planted_states(ROWS, units=40, d=20, k=3)
    own, controls = probe_stats("seven", of_label(planted.codes, planted.x, planted.codes[:, 7] > 0))
    assert set(own) == {f"probe seven {kind} k={k}" for kind in ("f1", "auroc") for k in KS}
    assert set(controls) == {DENSE, COORDINATES, RANDOM_UNITS, SHIFTED}
    assert all(set(of) == set(own) for of in controls.values())


def test_labels_of_one_kind_and_too_few_units_are_refused() -> None:
    window, half = halves(100)
    x = torch.randn(100, 8, generator=torch.Generator().manual_seed(8))
    with pytest.raises(Refusal, match="half"):
        probed(x, x, half == Half.DISCOVER, half, window)
    with pytest.raises(Refusal, match="4 factors"):
        probed(x[:, :4], x, x[:, 0] > 0, half, window)


def spelled(absorbed: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States of words: 20 of them, 5 with a letter. Word 0 has a factor with the letter in it, which in a share of its rows is all that says the letter."""
    generator = torch.Generator().manual_seed(9)
    turn = torch.linalg.qr(torch.randn(24, 24, generator=generator)).Q
    letter, words = turn[0], turn[1:21]
    word = torch.randint(0, 20, (4000,), generator=generator)
    y = word < 5
    states = words[word] + y[:, None] * letter + 0.02 * torch.randn(4000, 24, generator=generator)
    codes = torch.cat([y[:, None].float(), torch.nn.functional.one_hot(word, 20).float(), torch.zeros(4000, 1)], 1)
    taken = (word == 0) & (torch.rand(4000, generator=generator) < absorbed)
    codes[taken, 0], codes[taken, 1], codes[taken, 21] = 0, 0, 1
    directions = torch.cat([letter[None], words, (words[0] + letter)[None]])
    return codes, directions, states, y


@pytest.mark.parametrize("share", [0.0, 0.9])
def test_absorption_is_the_share_that_was_planted(share: float) -> None:
    codes, directions, states, y = spelled(share)
    half = (torch.arange(4000) // 50) % 2
    found = absorption(codes, directions, states, y, half)
    confirm = (half == Half.CONFIRM) & y
    planted = float(((codes[:, 21] > 0) & confirm).sum()) / int(confirm.sum())
    assert found.value == pytest.approx(planted, abs=0.01)
    assert (planted > 0.1) == (share > 0)


def test_a_silent_factor_without_another_is_not_absorbed() -> None:
    """Where nothing says the letter, none took its place."""
    codes, directions, states, y = spelled(0.9)
    codes[:, 21] = 0
    assert absorption(codes, directions, states, y, (torch.arange(4000) // 50) % 2).value == 0


def test_absorption_is_not_measured_where_it_means_nothing() -> None:
    told = absorption_undefined(135_000_000, 2048)
    assert told is not None
    assert math.isnan(told.value)
    assert "135,000,000" in told.undefined
    assert absorption_undefined(2_000_000_000, 2048) is not None
    assert absorption_undefined(2_000_000_000, 16_384) is None
