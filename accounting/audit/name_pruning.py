"""Prune the names of users that nothing refers to any more, and key sightings of unknown users."""

from datetime import datetime
from typing import Final

from sqlalchemy import Connection, Engine, text

from accounting.audit.pruned_counts import add_counts
from accounting.db.engine import lost_connections
from accounting.db.queries import Queries
from accounting.identities import writer_locks

_QUERIES: Final = Queries("accounting.audit")

SIGHTINGS_PER_TRANSACTION: Final = 5_000


def prune_sightings(engine: Engine, source_id: int, before: datetime) -> int:
    """Prune sightings in order of time. New ones are left: their users may get sessions soon."""
    pruned = 0
    while True:
        with lost_connections(), engine.begin() as connection:
            span = connection.execute(
                _QUERIES.text("next_sightings"),
                {"source_id": source_id, "before": before, "most": SIGHTINGS_PER_TRANSACTION},
            ).one()
            connection.execute(_QUERIES.text("drop_pruned_tables"))
            count = connection.execute(
                _QUERIES.text("prune_sightings"),
                {
                    "source_id": source_id,
                    "since": span.since,
                    "before": span.before,
                    "most": SIGHTINGS_PER_TRANSACTION,
                },
            ).rowcount
            if not count and span.since is None:
                return pruned
            add_counts(
                connection,
                source_id,
                sightings=count,
                usernames=delete_unused_names(connection) if count else 0,
                sightings_until=span.before,
            )
        pruned += count


def delete_unused_names(connection: Connection) -> int:
    """Delete those of the pruned names that nothing refers to; returns how many usernames.

    A loader has names in its cache that it then does not insert: none may be at work, and it
    forgets them when it finds that usernames were pruned.
    """
    writer_locks.lock_out_loaders(connection)
    connection.execute(text("ANALYZE pruned_names"))
    connection.execute(_QUERIES.text("create_names_in_use"))
    # Values, not a join: Postgres then knows that it is only the end of the reports.
    for source in connection.execute(_QUERIES.text("read_unsettled_sources")).all():
        connection.execute(_QUERIES.text("add_unsettled_names"), source._asdict())
    usernames: int = connection.execute(_QUERIES.text("delete_unused_usernames")).scalar_one()
    connection.execute(_QUERIES.text("delete_unused_users"))
    return usernames
