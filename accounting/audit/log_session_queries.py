"""Sessions by what coturn's log tells of them: realm, username and allocation id."""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import Connection

from accounting.db.queries import Queries
from accounting.domain.counters import COUNTERS

_QUERIES: Final = Queries("accounting.audit")


class LoggedKey(NamedTuple):
    """What tells a session in a log, names as the views spell them."""

    realm: str
    username: str
    allocation_id: int


class BookedSession(NamedTuple):
    """A billed session, its counters in the order of COUNTERS."""

    session_id: UUID
    counters: tuple[int, ...]
    estimated: bool
    disputed: bool


def fetch(
    connection: Connection, keys: Sequence[LoggedKey]
) -> Iterator[tuple[LoggedKey, BookedSession]]:
    """The billed sessions of those keys, oldest first."""
    rows = connection.execute(
        _QUERIES.text("fetch_logged"),
        {
            "realms": [key.realm for key in keys],
            "usernames": [key.username for key in keys],
            "allocations": [key.allocation_id for key in keys],
        },
    )
    for row in rows.mappings():
        yield (
            LoggedKey(row["realm"], row["username"], row["allocation_id"]),
            BookedSession(
                row["session_id"],
                tuple(row[name] for name in COUNTERS),
                row["estimated"],
                row["disputed"],
            ),
        )
