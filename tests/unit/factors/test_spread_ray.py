"""Training by processes on a Ray cluster: as one process would, also where one of them is killed, and beside workers that have all of its room."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from microtome.core import Refusal
from microtome.engine import Cluster, run
from microtome.engine.nodes import joined
from microtome.factors.job import folder_of
from microtome.factors.launch_cluster import OnCluster
from microtome.factors.spread import Spread, learnt
from microtome.factors.variants import BatchTopK, TopK
from microtome.store import Folder
from tests.unit.engine.ray_nodes import Nodes
from tests.unit.engine.toy_work import Concatenation, ToySubject
from tests.unit.factors.ranks import planted_job
from tests.unit.factors.test_spread import LONG, require_equal

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning"),
]


def test_a_rank_on_a_cluster_that_is_killed_changes_nothing(nodes: Nodes, tmp_path: Path) -> None:
    nodes.add()
    nodes.add()
    job, killed = planted_job(tmp_path, BatchTopK(3), steps=LONG), []

    def kill_one(done: int, steps: int) -> None:
        assert steps == LONG
        if 25 <= done < LONG and not killed:
            killed.extend(nodes.named(b"RayTrainWorker"))
            os.kill(killed[-1], signal.SIGKILL)

    found = learnt(job, Spread(2, 2, launcher=OnCluster(Cluster(nodes.address))), kill_one)
    assert len(killed) == 2
    assert not folder_of(job).exists()
    require_equal(found, learnt(job, Spread()))


def test_what_may_be_on_any_device_is_on_what_the_cluster_has(nodes: Nodes) -> None:
    nodes.add()
    launcher = OnCluster(Cluster(nodes.address))
    with joined(nodes.address):
        assert launcher.device("auto") == "cpu"
        nodes.add(gpus=1)
        assert launcher.device("auto") == "cuda"


def test_workers_make_room_for_a_training_and_come_back_also_when_it_is_refused(nodes: Nodes, tmp_path: Path) -> None:
    nodes.add()
    nodes.add()
    job = planted_job(tmp_path / "states", TopK(3), streams=6)
    short = replace(job, mixing=replace(job.mixing, rows=60 * 66, room=2 * 60 * 66))
    cluster = Cluster(nodes.address)
    with cluster.started(ToySubject()) as crew:
        run(Concatenation(4), Folder(tmp_path / "a"), crew=crew)
        with pytest.raises(Refusal, match="stream 0 of batches: it has fewer rows than the 660"):
            learnt(short, Spread(2, restarts=0, launcher=OnCluster(cluster)))
        second = Concatenation(4)
        run(second, Folder(tmp_path / "b"), crew=crew)
    assert second.ran == []
