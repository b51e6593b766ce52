"""Gaps: what became of the sessions that lived through each, written beside it once it is known."""

from accounting.db.engine import Engine, lost_connections, statement
from accounting.db.locks import try_lock


def describe_gaps(engine: Engine) -> int:
    """Describe the closed gaps of the last hours anew; returns how many changed."""
    with lost_connections(), engine.begin() as connection:
        if not try_lock(connection, "gaps"):
            return 0
        return connection.execute(statement("describe_gaps")).rowcount
