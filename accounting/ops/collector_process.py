"""The collector's process: its turn, capture in its own threads, and the loader as a part.

Only one collector of a source works at a time. The others stand by, and the one that gets the turn
goes on where the books stand. Capture never waits for the database: who can't ask works.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Final

import structlog

from accounting.capture.collector import run_collector
from accounting.capture.spool.file import spool_path
from accounting.capture.spool.spool import Spool
from accounting.config import Settings
from accounting.db.engine import Engine
from accounting.db.migrations import require_head
from accounting.domain.realm_rules import RealmRule
from accounting.errors import AccountingError, ConnectionLost, LeaseHeld
from accounting.ingest.loader import Loader, run_loader
from accounting.ingest.source_lease import Place, end_turn, is_overtaken, take_over, take_turn
from accounting.ops.processes import ChildProcess, supervise

log = structlog.get_logger()

FIRST_ANSWER_TIMEOUT_SECONDS: Final = 2.0
"""How long a collector waits for the database to say whose turn it is, before it begins."""
LOAD_STOP_TIMEOUT_SECONDS: Final = 30.0


class LeaseKeeper:
    """Whose turn it is, asked again and again in a thread of its own."""

    def __init__(self, engine: Engine, spool: Spool, lease_seconds: float) -> None:
        self._engine = engine
        self._spool = spool
        self._lease_seconds = lease_seconds
        self._known = threading.Event()
        self._end = threading.Event()
        self._place: Place | None = None
        self._holder = ""
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._keep, name="turn", daemon=True)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Ask for the turn and renew it for as long as this lasts; give it back then."""
        self._thread.start()
        try:
            yield
        finally:
            self._end.set()
            self._thread.join()
            with suppress(ConnectionLost):
                end_turn(self._engine, self._spool, self._lease_seconds)

    def wait_for_first_answer(self, timeout_seconds: float) -> None:
        """Wait until it is known whose turn it is, so long at the most."""
        self._known.wait(timeout_seconds)

    @property
    def other_holder(self) -> str:
        """Who has it, in words, when it is another collector; '' when it is ours or not known.

        Raises what ended the thread: a collector that can't keep its turn must not go on.
        """
        if self._failure is not None:
            raise self._failure
        return self._holder

    @property
    def books_position(self) -> Place | None:
        """Where the books stand, when it is our turn and something was loaded before."""
        return self._place

    def _keep(self) -> None:
        try:
            self._keep_asking()
        except BaseException as error:  # noqa: BLE001  # raised again in the main thread
            self._failure = error
            self._known.set()

    def _keep_asking(self) -> None:
        is_ready, reason = False, ""
        while True:
            try:
                if not is_ready:
                    require_head(self._engine)
                    is_ready = True
                self._place = take_turn(self._engine, self._spool, self._lease_seconds)
                self._holder = reason = ""
            except LeaseHeld as held:
                self._holder, self._place = str(held), None
            except AccountingError as error:
                # What was known last holds until the database can tell. Capture goes on, also where
                # an operator has to mend it: what is heard now can be loaded then.
                if not isinstance(error, ConnectionLost) and str(error) != reason:
                    reason = str(error)
                    log.error("can't ask whose turn it is, capturing all the same", reason=reason)
            else:
                self._known.set()
            if self._holder:
                self._known.set()
            if self._end.wait(self._lease_seconds / 4):
                return


def run_while_leased(settings: Settings, engine: Engine, stop: threading.Event) -> None:
    """Capture and load whenever it is this collector's turn, until ``stop`` is set; then flush.

    Raises what ends capture: ConfigurationError, SpoolError, or a bug.
    """
    standing_by = False
    with Spool.open(spool_path(settings.data_dir, settings.source), settings.source) as spool:
        turn = LeaseKeeper(engine, spool, settings.lease_seconds)
        with turn.running():
            turn.wait_for_first_answer(FIRST_ANSWER_TIMEOUT_SECONDS)
            while not stop.is_set():
                if turn.other_holder:
                    if not standing_by:
                        log.warning("standing by", reason=turn.other_holder)
                    standing_by = True
                    stop.wait(0.2)
                    continue
                place = turn.books_position
                if place is not None and is_overtaken(spool, place):
                    log.warning("taking over where the books stand")
                    take_over(spool, place)
                standing_by = False
                _capture_and_load(settings, stop, spool, turn)


def _capture_and_load(
    settings: Settings, stop: threading.Event, spool: Spool, turn: LeaseKeeper
) -> None:
    """Capture and load until ``stop`` is set or the turn is another's."""
    failures: list[BaseException] = []
    leave = threading.Event()

    def capture() -> None:
        try:
            run_collector(settings, leave)
        except BaseException as error:  # noqa: BLE001  # raised again below, in the main thread
            failures.append(error)

    def is_over() -> bool:
        return (
            not capturing.is_alive()
            or bool(turn.other_holder)
            or is_overtaken(spool, turn.books_position)
        )

    # The loader's part is started by this thread, which lives as long as the process.
    capturing = threading.Thread(target=capture, name="capture")
    loading = ChildProcess("load")
    capturing.start()
    try:
        loading.start()
        supervise([loading], stop, until=is_over)
    finally:
        leave.set()
        capturing.join()
        loading.stop(LOAD_STOP_TIMEOUT_SECONDS)
    if failures:
        raise failures[0]


def load(
    settings: Settings, engine: Engine, default_rule: RealmRule, stop: threading.Event
) -> None:
    """Load the spool of this source until ``stop`` is set, then what is left of it."""
    with Spool.open(spool_path(settings.data_dir, settings.source), settings.source) as spool:
        loader = Loader(engine, spool, default_rule, settings.lease_seconds)
        run_loader(loader, stop, retention=timedelta(seconds=settings.spool_retention_seconds))
