from pathlib import Path

import pytest

from tests.unit.web.built import build_runs
from tests.unit.web.planted import plant


@pytest.fixture(scope="session")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant(tmp_path_factory.mktemp("panels") / "atlas")


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An atlas of a toy model with the runs `rivers`, `markets` and `bare`."""
    return build_runs(tmp_path_factory.mktemp("panels-runs") / "atlas")
