"""Gaps: what became of the sessions that lived through each, written beside it once it is known."""

from typing import Final

from accounting.db.engine import Engine, lost_connections
from accounting.db.locks import try_lock
from accounting.db.queries import Queries

_QUERIES: Final = Queries("accounting.sessions")


def describe_gaps(engine: Engine) -> int:
    """Describe the closed gaps of the last hours anew; returns how many changed."""
    with lost_connections(), engine.begin() as connection:
        if not try_lock(connection, "gaps"):
            return 0
        return connection.execute(_QUERIES.text("describe_gaps")).rowcount
