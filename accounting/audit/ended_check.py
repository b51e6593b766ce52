"""Checks ``session.ended`` of the feed: it says of each session how it ended, as recomputed."""

from collections.abc import Collection, Iterator
from datetime import date
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection

from accounting.audit.differences import Difference, DifferenceFactory
from accounting.db.binary_copy import binary_cursor
from accounting.db.engine import psycopg_connection
from accounting.db.queries import Queries
from accounting.feed import session_ended
from accounting.sessions.session_rows import session_from_row

WHAT: Final = "session.ended"
"""The name of these differences."""
_QUERIES: Final = Queries("accounting.audit")


def check_ends(
    connection: Connection,
    differences: DifferenceFactory,
    realm_ids: Collection[int],
    period: date | None = None,
) -> Iterator[Difference]:
    """Find the ends of sessions that the feed does not have. ``period``: that they started in.

    Of all realms at once: the feed is read once.
    """
    for row in _unannounced(connection, realm_ids):
        _, session = session_from_row(row)
        difference = differences.difference(
            session.realm_id,
            session.started_at,
            what=WHAT,
            kind="missing",
            user_key=UUID(bytes=session.user_key),
            session_id=UUID(bytes=session.session_id),
        )
        if period in (None, difference.period):
            yield difference


def announce_ends(connection: Connection, realm_id: int) -> None:
    """Enqueue the events that are missing, in place of wrong ones that have no number yet."""
    rows = _unannounced(connection, [realm_id])
    events = [session_ended.pack_event(*session_from_row(row)) for row in rows]
    connection.execute(
        _QUERIES.text("drop_wrong_ends"),
        {"session_ids": [UUID(bytes=session_id) for _, session_id, _ in events]},
    )
    with binary_cursor(psycopg_connection(connection)) as cursor:
        session_ended.enqueue(cursor, events)


def _unannounced(connection: Connection, realm_ids: Collection[int]) -> list[Any]:
    with binary_cursor(psycopg_connection(connection)) as cursor:
        return cursor.execute(
            _QUERIES.driver("unannounced_ends"), {"realms": list(realm_ids)}
        ).fetchall()
