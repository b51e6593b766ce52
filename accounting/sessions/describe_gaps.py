"""The job that writes, beside each closed capture gap, what happened to the sessions in it."""

from typing import Final

from accounting.db.engine import Engine, lost_connections
from accounting.db.locks import try_lock
from accounting.db.queries import Queries

_QUERIES: Final = Queries("accounting.sessions")


def describe_gaps(engine: Engine) -> int:
    """Update the descriptions of recently closed gaps; returns how many changed."""
    with lost_connections(), engine.begin() as connection:
        if not try_lock(connection, "gaps"):
            return 0
        return connection.execute(_QUERIES.text("describe_gaps")).rowcount
