"""Run a test once with compiled kernels and once with the torch references."""

import contextlib
from collections.abc import Iterator

import pytest

from microtome.numerics import kernels


@pytest.fixture(params=["compiled", "torch"])
def kernel_set(request: pytest.FixtureRequest) -> Iterator[str]:
    """The kernel set that the test runs with."""
    if request.param == "compiled" and not kernels.available():
        pytest.skip("the extra `fast` is not installed")
    with kernels.reference() if request.param == "torch" else contextlib.nullcontext():
        yield request.param
