"""Read the feed through the schema ``reporting``, with the statements of docs/billing-worker.md."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final, NamedTuple, Self
from uuid import UUID

import psycopg
from psycopg.errors import (
    CheckViolation,
    InvalidSchemaName,
    ProgramLimitExceeded,
    UndefinedColumn,
    UndefinedFunction,
    UndefinedTable,
)

from accounting.db.connection import connect, lost_connections
from accounting.db.connection_settings import apply_settings
from accounting.errors import (
    AccountingError,
    ConfigurationError,
    LoginRefused,
    NotAllowed,
    UsageError,
)

_READ: Final = """
SELECT seq, event_id, type, realm, payload, created_at
FROM reporting.feed WHERE seq > %s ORDER BY seq LIMIT %s
"""
_LAST: Final = "SELECT seq FROM reporting.feed ORDER BY seq DESC LIMIT 1"
_CURSOR: Final = "SELECT reporting.feed_cursor(%s)"
_SOURCE: Final = "SELECT reporting.feed_source()"
_HISTORY: Final = "SELECT reporting.feed_history(%s)"
_ADVANCE: Final = """
SELECT CASE WHEN reporting.feed_history(%s) = %s THEN reporting.feed_advance(%s, %s, %s, %s) END
"""

_REFUSAL: Final = re.compile(
    r"authentication failed|no password supplied|pg_hba\.conf"
    r"|role \S+ (does not exist|is not permitted to log in)"
    r"|database \S+ (does not exist|is not currently accepting connections)"
    r"|permission denied for database|no such (user|database)"
    r"|certificate verify failed|server does not support SSL"
)


class FeedEvent(NamedTuple):
    """A row of ``reporting.feed``."""

    seq: int
    event_id: UUID
    type: str
    realm: str
    payload: Mapping[str, Any]
    created_at: datetime


class FeedBatch(NamedTuple):
    """Events after a number. ``before``, ``after``: the history up to there, and to the last."""

    before: UUID | None
    events: list[FeedEvent]
    after: UUID | None


class CursorMove(NamedTuple):
    """A move of a cursor. ``history``: what the feed was up to ``read_seq``, which is not less."""

    from_seq: int
    to_seq: int
    read_seq: int
    history: UUID


@contextmanager
def _database_errors() -> Iterator[None]:
    """As :func:`lost_connections`; a missing view or function means another version."""
    try:
        with lost_connections():
            yield
    except NotAllowed as error:
        raise NotAllowed(
            f"Postgres: {str(error.__cause__).splitlines()[0]}: expected a login with the role "
            "turn_accounting_reader, and a consumer that it used first"
        ) from error
    except (UndefinedFunction, UndefinedTable, UndefinedColumn, InvalidSchemaName) as error:
        raise AccountingError(
            f"Postgres: {str(error).splitlines()[0]}: expected a database of this service; "
            "bring it to this version with `turn-accounting db upgrade`"
        ) from error
    except CheckViolation as error:
        raise UsageError("a consumer has a name of 1 to 200 characters") from error
    except ProgramLimitExceeded as error:
        raise UsageError(f"Postgres: {error.diag.message_primary}") from error


def _is_refused(error: psycopg.OperationalError) -> bool:
    """Whether every server that was tried refused the login, by its message in English.

    libpq gives no code for it. In another language the login is tried again, and logged.
    """
    attempts = str(error).split("connection to server")[1:] or [str(error)]
    return all(_REFUSAL.search(attempt) for attempt in attempts)


def _connect(url: str) -> psycopg.Connection:
    try:
        return connect(url, application_name="turn-accounting feed", autocommit=True)
    except psycopg.OperationalError as error:
        if _is_refused(error):
            raise LoginRefused(f"Postgres: {str(error).strip().splitlines()[0]}") from error
        raise


class FeedReader:
    """A connection that reads the feed and listens to it. Raises ConnectionLost.

    Each operation is a transaction of its own: none stays open while the caller handles an event.
    """

    def __init__(self, url: str) -> None:
        """Connect to a libpq URL. Raises LoginRefused, ConnectionLost, ConfigurationError."""
        try:
            psycopg.conninfo.conninfo_to_dict(url)
        except psycopg.ProgrammingError:
            raise ConfigurationError(
                "not a libpq URL: expected postgresql://user@host/database"
            ) from None
        with lost_connections():
            self._connection = _connect(url)
            self._connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
            # Before the first read, so that every later event notifies.
            self._connection.execute("LISTEN accounting_feed")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def read(self, after: int, limit: int) -> FeedBatch:
        """At most ``limit`` events after a number, in order."""
        with self._transaction():
            before = self._history(after)
            rows = self._connection.execute(_READ, (after, limit)).fetchall()
            events = [FeedEvent._make(row) for row in rows]
            return FeedBatch(before, events, self._history(events[-1].seq) if events else before)

    def last_seq(self) -> int:
        """The number of the last event; 0 without any."""
        with self._transaction():
            row = self._connection.execute(_LAST).fetchone()
        return int(row[0]) if row else 0

    def source(self) -> str:
        """The URI of the installation, which is the source of its events."""
        with self._transaction():
            row = self._connection.execute(_SOURCE).fetchone()
        assert row is not None
        return str(row[0])

    def history(self, seq: int) -> UUID | None:
        """What identifies the events up to a number; None beyond the feed's end."""
        with self._transaction():
            return self._history(seq)

    def _history(self, seq: int) -> UUID | None:
        row = self._connection.execute(_HISTORY, (seq,)).fetchone()
        assert row is not None
        history: UUID | None = row[0]
        return history

    def cursor(self, consumer: str) -> int:
        """The number of the last event that a consumer handled; creates a new consumer at 0."""
        with self._transaction():
            row = self._connection.execute(_CURSOR, (consumer,)).fetchone()
        assert row is not None
        return int(row[0])

    def advance(self, consumer: str, move: CursorMove, worker_id: str) -> bool | None:
        """Advance a cursor; False when it was not at ``from_seq``, None when the history differs.

        True as well when this worker made the same move before: its answer may have been lost.
        """
        with self._transaction():
            row = self._connection.execute(
                _ADVANCE,
                (move.read_seq, move.history, consumer, move.from_seq, move.to_seq, worker_id),
            ).fetchone()
        assert row is not None
        advanced: bool | None = row[0]
        return advanced

    def wait(self, seconds: float) -> bool:
        """Wait for a notification; False after ``seconds``."""
        with _database_errors():
            return any(self._connection.notifies(timeout=seconds, stop_after=1))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with _database_errors(), self._connection.transaction():
            apply_settings(self._connection)
            yield
