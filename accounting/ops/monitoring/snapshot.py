"""A snapshot of the whole service: the spool of this machine, and the database.

Reading it is safe at any rate and at any time: it is read-only, is cached for a second, and waits
only for a limited time, so that a hung database doesn't hide the state of the spool.
"""

import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from accounting.capture.clock import capture_time, clock_ahead, wall_clock
from accounting.capture.spool.status import SpoolStatus, read_status
from accounting.config import Settings
from accounting.db.engine import Engine, open_engine
from accounting.errors import AccountingError, SpoolError
from accounting.ingest.source_lease import lease_holder
from accounting.ops.monitoring.status_queries import (
    DatabaseStatus,
    SourceStatus,
    read_database_status,
)

DATABASE_TIMEOUT_SECONDS: Final = 5.0
"""Less than the 10 s that Prometheus waits for a response."""
CACHE_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The state of the service at ``taken_at``: microseconds, by the spool's clock if there is one.

    ``source`` is the one of this machine; ``spool`` is None where it has none. This machine's clock
    is ``clock_ahead_seconds`` ahead of the spool's, which follows the database's; None where the
    two were not compared. The errors are messages for the operator.
    """

    taken_at: int
    source: str
    spool: SpoolStatus | None = None
    spool_error: str | None = None
    clock_ahead_seconds: float | None = None
    disk_free_bytes: int | None = None
    database: DatabaseStatus | None = None
    database_error: str | None = None

    @property
    def own_source(self) -> SourceStatus | None:
        """The database's state of this machine's source."""
        sources = self.database.sources if self.database is not None else ()
        return next((status for status in sources if status.source == self.source), None)

    @property
    def active_host(self) -> str | None:
        """The host that collects this source while this machine stands by; None otherwise."""
        own = self.own_source
        if own is None or own.holder is None or self.spool is None:
            return None
        return own.host if own.holder != lease_holder(self.spool.path) else None


class SnapshotReader:
    """Reads snapshots. ``find_database_url`` returns None while no database runs here."""

    def __init__(
        self,
        settings: Settings,
        find_database_url: Callable[[], str | None],
        *,
        timeout_seconds: float = DATABASE_TIMEOUT_SECONDS,
    ) -> None:
        self._settings = settings
        self._find_database_url = find_database_url
        self._timeout_seconds = timeout_seconds
        self._lock = threading.Lock()
        self._cached: Snapshot | None = None
        self._cached_at = 0.0
        self._pending: Future[DatabaseStatus] | None = None
        self._engine: Engine | None = None
        self._url: str | None = None

    def read(self) -> Snapshot:
        """The state now, or up to CACHE_SECONDS ago."""
        with self._lock:
            if self._cached is None or time.monotonic() - self._cached_at > CACHE_SECONDS:
                self._cached = self._read_uncached()
                self._cached_at = time.monotonic()
            return self._cached

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._engine is not None:
            self._engine.dispose()

    def _read_uncached(self) -> Snapshot:
        spool, spool_error = None, None
        try:
            spool = read_status(self._settings.data_dir, self._settings.source)
        except SpoolError as error:
            spool_error = str(error)
        database, database_error = self._read_database()
        state = None if spool is None else spool.state
        ahead = None if state is None else clock_ahead(state)
        return Snapshot(
            taken_at=wall_clock() if state is None else capture_time(state),
            clock_ahead_seconds=None if ahead is None else ahead / 1e6,
            source=self._settings.source,
            spool=spool,
            spool_error=spool_error,
            disk_free_bytes=None if spool is None else shutil.disk_usage(spool.path.parent).free,
            database=database,
            database_error=database_error,
        )

    def _read_database(self) -> tuple[DatabaseStatus | None, str | None]:
        """The database's state, or an error message."""
        if self._pending is None:
            url = self._find_database_url()
            if url is None:
                return None, "Postgres: none is configured, and no `turn-accounting up` runs here"
            self._pending = self._start_reading(url)
        pending = self._pending
        if not wait([pending], self._timeout_seconds).done:
            # The next snapshot waits for the same query, so that a hung server gets only one.
            return None, f"Postgres does not answer within {self._timeout_seconds:.0f} s"
        self._pending = None
        try:
            return pending.result(), None
        except AccountingError as error:
            return None, str(error)

    def _start_reading(self, url: str) -> Future[DatabaseStatus]:
        """Read in a daemon thread, so that a hung query doesn't delay the end of the process."""
        if self._engine is None or url != self._url:
            if self._engine is not None:
                self._engine.dispose()
            self._engine, self._url = open_engine(url), url
        engine, pending = self._engine, Future[DatabaseStatus]()

        def read() -> None:
            try:
                pending.set_result(read_database_status(engine))
            except BaseException as error:  # noqa: BLE001  # raised again by ``result``
                pending.set_exception(error)

        threading.Thread(target=read, name="database-status", daemon=True).start()
        return pending
