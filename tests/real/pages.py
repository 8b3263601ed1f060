"""The page at an address: from the server, and as a static export behind a plain web server."""

import contextlib
import functools
import http.server
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from microtome.model import Model
from microtome.web import create_app

__all__ = ["missed", "serve", "serve_folder"]

_ENDED: set[str] = set()


def missed(error: str) -> bool:
    """Whether a page, still open, missed a server that has ended: it looks for it again every few seconds."""
    return "net::ERR_" in error and any(address in error for address in _ENDED)


@contextlib.contextmanager
def serve(
    atlas: Path,
    *,
    watch: bool = False,
    model: Path | Model | None = None,
    beside: Sequence[Path] = (),
) -> Iterator[str]:
    """The address of a server of `atlas`, with others `beside` it, which compares bytes where `watch` and reads texts with `model`."""
    import uvicorn

    app = create_app(atlas, beside=beside, model=model)
    if watch:
        app.state.reader.damage.watch()
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.02)
    address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    _ENDED.discard(address)
    try:
        yield address
    finally:
        _ENDED.add(address)
        server.should_exit = True
        thread.join()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def serve_folder(folder: Path) -> Iterator[str]:
    """The address of a web server that knows nothing but the files of `folder`."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=folder)) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{web.server_port}/"
        web.shutdown()
        thread.join()
