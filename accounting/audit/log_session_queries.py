"""Reads billed sessions by what coturn's log names them by: realm, username and allocation id."""

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, CursorResult

from accounting.db.queries import Queries
from accounting.domain.counters import COUNTERS

_QUERIES: Final = Queries("accounting.audit")


class LoggedKey(NamedTuple):
    """Identifies sessions in a log; names are escaped as in the views."""

    realm: str
    username: str
    allocation_id: int


class BilledSession(NamedTuple):
    """A billed session; its counters are in the order of COUNTERS."""

    session_id: UUID
    counters: tuple[int, ...]
    estimated: bool
    disputed: bool


def fetch_billed_sessions(
    connection: Connection, keys: Sequence[LoggedKey]
) -> Iterator[tuple[LoggedKey, BilledSession]]:
    """The billed sessions of those keys, oldest first."""
    rows = connection.execute(
        _QUERIES.text("fetch_logged_sessions"),
        {
            "realms": [key.realm for key in keys],
            "usernames": [key.username for key in keys],
            "allocations": [key.allocation_id for key in keys],
        },
    )
    return _sessions(rows)


def fetch_sessions_by_allocation(
    connection: Connection, allocation_ids: Sequence[int]
) -> Iterator[tuple[LoggedKey, BilledSession]]:
    """The billed sessions of those allocation ids, whatever their names. Scans the sessions."""
    rows = connection.execute(
        _QUERIES.text("fetch_sessions_by_allocation"), {"allocations": list(allocation_ids)}
    )
    return _sessions(rows)


def _sessions(rows: CursorResult[Any]) -> Iterator[tuple[LoggedKey, BilledSession]]:
    for row in rows.mappings():
        yield (
            LoggedKey(row["realm"], row["username"], row["allocation_id"]),
            BilledSession(
                row["session_id"],
                tuple(row[name] for name in COUNTERS),
                row["estimated"],
                row["disputed"],
            ),
        )
