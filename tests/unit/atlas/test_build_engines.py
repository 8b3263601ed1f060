"""A build by worker processes is the build of one process, byte by byte, whoever is killed on the way."""

import os
import random
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from microtome.atlas import Atlas, Settings, build
from microtome.capture import Silent
from microtome.capture.recipes import ModelSubject
from microtome.core import Interrupted, Refusal
from microtome.engine import HERE, Crew, Engine, Processes, Subject
from microtome.model import Model, load
from microtome.store import digest
from tests import toys
from tests.tree import IMPORTABLE

_TEXTS = toys.toy_texts(documents=40, words=40)
_SETTINGS = Settings(window=24)
_PER_UNIT = 12


@dataclass(frozen=True)
class _Cutting:
    """A subject whose workers cut a toy's text into units as this process does: else it would be one."""

    inner: ModelSubject
    deadly: int | None = None

    @property
    def memory(self) -> int:
        return self.inner.memory

    @property
    def devices(self) -> int:
        return self.inner.devices

    def open(self, devices: Sequence[int]) -> Model:
        import microtome.capture.lens
        import microtome.capture.run

        microtome.capture.lens.windows_per_unit = lambda *_: _PER_UNIT
        if self.deadly is not None:
            microtome.capture.run.StageWork.run = self._dying(microtome.capture.run.StageWork.run)
        return self.inner.open(devices)

    def _dying(self, run: Any) -> Any:
        """As `run`, but for one unit, which ends the process."""

        def dying(work: Any, unit: int, advance: Any) -> Any:
            if unit == self.deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            return run(work, unit, advance)

        return dying

    def identity(self, opened: Any) -> Mapping[str, str]:
        return self.inner.identity(opened)


@dataclass(frozen=True)
class _Workers:
    """Processes whose subject is `_Cutting`."""

    engine: Engine
    deadly: int | None = None

    @contextmanager
    def started(self, subject: Subject) -> Iterator[Crew]:
        assert isinstance(subject, ModelSubject)
        with self.engine.started(_Cutting(subject, self.deadly)) as crew:
            yield crew


