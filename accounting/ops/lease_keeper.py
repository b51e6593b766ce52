"""The lease of a source, acquired and renewed in a thread of its own.

Capture must not wait for the database. So the thread asks it, and the collector reads the last
answer. While the database gives none, the previous answer stays valid: capture goes on, and the
spool is loaded later.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import structlog

from accounting.capture.clock import MAX_CLOCK_ERROR, CaptureClock
from accounting.capture.spool.spool import Spool
from accounting.db.engine import Engine
from accounting.db.migrations import require_head
from accounting.errors import AccountingError, ConnectionLost, LeaseHeld
from accounting.ingest.source_lease import BooksPosition, acquire_lease, release_lease

log = structlog.get_logger()


class LeaseKeeper:
    """Tries to acquire the lease, and renews it, four times per ``lease_seconds``."""

    def __init__(
        self,
        engine: Engine,
        spool: Spool,
        lease_seconds: float,
        clock: CaptureClock | None = None,
    ) -> None:
        self._clock = clock or CaptureClock()
        self._logged_ahead_seconds = 0.0
        self._engine = engine
        self._spool = spool
        self._lease_seconds = lease_seconds
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
        while True:
            try:
                if not schema_checked:
                    require_head(self._engine)
                    schema_checked = True
                self._books_position = acquire_lease(
                    self._engine, self._spool, self._lease_seconds, self._clock
                )
                self._other_holder = logged_reason = ""
                self._answered.set()
            except LeaseHeld as held:
                self._other_holder, self._books_position = str(held), None
                self._answered.set()
            except AccountingError as error:
                # Capture goes on even where an operator has to repair the database: the spool can
                # be loaded then, but what isn't captured now is lost.
                if not isinstance(error, ConnectionLost) and str(error) != logged_reason:
                    logged_reason = str(error)
                    log.error("can't acquire the lease, capturing without it", reason=logged_reason)
            self._log_clock()
            if self._stop.wait(self._lease_seconds / 4):
                return

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
