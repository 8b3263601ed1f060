"""Products of active entries against the dense ones, and choices against full searches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from microtome.factors import sparse_ops
from microtome.factors.sparse_ops import Active, above, decode, dense, largest, largest_of_all, read


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def kept(active: Active) -> Tensor:
    return dense(torch.ones(len(active.unit)), active) > 0


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 40), units=st.integers(1, 60), share=st.floats(0.0, 1.0))
def test_the_largest_of_a_batch_are_those_of_a_full_search(seed: int, rows: int, units: int, share: float) -> None:
    z = normal(rows, units, seed=seed)
    count = max(1, round(share * rows * units))
    values, place = z.flatten().topk(count)
    expected = torch.zeros(rows * units, dtype=torch.bool)
    expected[place[values > 0]] = True
    assert torch.equal(kept(largest_of_all(z, count)).flatten(), expected)


@pytest.mark.parametrize("guess", [0.0, 0.5, 10.0])
def test_the_guess_does_not_change_what_is_chosen(guess: float, monkeypatch: pytest.MonkeyPatch) -> None:
    z = normal(50, 40)
    monkeypatch.setattr(sparse_ops, "_guess", lambda *_: guess)
    found = kept(largest_of_all(z, 100))
    least = z.flatten().topk(100).values[-1]
    assert torch.equal(found, z >= least)


def test_of_equal_entries_the_first_are_chosen() -> None:
    z = torch.tensor([[1.0, 3.0, 1.0], [2.0, 1.0, -1.0]])
    expected = torch.tensor([[True, True, True], [True, False, False]])
    assert torch.equal(kept(largest_of_all(z, 4)), expected)
    assert int(kept(largest_of_all(torch.ones(30, 20), 7)).flatten().nonzero().max()) == 6


def test_the_guess_of_a_large_matrix_leaves_few_to_search() -> None:
    z = normal(512, 2048)
    count = 32 * len(z)
    passed = int((z > sparse_ops._guess(z.flatten(), count)).sum())
    assert count <= passed < 1.4 * count


def test_the_largest_of_rows() -> None:
    z = normal(20, 30)
    least = z.topk(4, dim=1).values[:, -1:]
    assert torch.equal(kept(largest(z, 4)), z >= least)
    assert bool(kept(largest(z, 99)).all())


def test_entries_above_values_of_units_unless_they_are_many() -> None:
    z, least = normal(20, 30), normal(30, seed=1)
    active = above(z, least, 600)
    assert active is not None
    assert torch.equal(kept(active), z > least)
    assert above(z, torch.tensor(0.0), 100) is None


def both(dtype: torch.dtype) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Outputs and gradients of encoding and decoding, by active entries and by dense products."""
    x, target = normal(64, 24, dtype=dtype), normal(64, 24, seed=1, dtype=dtype)
    answers = []
    for way in ("sparse", "dense"):
        weights, phi, bias = (normal(*shape, seed=n, dtype=dtype) for n, shape in ((2, (90, 24)), (3, (90, 24)), (4, (90,))))
        for each in (weights, phi, bias):
            each.requires_grad_()
        z = x @ weights.T + bias
        active = largest_of_all(z.detach(), 400)
        if way == "sparse":
            values = read(z.detach(), x, weights, bias, active)
            made = decode(values.relu(), active, phi)
        else:
            made = (z.relu() * kept(active)) @ phi
        loss = (made - target).square().sum() / 1000
        loss.backward()
        answers.append((made.detach(), weights.grad, phi.grad, bias.grad))
    return answers[0], answers[1]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_products_and_gradients_are_the_dense_ones(dtype: torch.dtype, tolerance: float) -> None:
    for found, expected in zip(*both(dtype), strict=True):
        assert float((found - expected).norm() / expected.norm()) < tolerance / 10
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_rows_without_active_entries_are_zeros() -> None:
    active = Active(torch.tensor([0, 0, 2, 2]), torch.tensor([1, 3]), 5)
    phi = normal(5, 6).requires_grad_()
    values = torch.tensor([2.0, 3.0], requires_grad=True)
    made = decode(values, active, phi)
    made.sum().backward()
    assert torch.equal(made[[0, 2]], torch.zeros(2, 6))
    torch.testing.assert_close(made[1], (2 * phi[1] + 3 * phi[3]).detach() + torch.zeros(6))
    assert values.grad is not None
    torch.testing.assert_close(values.grad, phi.detach()[[1, 3]].sum(1))


def test_no_active_entry_at_all() -> None:
    active = largest_of_all(-torch.ones(4, 6), 8)
    phi = normal(6, 3).requires_grad_()
    values = torch.zeros(0, requires_grad=True)
    made = decode(values, active, phi)
    made.sum().backward()
    assert torch.equal(made, torch.zeros(4, 3))
    assert phi.grad is not None
    assert not bool(phi.grad.any())


def test_entries_of_some_units() -> None:
    z = normal(10, 12)
    active = largest(z, 5)
    some, part = active.between(3, 8)
    inside = torch.zeros(12, dtype=torch.bool)
    inside[3:8] = True
    assert torch.equal(kept(part), kept(active) & inside)
    assert torch.equal(part.unit, active.unit[some])
