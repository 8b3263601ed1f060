from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from microtome.web import create_app
from tests.unit.web.planted import plant


@pytest.fixture(scope="session")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant(tmp_path_factory.mktemp("planted") / "atlas")


@pytest.fixture(scope="session")
def client(atlas: Path) -> TestClient:
    return TestClient(create_app(atlas), base_url="http://127.0.0.1")
