"""Rows of ``pruned_counts``: how much was pruned of each source.

`verify` reads how many reports are gone, loaders whether usernames are.
"""

from datetime import datetime
from typing import Final

from sqlalchemy import Connection

from accounting.db.queries import Queries

_QUERIES: Final = Queries("accounting.audit")


def add_counts(
    connection: Connection,
    source_id: int,
    *,
    sessions: int = 0,
    reports: int = 0,
    usernames: int = 0,
    sightings: int = 0,
    sightings_until: datetime | None = None,
) -> None:
    """Add to the counts of what was pruned."""
    connection.execute(
        _QUERIES.text("add_pruned_counts"),
        {
            "source_id": source_id,
            "sessions": sessions,
            "reports": reports,
            "usernames": usernames,
            "sightings": sightings,
            "sightings_until": sightings_until,
        },
    )
