"""The rule for dtype and device `auto`, as a table."""

from pathlib import Path

import pytest
import torch

from microtome.core import Refusal
from microtome.model import precision
from microtome.model.precision import Stored, choose_device, choose_dtype, fast_bfloat16, stored_dtype

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


@pytest.mark.parametrize(
    ("device", "stored", "fast", "slow"),
    [
        (CPU, F32, F32, F32),  # never fewer bits than are stored
        (CPU, BF16, BF16, F32),
        (CPU, F16, F32, F32),
        (CPU, "quantised", BF16, F32),
        (CUDA, F32, F32, F32),
        (CUDA, BF16, BF16, F32),
        (CUDA, F16, F16, F16),
        (CUDA, "quantised", BF16, F32),
        (MPS, BF16, F32, F32),
    ],
)
def test_auto(
    device: torch.device,
    stored: Stored,
    fast: torch.dtype,
    slow: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flags = frozenset({"avx2", "avx512_bf16"})
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(precision, "_cpu_flags", lambda: flags)
    assert choose_dtype("auto", device, stored) == fast
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(precision, "_cpu_flags", lambda: frozenset({"avx2"}))
    assert choose_dtype("auto", device, stored) == slow


@pytest.mark.parametrize(("asked", "got"), [("bfloat16", BF16), ("bf16", BF16), ("fp32", F32), (F16, F16), ("float16", F16)])
def test_what_is_asked_for_is_taken(asked: str | torch.dtype, got: torch.dtype) -> None:
    assert choose_dtype(asked, CPU, F32) == got


@pytest.mark.parametrize("asked", ["int8", torch.int8, "double", torch.float64])
def test_other_dtypes_are_refused(asked: str | torch.dtype) -> None:
    with pytest.raises(Refusal, match="use auto, float32, bfloat16, float16"):
        choose_dtype(asked, CPU, F32)


@pytest.mark.parametrize(
    ("line", "fast"), [("flags\t\t: fpu amx_bf16 avx2", True), ("flags : fpu avx512_bf16", True), ("flags : avx512f", False)]
)
def test_the_cpu_says_whether_it_multiplies_bfloat16(
    line: str, fast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor : 0\nmodel name : some\n{line}\n")
    flags = precision._cpu_flags.__wrapped__(info)
    monkeypatch.setattr(precision, "_cpu_flags", lambda: flags)
    assert fast_bfloat16(CPU) == fast


def test_without_cpuinfo_nothing_is_fast(tmp_path: Path) -> None:
    assert precision._cpu_flags.__wrapped__(tmp_path / "absent") == frozenset()
    assert not fast_bfloat16(MPS)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto") == CPU
    assert choose_device("cpu") == CPU
    for absent in ("cuda", "mps", "cuda:3"):
        with pytest.raises(Refusal, match="torch finds no such device"):
            choose_device(absent)
    with pytest.raises(Refusal, match="no device has this name"):
        choose_device("gpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto") == CPU, "MPS has no float64"
    assert choose_device("mps") == MPS
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == CUDA
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(Refusal):
        choose_device("cuda:2")


def test_stored_is_what_most_elements_are() -> None:
    assert stored_dtype({BF16: 1000, F32: 10, torch.int64: 5000}) == BF16
    assert stored_dtype({F32: 11, BF16: 10}) == F32
    assert stored_dtype({torch.int64: 3}) == F32
