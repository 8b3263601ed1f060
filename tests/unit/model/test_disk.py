"""Tensors on disk: mapped, in any shards, and damage noticed before anything is read."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from microtome.core import Refusal
from microtome.model.disk import DiskTensors

ONE = {"a": torch.arange(12, dtype=torch.float32).reshape(3, 4), "b": torch.tensor([1.5, 2.5]).bfloat16()}
TWO = {"c": torch.tensor([[7, 8]])}


@pytest.fixture(params=["safetensors", "bin", "old.bin"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> list[Path]:
    """The same tensors in two files of each format."""
    made = []
    for name, tensors in (("one", ONE), ("two", TWO)):
        path = tmp_path / f"{name}.{request.param}"
        if request.param == "safetensors":
            save_file(tensors, path)
        else:
            torch.save(tensors, path, _use_new_zipfile_serialization=request.param == "bin")
        made.append(path)
    return made


def test_tensors_by_name_from_any_file(files: list[Path]) -> None:
    tensors = DiskTensors(files)
    assert sorted(tensors) == ["a", "b", "c"]
    for name, value in {**ONE, **TWO}.items():
        assert torch.equal(tensors[name], value)
        assert tensors.shapes[name] == tuple(value.shape)
        assert tensors.dtypes[name] == value.dtype == tensors[name].dtype
    assert torch.equal(tensors.rows("a", 1, 3), ONE["a"][1:3])
    assert tensors.elements() == {torch.float32: 12, torch.bfloat16: 2, torch.int64: 2}
    assert "d" not in tensors
    with pytest.raises(KeyError):
        tensors["d"]


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(ONE, path)
    whole = path.read_bytes()
    for length in (0, 4, 20, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(Refusal, match="damaged or incomplete") as refusal:
            DiskTensors([path])
        assert str(path) in refusal.value.what
    path.write_bytes(whole + b"\0")
    with pytest.raises(Refusal, match=f"it has {len(whole) + 1} bytes and its header counts {len(whole)}"):
        DiskTensors([path])


def test_a_header_that_is_not_one(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes((5).to_bytes(8, "little") + b"hello")
    with pytest.raises(Refusal, match="its header is not JSON"):
        DiskTensors([path])
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0\0\0")
    with pytest.raises(Refusal, match="damaged or incomplete"):
        DiskTensors([path])


def test_compressed_numbers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.zeros(4, dtype=torch.float8_e4m3fn)}, path)
    with pytest.raises(Refusal, match="tensor w in model.safetensors: it is stored as F8_E4M3, a compressed format"):
        DiskTensors([path])


class Payload:
    """What a hostile pickle would hold."""

    ran = False

    def __reduce__(self) -> tuple[object, ...]:
        return (_run, ())


def _run() -> None:
    Payload.ran = True


def test_a_pickle_that_needs_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"w": Payload()}, path)
    with pytest.raises(Refusal, match="opening it would run code; where you trust it"):
        DiskTensors([path])
    assert not Payload.ran


def test_a_pickle_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save([torch.zeros(2)], path)
    with pytest.raises(Refusal, match="does not hold tensors by name"):
        DiskTensors([path])
    torch.save(ONE, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(Refusal, match="damaged or incomplete"):
        DiskTensors([path])
