"""``source.trouble``: the event of the feed that a source has lost messages, or may lose some."""

import json
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import Connection, select

from accounting.db.schema import sources
from accounting.feed import outbox

CONFLICT: Final = "source_conflict"
"""A collector was refused: a second name for one Redis, or a second Redis under one name."""
CLOCK_OFF: Final = "clock_off"
"""The clock of the collector's machine is off by more than is tolerated."""


def enqueue_trouble(
    connection: Connection, source_id: int, trouble: str, detail: str, *, since: datetime
) -> None:
    """Enqueue the event of a trouble. ``trouble``: the cause of a gap, CONFLICT or CLOCK_OFF.

    Its id is a function of the source's name, the trouble and ``since``; of CLOCK_OFF only of its
    hour, as a clock may be near the tolerance for days.
    """
    source = connection.execute(
        select(sources.c.source).where(sources.c.source_id == source_id)
    ).scalar_one()
    began = since.astimezone(UTC)
    id_time = began
    if trouble == CLOCK_OFF:
        id_time = began.replace(minute=0, second=0, microsecond=0)
    outbox.enqueue_event(
        connection,
        "source.trouble",
        None,
        {
            "source": source,
            "trouble": trouble,
            "detail": detail,
            "since": began.isoformat(timespec="microseconds"),
        },
        json.dumps([source, trouble, id_time.isoformat(timespec="microseconds")]),
    )
