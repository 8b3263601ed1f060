"""The cache: folders whole or absent, listed and removed."""

import errno
import sys
import threading
import time
from pathlib import Path

import pytest

from microtome.core import Refusal
from microtome.model import cache
from microtome.model.cache import MARK, building, cache_root, caches, mark_of, remove_cache


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MICROTOME_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def build(folder: Path, text: str) -> bool:
    """Whether this call was the one that built."""
    with building(folder, {"what": "a test"}) as part:
        if part is not None:
            (part / "file").write_text(text)
    return part is not None


def test_a_folder_is_built_once(root: Path) -> None:
    folder = cache_root() / "kind" / "one"
    assert [build(folder, "first"), build(folder, "second")] == [True, False]
    assert (folder / "file").read_text() == "first"
    assert mark_of(folder) == {"what": "a test"}


def fail_half_way(folder: Path) -> None:
    with building(folder, {}) as part:
        assert part is not None
        (part / "file").write_text("half")
        raise RuntimeError("half way")


def test_a_failed_build_leaves_nothing(root: Path) -> None:
    folder = root / "kind" / "one"
    with pytest.raises(RuntimeError, match="half way"):
        fail_half_way(folder)
    assert [path for path in root.glob("*/*") if path.is_dir()] == []
    assert build(folder, "whole")


def test_what_a_killed_process_left_is_listed_and_replaced(root: Path) -> None:
    left = root / "kind" / "one.part"
    left.mkdir(parents=True)
    (left / "file").write_text("half")
    assert [(entry.path, entry.bytes, entry.what) for entry in caches()] == [(left, 4, "left by an interrupted run")]
    assert build(root / "kind" / "one", "whole")
    assert sorted(path.name for path in (root / "kind" / "one").iterdir()) == ["file", MARK]
    assert not left.exists()


def test_of_two_that_build_at_once_one_does(root: Path) -> None:
    """The lock is a file's, so that what holds between threads holds between processes."""
    folder = root / "kind" / "one"
    entered, results = threading.Event(), []

    def slow() -> None:
        with building(folder, {}) as part:
            entered.set()
            time.sleep(0.2)
            results.append(part is not None)

    thread = threading.Thread(target=slow)
    thread.start()
    assert entered.wait(10)
    assert not folder.exists()
    results.append(build(folder, "second"))  # waits
    thread.join()
    assert results == [True, False]
    assert not (folder / "file").exists()


def test_caches_are_listed_with_their_size_and_removed(root: Path) -> None:
    assert caches() == []
    build(root / "kind" / "one", "12345")
    (entry,) = caches()
    assert entry.path == root / "kind" / "one"
    assert entry.what == "a test"
    assert entry.bytes == 5 + (entry.path / MARK).stat().st_size
    remove_cache(entry.path)
    assert caches() == []


def test_only_folders_of_the_cache_are_removed(root: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(Refusal, match="no folder of the cache"):
        remove_cache(tmp_path / "mine")
    assert (tmp_path / "mine").is_dir()


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MICROTOME_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.delenv("MICROTOME_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "microtome"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_root() == tmp_path / "home" / ".cache" / "microtome"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_root() == tmp_path / "home" / "Library" / "Caches" / "microtome"


def test_a_full_disk_is_refused_with_the_way_out(root: Path) -> None:
    with pytest.raises(Refusal, match="no space is left") as refusal, building(root / "kind" / "one", {}):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "MICROTOME_CACHE" in refusal.value.instead
    assert caches() == []


def test_a_cache_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("MICROTOME_CACHE", str(tmp_path / "file"))
    with pytest.raises(Refusal, match="Not a directory"):
        build(cache.cache_root() / "kind" / "one", "")
