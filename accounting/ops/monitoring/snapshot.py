"""One look at the whole service: the spool of this machine, and the books.

Owns looking without harm: read only, at most once a second however many ask, and in bounded time,
so that a database that hangs hides neither the spool nor itself. Judges nothing: that is `health`'s
and `metrics`' work.
"""

import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from accounting.capture.clock import wall_clock
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
"""For the database: less than the 10 s that Prometheus waits for an answer."""
CACHE_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What was seen at ``at`` (microseconds), and in words what could not be seen.

    ``source`` is the one of this machine; ``spool`` is None where there is none.
    """

    taken_at: int
    source: str
    spool: SpoolStatus | None = None
    spool_error: str | None = None
    disk_free_bytes: int | None = None
    database: DatabaseStatus | None = None
    database_error: str | None = None

    @property
    def own_source(self) -> SourceStatus | None:
        """The books' view of this machine's source."""
        known = self.database.sources if self.database is not None else ()
        return next((one for one in known if one.source == self.source), None)

    @property
    def active_host(self) -> str | None:
        """The machine that collects this source now, when it is another one."""
        own = self.own_source
        if own is None or own.holder is None or self.spool is None:
            return None
        return own.host if own.holder != lease_holder(self.spool.path) else None


class SnapshotReader:
    """Looks when it is asked. ``find_database``: the URL, or None while no database runs here."""

    def __init__(
        self,
        settings: Settings,
        find_database_url: Callable[[], str | None],
        *,
        timeout_seconds: float = DATABASE_TIMEOUT_SECONDS,
    ) -> None:
        self._settings = settings
        self._find_database = find_database_url
        self._patience_seconds = timeout_seconds
        self._lock = threading.Lock()
        self._watch: Snapshot | None = None
        self._looked = 0.0
        self._pending: Future[DatabaseStatus] | None = None
        self._engine: Engine | None = None
        self._url: str | None = None

    def read(self) -> Snapshot:
        """What there is to see now."""
        with self._lock:
            if self._watch is None or time.monotonic() - self._looked > CACHE_SECONDS:
                self._watch = self._look()
                self._looked = time.monotonic()
            return self._watch

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

    def _look(self) -> Snapshot:
        spool, spool_error = None, None
        try:
            spool = read_status(self._settings.data_dir, self._settings.source)
        except SpoolError as error:
            spool_error = str(error)
        books, books_error = self._read_books()
        return Snapshot(
            taken_at=wall_clock(),
            source=self._settings.source,
            spool=spool,
            spool_error=spool_error,
            disk_free_bytes=None if spool is None else shutil.disk_usage(spool.path.parent).free,
            database=books,
            database_error=books_error,
        )

    def _read_books(self) -> tuple[DatabaseStatus | None, str | None]:
        if self._pending is None:
            url = self._find_database()
            if url is None:
                return None, "Postgres: none is configured, and no `turn-accounting up` runs here"
            self._pending = self._start(url)
        pending = self._pending
        if not wait([pending], self._patience_seconds).done:
            # It is asked again when this answer has come, not before: a hung server stays alone.
            return None, f"Postgres does not answer within {self._patience_seconds:.0f} s"
        self._pending = None
        try:
            return pending.result(), None
        except AccountingError as error:
            return None, str(error)

    def _start(self, url: str) -> Future[DatabaseStatus]:
        """Read in a thread of its own, which no end of the process waits for."""
        if self._engine is None or url != self._url:
            if self._engine is not None:
                self._engine.dispose()
            self._engine, self._url = open_engine(url), url
        engine, pending = self._engine, Future[DatabaseStatus]()

        def read() -> None:
            try:
                pending.set_result(read_database_status(engine))
            except BaseException as error:  # noqa: BLE001  # raised again for who looks
                pending.set_exception(error)

        threading.Thread(target=read, name="watch", daemon=True).start()
        return pending
