"""Training by processes of their own: as one would, also where one of them is killed; and what cannot be spread is refused before anything starts."""

import json
import logging
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from microtome.core import Interrupted, Refusal, Site
from microtome.factors import variants
from microtome.factors.checkpoints import checkpoints_in
from microtome.factors.dictionary import Dictionary
from microtome.factors.harvest import Harvest, Harvested
from microtome.factors.job import (
    CHECKPOINTS,
    DICTIONARY,
    KINDS,
    LAYOUT,
    REFUSED,
    STEP,
    Job,
    folder_of,
    identity_of,
    read_job,
    write_job,
)
from microtome.factors.launch_torchrun import Torchrun
from microtome.factors.learning import PAPER
from microtome.factors.mesh import ALONE
from microtome.factors.plan import Plan
from microtome.factors.rank import take_part
from microtome.factors.spread import Spread, begun_in, launched, learnt
from microtome.factors.stored import save_dictionary
from microtome.factors.train import train
from microtome.factors.training import Training
from microtome.factors.variant import Variant
from microtome.factors.variants import NESTED, BatchTopK, Gated, JumpRelu, Matching, Relu, Steps, Tanh, Target, TopK
from microtome.store import DiskFull, fingerprint
from tests import toys
from tests.unit.factors.ranks import UNITS, planted_job, require_near

LONG = 200


def require_equal(found: Dictionary, expected: Dictionary) -> None:
    require_near(found.directions, expected.directions)
    require_near(found.offset, expected.offset)
    assert found.learnt.keys() == expected.learnt.keys()


