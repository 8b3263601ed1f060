"""On which devices processes of a cluster train: on those that were asked for, whatever the machine that builds has."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from microtome.atlas import Settings, build
from microtome.core import Refusal
from microtome.engine import Cluster
from microtome.factors.launch_cluster import OnCluster
from microtome.factors.plan import Plan, device_of, trained
from microtome.factors.spread import Spread
from microtome.factors.variants import TopK
from microtome.model import Model, load
from tests import toys
from tests.unit.factors.ranks import planted_job


@dataclass(frozen=True)
class _Full(OnCluster):
    """Has room for nobody, and says for what."""

    def require_room(self, processes: int, device: str) -> None:
        raise Refusal(f"{processes} processes on {device}", why="it is full", instead="wait")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(toys.save_checkpoint(tmp_path_factory.mktemp("model")), device="cpu")


def _asked(model: Model, device: str) -> Model:
    """On the CPU here, as a builder without a GPU holds it."""
    assert model.opening is not None
    return replace(model, opening=replace(model.opening, device=device))


@pytest.mark.parametrize(("device", "kind"), [("cuda", "cuda"), ("cuda:0,cuda:1", "cuda"), ("cpu", "cpu")])
def test_room_is_asked_for_on_what_was_asked_for(model: Model, tmp_path: Path, device: str, kind: str) -> None:
    plan = Plan(spread=Spread(2, launcher=_Full()))
    with pytest.raises(Refusal, match=f"2 processes on {kind}: it is full"):
        build(_asked(model, device), toys.toy_texts(), output=tmp_path / "atlas", settings=Settings(dictionary=plan))


def test_a_training_is_of_what_was_asked_for(model: Model, tmp_path: Path) -> None:
    harvested = planted_job(tmp_path, TopK(3)).harvested
    plan = Plan(method=TopK(3), spread=Spread(2, launcher=_Full()))
    with pytest.raises(Refusal, match="2 processes on cuda: it is full"):
        trained(plan, "d", 8, harvested, _asked(model, "cuda"), seed=0)


def test_one_process_trains_where_the_model_is(model: Model) -> None:
    assert device_of(Plan(), _asked(model, "cuda")) == "cpu"
    nowhere = OnCluster(Cluster("127.0.0.1:9", gpus=0.0))
    assert device_of(Plan(spread=Spread(2, launcher=nowhere)), _asked(model, "auto")) == "cpu", "gpus=0 says so already"
