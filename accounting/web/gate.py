"""What every request passes before a route sees it, and what every answer gets.

In this order: the Host header names this server (so that no other site's page can reach it by a
name that resolves here), the client's address is known (behind a proxy that was named), the reader
is known. ``request.state.reader`` is the :class:`Reader` from then on.
"""

from collections.abc import Iterable
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from accounting.web.access.reader import Reader
from accounting.web.problems import Problem
from accounting.web.render import problem_response

LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "[::1]")
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Gate:
    """The outermost ASGI application. ``hosts``: names by which this server may be addressed."""

    def __init__(self, app: ASGIApp, *, hosts: Iterable[str]) -> None:
        self._app = app
        self._hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(headers)
        if refusal is not None:
            await refusal(scope, receive, _with_headers(send))
            return
        scope.setdefault("state", {})["reader"] = Reader()
        await self._app(scope, receive, _with_headers(send))

    def _refusal(self, headers: Headers) -> Response | None:
        host, _, port = headers.get("host", "").lower().rpartition(":")
        name = host if port.isdigit() else headers.get("host", "").lower()
        if name in self._hosts:
            return None
        return problem_response(
            Problem(421, "Misdirected Request", "this server is not known by that name")
        )


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return send_with_headers
