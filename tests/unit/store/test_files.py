"""Commits are whole or absent; locks exclude; states notice a flipped bit."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from microtome.core import Refusal
from microtome.store import Damaged, Folder, Shelf, committed, digest, locked, sweep


def test_commit_appears_under_its_name_only_when_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with committed(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with committed(path) as temporary:
            temporary.write_text("new")
            raise KeyError("boom")

    with pytest.raises(KeyError):
        fail()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_full_disk_is_a_refusal(tmp_path: Path) -> None:
    def fill() -> None:
        with committed(tmp_path / "a") as temporary:
            temporary.write_text("x")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(Refusal, match="no space is left .* free some space and run the same command again"):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_sweep_removes_leftovers_of_a_killed_commit(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "x.parquet.part").write_text("half")
    (tmp_path / "deep" / "y.parquet").write_text("whole")
    sweep(tmp_path)
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["y.parquet"]


def test_digest_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert digest(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    code = f"from pathlib import Path; from microtome.store import locked\nwith locked(Path({str(tmp_path)!r})): print('held')"
    with locked(tmp_path):
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert other.returncode != 0
    assert "another run is writing in it" in other.stderr
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "held\n"


def test_states_round_trip_exactly_and_notice_a_flipped_bit(tmp_path: Path) -> None:
    states = {
        "geometry/resid_post.3": {"sum": torch.randn(4, 5, dtype=torch.float64), "count": torch.tensor(7)},
        "a|b": {"x": torch.tensor([float("nan"), -0.0])},
        "empty": {},
    }
    stem, shelf = "00-00000000", Shelf(Folder(tmp_path))
    shelf.write(stem, states)
    read = shelf.read(stem)
    assert not isinstance(read, Damaged)
    assert set(read) == set(states)
    for fold, state in states.items():
        for key, tensor in state.items():
            assert read[fold][key].dtype == tensor.dtype
            assert read[fold][key].reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8))
    data = tmp_path / f"{stem}.safetensors"
    flipped = bytearray(data.read_bytes())
    flipped[-1] ^= 1
    data.write_bytes(flipped)
    assert shelf.read(stem) == Damaged(str(data))


def test_states_without_marker_do_not_exist(tmp_path: Path) -> None:
    stem, shelf = "00-00000000", Shelf(Folder(tmp_path))
    shelf.write(stem, {"a": {"x": torch.ones(1)}})
    assert shelf.committed() == {stem}
    (tmp_path / f"{stem}.json").unlink()
    assert shelf.committed() == set()
    assert shelf.stems() == [stem]
    shelf.delete(stem)
    assert list(tmp_path.iterdir()) == []


def test_states_of_other_work_under_the_same_name_are_not_taken_for_those_of_this(tmp_path: Path) -> None:
    Shelf(Folder(tmp_path), work="before").write("00-00000000", {"a": {"x": torch.ones(1)}})
    assert Shelf(Folder(tmp_path), work="now").read("00-00000000") == Damaged(str(tmp_path / "00-00000000.json"))
    read = Shelf(Folder(tmp_path), work="before").read("00-00000000")
    assert not isinstance(read, Damaged)
    assert read["a"]["x"].tolist() == [1.0]


def test_two_who_commit_the_same_file_at_the_same_time_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with committed(path) as one:
        one.write_text("one")
        with committed(path) as other:
            other.write_text("other")
        assert path.read_text() == "other"
    assert path.read_text() == "one"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
