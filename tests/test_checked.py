"""What a test run checks of annotations: arguments and results, axes among them, wherever a function or a data class is made."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jaxtyping
import pytest
import torch
from beartype import beartype
from jaxtyping import Float, Int
from torch import Tensor

from microtome.numerics.hashing import splitmix64

hooked = functools.partial(jaxtyping.jaxtyped, typechecker=beartype)  # as the import hook of pyproject.toml has it


@hooked()
def total(rows: Float[Tensor, "row column"], weights: Float[Tensor, " row"]) -> Float[Tensor, " column"]:
    return weights @ rows if len(weights) else rows


@hooked()
def first(count: int, names: list[str] | None = None) -> str:
    return names[0] if names else count  # pyright: ignore[reportReturnType]


@hooked()
def padded(row: Float[Tensor, " n"], more: int) -> Float[Tensor, " {more}"]:
    return torch.nn.functional.pad(row, (0, 2))


@hooked()
def counted(count: int) -> Iterator[int]:
    yield from range(count)


@hooked()
@dataclass(frozen=True)
class Pair:
    left: Float[Tensor, " side"]
    right: Float[Tensor, " side"]


@hooked()
def adder(count: int) -> Callable[..., object]:
    @hooked()
    def add(other: int) -> int:
        return other + count if other else "none"  # pyright: ignore[reportReturnType]

    return add


def test_what_fits_passes() -> None:
    assert total(torch.ones(3, 2), torch.ones(3)).tolist() == [3.0, 3.0]
    assert (first(1, ["a"]), padded(torch.ones(1), 3).tolist(), [*counted(2)]) == ("a", [1.0, 0.0, 0.0], [0, 1])
    assert Pair(torch.ones(2), torch.zeros(2)).right.tolist() == [0.0, 0.0]
    assert [adder(count)(1) for count in (2, 3)] == [3, 4], "each is its own function, whoever checks it"


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda: total(torch.ones(3, 2), torch.ones(2)), id="lengths of an axis"),
        pytest.param(lambda: total(torch.ones(3), torch.ones(3)), id="number of axes"),
        pytest.param(lambda: total(torch.ones(3, 2, dtype=torch.int64), torch.ones(3)), id="kind of number"),
        pytest.param(lambda: total(torch.ones(0, 2), torch.ones(0)), id="axes of a result"),
        pytest.param(lambda: first("1", ["a"]), id="argument"),  # pyright: ignore[reportArgumentType]
        pytest.param(lambda: first(1, [2]), id="part of an argument"),  # pyright: ignore[reportArgumentType]
        pytest.param(lambda: first(1), id="result"),
        pytest.param(lambda: padded(torch.ones(2), 3), id="axis named by an argument"),
        pytest.param(lambda: counted("2"), id="argument of a generator"),  # pyright: ignore[reportArgumentType]
        pytest.param(lambda: Pair(torch.ones(2), torch.zeros(3)), id="fields of a data class"),
        pytest.param(lambda: adder(2)("1"), id="argument of an inner function"),
        pytest.param(lambda: [adder(2)(1), adder(3)(0)], id="result of an inner function made again"),
        pytest.param(lambda: splitmix64(3), id="function of the package"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_what_does_not_fit_fails(wrong: Callable[[], object]) -> None:
    with pytest.raises(Exception, match=r"(?i)type-check error|violates type hint"):
        wrong()


def test_axes_of_one_call_are_not_those_of_the_next() -> None:
    for length in (2, 3):
        ids: Int[Tensor, " n"] = torch.arange(length)
        assert total(torch.ones(length, 1), ids.float()).tolist() == [float(ids.sum())]
