"""Systems with a symmetric positive matrix: the same as NumPy, one of many solutions where there are many, and no threaded LU."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

import microtome
from microtome.numerics import solve_positive


@pytest.mark.parametrize(("rows", "n"), [(1, 1), (7, 5), (40, 152)])
def test_solutions_are_those_of_numpy(rows: int, n: int) -> None:
    random = torch.Generator().manual_seed(n)
    half = torch.randn(rows, n, n, generator=random, dtype=torch.float64)
    system, right = half @ half.mT + torch.eye(n), torch.randn(rows, n, generator=random, dtype=torch.float64)
    expected = np.linalg.solve(system.numpy(), right.numpy()[..., None])[..., 0]
    np.testing.assert_allclose(solve_positive(system, right), expected, rtol=1e-8, atol=1e-10)


def test_of_many_solutions_one_is_chosen_and_the_other_rows_are_exact() -> None:
    twice = torch.ones(2, 2, dtype=torch.float64)
    system = torch.stack([twice, torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)])
    found = solve_positive(system, torch.tensor([[1.0, 1.0], [3.0, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(found[0], torch.tensor([0.5, 0.5], dtype=torch.float64))
    torch.testing.assert_close(found[1], torch.tensor([2.0, -1.0], dtype=torch.float64))


def test_nothing_solves_several_systems_by_a_threaded_lu() -> None:
    """`torch.linalg.solve` of a batch can stop for ever: it is called for single systems alone, which are counted here."""
    root = Path(microtome.__file__).parent
    calls = [
        path.relative_to(root).as_posix()
        for path in sorted(root.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in {"torch.linalg.solve", "torch.linalg.inv", "torch.linalg.det"}
    ]
    assert calls == ["factors/saliency.py", "neurons/rome.py", "vocabulary/translators.py"]
