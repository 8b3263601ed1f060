from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from microtome.web import create_app
from tests.unit.web.built import build_runs
from tests.unit.web.planted import plant
from tests.unit.web.planted_lenses import plant_lenses


@pytest.fixture(scope="session")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant(tmp_path_factory.mktemp("planted") / "atlas")


@pytest.fixture(scope="session")
def client(atlas: Path) -> TestClient:
    return TestClient(create_app(atlas), base_url="http://127.0.0.1")


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An atlas of a toy model with the runs `rivers`, `markets` and `bare`."""
    return build_runs(tmp_path_factory.mktemp("runs") / "atlas")


@pytest.fixture(scope="session")
def lensed_atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A planted atlas with what all lenses add."""
    return plant_lenses(plant(tmp_path_factory.mktemp("lensed") / "atlas"))


@pytest.fixture(scope="session")
def lensed(lensed_atlas: Path) -> TestClient:
    return TestClient(create_app(lensed_atlas), base_url="http://127.0.0.1")