def children() -> list[int]:
    """Ranks that this process has started, by what the system says of them."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == os.getpid() and b"microtome.factors.rank" in command:
            found.append(int(folder.name))
    return found


@pytest.mark.slow
def test_a_text_is_learnt_from_by_two_processes_as_by_one() -> None:
    plan = Plan(units=48, method=BatchTopK(4), rows=128, passes=4)
    model, texts = toys.toy_decoder(), toys.toy_texts(documents=16, words=120)
    one, two = (train(model, texts, each, window=24) for each in (plan, replace(plan, spread=Spread(2))))
    require_equal(two.dictionary, one.dictionary)
    assert len(two.quality) == len(one.quality)


@pytest.mark.slow
def test_a_rank_that_is_killed_changes_nothing(tmp_path: Path) -> None:
    job = planted_job(tmp_path, BatchTopK(3), steps=LONG)
    killed: list[int] = []

    def kill_one(done: int, steps: int) -> None:
        assert steps == LONG
        if 25 <= done < LONG and not killed:
            killed.append(max(children()))
            os.kill(killed[0], signal.SIGKILL)

    folder = begun_in(job, Spread(2, 2))
    found = launched(folder, Spread(2, 2), kill_one)
    assert len(killed) == 1
    assert sorted(each.name for each in (folder / "output").rglob("attempt_*")) == ["attempt_0", "attempt_1"]
    require_equal(found, learnt(job, Spread()))


@pytest.mark.slow
def test_processes_that_die_too_often_are_one_error(tmp_path: Path) -> None:
    folder = begun_in(planted_job(tmp_path, TopK(3)), Spread(2, restarts=0))
    (folder / LAYOUT).write_text("{}")
    with pytest.raises(Refusal, match="process . ended by status 1, after 0 new beginnings"):
        launched(folder, Spread(2, restarts=0))


@pytest.mark.parametrize(
    "variant",
    [TopK(3, NESTED), BatchTopK(3), Relu(0.3, "unit"), Gated(0.2), JumpRelu(Steps()), JumpRelu(Target(3.0)), JumpRelu(Tanh()), Matching(4)],
    ids=str,
)  # fmt: skip
def test_a_training_is_read_as_it_was_written(variant: Variant, tmp_path: Path) -> None:
    job = planted_job(tmp_path / "states", variant)
    write_job(job, tmp_path / "job")
    read = read_job(tmp_path / "job")
    assert identity_of(read) == identity_of(job)
    assert (read.variant, read.training, read.mixing, read.learnt) == (job.variant, job.training, job.mixing, job.learnt)
    for one, other in zip(range(3), zip(job.batches(), read.batches(), strict=False), strict=False):
        assert torch.equal(*other), one
    assert {path.suffix for path in (tmp_path / "job").iterdir()} == {".json", ".safetensors"}


def test_every_variant_has_a_form_that_is_written() -> None:
    public = (getattr(variants, name) for name in variants.__all__)
    assert {each for each in public if isinstance(each, type)} <= set(KINDS.values())


def test_what_a_training_is_does_not_depend_on_processes(tmp_path: Path) -> None:
    job = planted_job(tmp_path, TopK(3))
    assert begun_in(job, Spread(2)) == begun_in(job, Spread(4, 2)) == folder_of(job)
    assert folder_of(replace(job, mixing=replace(job.mixing, streams=2))) != folder_of(job)
    assert folder_of(replace(job, training=Training(7))) != folder_of(job)
    assert fingerprint(Plan(spread=Spread(8, 2))) == fingerprint(Plan())
    assert fingerprint(Plan(streams=8)) != fingerprint(Plan())


def test_one_process_trains_as_ever(tmp_path: Path) -> None:
    job, told = planted_job(tmp_path, TopK(3), streams=1), []
    found = learnt(job, Spread(), lambda done, steps: told.append((done, steps)))
    assert told == [(step + 1, job.training.steps) for step in range(job.training.steps)]
    assert found.learnt["steps"] == job.training.steps
    assert not folder_of(job).exists()


def refused(job: Job, spread: Spread) -> None:
    begun_in(job, spread)


def test_what_cannot_be_spread_is_refused(tmp_path: Path) -> None:
    job = planted_job(tmp_path, TopK(3))
    with pytest.raises(Refusal, match="3 processes are not so many groups of 2"):
        Spread(3, 2)
    with pytest.raises(Refusal, match=f"{UNITS} units are not 5 equal parts"):
        refused(job, Spread(5, 5))
    with pytest.raises(Refusal, match="matching pursuit over 2 shards"):
        refused(replace(job, variant=Matching(3)), Spread(2, 2))
    with pytest.raises(Refusal, match="a batch has 66 rows"):
        refused(job, Spread(67))
    with pytest.raises(Refusal, match="3 processes on GPUs"):
        refused(replace(job, device="cuda:0"), Spread(3))
    in_memory = Harvested(Harvest((Site("resid_pre", 0),)), list(job.harvested.parts))  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(Refusal, match="states are in no folder"):
        refused(replace(job, harvested=in_memory), Spread(2))
    with pytest.raises(Refusal, match=r"it has no job\.json"):
        read_job(tmp_path / "elsewhere")


def test_plans_that_cannot_be_spread_are_refused() -> None:
    with pytest.raises(Refusal, match="keep states"):
        Plan(keep="nothing", spread=Spread(2))
    with pytest.raises(Refusal, match="sparse coding over several processes"):
        Plan(method=PAPER, spread=Spread(2))
    with pytest.raises(Refusal, match="matching pursuit over 2 shards"):
        Plan(method=Matching(3), spread=Spread(2, 2))
    with pytest.raises(Refusal, match="100 units are not 3 equal parts"):
        Plan(units=100, spread=Spread(3, 3))
    with pytest.raises(Refusal, match="a batch for 4096 processes"):
        Plan(spread=Spread(4096))


@pytest.mark.slow
def test_an_interruption_leaves_a_checkpoint_and_no_process(tmp_path: Path) -> None:
    folder, before, heard = begun_in(planted_job(tmp_path, TopK(3), steps=LONG), Spread(2)), signal.getsignal(signal.SIGINT), []

    def interrupt(done: int, steps: int) -> None:
        if 25 <= done < steps and not heard:
            heard.append(done)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        launched(folder, Spread(2), interrupt)
    assert signal.getsignal(signal.SIGINT) is before
    assert children() == []
    (step,) = checkpoints_in(folder / CHECKPOINTS)
    assert 20 <= step < LONG


@pytest.mark.slow
def test_what_one_rank_refuses_is_handed_on(tmp_path: Path) -> None:
    job = planted_job(tmp_path, TopK(3), streams=6)
    short = replace(job, mixing=replace(job.mixing, rows=60 * 66, room=2 * 60 * 66))
    folder = begun_in(short, Spread(2))
    with pytest.raises(Refusal, match="it has fewer rows than the 660"):
        launched(folder, Spread(2))
    assert not (folder / DICTIONARY).exists()
    assert json.loads((folder / "refused.json").read_text())["what"] == "stream 0 of batches"


@pytest.mark.parametrize("kind", [Refusal, Interrupted, DiskFull])
def test_what_is_finished_stays_after_what_passes(kind: type[Refusal], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = begun_in(planted_job(tmp_path, TopK(3)), Spread(2))

    class Refusing(Torchrun):
        def run(self, folder: Path, processes: int, restarts: int) -> None:
            with pytest.raises(kind):
                take_part(folder)

    def learn(*_: object) -> None:
        raise kind("it", why="it is so", instead="wait")

    monkeypatch.setattr("microtome.factors.rank.learn", learn)
    monkeypatch.setattr("microtome.factors.rank.mesh_of", lambda *_: ALONE)
    with pytest.raises(Refusal) as refused:
        launched(folder, Spread(2, launcher=Refusing()))
    assert isinstance(refused.value, Interrupted) == (kind is not Refusal)


@pytest.mark.slow
def test_a_rank_whose_parent_is_gone_does_not_wait_for_others(tmp_path: Path) -> None:
    folder = begun_in(planted_job(tmp_path, TopK(3)), Spread(2))
    first = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": "0"}
    rank = [sys.executable, "-m", "microtome.factors.rank", str(folder), "--parent", "1"]
    ended = subprocess.run(rank, env={**os.environ, **first}, stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (1, "who started this process is gone\n")


class _Machine(logging.Handler):
    """Runs what it reads, as somebody would, on this machine."""

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage().splitlines()[-1].replace(f"HOST={platform.node()}", "HOST=127.0.0.1")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.process = subprocess.Popen(line.replace(":29400", f":{port}"), shell=True, cwd="/", stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_processes_that_are_started_by_torchrun_end_the_waiting(tmp_path: Path) -> None:
    job, machine = planted_job(tmp_path, BatchTopK(3)), _Machine()
    log = logging.getLogger("microtome.factors.launch_torchrun")
    log.addHandler(machine)
    try:
        found = learnt(job, Spread(2, launcher=Torchrun()))
    finally:
        log.removeHandler(machine)
    assert machine.process.wait() == 0
    one = learnt(job, Spread())
    require_equal(found, one)
    folder = begun_in(job, Spread(2))
    save_dictionary(one, folder / DICTIONARY)
    assert launched(folder, Spread(2, launcher=Torchrun())).name == "planted"
    begun_in(replace(job, name="another"), Spread(2))
    assert not (folder / DICTIONARY).exists()


def test_who_waits_for_processes_that_take_no_step_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("microtome.factors.launch_torchrun._LONG", 0.0)
    steps = iter(("7", "7", "7", "8", "8", "the end"))

    def sleep(seconds: float) -> None:
        step = next(steps)
        (tmp_path / (REFUSED if step == "the end" else STEP)).write_text(step)

    monkeypatch.setattr("microtome.factors.launch_torchrun.time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    Torchrun().run(tmp_path, 2, 0)
    told = [each for each in caplog.messages if each.startswith("no step has been taken")]
    assert [re.findall(r"(\d) is the last", each) for each in told] == [["7"], ["8"]]
