"""Bounds the threads that serve requests, and so the connections to Postgres."""

from typing import Final

from anyio.to_thread import current_default_thread_limiter
from starlette.types import ASGIApp, Receive, Scope, Send

MOST_THREADS: Final = 8


class BoundedThreads:
    """An ASGI application whose handlers share so few threads. The limit is per event loop."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limiter = current_default_thread_limiter()
        if limiter.total_tokens != MOST_THREADS:
            limiter.total_tokens = MOST_THREADS
        await self.app(scope, receive, send)
