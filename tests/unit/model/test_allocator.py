"""Freed memory stays with the process: a second pass of allocations faults no page in."""

import os
import platform
import subprocess
import sys

import pytest

_PROGRAM = """
import resource, sys
import torch
from microtome.model.allocator import keep_freed_memory

print(keep_freed_memory() if sys.argv[1] == "keep" else None)

def work():
    held = [torch.zeros(1 << 20) for _ in range(16)]
    del held

work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(mode: str, **environment: str) -> tuple[str, int]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, mode], env=clean | environment, capture_output=True, text=True, check=True
    )
    kept, faults = done.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc's thresholds are glibc's")
def test_memory_freed_by_one_pass_serves_the_next() -> None:
    pages = 4 * 16 * (1 << 20) * 4 // os.sysconf("SC_PAGE_SIZE")
    kept, faults = _faults("keep")
    assert kept == "True"
    assert faults < pages / 20
    assert _faults("leave")[1] > pages / 4, "the control: without it the pages are faulted in again"


def test_thresholds_set_by_hand_are_left_alone() -> None:
    assert _faults("keep", MALLOC_TRIM_THRESHOLD_="131072")[0] == "False"


_GIVING = """
import os
import torch
from microtome.model.allocator import give_back_freed_memory, keep_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

keep_freed_memory()
before = resident()
held = [torch.zeros(1 << 20) for _ in range(64)]
pin = torch.zeros(1 << 20)
del held
kept = resident() - before
give_back_freed_memory()
print(kept, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc_trim is glibc's")
def test_what_was_kept_can_be_given_back() -> None:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run([sys.executable, "-c", _GIVING], env=clean, capture_output=True, text=True, check=True)
    kept, left = map(int, done.stdout.split())
    assert kept > 200e6, "freed and still resident"
    assert left < 50e6, "also below a block that is in use"
