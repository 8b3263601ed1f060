"""Every fold on a GPU: the state and the result that the CPU computes from the same numbers.

Tolerances: selections, counts, keys and selected values are equal to the bit; sums, which are float64 across tiles but float32
within one, to 1e-5 of the largest. What the CPU computes is itself checked against brute force in the unit tests of each fold.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from microtome.core import Batch, ExpertRows, Site
from tests.contract.fold_cases import CASES, FoldCase, Stream, relative

pytestmark = pytest.mark.gpu
SUMS = 1e-5
CUT = ([0, 1, 2, 3, 4, 5, 6], [7], list(range(8, 20)), list(range(20, 30)))

every_fold = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def moved(value: Any, device: str) -> Any:
    """A batch, or a site's value, with all its tensors on `device`."""
    if isinstance(value, Tensor):
        return value.to(device)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: moved(getattr(value, field.name), device) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **parts)
    return {name: moved(part, device) for name, part in value.items()} if isinstance(value, Mapping) else value


def given(stream: Stream, windows: Sequence[int], device: str) -> tuple[dict[Site, Tensor | ExpertRows], Batch]:
    """Values and batch of these windows on `device`."""
    batch = stream.batch(windows)
    return moved(stream.values(windows, batch.ids.shape[1]), device), moved(batch, device)


def state_on(device: str, stream: Stream, cut: Sequence[Sequence[int]] = CUT) -> dict[str, Tensor]:
    """The state after the batches of `cut`."""
    state = stream.fold.init()
    for windows in cut:
        stream.fold.update(state, *given(stream, windows, device))
    return state


def assert_parity(found: Any, expected: Any, where: str) -> None:
    """Equal, but for sums (the float64 of a state) and numbers made of them, which may differ by `SUMS` of the largest."""
    if isinstance(expected, Tensor):
        found = found.cpu()
        assert found.dtype == expected.dtype, where
        if expected.dtype == torch.float64 or (expected.is_floating_point() and where.startswith("result")):
            assert torch.equal(found.isnan(), expected.isnan()), where
            known = ~expected.isnan()
            assert relative(found[known], expected[known]) <= SUMS, where
        else:
            assert torch.equal(found, expected), where
    elif dataclasses.is_dataclass(expected):
        for field in dataclasses.fields(expected):
            assert_parity(getattr(found, field.name), getattr(expected, field.name), f"{where}.{field.name}")
    elif isinstance(expected, Mapping):
        assert found.keys() == expected.keys(), where
        for name in expected:
            assert_parity(found[name], expected[name], f"{where}.{name}")
    elif isinstance(expected, tuple):
        assert len(found) == len(expected), where
        for place, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_parity(one, other, f"{where}[{place}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=SUMS, nan_ok=True), where
    else:
        assert found == expected, where


@every_fold
def test_states_and_results_are_those_of_the_cpu(case: FoldCase) -> None:
    stream = Stream(case)
    expected, found = state_on("cpu", stream), state_on("cuda", stream)
    assert_parity(found, expected, "state")
    assert_parity(stream.fold.result(found), stream.fold.result(expected), "result")


@every_fold
def test_states_of_both_devices_merge(case: FoldCase) -> None:
    stream = Stream(case)
    expected = state_on("cpu", stream)
    for first, second in (("cuda", "cpu"), ("cpu", "cuda"), ("cuda", "cuda")):
        merged = stream.fold.merge(state_on(first, stream, CUT[:2]), state_on(second, stream, CUT[2:]))
        assert_parity(merged, expected, f"{first} and {second}")


@every_fold
def test_a_state_read_from_disk_goes_on_where_the_activations_are(case: FoldCase) -> None:
    """States come back on the host, whatever device they were made on."""
    stream = Stream(case)
    state = {name: tensor.cpu() for name, tensor in state_on("cuda", stream, CUT[:2]).items()}
    for windows in CUT[2:]:
        stream.fold.update(state, *given(stream, windows, "cuda"))
    assert_parity(state, state_on("cpu", stream), "state")


@every_fold
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_gpu_reads_low_precision_as_the_cpu_does(case: FoldCase, dtype: torch.dtype) -> None:
    stream = Stream(case)
    states = []
    for device in ("cpu", "cuda"):
        state = stream.fold.init()
        for windows in CUT:
            values, batch = given(stream, windows, device)
            stream.fold.update(state, {site: lowered(value, dtype) for site, value in values.items()}, batch)
        states.append(state)
    assert_parity(states[1], states[0], "state")


def lowered(value: Tensor | ExpertRows, dtype: torch.dtype) -> Tensor | ExpertRows:
    """The value as a model of this dtype has it."""
    if isinstance(value, Tensor):
        return value.to(dtype)
    return dataclasses.replace(value, values=value.values.to(dtype), weight=value.weight.to(dtype))
