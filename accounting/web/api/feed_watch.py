"""Wakes those who wait for events: one query every half second for all of them, and no thread."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from accounting.errors import AccountingError
from accounting.web.problems import Problem

MOST_WAITERS: Final = 32
POLL_SECONDS: Final = 0.5


class FeedWatch:
    """Watches the end of the feed while somebody waits. It lives in one event loop."""

    def __init__(self, last_number: Callable[[], int]) -> None:
        self._last_number = last_number
        self._waiters = 0
        self._last = 0
        self._changed = asyncio.Condition()
        self._poller: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place among the waiters for the block. Raises a problem when there is none."""
        if self._waiters >= MOST_WAITERS:
            raise Problem(
                503, "Service Unavailable", f"{MOST_WAITERS} clients wait for events already"
            )
        self._waiters += 1
        try:
            yield
        finally:
            self._waiters -= 1

    async def wait_beyond(self, number: int, seconds: float) -> bool:
        """Wait until the feed has a higher number; False after so many seconds."""
        if self._poller is None or self._poller.done():
            self._last = 0
            self._poller = asyncio.create_task(self._poll())
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(lambda: self._last > number)
                return True
        return False

    async def _poll(self) -> None:
        while self._waiters:
            with suppress(AccountingError):  # whoever waits reads again, and says it
                self._last = await run_in_threadpool(self._last_number)
                async with self._changed:
                    self._changed.notify_all()
            await asyncio.sleep(POLL_SECONDS)


async def disconnected(request: Request) -> None:
    """Return when the client is gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
