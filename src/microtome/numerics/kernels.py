"""Which compiled kernels are in use, how they read tensors, and how their work is spread over threads.

Every kernel has a torch reference beside its caller and a parity test. Without the extra `fast` (numba), for tensors that are
not on the CPU, and inside `reference()`, the references run: same results to rounding, slower. `name()` is part of the
execution class of a run. The kernels themselves are in `compiled`, which is the only module that imports numba; nothing here
knows what they compute.

A kernel releases the interpreter lock and works on a range of units, as many ranges as torch has threads (`team`).
Ranges begin at multiples of a block, and a unit's arithmetic does not depend on its range, so results do not depend on threads.
"""

import contextlib
import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from microtome.numerics.team import each

__all__ = [
    "Counted",
    "Rows",
    "apart",
    "available",
    "compiled_for",
    "compiled_lasso_for",
    "memory",
    "name",
    "reference",
    "rows_of",
    "spread",
]

_log = logging.getLogger(__name__)

_Part = TypeVar("_Part")
_Found = TypeVar("_Found")

Counted = slice | Bool[Tensor, "window token"] | None
"""Which tokens of a (window, token, unit) tensor count: a slice of positions, a mask, or all."""

_state = {"reference": 0}


@functools.cache
def _compiled() -> ModuleType | None:
    if importlib.util.find_spec("numba") is None:
        return None
    try:
        return importlib.import_module("microtome.numerics.compiled")
    except ImportError as error:
        _log.warning("numba is installed but does not import (%s): the slower torch kernels are used", error)
        return None


def available() -> bool:
    """Whether the compiled kernels are installed and not switched off by `reference()`."""
    return _state["reference"] == 0 and _compiled() is not None


def name() -> str:
    """The kernel set in use, as the execution class names it: `torch`, or `numba-` and its version."""
    return f"numba-{importlib.import_module('numba').__version__}" if available() else "torch"


@contextlib.contextmanager
def reference() -> Iterator[None]:
    """Inside, the torch references run even where compiled kernels are installed; for parity tests and comparisons."""
    _state["reference"] += 1
    try:
        yield
    finally:
        _state["reference"] -= 1


def compiled_for(*tensors: Tensor) -> ModuleType | None:
    """The compiled kernels if they can read all `tensors`, else None.

    They read the CPU's memory, and of the floating types float32 and bfloat16; wider and stranger ones go through torch.
    """
    readable = (torch.float32, torch.bfloat16)
    for tensor in tensors:
        if tensor.device.type != "cpu" or (tensor.is_floating_point() and tensor.dtype not in readable):
            return None
    return _compiled() if available() else None


def compiled_lasso_for(*tensors: Tensor) -> ModuleType | None:
    """The compiled kernels of sparse codes if they can read all `tensors`, else None: float32 or float64 on the CPU."""
    readable = all(each.device.type == "cpu" and each.dtype in (torch.float32, torch.float64) for each in tensors)
    return importlib.import_module("microtome.numerics.compiled_lasso") if readable and available() else None


@dataclass(frozen=True, eq=False)
class Rows:
    """A tensor as kernels read it, without a copy: its bits, and where its counted rows lie.

    `bits` is the memory as unsigned integers of the dtype's width (numba knows no bfloat16: its bits, shifted left by 16, are
    those of the float32). Row r begins at bits[place[0, r]] and is token place[1, r] of its window; window w has the rows
    begin[w] to begin[w + 1].
    """

    bits: np.ndarray
    place: np.ndarray
    begin: np.ndarray

    def index(self, tokens: int) -> np.ndarray:
        """The flat index window * tokens + token of each row."""
        return np.repeat(np.arange(len(self.begin) - 1), np.diff(self.begin)) * tokens + self.place[1]


def rows_of(x: Float[Tensor, "window token unit"], counted: Counted) -> Rows:
    """The counted rows of `x`; copies only where the last axis is not contiguous."""
    if x.stride(2) != 1 and x.shape[2] > 1:
        x = x.contiguous()
    windows, tokens, _ = x.shape
    if isinstance(counted, Tensor):
        window, token = (axis.numpy() for axis in counted.nonzero(as_tuple=True))
        per_window = counted.sum(1).numpy()
    else:
        kept = np.arange(tokens)[counted or slice(None)]
        window, token = np.repeat(np.arange(windows), len(kept)), np.tile(kept, windows)
        per_window = np.full(windows, len(kept))
    place = np.stack([window * x.stride(0) + token * x.stride(1), token]).astype(np.int64)
    return Rows(memory(x), place, np.concatenate([[0], np.cumsum(per_window)]).astype(np.int64))


def memory(x: Shaped[Tensor, "..."]) -> np.ndarray:
    """All memory from the first to the last element of `x`, flat; bfloat16 and float32 as unsigned integers of their width."""
    if x.numel() == 0:
        return np.empty(0, np.uint32)
    length = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    flat = torch.as_strided(x.detach(), (length,), (1,), x.storage_offset())
    if x.dtype == torch.bfloat16:
        return flat.view(torch.int16).numpy().view(np.uint16)
    return flat.numpy().view(np.uint32) if x.dtype == torch.float32 else flat.numpy()


def spread(units: int, block: int, work: Callable[[int, int], None]) -> None:
    """Call `work(begin, end)` on ranges that cover `units`, on as many threads as torch uses; ranges begin at multiples of `block`."""
    threads = min(torch.get_num_threads(), -(-units // block))
    if threads <= 1:
        if units:
            work(0, units)
        return
    blocks = -(-units // block)
    ends = [min(units, block * (blocks * part // threads)) for part in range(threads + 1)]
    each(threads, lambda part: work(ends[part], ends[part + 1]))


def apart(work: Callable[[_Part], _Found], parts: Sequence[_Part]) -> list[_Found]:
    """The results of `work` on parts that have nothing to do with each other, on as many Python threads as torch uses.

    torch's own threads are one meanwhile, for all of the process: those of a product or of LAPACK wait for each other by spinning, which
    on cores that others use as well takes three times as long as one thread. Not inside a part.
    """
    threads = torch.get_num_threads()
    if threads <= 1:
        return [work(part) for part in parts]
    inference, gradient = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def as_here(part: _Part) -> _Found:
        with torch.inference_mode(inference), torch.set_grad_enabled(gradient):
            return work(part)

    torch.set_num_threads(1)
    try:
        return [work(parts[0])] if len(parts) == 1 else list(_lone_pool(threads, os.getpid()).map(as_here, parts))
    finally:
        torch.set_num_threads(threads)


@functools.lru_cache(maxsize=2)
def _lone_pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads in each of which torch has one; threads made anew would each keep the memory they free."""
    return ThreadPoolExecutor(threads, f"apart-{process}", initializer=functools.partial(torch.set_num_threads, 1))
