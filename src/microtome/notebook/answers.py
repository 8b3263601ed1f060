"""The explorer's own application, asked in this process: a request goes to it as over the network, without one.

Requests are answered on an event loop in a thread of its own, many at a time, so that the kernel stays free. Only what the application
answers under /api can be asked.
"""

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode
from weakref import WeakValueDictionary

from microtome.core import Refusal
from microtome.model import Model
from microtome.web import create_app

__all__ = ["Answer", "Answers", "opened"]

_log = logging.getLogger(__name__)

OK, MISSING, FAILED = 200, 404, 500
_HEADERS: Final = ((b"host", b"127.0.0.1"), (b"accept-encoding", b"gzip"), (b"content-type", b"application/json"))


@dataclass(frozen=True)
class Answer:
    """What was answered: JSON, gzipped where `zipped`."""

    status: int
    body: bytes
    zipped: bool


class Answers:
    """Answers about the atlas in a folder; `model` and the atlases `beside` it are as `web.create_app` has them."""

    def __init__(self, atlas: Path, model: str | Path | Model | None = None, beside: Sequence[Path] = ()) -> None:
        self._app = create_app(atlas, model=model, beside=beside)
        self._app.state.reader.watch()
        self._known = {
            (method, path.removeprefix("/api/"))
            for path, methods in self._app.openapi()["paths"].items()
            for method in map(str.upper, methods)
        }

    def ask(self, path: str, body: str | None, told: Callable[[Answer], None]) -> "Future[None]":
        """Ask what stands under /api at `path`, with its query; a POST where there is a `body`. `told` is called in another thread.

        A future that is cancelled has `told` not called any more.
        """

        async def answer() -> None:
            told(await self._answer(path, body))

        return asyncio.run_coroutine_threadsafe(answer(), _loop())

    def record(self, path: str, **parameters: str | None) -> Any:
        """The record that is answered, once it is there.

        Errors: `Refusal` with the problem that the page would show.
        """
        query = urlencode({name: value for name, value in parameters.items() if value})
        found = asyncio.run_coroutine_threadsafe(self._answer(f"{path}?{query}", None, _HEADERS[:1]), _loop()).result()
        record = json.loads(found.body)
        if found.status == OK:
            return record
        if isinstance(record, dict) and {"what", "why", "instead"} <= record.keys():
            raise Refusal(record["what"], why=record["why"], instead=record["instead"])
        raise Refusal(f"{path} {query}"[:200], why=f"it was answered with {found.status}", instead="ask for another")

    async def _answer(self, path: str, body: str | None, headers: tuple[tuple[bytes, bytes], ...] = _HEADERS) -> Answer:
        name, _, query = path.partition("?")
        method = "GET" if body is None else "POST"
        if (method, name) not in self._known:
            return _problem(
                MISSING, "This address", "the pages ask no such thing", "show the atlas again with the same microtome"
            )
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": f"/api/{name}", "raw_path": f"/api/{name}".encode(), "query_string": query.encode("ascii", "replace"),
            "root_path": "", "headers": list(headers), "client": ("127.0.0.1", 0), "server": ("127.0.0.1", 80),
        }  # fmt: skip
        exchange = _Exchange((body or "").encode("utf-8", "replace"))
        [error] = await asyncio.gather(self._app(scope, exchange.receive, exchange.send), return_exceptions=True)
        if error is not None:
            _log.error("%s was not answered", path[:200], exc_info=error)
            return _problem(FAILED, "This page", "what it asks for failed", "see the log of the kernel")
        return exchange.answer()


class _Exchange:
    """One request and what is sent back, as ASGI has it."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self._status = FAILED
        self._zipped = False
        self._parts: list[bytes] = []

    async def receive(self) -> dict[str, Any]:
        """The body; after that nothing comes."""
        if self._body is None:
            return await asyncio.get_running_loop().create_future()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Any) -> None:
        """Take a part of the answer."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._zipped = (b"content-encoding", b"gzip") in [(name.lower(), value) for name, value in message["headers"]]
        else:
            self._parts.append(message.get("body", b""))

    def answer(self) -> Answer:
        """All that came."""
        return Answer(self._status, b"".join(self._parts), self._zipped)


def _problem(status: int, what: str, why: str, instead: str) -> Answer:
    return Answer(status, json.dumps({"what": what, "why": why, "instead": instead}).encode(), zipped=False)


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """The event loop of all panels of this process, running."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="microtome-notebook", daemon=True).start()
    return loop


_OPEN: "WeakValueDictionary[tuple[object, ...], Answers]" = WeakValueDictionary()


def opened(atlas: Path, model: str | Path | Model | None = None, beside: Sequence[Path] = ()) -> Answers:
    """The answers about an atlas: the same for all panels, so that it is indexed, and its model loaded, once."""
    key = (id(model) if isinstance(model, Model) else model, *(each.resolve() for each in (atlas, *beside)))
    found = _OPEN.get(key)
    if found is None:
        found = _OPEN[key] = Answers(atlas, model, beside)
    return found
