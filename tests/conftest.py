"""The world that tests see: offline, one thread per worker, caches in a temporary folder.

Set before anything of the package is imported. What needs real weights or a browser is in `tests/real` and has its marker.
"""

import ipaddress
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests import checked

checked.install()

hypothesis.settings.register_profile("microtome", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("microtome")

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"
os.environ["HF_HOME"] = str(
    Path(tempfile.gettempdir()) / "microtome-tests" / "huggingface"
)  # read when the libraries are imported
for threads in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[threads] = "1"

_refused: list[str] = []
"""Every attempt to leave this machine, so that one which the tested code swallowed still fails its test."""


class OfflineError(RuntimeError):
    """A test tried to reach another machine."""


def _require_local(host: object) -> None:
    if host in (None, "", "localhost", b"localhost"):
        return
    text = host.decode() if isinstance(host, bytes) else str(host)
    try:
        local = ipaddress.ip_address(text.split("%")[0])
    except ValueError:
        local = None
    if local is not None and (local.is_loopback or local.is_unspecified):
        return
    _refused.append(text)
    raise OfflineError(f"{text}: tests run offline; use a local file, a toy model or a loopback server")


class _LocalSocket(socket.socket):
    """A socket that connects to this machine only."""

    def connect(self, address: Any, /) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _require_local(address[0])
        super().connect(address)

    def connect_ex(self, address: Any, /) -> int:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _require_local(address[0])
        return super().connect_ex(address)


_getaddrinfo = socket.getaddrinfo


def _local_getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
    _require_local(host)
    return _getaddrinfo(host, *arguments, **options)


socket.socket = _LocalSocket
socket.getaddrinfo = _local_getaddrinfo


@pytest.fixture(autouse=True)
def _offline() -> Iterator[None]:
    """Fail a test that tried to leave this machine, even where the tested code caught the error."""
    _refused.clear()
    yield
    assert not _refused, f"tried to reach {', '.join(_refused)}"


@pytest.fixture(autouse=True)
def _shared_models() -> Iterator[None]:
    """Fail a test that changed a model which other tests share: the fault would show in whichever of them runs next."""
    yield
    tiny = sys.modules.get("tests.unit.model.tiny")
    changed = tiny.changed() if tiny else []
    assert not changed, f"changed a shared model ({', '.join(changed)}); build one of its own: wrap(built(name))"


@pytest.fixture(autouse=True, scope="session")
def _caches(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep microtome's cache out of the user's home.

    `make test-real` names a lasting one in MICROTOME_TEST_CACHE, so that converted weights survive until the next run.
    """
    lasting = os.environ.get("MICROTOME_TEST_CACHE")
    os.environ["MICROTOME_CACHE"] = lasting or str(tmp_path_factory.mktemp("cache"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow tests, so that no worker waits for one at the end; report those that need a GPU as not run where there is none."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    needy = [item for item in items if item.get_closest_marker("gpu")]
    if not needy:
        return
    import torch

    if not torch.cuda.is_available():
        for item in needy:
            item.add_marker(pytest.mark.skip(reason="not run: no CUDA device on this machine"))
