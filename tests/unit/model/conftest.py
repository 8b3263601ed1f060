"""A checkpoint folder for each test, copied from one that is saved once."""

import shutil
from pathlib import Path

import pytest

from tests.toys import save_checkpoint


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint that tests copy and do not change."""
    return save_checkpoint(tmp_path_factory.mktemp("saved") / "tiny-llama")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(saved, tmp_path / "tiny-llama"))
