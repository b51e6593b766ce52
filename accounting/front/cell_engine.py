"""Engines of the databases of cells, whose sessions end when the database stops to answer."""

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import psycopg
from psycopg.errors import ConnectionTimeout
from psycopg.pq import TransactionStatus
from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext

from accounting.db.engine import connect, open_engine
from accounting.errors import ConnectionLost
from accounting.front.cell_url import with_password
from accounting.reporting import cell_watch

ANSWER_SECONDS: Final = 2
_APPLICATION: Final = "turn-accounting front"
CONNECT_SECONDS: Final = 5


@contextmanager
def open_cell_engine(url: str, password: str | None) -> Iterator[Engine]:
    """An engine for the database of a cell.

    It connects within seconds. While a statement runs for longer it is looked whether the database
    still lets in; if not, the statement is a lost connection.
    """
    url = with_password(url, password)
    engine = open_engine(url, application_name=_APPLICATION, connect_seconds=CONNECT_SECONDS)
    watch = _SessionWatch(engine, url)
    try:
        yield engine
    finally:
        watch.end()
        engine.dispose()


class _SessionWatch:
    """Watches the sessions of an engine, from a thread of its own."""

    def __init__(self, engine: Engine, url: str) -> None:
        self._url = url
        self._sessions = weakref.WeakSet[psycopg.Connection]()
        self._hangs = False
        self._ended = threading.Event()
        event.listen(engine, "connect", lambda session, _: self._sessions.add(session))
        event.listen(engine, "handle_error", self._explain)
        threading.Thread(target=self._run, name="watch-cell", daemon=True).start()

    def end(self) -> None:
        """The engine is closed."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(cell_watch.WATCH_SECONDS):
            waiting = [session for session in tuple(self._sessions) if _is_waiting(session)]
            if waiting and not self._answers():
                self._hangs = True
                for session in waiting:
                    cell_watch.hang_up(session)

    def _answers(self) -> bool:
        """Whether the database lets in, or refuses: one that is down ends its sessions itself."""
        with suppress(psycopg.Error):
            try:
                connect(
                    self._url, application_name=_APPLICATION, connect_seconds=ANSWER_SECONDS
                ).close()
            except ConnectionTimeout:
                return False
        return True

    def _explain(self, context: ExceptionContext) -> None:
        error = context.original_exception
        if self._hangs and isinstance(error, psycopg.OperationalError) and error.sqlstate is None:
            raise ConnectionLost(
                f"does not answer: nothing came within {ANSWER_SECONDS} s"
            ) from error


def _is_waiting(session: psycopg.Connection) -> bool:
    return session.pgconn.transaction_status == TransactionStatus.ACTIVE
