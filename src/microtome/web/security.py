"""Who may ask, and what a browser may do with the answers: host check, token, headers.

The server is for one person's machine. On loopback the Host header is checked, so that no web page can reach the atlas by
rebinding a name; on any other address a token is asked for. What makes the machine work, a POST, is taken from the page itself alone.
"""

import hashlib
import hmac
import ipaddress
import re
from http.cookies import CookieError, SimpleCookie
from typing import Final
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["CONTENT_POLICY", "Guard", "is_loopback"]

CONTENT_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'"
)

_HEADERS: Final = {
    "Content-Security-Policy": f"{CONTENT_POLICY}; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}

_HOST: Final = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9.-]+?)\.?(:[0-9]+)?")
MOST_BODY: Final = 1 << 17
"""Bytes of a request's body."""


def is_loopback(host: str) -> bool:
    """Whether `host` is an address of this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """ASGI middleware: refuse strangers, add the headers to every answer.

    Without a token only loopback names are accepted as Host. With one, it is expected as `?token=` (once: the answer sets a
    cookie and leads on without it), in that cookie, whose name is this server's own for browsers tell no ports apart, or as `Authorization: Bearer`.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._token = token
        self._cookie = f"microtome-{hashlib.sha256(token.encode()).hexdigest()[:12]}" if token else ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
            await send(message)

        answer = self._answer(scope)
        if scope["method"] == "POST" and answer is self._app:
            answer = _foreign(Headers(scope=scope)) or await self._posted(receive)
        await answer(scope, receive, sealed)

    async def _posted(self, receive: Receive) -> ASGIApp:
        """The application with the whole body at hand, or the refusal of one that is too long."""
        body = bytearray()
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message["type"] == "http.request" and message.get("more_body", False)
            if len(body) > MOST_BODY:
                return _refusal("the request", f"its body is longer than {MOST_BODY >> 10} kB", "shorten the text", 413)
        given = [bytes(body)]

        async def again() -> Message:
            return {"type": "http.request", "body": given.pop(), "more_body": False} if given else await receive()

        async def answer(scope: Scope, _: Receive, send: Send) -> None:
            await self._app(scope, again, send)

        return answer

    def _answer(self, scope: Scope) -> ASGIApp:
        headers = Headers(scope=scope)
        if self._token is None:
            hosts = [_HOST.fullmatch(host.lower()) for host in headers.getlist("host")]
            known = len(hosts) == 1 and hosts[0] is not None and is_loopback(hosts[0][1])
            return self._app if known else PlainTextResponse("unknown host\n", status_code=421)
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if self._right(given):
            answer = RedirectResponse("/", status_code=303)
            answer.set_cookie(self._cookie, self._token, httponly=True, samesite="strict", path="/")
            return answer
        if self._right(_cookie(headers, self._cookie)) or self._right(headers.get("authorization", "").removeprefix("Bearer ")):
            return self._app
        return PlainTextResponse("This atlas asks for its token: open the address that the server printed.\n", status_code=401)

    def _right(self, given: str) -> bool:
        return self._token is not None and hmac.compare_digest(given.encode("utf-8", "replace"), self._token.encode())


def _foreign(headers: Headers) -> ASGIApp | None:
    """The refusal of a POST that a page of another origin may have sent. A browser says where a request is from, and asks before it sends JSON elsewhere."""
    if headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        return _refusal("the request", "its content type is not application/json", "send JSON", 415)
    origin = headers.get("origin")
    elsewhere = headers.get("sec-fetch-site", "none") not in ("same-origin", "none")
    if elsewhere or (origin is not None and _netloc(origin) != headers.get("host", "").lower()):
        return _refusal("the request", "a page of another origin has sent it", "ask from the page of the atlas", 403)
    return None


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _refusal(what: str, why: str, instead: str, status: int) -> ASGIApp:
    return JSONResponse({"what": what, "why": why, "instead": instead}, status_code=status)


def _cookie(headers: Headers, name: str) -> str:
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return morsel.value if morsel else ""
