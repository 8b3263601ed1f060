"""Incoherence: planted subspaces at known angles, nulls against their exact means, and the bounds as inequalities."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from microtome.core import Refusal
from microtome.geometry.incoherence import (
    incoherence,
    isotropic_cosine,
    joint_cosines,
    kernel_bound,
    unrelated_cosines,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bases(angles: list[float], left: int, right: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Orthonormal rows of two subspaces with these principal angles, the rest of their directions orthogonal."""
    frame = torch.linalg.qr(normal(width, width, seed=seed))[0]
    u = frame[:left]
    v = frame[left : left + right].clone()
    for at, angle in enumerate(angles):
        v[at] = math.cos(angle) * u[at] + math.sin(angle) * v[at]
    return u, v


def parts(angles: list[float], left: int, right: int, width: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Position and context parts inside such subspaces."""
    u, v = bases(angles, left, right, width)
    return normal(24, left, seed=1) @ u, normal(60, right, seed=2) @ v


def test_planted_angles_come_back() -> None:
    pos, ctx = parts([0.3, 1.0], 3, 4)
    found = incoherence(pos, ctx, (3, 4), draws=100)
    assert found.cosines.tolist() == pytest.approx([math.cos(0.3), math.cos(1.0), 0], abs=1e-7)
    assert found.coherence.value == pytest.approx(math.cos(0.3))
    assert found.bound == kernel_bound(found.coherence.value)
    assert found.coherence.p < 0.05


def test_means_and_leak_are_those_of_their_definitions() -> None:
    pos, ctx = parts([0.3, 1.0], 3, 4)
    found = incoherence(pos, ctx, (2, 4), draws=100)
    cosines = torch.nn.functional.cosine_similarity(pos[:, None], ctx[None], dim=2).abs()
    assert found.mean.value == pytest.approx(float(cosines.mean()), rel=1e-5)
    assert found.largest.value == pytest.approx(float(cosines.max()), rel=1e-5)
    _, _, directions = torch.linalg.svd(pos, full_matrices=False)
    leak = float((ctx @ directions[:2].T).square().sum() / ctx.square().sum())
    assert found.leak.value == pytest.approx(leak, rel=1e-9)


def test_the_null_is_a_rotation_of_the_context() -> None:
    """The same statistics from contexts rotated by dense Haar matrices, made by scipy."""
    from scipy.stats import ortho_group

    pos, ctx = parts([0.5], 3, 4, width=12)
    found = incoherence(pos, ctx, (2, 3), draws=400)
    rotations = torch.from_numpy(ortho_group.rvs(12, size=400, random_state=0))
    dense = [incoherence(pos, ctx @ q, (2, 3), draws=1) for q in rotations]
    for name in ("mean", "largest", "coherence", "leak"):
        measured, null = getattr(found, name), [getattr(each, name).value for each in dense]
        assert measured.control == pytest.approx(np.mean(null), abs=4 * float(np.std(null)) / 20), name
        ends = np.quantile(null, [0.025, 0.975])
        assert (measured.control_lo, measured.control_hi) == pytest.approx(ends, abs=0.25 * float(ends[1] - ends[0])), name
    assert found.mean.control == found.isotropic == pytest.approx(isotropic_cosine(12))
    assert found.leak.control == pytest.approx(2 / 12)


def test_few_directions_widen_the_null() -> None:
    """The isotropic null would call almost any rotation of two lines significant; this one calls about one in twenty so."""
    verdicts, isotropic = [], []
    frame = torch.linalg.qr(normal(30, 30, seed=9))[0]
    sizes = torch.tensor([10.0, 0.1, 0.1], dtype=torch.float64)
    many = normal(40, 3, seed=3) * sizes, normal(50, 3, seed=4) * sizes
    spread = math.sqrt((1 / 30 - isotropic_cosine(30) ** 2) / (40 * 50))  # of the mean of as many independent cosines
    for seed in range(40):
        pos = many[0] @ frame[:3]
        ctx = many[1] @ torch.linalg.qr(normal(30, 3, seed=100 + seed))[0].T
        found = incoherence(pos, ctx, (1, 1), draws=100, seed=seed)
        verdicts.append(found.mean.p < 0.05)
        isotropic.append(abs(found.mean.value - found.isotropic) > 1.96 * spread)
    assert np.mean(isotropic) > 0.8
    assert np.mean(verdicts) < 0.2


@pytest.mark.parametrize("width", [2, 3, 10, 768, 4096])
def test_isotropic_cosine(width: int) -> None:
    known = {2: 2 / math.pi, 3: 0.5, 768: 0.0288, 4096: 0.01247}
    drawn = torch.nn.functional.cosine_similarity(normal(1500, width), normal(1500, width, seed=1), dim=1).abs()
    assert isotropic_cosine(width) == pytest.approx(known.get(width, float(drawn.mean())), rel=0.03)
    assert isotropic_cosine(width) == pytest.approx(float(drawn.mean()), rel=0.08)


def test_a_shared_space_raises_chance() -> None:
    pos, ctx = normal(20, 100), normal(30, 100, seed=1)
    flat = torch.ones(100, dtype=torch.float64)
    assert float(unrelated_cosines(pos, ctx, flat).mean()) == pytest.approx(isotropic_cosine(100), rel=0.03)
    steep = torch.cat([torch.full((10,), 3.0), torch.full((90,), 1e-7)]).double()
    assert float(unrelated_cosines(pos, ctx, steep).mean()) == pytest.approx(isotropic_cosine(10), rel=0.03)
    with pytest.raises(Refusal, match="a space of no variance"):
        unrelated_cosines(pos, ctx, 0 * flat)


def test_few_directions_widen_the_null_of_a_shared_space_too() -> None:
    many = unrelated_cosines(normal(20, 50), normal(30, 50, seed=1), torch.ones(50))
    lines = normal(20, 1) @ normal(1, 50, seed=2), normal(30, 1, seed=3) @ normal(1, 50, seed=4)
    few = unrelated_cosines(*lines, torch.ones(50))
    assert float(few.std()) > 5 * float(many.std())
    assert float(few.mean()) == pytest.approx(isotropic_cosine(50), abs=4 * float(few.std()) / 200**0.5)


def test_unrelated_parts_of_an_anisotropic_space_are_told_from_incoherent_ones() -> None:
    """Two samples of one steep law, and two whose directions avoid each other. Rotations call both what they are not."""
    spectrum = torch.linspace(0, 4, 40, dtype=torch.float64).neg().exp()
    frame = torch.linalg.qr(normal(40, 40, seed=7))[0]
    found = [
        incoherence(
            normal(15, 40, seed=seed) * spectrum.sqrt() @ frame,
            normal(30, 40, seed=100 + seed) * spectrum.sqrt() @ frame,
            (2, 2),
            variances=spectrum,
            draws=100,
            seed=seed,
        )
        for seed in range(20)
    ]
    assert 0.3 < np.mean([each.in_space.p for each in found]) < 0.7
    first = found[0]
    assert first.mean.p == pytest.approx(2 / 101)
    assert first.mean.value > first.mean.control_hi
    odd = torch.arange(40) % 2 == 1
    apart = incoherence(
        normal(15, 40) * (spectrum * odd).sqrt() @ frame, normal(30, 40, seed=1) * (spectrum * ~odd).sqrt() @ frame, (2, 2),
        variances=spectrum, draws=100,
    )  # fmt: skip
    assert apart.in_space.value < apart.in_space.control_lo
    assert apart.in_space.p == pytest.approx(2 / 101)


def test_joint_cosines_have_the_parts_as_blocks() -> None:
    pos, ctx = parts([], 2, 3)
    joint = joint_cosines(pos, ctx)
    assert joint.shape == (84, 84)
    assert joint.diagonal().tolist() == pytest.approx([1.0] * 84)
    assert float(joint[:24, 24:].abs().max()) < 1e-12
    assert float(joint[2, 30]) == pytest.approx(float(torch.nn.functional.cosine_similarity(pos[2], ctx[6], dim=0)), abs=1e-12)


def exact_form(u: torch.Tensor, v: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """The W = Z^+ B Z^+' whose form x W y' is a B b' for x = a Z, y = b Z: four given forms at once, exactly."""
    inverse = torch.linalg.pinv(torch.cat([u, v]).double())
    return inverse @ blocks.double() @ inverse.T


def dual_free_form(u: torch.Tensor, v: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """W0 = Z' B Z, the sum of U'B_pp U, U'B_pc V, V'B_cp U and V'B_cc V."""
    both = torch.cat([u, v]).double()
    return both.T @ blocks.double() @ both


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.05, math.pi / 2), st.integers(1, 4), st.integers(1, 5))
def test_both_forms_keep_their_bounds(seed: int, angle: float, left: int, right: int) -> None:
    u, v = bases([angle], left, right, 14, seed)
    blocks = normal(left + right, left + right, seed=seed + 1)
    a, b = normal(20, left + right, seed=seed + 2), normal(20, left + right, seed=seed + 3)
    both = torch.cat([u, v])
    x, y = a @ both, b @ both
    target = ((a @ blocks) * b).sum(1)
    size = float(torch.linalg.matrix_norm(blocks, 2))
    bound = kernel_bound(math.cos(angle))
    exact = exact_form(u, v, blocks)
    assert torch.allclose(((x @ exact) * y).sum(1), target, atol=1e-8 * size)
    assert float(torch.linalg.matrix_norm(exact, 2)) <= bound.exact_norm * size * (1 + 1e-9)
    error = (((x @ dual_free_form(u, v, blocks)) * y).sum(1) - target).abs()
    assert bool((error <= bound.form_error * size * a.norm(dim=1) * b.norm(dim=1) + 1e-10).all())


