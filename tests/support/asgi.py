"""A request to an ASGI application within this process, without a server."""

import asyncio
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.types import ASGIApp

ADDRESS: Final = "127.0.0.1"


def request(app: ASGIApp, path: str) -> bytes:
    """GET a path; the answer has status 200. Returns its body."""
    return asyncio.run(_request(app, path))


async def _request(app: ASGIApp, path: str) -> bytes:
    parts = urlsplit(path)
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": parts.path,
        "raw_path": parts.path.encode(),
        "query_string": parts.query.encode(),
        "headers": [(b"host", ADDRESS.encode())],
        "client": (ADDRESS, 1),
        "server": (ADDRESS, 1),
    }
    unread: list[dict[str, Any]] = [{"type": "http.request", "body": b"", "more_body": False}]
    statuses: list[int] = []
    body = bytearray()

    async def receive() -> dict[str, Any]:
        if unread:
            return unread.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Mapping[str, Any]) -> None:
        if "status" in message:
            statuses.append(message["status"])
        body.extend(message.get("body", b""))

    await app(scope, receive, send)
    assert statuses == [200], f"{path}: {statuses} {body.decode()}"
    return bytes(body)
