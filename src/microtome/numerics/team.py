"""Work on the threads that torch's own operations run on.

GNU's OpenMP keeps a team of threads for each thread that calls it, and the members of a team wait for the next operation by spinning,
for milliseconds. Threads of another pool that start meanwhile share their cores with the spinning: a kernel on two cores then takes as long
as on one. Where torch is linked to that runtime, a kernel between two operations is one more operation of the same team; elsewhere (on
macOS and Windows, say) it runs on a pool of Python's. What is computed does not depend on which. Which ranges a kernel is cut into is the
business of `kernels`.
"""

import ctypes
import functools
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Final

import torch

__all__ = ["each"]

_REGION: Final = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def each(parts: int, work: Callable[[int], None]) -> None:
    """Call `work` with 0 to `parts` - 1, on as many threads as there are; an error of one is raised when all have ended.

    Not in a forked child of a process that has called it or any operation of torch's on several threads: such a team is lost in a fork.
    """
    runtime = _runtime()
    if runtime is None:
        others = [_pool(parts, os.getpid()).submit(work, part) for part in range(1, parts)]
        try:
            if parts:
                work(0)
        finally:
            wait(others)
        for other in others:
            other.result()
        return
    errors: list[BaseException] = []
    done: list[int] = []

    def region(_: int | None) -> None:
        try:  # a runtime may give fewer threads than it is asked for
            for part in range(runtime.omp_get_thread_num(), parts, runtime.omp_get_num_threads()):
                work(part)
                done.append(part)
        except BaseException as error:  # noqa: BLE001 - would be lost on its way through the runtime
            errors.append(error)

    # all of torch's threads, even if some have nothing to do: a smaller team would end the others
    runtime.GOMP_parallel(_REGION(region), None, max(parts, torch.get_num_threads()), 0)
    if errors:
        raise errors[0]
    if len(done) < parts:
        raise KeyboardInterrupt


@functools.cache
def _runtime() -> ctypes.CDLL | None:
    """GNU's OpenMP as torch has loaded it, None where torch has another."""
    if not sys.platform.startswith("linux") or not torch.backends.openmp.is_available():
        return None
    package = Path(torch.__file__).parent
    for folder in (package / "lib", package.parent / "torch.libs"):
        for path in sorted(folder.glob("libgomp*.so*")):
            try:
                runtime = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | os.RTLD_NOW)
                runtime.GOMP_parallel.argtypes = [_REGION, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
                runtime.GOMP_parallel.restype = None
            except (OSError, AttributeError):
                continue
            return runtime
    return None


@functools.lru_cache(maxsize=4)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """One pool per size and process: a forked child must not use its parent's threads."""
    return ThreadPoolExecutor(threads, thread_name_prefix=f"kernels-{process}")
