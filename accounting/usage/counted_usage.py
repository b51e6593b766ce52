"""``usage.counted``: the hours of users as events of the feed, for engines that meter usage.

Each hour of a user is one event when it is folded, with its sum. Each later change is an event with
the signed difference, in the transaction that changes the hour, until its period is closed. Closing
folds the hours of a period first. So the events of a closed period add up to its statement, and
what comes later is an adjustment.
"""

from collections.abc import Mapping
from typing import Final

from sqlalchemy import Connection

from accounting.db.engine import prefer_index_scans
from accounting.db.queries import Queries
from accounting.domain.calendar import from_micros

_QUERIES: Final = Queries("accounting.usage")


def write_hours(connection: Connection, spans: Mapping[int, tuple[int, int]]) -> None:
    """Write the hours of realms that begin within ``spans``, in microseconds, to the feed.

    Their usage is in ``user_usage_hourly``. Not those of closed periods.
    """
    if not spans:
        return
    with prefer_index_scans(connection):
        connection.execute(
            _QUERIES.text("write_counted_hours"),
            {
                "realms": list(spans),
                "sinces": [from_micros(begin) for begin, _ in spans.values()],
                "untils": [from_micros(end) for _, end in spans.values()],
            },
        )


def write_corrections(connection: Connection, untils: Mapping[int, int]) -> None:
    """Write the staged deltas of hours that begin before ``untils``, in microseconds, to the feed.

    The deltas are in ``staged_deltas``, and were added. Not those of closed periods.
    """
    if not untils:
        return
    with prefer_index_scans(connection):
        connection.execute(
            _QUERIES.text("write_corrections"),
            {
                "realms": list(untils),
                "untils": [from_micros(until) for until in untils.values()],
            },
        )