@pytest.fixture(autouse=True)
def _several_units(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Units of a few windows, workers that find the tests, and one thread, as each worker has."""
    monkeypatch.setattr("microtome.capture.lens.windows_per_unit", lambda *_: _PER_UNIT)
    monkeypatch.setenv("PYTHONPATH", IMPORTABLE)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.save_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    toys.bert().save_pretrained(folder)
    toys.encoder_tokenizer().save_pretrained(folder)
    return folder


def test_pictures_are_seen_by_workers_as_by_one_process(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40, image_size=64, patch_size=16
    )
    ViTForImageClassification(config).save_pretrained(tmp_path / "model")
    ViTImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "model")
    (tmp_path / "pictures").mkdir()
    drawn = np.random.default_rng(0).integers(0, 255, (24, 70, 80, 3), dtype=np.uint8)
    for number, pixels in enumerate(drawn):
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number:02}.png")
    pictures, both = str(tmp_path / "pictures"), _Workers(Processes(2, 1))
    alone = build(load(tmp_path / "model"), pictures, output=tmp_path / "alone")
    assert _files(build(load(tmp_path / "model"), pictures, output=tmp_path / "both", engine=both)) == _files(alone)


def _files(atlas: Atlas) -> dict[str, str]:
    return {str(path.relative_to(atlas.path)): digest(path) for path in sorted(atlas.path.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("kind", ["checkpoint", "masked"])
def test_two_processes_write_the_files_of_one(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = request.getfixturevalue(kind)
    alone = build(load(folder), _TEXTS, output=tmp_path / "alone", settings=_SETTINGS)
    both = build(load(folder), _TEXTS, output=tmp_path / "both", settings=_SETTINGS, engine=_Workers(Processes(2, 1)))
    assert _files(both) == _files(alone)
    assert (both.path / "atlas.json").read_bytes() == (alone.path / "atlas.json").read_bytes()


class _Striking(Silent):
    """Kills a worker whenever so many batches more have gone through the model; twice a stage, since the third may be the third over one unit."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._left = 1
        self._spared = 0
        self.struck: list[int] = []

    def begin(self, stage: str, windows: int) -> None:
        self._spared = len(self.struck) + 2

    def advance(self, windows: int, tokens: int) -> None:
        self._left -= windows > 0
        if self._left <= 0 and len(self.struck) < self._spared:
            self._left = self._chance.randint(1, 2)
            pid = self._chance.choice(_workers())
            os.kill(pid, signal.SIGKILL)
            self.struck.append(pid)


def _workers() -> list[int]:
    """The worker processes of this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (path / "stat").read_text().rsplit(")", 1)[1].split()[:2]
            worker = b"microtome.engine.wire" in (path / "cmdline").read_bytes()
        except OSError:
            continue
        if worker and int(parent) == os.getpid() and state != "Z":
            found.append(int(path.name))
    return sorted(found)


@pytest.mark.slow
def test_random_kills_of_workers_change_no_byte(checkpoint: Path, tmp_path: Path) -> None:
    alone = build(load(checkpoint), _TEXTS, output=tmp_path / "alone", settings=_SETTINGS)
    progress = _Striking(5)
    killed = build(
        load(checkpoint),
        _TEXTS,
        output=tmp_path / "a",
        settings=_SETTINGS,
        engine=_Workers(Processes(2, 1)),
        progress=progress,
    )
    assert len(progress.struck) >= 3
    assert _files(killed) == _files(alone)


def test_a_build_whose_workers_keep_dying_ends_and_keeps_what_is_finished(checkpoint: Path, tmp_path: Path) -> None:
    alone = build(load(checkpoint), _TEXTS, output=tmp_path / "alone", settings=_SETTINGS)
    deadly = _Workers(Processes(2, 1), deadly=3)
    with pytest.raises(
        Interrupted, match="unit 3 of .*: 3 workers have ended over it, the last of them: it was ended by SIGKILL"
    ):
        build(load(checkpoint), _TEXTS, output=tmp_path / "a", settings=_SETTINGS, engine=deadly)
    assert list((tmp_path / "a" / "work" / "main").glob("*/*.safetensors"))
    counting = _Counting()
    again = build(load(checkpoint), _TEXTS, output=tmp_path / "a", settings=_SETTINGS, progress=counting)
    assert counting.found_windows > 0
    assert _files(again) == _files(alone)


class _Counting(Silent):
    """Counts windows that were done before."""

    def __init__(self) -> None:
        self.found_windows = 0

    def found(self, windows: int) -> None:
        self.found_windows += windows


def test_weights_alone_need_no_workers(checkpoint: Path, tmp_path: Path) -> None:
    class _Never:
        def started(self, subject: Subject) -> Any:
            raise AssertionError("nobody is needed")

    atlas = build(checkpoint, output=tmp_path / "a", engine=_Never())
    assert atlas.manifest.runs["main"].status == "complete"


def test_workers_that_cannot_begin_leave_no_folder(checkpoint: Path, tmp_path: Path) -> None:
    model = load(checkpoint)
    with pytest.raises(Refusal, match="toy-llama in other processes: it was given as a module"):
        build(toys.toy_decoder(), _TEXTS, output=tmp_path / "a", settings=_SETTINGS, engine=Processes(2, 1))
    moved = checkpoint.rename(checkpoint.with_name("moved"))
    try:
        with pytest.raises(Refusal, match="there is no such folder"):
            build(model, _TEXTS, output=tmp_path / "a", settings=_SETTINGS, engine=Processes(2, 1))
    finally:
        moved.rename(checkpoint)
    assert not (tmp_path / "a").exists()


def test_a_run_of_other_threads_is_not_mixed_with(checkpoint: Path, tmp_path: Path) -> None:
    model = load(checkpoint)
    build(model, _TEXTS, output=tmp_path / "a", settings=_SETTINGS, engine=HERE)
    with pytest.raises(Refusal, match=r"run main: tables was absent and is now threads 1; threads was 1 and is now 2"):
        build(model, _TEXTS, output=tmp_path / "a", settings=_SETTINGS, engine=_Workers(Processes(1, 2)))
