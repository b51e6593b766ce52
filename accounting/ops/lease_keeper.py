"""The lease of a source, acquired and renewed in a thread of its own.

Capture must not wait for the database. So the thread asks it, and the collector reads the last
answer. While the database gives none, the previous answer stays valid: capture goes on, and the
spool is loaded later.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Final

import structlog

from accounting.capture.clock import MAX_CLOCK_ERROR, CaptureClock
from accounting.capture.redis.server_watch import ServerWatch, WatchedServer
from accounting.capture.spool.spool import Spool
from accounting.db.engine import Engine
from accounting.db.migrations import require_head
from accounting.errors import AccountingError, ConnectionLost, LeaseHeld, SourceConflict
from accounting.ingest.source_lease import (
    BooksPosition,
    acquire_lease,
    lease_holder,
    release_lease,
)
from accounting.sources.identity import record_conflict

log = structlog.get_logger()

FIRST_POLL_TIMEOUT_SECONDS: Final = 2.0
"""The first attempt waits so long for the collector's Redis to identify itself."""


class LeaseKeeper:
    """Tries to acquire the lease, and renews it, four times per ``lease_seconds``.

    ``mode`` is the setting of how to capture. ``clock`` is compared with the database's. ``watch``
    sees the collector's Redis: the keeper claims its histories for the source, and ends
    with SourceConflict when they are another source's, or when the lease's holder sees another
    Redis.

    Another collector's lease is left to it until this keeper has seen for ``lease_seconds``, from a
    database that answers, that it is not renewed. During an outage, and in a backup, a lease
    expires whose holder is running, and the holder's spool has what is not loaded. A restore can be
    so short that this keeper, which had the lease, only sees that it is another's again.
    """

    def __init__(
        self,
        engine: Engine,
        spool: Spool,
        lease_seconds: float,
        clock: CaptureClock | None = None,
        watch: ServerWatch | None = None,
        mode: str = "auto",
    ) -> None:
        self._mode = mode
        self._clock = clock or CaptureClock()
        self._logged_ahead_seconds = 0.0
        self._engine = engine
        self._spool = spool
        self._lease_seconds = lease_seconds
        self._watch = watch
        self._suspected_at: float | None = None
        self._spares_expired = False
        self._spares_until = 0.0
        self._renewed_at: datetime | None = None
        self._started_at = time.monotonic()
        self._answered = threading.Event()
        self._stop = threading.Event()
        self._books_position: BooksPosition | None = None
        self._other_holder = ""
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Acquire and renew the lease until the block ends; then release it."""
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()
            with suppress(ConnectionLost):
                release_lease(self._engine, self._spool, self._lease_seconds)

    def wait_for_first_answer(self, timeout_seconds: float) -> None:
        """Wait until the database has answered once, or the timeout is over."""
        self._answered.wait(timeout_seconds)

    @property
    def other_holder(self) -> str:
        """The collector that has the lease, as text; '' when it is this one or unknown.

        Raises the error that ended the thread: a collector that can't renew its lease must stop.
        """
        if self._failure is not None:
            raise self._failure
        return self._other_holder

    @property
    def books_position(self) -> BooksPosition | None:
        """The loaded position of the source; None without the lease, or before anything is loaded.

        Read when the lease was last acquired or renewed.
        """
        return self._books_position

    def _run(self) -> None:
        try:
            self._renew_until_stopped()
        except BaseException as error:  # noqa: BLE001  # raised again in the main thread
            self._failure = error
            self._answered.set()

    def _renew_until_stopped(self) -> None:
        schema_checked, logged_reason = False, ""
        if self._watch is not None:
            self._watch.wait_for_first_poll(FIRST_POLL_TIMEOUT_SECONDS)
        while True:
            watched = None if self._watch is None else self._watch.latest
            try:
                if not schema_checked:
                    require_head(self._engine)
                    schema_checked = True
                self._books_position = acquire_lease(
                    self._engine,
                    self._spool,
                    self._lease_seconds,
                    clock=self._clock,
                    watched=watched,
                    takes_expired=not self._spares_holder(),
                    mode=self._mode,
                )
                self._spares_expired = True
                self._suspected_at = None
                self._other_holder = logged_reason = ""
                self._answered.set()
            except LeaseHeld as held:
                self._spare(held)
                self._check_suspicion(held.suspected, watched)
                self._other_holder, self._books_position = str(held), None
                self._answered.set()
            except SourceConflict as conflict:
                self._record(conflict, watched)
                raise
            except AccountingError as error:
                # Capture goes on even where an operator has to repair the database: the spool can
                # be loaded then, but what isn't captured now is lost.
                self._spares_expired = True
                if not isinstance(error, ConnectionLost) and str(error) != logged_reason:
                    logged_reason = str(error)
                    log.error("can't acquire the lease, capturing without it", reason=logged_reason)
            self._log_clock()
            if self._stop.wait(self._lease_seconds / 4):
                return

    def _spares_holder(self) -> bool:
        return self._spares_expired or time.monotonic() < self._spares_until

    def _spare(self, held: LeaseHeld) -> None:
        if self._spares_expired or held.renewed_at != self._renewed_at:
            self._spares_expired, self._renewed_at = False, held.renewed_at
            self._spares_until = time.monotonic() + self._lease_seconds

    def _log_clock(self) -> None:
        """Log when this machine's clock begins or ceases to be wrong, or steps while it is."""
        ahead_seconds = self._clock.wall_ahead / 1e6
        if not self._clock.wall_is_off:
            if self._logged_ahead_seconds:
                log.info("this machine's clock is right again")
            self._logged_ahead_seconds = 0.0
        elif abs(ahead_seconds - self._logged_ahead_seconds) > MAX_CLOCK_ERROR / 1e6:
            log.warning(
                "this machine's clock is off: the database's clock corrects receipt times",
                ahead_seconds=round(ahead_seconds, 3),
                advice="synchronize the clocks of all machines by NTP",
            )
            self._logged_ahead_seconds = ahead_seconds

    def _check_suspicion(
        self, suspected: SourceConflict | None, watched: WatchedServer | None
    ) -> None:
        """Raise a suspected conflict when this collector sees the same server before and after it.

        The holder looked in between, and saw another one: neither was just late.
        """
        if suspected is None or watched is None:
            self._suspected_at = None
        elif self._suspected_at is None or watched.first_seen_at > self._suspected_at:
            self._suspected_at = time.monotonic()
        elif watched.asked_at > self._suspected_at:
            self._record(suspected, watched)
            raise suspected

    def _record(self, conflict: SourceConflict, watched: WatchedServer | None) -> None:
        since = self._started_at if watched is None else watched.first_seen_at
        with suppress(ConnectionLost):
            record_conflict(
                self._engine,
                conflict,
                holder=lease_holder(self._spool.path),
                since_seconds=time.monotonic() - since,
            )
