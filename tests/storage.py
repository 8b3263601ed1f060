"""An S3-compatible server of a test's own, on this machine, and addresses in it."""

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from microtome.store import connections

_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@dataclass
class ObjectStore:
    """A server, where it is, and the variables by which clients find it."""

    port: int
    process: "subprocess.Popen[bytes]"

    @property
    def environment(self) -> dict[str, str]:
        return _ENVIRONMENT | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}"}

    @property
    def files(self) -> Any:
        """The file system that microtome itself uses."""
        return connections.connected("s3://any").files

    def bucket(self, name: str) -> str:
        """The address of a new bucket."""
        self.files.mkdir(name)
        return f"s3://{name}"

    @contextlib.contextmanager
    def careless(self) -> Iterator[None]:
        """While in the `with` block, the server is as one that ignores conditions."""
        files = self.files
        events, written = files.connect() and files.s3.meta.events, "before-sign.s3.PutObject"
        events.register(written, _unconditional)
        yield
        events.unregister(written, _unconditional)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    def flip(self, address: str) -> None:
        """Change a bit in the middle of an object, as storage that decays would."""
        path = address.removeprefix("s3://")
        content = bytearray(self.files.cat_file(path))
        content[len(content) // 2] ^= 1
        self.files.pipe_file(path, bytes(content))


def _unconditional(request: Any, **_: Any) -> None:
    for name in ("If-Match", "If-None-Match"):
        del request.headers[name]


class Line:
    """A port that leads to a server until it is cut, and again when it is mended."""

    def __init__(self, store: ObjectStore) -> None:
        self._target, self.port = store.port, free_port()
        self._open: list[socket.socket] = []
        self.mend()

    @property
    def environment(self) -> dict[str, str]:
        return {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}"}

    def mend(self) -> None:
        """Let it lead there."""
        self._listening = socket.create_server(("127.0.0.1", self.port), reuse_port=True)
        self._open = [self._listening]
        threading.Thread(target=self._accept, args=(self._listening,), daemon=True).start()

    def cut(self) -> None:
        """End all connections, and let nobody make one."""
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self, listening: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = listening.accept()
                there = socket.create_connection(("127.0.0.1", self._target))
                self._open += [here, there]
                for one, other in ((here, there), (there, here)):
                    threading.Thread(target=_pump, args=(one, other), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while content := source.recv(1 << 16):
            target.sendall(content)
        target.shutdown(socket.SHUT_WR)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def forget_connections() -> None:
    """Let the next request look at the environment again."""
    import s3fs

    connections._connected.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()


@contextlib.contextmanager
def object_store() -> Iterator[ObjectStore]:
    """Start a server, and let clients in this process find it by the environment."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    store = ObjectStore(port, process)
    try:
        _wait_for(store)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in store.environment.items():
                patch.setenv(name, value)
            forget_connections()
            yield store
    finally:
        store.end()
        forget_connections()


def _wait_for(store: ObjectStore) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", store.port), 1):
            return
        assert store.process.poll() is None, "the server has ended"
        time.sleep(0.05)
    raise TimeoutError("the server does not answer")
