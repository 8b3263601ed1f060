"""Steps of directions against the same written plainly, one number or one direction at a time."""

import pytest
import torch
from torch import Tensor

from microtome.core import Refusal
from microtome.factors.updates import Mairal, Minibatch, Newton, descended

DRAWN = torch.Generator().manual_seed(0)


def directions(units: int = 150, d: int = 12) -> Tensor:
    drawn = torch.randn(units, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.nn.functional.normalize(drawn, dim=1)


def minibatch(phi: Tensor, rows: int = 40, seed: int = 2, weight: float = 1.0, curvature: float = 1.0) -> Minibatch:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, phi.shape[1], generator=generator, dtype=torch.float64)
    codes = (torch.rand(rows, len(phi), generator=generator, dtype=torch.float64) - 0.8).clamp(min=0)
    codes[:, 3] = 0
    ones = torch.ones(rows, dtype=torch.float64)
    return Minibatch(x, codes, x - codes @ phi, weight * ones, curvature * ones)


def one_by_one(phi: Tensor, gram: Tensor, target: Tensor) -> Tensor:
    phi = phi.clone()
    for c in range(len(phi)):
        if gram[c, c] > 0:
            wanted = phi[c] + (target[c] - gram[c] @ phi) / gram[c, c]
            phi[c] = wanted / wanted.norm()
    return phi


def test_a_sweep_in_blocks_is_that_of_one_direction_after_the_other() -> None:
    phi = directions()
    seen = minibatch(phi)
    gram, target = seen.codes.T @ seen.codes, seen.codes.T @ seen.x
    found = descended(phi, gram, target)
    torch.testing.assert_close(found, one_by_one(phi, gram, target), atol=1e-10, rtol=0)
    assert torch.equal(found[3], torch.nn.functional.normalize(phi[3], dim=0))


def test_sweeps_never_make_what_they_minimise_larger() -> None:
    phi = directions()
    seen = minibatch(phi)
    gram, target = seen.codes.T @ seen.codes, seen.codes.T @ seen.x
    values = []
    for _ in range(6):
        values.append(float((phi @ phi.T * gram).sum() / 2 - (phi * target).sum()))
        phi = descended(phi, gram, target)
    assert values == sorted(values, reverse=True)
    assert values[0] - values[-1] > 1


def test_mairal_keeps_the_past_as_its_power_of_time_says() -> None:
    phi, update = directions(), Mairal(forgetting=2.0)
    kept, batches = update.begin(phi), [minibatch(phi, seed=seed) for seed in range(3)]
    for seen in batches:
        update.advance(phi, kept, seen)
    expected = sum(((t + 1) / 3) ** 2 * seen.codes.T @ seen.codes / 40 for t, seen in enumerate(batches))
    torch.testing.assert_close(kept["gram"], expected)
    update.forget(kept, torch.tensor([5]))
    assert float(kept["gram"][5].abs().sum() + kept["gram"][:, 5].abs().sum() + kept["target"][5].abs().sum()) == 0


@pytest.mark.parametrize("correction", ["none", "bias"])
def test_newton_is_the_formula(correction: str) -> None:
    phi = directions(6, 4)
    update = Newton(rate=0.2, memory=10.0, damping=0.01, halving=1.0, correction=correction)  # type: ignore[arg-type]
    kept, own, h = update.begin(phi), phi.clone(), torch.zeros(6, dtype=torch.float64)
    for t in range(3):
        seen = minibatch(own, seed=t, weight=0.5, curvature=0.25)
        phi = update.advance(own, kept, seen)
        for c in range(6):
            h[c] = 0.9 * h[c] + 0.1 * sum(0.25 * float(a) ** 2 for a in seen.codes[:, c]) / 40
            curvature = h[c] / (1 - 0.9 ** (t + 1)) if correction == "bias" else h[c]
            step = sum((0.5 * seen.rest[b] * seen.codes[b, c] for b in range(40)), torch.zeros(4, dtype=torch.float64)) / 40
            moved = own[c] + 0.2 / (1 + t) * step / (curvature + 0.01)
            torch.testing.assert_close(phi[c], moved / moved.norm())
        own = phi


def test_a_weight_for_all_rows_alike_changes_nothing_where_it_is_consistent() -> None:
    phi = directions()
    seen, heavy = minibatch(phi), minibatch(phi, weight=7.0, curvature=7.0)
    mairal = Mairal()
    torch.testing.assert_close(mairal.advance(phi, mairal.begin(phi), seen), mairal.advance(phi, mairal.begin(phi), heavy))
    newton = Newton(damping=1e-12)
    found = [newton.advance(phi, newton.begin(phi), each) for each in (seen, heavy, minibatch(phi, weight=7.0))]
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=0)
    assert float((found[0] - found[2]).abs().max()) > 0.01


def test_a_replaced_direction_begins_with_a_typical_curvature() -> None:
    kept = {"curvature": torch.tensor([0.0, 1.0, 2.0, 3.0]), "steps": torch.tensor(1)}
    Newton().forget(kept, torch.tensor([0]))
    assert kept["curvature"].tolist() == [2.0, 1.0, 2.0, 3.0] or kept["curvature"][0] in (1.0, 2.0, 3.0)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(Refusal, match="give such numbers"):
        Newton(rate=0.0)
    with pytest.raises(Refusal, match="cannot count more than the present"):
        Mairal(-1.0)
