"""Which dtype and which device a model runs in when the user says `auto`.

The rule for `auto`: bfloat16 where the hardware multiplies it fast, but never fewer bits than the checkpoint stores. Weights
that were quantised before count as low, whatever dtype they were unpacked to. Measuring what the choice costs in accuracy is
the certificate's.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import torch

from microtome.core import Refusal

__all__ = ["DTYPES", "Stored", "choose_device", "choose_dtype", "fast_bfloat16", "stored_dtype"]

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Stored = torch.dtype | Literal["quantised"]
"""The dtype of a checkpoint's weights, or that they were quantised before they were stored as they are."""

_SHORT: Final = {"fp32": "float32", "f32": "float32", "bf16": "bfloat16", "fp16": "float16", "f16": "float16"}


def choose_device(device: str | torch.device) -> torch.device:
    """`auto` is CUDA, then CPU; anything else is what it says. Not MPS: it has no float64, in which statistics are kept.

    Errors: `Refusal` for a device that this machine or this torch does not have.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise Refusal(
            f"device {device!r}", why="no device has this name", instead="use auto, cpu, mps, cuda or cuda:0"
        ) from error
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise Refusal(f"device {device!r}", why="models are not run on it", instead="use auto, cpu, mps, cuda or cuda:0")
    absent = chosen.type == "cuda" and (not torch.cuda.is_available() or (chosen.index or 0) >= torch.cuda.device_count())
    if absent or (chosen.type == "mps" and not torch.backends.mps.is_available()):
        raise Refusal(f"device {device!r}", why="torch finds no such device here", instead="use auto or cpu")
    return chosen


def choose_dtype(dtype: str | torch.dtype, device: torch.device, stored: Stored) -> torch.dtype:
    """The dtype of the forward pass, for weights that are stored so.

    A name or a torch dtype is taken as asked. `auto`: see the module's rule; float16 stays float16 on CUDA and is float32
    elsewhere, for bfloat16 has fewer significant bits.

    Errors: `Refusal` for a dtype in which models are not run.
    """
    if dtype == "auto":
        if stored == torch.float16:
            return torch.float16 if device.type == "cuda" else torch.float32
        low = stored in ("quantised", torch.bfloat16)
        return torch.bfloat16 if low and fast_bfloat16(device) else torch.float32
    chosen = DTYPES.get(_SHORT.get(dtype, dtype)) if isinstance(dtype, str) else dtype
    if chosen is None or chosen not in DTYPES.values():
        raise Refusal(f"dtype {dtype!r}", why="models are not run in it", instead=f"use auto, {', '.join(DTYPES)}")
    return chosen


def fast_bfloat16(device: torch.device) -> bool:
    """Whether the hardware has instructions that multiply bfloat16 matrices, and so is faster in it than in float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and not _cpu_flags().isdisjoint({"amx_bf16", "avx512_bf16"})


def stored_dtype(elements: Mapping[torch.dtype, int]) -> torch.dtype:
    """The floating dtype that most elements of a checkpoint are stored in, given how many each dtype holds."""
    floating = {dtype: count for dtype, count in elements.items() if dtype.is_floating_point}
    return max(floating, key=lambda dtype: floating[dtype]) if floating else torch.float32


@functools.cache
def _cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The instruction sets that Linux lists for the first core; none on other systems."""
    if not cpuinfo.is_file():
        return frozenset()
    for line in cpuinfo.read_text(encoding="utf-8").splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()