def test_the_bounds_are_met_in_the_worst_case() -> None:
    """One direction each, at angle t: Z Z' = [[1, c], [c, 1]]. B = I reaches the error 2c + c^2, B = (1, -1)(1, -1)' the norm."""
    u, v = bases([1.1], 1, 1, 5)
    c = math.cos(1.1)
    a = torch.tensor([1.0, 1.0], dtype=torch.float64) / 2**0.5
    x = a @ torch.cat([u, v])
    error = float(x @ dual_free_form(u, v, torch.eye(2)) @ x) - 1
    assert error == pytest.approx(kernel_bound(c).form_error)
    blocks = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64) / 2
    assert float(torch.linalg.matrix_norm(exact_form(u, v, blocks), 2)) == pytest.approx(kernel_bound(c).exact_norm)


def test_spans_that_meet_have_no_exact_form_and_orthogonal_ones_lose_nothing() -> None:
    assert kernel_bound(1.0).exact_norm == math.inf
    assert kernel_bound(0.0) == type(kernel_bound(0.0))(0.0, 1.0, 0.0)


def test_what_is_not_there_is_undefined() -> None:
    pos, ctx = parts([0.3], 3, 4)
    found = incoherence(pos, ctx, (0, 4), draws=100)
    assert found.coherence.undefined == "ranks 0 and 4: a part has no leading directions"
    assert not math.isnan(found.mean.value)
    assert found.in_space.undefined == "the variances of hidden states were not given"
    assert math.isnan(found.bound.form_error)
    nothing = incoherence(pos, 0 * ctx, (3, 4), draws=100)
    assert nothing.mean.undefined == "the context part is 0 everywhere"
    assert incoherence(0 * pos, ctx, (3, 4)).leak.undefined == "the position part is 0 everywhere"
    with pytest.raises(Refusal, match="5 leading directions of the context part: the context part spans 4; ask for fewer"):
        incoherence(pos, ctx, (3, 5))
    with pytest.raises(Refusal, match="NaN or infinity"):
        incoherence(pos * math.inf, ctx, (1, 1))
