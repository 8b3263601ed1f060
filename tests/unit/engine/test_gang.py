"""Processes of a Ray cluster that begin together: what cannot begin is refused in a line. That they work is tested with what they train."""

import os
from pathlib import Path

import pytest

from microtome.core import Refusal
from microtome.engine.cluster import Cluster
from microtome.engine.gang import Gang
from microtome.engine.nodes import joined
from microtome.store import Folder
from tests.unit.engine.ray_nodes import Nodes
from tests.unit.engine.toy_work import Private

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning"),
]


def test_what_cannot_begin_is_refused(nodes: Nodes, tmp_path: Path) -> None:
    nodes.add()
    cluster = Cluster(nodes.address)
    with joined(nodes.address):
        with pytest.raises(
            Refusal, match="2 processes on the Ray cluster: each takes 1 CPU, and there is room for 1; add nodes"
        ):
            Gang(cluster, 2).run(print, Folder(tmp_path), 0)
        with pytest.raises(Refusal, match="each takes 1 CPU and 1 GPU, and there is room for 0; .* or --device cpu$"):
            Gang(cluster, 1, "cuda").require_room()
        with pytest.raises(
            Refusal, match=r"node 127\.0\.0\.1, 127\.0\.0\.1 does not find there what was written here; name a folder"
        ):
            Gang(cluster, 1).run(print, Private(tmp_path, owner=os.getpid()), 0)
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_without_ray_train_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray.train.torch", None)
    with pytest.raises(Refusal, match=r"Ray Train is not installed whole .*; pip install 'microtome\[cluster\]'"):
        Gang(Cluster(), 2).require_room()
