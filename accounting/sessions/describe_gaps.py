"""The job that writes, beside each closed capture gap, what happened to the sessions in it."""

from typing import Final

from accounting.db.engine import Engine, lost_connections
from accounting.db.locks import require_lock
from accounting.db.queries import Queries

_QUERIES: Final = Queries("accounting.sessions")


def describe_gaps(engine: Engine) -> int:
    """Update the descriptions of recently closed gaps; returns how many changed.

    Raises LockHeld while another scheduler does, and ConnectionLost.
    """
    with lost_connections(), engine.begin() as connection:
        require_lock(connection, "gaps")
        return connection.execute(_QUERIES.text("describe_gaps")).rowcount
