"""Wakes those who wait for events: one query every half second for all of them, and no thread."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from accounting.errors import AccountingError
from accounting.web.access.reader import Reader
from accounting.web.problems import Problem

MOST_WAITERS: Final = 32
PART_WAITERS: Final = 16
"""So many of them may read a realm only: the rest is for billing workers, which read all."""
TOKEN_WAITERS: Final = 8
"""So many may have the same token."""
POLL_SECONDS: Final = 0.5
RETRY_SECONDS: Final = 5


class FeedWatch:
    """Watches the end of the feed while somebody waits. It belongs to one event loop."""

    def __init__(self, last_number: Callable[[], int]) -> None:
        self._last_number = last_number
        self._waiters: Counter[Reader] = Counter()
        self._last = 0
        self._changed = asyncio.Condition()
        self._poller: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def place(self, reader: Reader) -> AsyncIterator[None]:
        """A place among the waiters for the block. Raises a problem when there is none."""
        if reader.token is not None and self._waiters[reader] >= TOKEN_WAITERS:
            raise _too_many(429, "Too Many Requests", f"{TOKEN_WAITERS} clients with this token")
        parts = sum(count for other, count in self._waiters.items() if not other.reads_all)
        if not reader.reads_all and parts >= PART_WAITERS:
            raise _too_many(503, "Service Unavailable", f"{PART_WAITERS} clients of realms")
        if self.waiting >= MOST_WAITERS:
            raise _too_many(503, "Service Unavailable", f"{MOST_WAITERS} clients")
        self._waiters[reader] += 1
        try:
            yield
        finally:
            self._waiters[reader] -= 1
            self._waiters += Counter()  # without those that have none

    @property
    def waiting(self) -> int:
        """How many places are taken."""
        return self._waiters.total()

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
        while self.waiting:
            with suppress(AccountingError):  # those who wait read again, and raise it
                self._last = await run_in_threadpool(self._last_number)
                async with self._changed:
                    self._changed.notify_all()
            await asyncio.sleep(POLL_SECONDS)


def _too_many(status: int, title: str, whose: str) -> Problem:
    detail = f"{whose} wait for events already"
    return Problem(status, title, detail, headers={"Retry-After": str(RETRY_SECONDS)})


async def disconnected(request: Request) -> None:
    """Return when the client is gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
