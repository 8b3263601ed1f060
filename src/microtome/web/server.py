"""Running the page's server: bind, say where, serve until interrupted."""

import logging
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from microtome.core import Refusal
from microtome.store import folder_of, manifest_path, read_manifest
from microtome.web.app import create_app
from microtome.web.browse import bases
from microtome.web.columns import told
from microtome.web.reader import Reader, remove_stale
from microtome.web.security import is_loopback
from microtome.web.windows import preload

__all__ = ["serve"]

_ANY = ("0.0.0.0", "::")
"""All addresses of the machine: others reach it by its name."""
_log = logging.getLogger(__name__)


def serve(
    atlas: str | Path,
    host: str = "127.0.0.1",
    port: int = 8765,
    *,
    beside: Sequence[str | Path] = (),
    token: str | None = None,
    model: str | Path | None = None,
    started: Callable[[str], None] | None = None,
) -> None:
    """Serve the page of `atlas` until interrupted; `started` is told its address. Port 0 takes any free one.

    An atlas in object storage is served as it is there now: what a build on another machine adds comes with the next start.

    Runs of the atlases `beside` it can be compared with its own. `model` is where the model of the atlas is, which then reads texts that are typed; it is opened when the first is.
    Any address but loopback needs a token: one is made up where none is given, and is part of the address.
    Errors: `Refusal` where the folder is no atlas and none is being built there, where one beside it is none, where its manifest is damaged or of a newer
    microtome, or where the address cannot be bound.
    """
    import uvicorn

    atlas, others = folder_of(atlas), [folder_of(each) for each in beside]
    if manifest_path(atlas).is_file() or not (atlas / "progress.json").is_file():
        read_manifest(atlas)
    for each in others:
        read_manifest(each)
    if not is_loopback(host) and token is None:
        token = secrets.token_urlsafe(24)
    remove_stale()
    listening = _bind(host, port)
    bound = listening.getsockname()[1]
    app = create_app(atlas, beside=others, token=token, model=model)
    reader = app.state.reader
    reader.watch()
    threading.Thread(target=_warm, args=(reader,), daemon=True).start()
    shown = socket.gethostname() if host in _ANY else host
    name = f"[{shown}]" if ":" in shown else shown
    address = f"http://{name}:{bound}/" + (f"?token={token}" if token else "")
    _log.info("serving %s at %s", atlas, address)
    if started is not None:
        started(address)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, limit_concurrency=64, timeout_keep_alive=20
    )
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _leave)
    with listening:
        uvicorn.Server(config).run(sockets=[listening])


def _leave(number: int, _: object) -> None:
    """End as after Ctrl-C, so that the files of the index go: the usual end by this signal leaves them."""
    sys.exit(128 + number)


def _warm(reader: Reader) -> None:
    """Build the index before it is asked for, and read windows."""
    try:
        view = reader.view()
        bases(view)
        told(view)
        preload(view)
    except Refusal as refusal:
        _log.warning("%s", refusal)


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise Refusal(
            f"serving at {host}:{port}", why=str(error.strerror or error), instead="name another port, or 0 for any free one"
        ) from error
    listening.listen(128)
    return listening
