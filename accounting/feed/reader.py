"""Read the feed through the schema ``reporting``, with the statements of docs/billing-worker.md."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final, NamedTuple, Self
from uuid import UUID

import psycopg
from psycopg.errors import UndefinedFunction, UndefinedTable

from accounting.db.connection_settings import apply_settings
from accounting.db.engine import lost_connections
from accounting.errors import AccountingError, ConfigurationError

_READ: Final = """
SELECT seq, event_id, type, realm, payload, created_at
FROM reporting.feed WHERE seq > %s ORDER BY seq LIMIT %s
"""
_CURSOR: Final = "SELECT reporting.feed_cursor(%s)"
_ADVANCE: Final = "SELECT reporting.feed_advance(%s, %s, %s, %s)"


class FeedEvent(NamedTuple):
    """A row of ``reporting.feed``."""

    seq: int
    event_id: UUID
    type: str
    realm: str
    payload: Mapping[str, Any]
    created_at: datetime


@contextmanager
def _database_errors() -> Iterator[None]:
    """As :func:`lost_connections`; a missing view or function means another version."""
    try:
        with lost_connections():
            yield
    except (UndefinedFunction, UndefinedTable) as error:
        raise AccountingError(
            f"Postgres: {str(error).splitlines()[0]}: "
            "bring it to this version with `turn-accounting db upgrade`"
        ) from error


class FeedReader:
    """A connection that reads the feed and listens to it. Raises ConnectionLost.

    Each operation is a transaction of its own: none stays open while the caller handles an event.
    """

    def __init__(self, url: str) -> None:
        """Connect to a libpq URL."""
        try:
            psycopg.conninfo.conninfo_to_dict(url)
        except psycopg.ProgrammingError:
            raise ConfigurationError(
                "not a libpq URL: expected postgresql://user@host/database"
            ) from None
        with lost_connections():
            self._connection = psycopg.connect(
                url,
                autocommit=True,
                prepare_threshold=None,
                application_name="turn-accounting feed",
                client_encoding="utf8",
                connect_timeout=10,
                keepalives_idle=10,
                keepalives_interval=5,
                keepalives_count=3,
                tcp_user_timeout=20_000,
            )
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

    def read(self, after: int, limit: int) -> list[FeedEvent]:
        """At most ``limit`` events after a number, in order."""
        with self._transaction():
            return [FeedEvent._make(row) for row in self._connection.execute(_READ, (after, limit))]

    def cursor(self, consumer: str) -> int:
        """The number of the last event that a consumer handled; creates a new consumer at 0."""
        with self._transaction():
            row = self._connection.execute(_CURSOR, (consumer,)).fetchone()
        assert row is not None
        return int(row[0])

    def advance(self, consumer: str, from_seq: int, to_seq: int, worker_id: str) -> bool:
        """Advance a cursor; False when it was not at ``from_seq``.

        True as well when this worker made the same move before: its answer may have been lost.
        """
        with self._transaction():
            row = self._connection.execute(
                _ADVANCE, (consumer, from_seq, to_seq, worker_id)
            ).fetchone()
        assert row is not None
        return bool(row[0])

    def wait(self, seconds: float) -> bool:
        """Wait for a notification; False after ``seconds``."""
        with _database_errors():
            return any(self._connection.notifies(timeout=seconds, stop_after=1))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with _database_errors(), self._connection.transaction():
            apply_settings(self._connection)
            yield
