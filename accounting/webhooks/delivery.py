"""Deliver the feed: the job that sends to each endpoint what it has not taken yet.

An endpoint's row has its position in the feed and a lease. Whoever has the lease sends, and writes
the position together with the record of the request, in one transaction that ends as nothing where
the lease is another's by then. No transaction is open while a request is under way.

Each endpoint has a thread, so that none waits for another. A request that fails is sent again,
after pauses that grow; after days the endpoint is disabled.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import structlog
from sqlalchemy import Engine

from accounting.errors import AccountingError
from accounting.webhooks import leases
from accounting.webhooks.leases import LeasedEndpoint
from accounting.webhooks.signing import require_libraries

log = structlog.get_logger()

MAX_ENDPOINTS: Final = 64
"""Endpoints that one process delivers to at a time."""
POLL_SECONDS: Final = 1.0
"""How often endpoints that became due are looked for while others are busy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliverySettings:
    """The settings. ``private_addresses``: every endpoint may have one."""

    private_addresses: bool = False


def deliver(
    engine: Engine,
    stop: threading.Event | None = None,
    settings: DeliverySettings = DeliverySettings(),
) -> int:
    """Deliver until no endpoint is due, or until ``stop``; returns how many events were taken.

    Raises ConnectionLost, and ConfigurationError where the extra is not installed. After an error
    at one endpoint the others end their requests; its lease ends by itself, so that it is not tried
    again at once.
    """
    leased = leases.take_due(engine, MAX_ENDPOINTS)
    if not leased:
        return 0  # nothing more is imported
    try:
        require_libraries()
    except AccountingError:
        for each in leased:
            leases.release(engine, each)
        raise
    return _Delivery(engine, stop or threading.Event(), settings).run(leased)


class _Delivery:
    """One run of the job. An error at an endpoint ends it, and the next run goes on."""

    def __init__(self, engine: Engine, stop: threading.Event, settings: DeliverySettings) -> None:
        self._engine = engine
        self._stop = stop
        self._settings = settings
        self._is_aborted = False
        self._error: BaseException | None = None

    def run(self, leased: list[LeasedEndpoint]) -> int:
        total = 0
        busy: set[Future[int]] = set()
        with self._threads() as threads:
            while leased or busy:
                busy |= {threads.submit(self._deliver_to, each) for each in leased}
                done, busy = wait(busy, POLL_SECONDS, FIRST_COMPLETED)
                total += sum(self._result(future) for future in done)
                leased = [] if self._is_ending() else self._take_due(MAX_ENDPOINTS - len(busy))
        if self._error is not None:
            raise self._error
        return total

    @contextmanager
    def _threads(self) -> Iterator[ThreadPoolExecutor]:
        """Threads that end soon when this one is interrupted."""
        with ThreadPoolExecutor(MAX_ENDPOINTS, thread_name_prefix="webhook") as threads:
            try:
                yield threads
            except BaseException:
                self._is_aborted = True
                raise

    def _is_ending(self) -> bool:
        return self._is_aborted or self._error is not None or self._stop.is_set()

    def _take_due(self, limit: int) -> list[LeasedEndpoint]:
        return leases.take_due(self._engine, limit) if limit > 0 else []

    def _deliver_to(self, leased: LeasedEndpoint) -> int:
        from accounting.webhooks.endpoint_delivery import EndpointDelivery  # noqa: PLC0415

        private = self._settings.private_addresses
        return EndpointDelivery(
            self._engine, leased, self._is_ending, private_addresses=private
        ).run()

    def _result(self, future: Future[int]) -> int:
        error = future.exception()
        if error is None:
            return future.result()
        if self._error is None:
            self._error = error
        return 0
