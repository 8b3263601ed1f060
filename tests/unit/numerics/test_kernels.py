"""Kernels: which set is in use, how work is spread, and that both sets give the same lists."""

import subprocess
import sys

import pytest
import torch

from microtome.numerics import kernels, topk

needs_compiled = pytest.mark.skipif(not kernels.available(), reason="the extra `fast` is not installed")


@needs_compiled
def test_name_tells_the_set_in_use():
    assert kernels.name().startswith("numba-0.")
    with kernels.reference(), kernels.reference():
        assert kernels.name() == "torch"
        assert not kernels.available()
    assert kernels.available()


def test_importing_numerics_does_not_import_numba():
    code = "import sys, microtome.numerics; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("units", [0, 1, 255, 256, 257, 5000])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_ranges_cover_the_units_once_and_begin_at_blocks(units: int, threads: int):
    before, ranges = torch.get_num_threads(), []
    torch.set_num_threads(threads)
    try:
        kernels.spread(units, 256, lambda begin, end: ranges.append((begin, end)))
    finally:
        torch.set_num_threads(before)
    assert sorted(i for begin, end in ranges for i in range(begin, end)) == list(range(units))
    assert all(begin % 256 == 0 for begin, _ in ranges)


def fail_after_the_first(begin: int, _: int) -> None:
    assert 1 // (0 if begin else 1)


def test_an_error_in_a_thread_is_raised():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ZeroDivisionError):
            kernels.spread(512, 256, fail_after_the_first)
    finally:
        torch.set_num_threads(before)


@needs_compiled
def test_both_sets_give_the_same_lists_and_sources():
    values = torch.randint(0, 99, (700, 10), generator=torch.Generator().manual_seed(4)).float()
    fast, slow = topk.init(10, 6), topk.init(10, 6)
    for rows, keys in zip(values.split(300), torch.arange(700).split(300), strict=True):
        source = topk.update(fast, rows, keys)
        with kernels.reference():
            assert torch.equal(source, topk.update(slow, rows, keys))
    assert torch.equal(fast["values"], slow["values"])
    assert torch.equal(fast["keys"], slow["keys"])
