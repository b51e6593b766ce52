"""Prune what unauthenticated clients can make grow; part of the job ``retain``.

A client that never authenticates has interims, and so reports, a session, and a name. A session
that is over and was never confirmed can't be billed any more: after the retention, or when there
are too many, only its usage by realm and hour stays (docs/reference/growth.md).

The transactions are small, each complete in itself. Nothing that was billed is deleted.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Engine, text

from accounting.audit.name_pruning import prune_sightings
from accounting.audit.session_pruning import prune_sessions
from accounting.db.clock import database_now
from accounting.db.engine import lost_connections
from accounting.db.locks import lock
from accounting.db.queries import Queries
from accounting.sources import source_queries

_QUERIES: Final = Queries("accounting.audit")

MESSAGES_PER_TRANSACTION: Final = 5_000
SIGHTING_DAYS: Final = 1
"""How long key sightings of users without a session are kept."""
RELAY_THREADS_PER_SOURCE: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneLimits:
    """The settings: how long details are kept, and how many sessions that were never confirmed."""

    unattributed_days: int = 7
    unattributed_sessions: int = 100_000
    rejected_days: int = 30


def prune(engine: Engine, limits: PruneLimits) -> int:
    """Delete what is over the limits; returns how many sessions, rejected messages and sightings.

    Raises LockHeld while another scheduler runs the job, and ConnectionLost.
    """
    with lost_connections(), engine.connect() as connection:
        now = database_now(connection)
        source_ids = [source.source_id for source in source_queries.all_sources(connection)]
    pruned = _prune_rejected(engine, now - timedelta(days=limits.rejected_days))
    seen_before = now - timedelta(days=limits.unattributed_days)
    for source_id in source_ids:
        pruned += prune_sessions(
            engine, source_id, seen_before=seen_before, kept=limits.unattributed_sessions
        )
        pruned += prune_sightings(engine, source_id, now - timedelta(days=SIGHTING_DAYS))
        prune_relay_threads(engine, source_id)
    return pruned


def _prune_rejected(engine: Engine, received_before: datetime) -> int:
    pruned = 0
    while True:
        with lost_connections(), engine.begin() as connection:
            count: int = connection.execute(
                text("SELECT accounting.prune_rejected(:before, :most)"),
                {"before": received_before, "most": MESSAGES_PER_TRANSACTION},
            ).scalar_one()
        pruned += count
        if count < MESSAGES_PER_TRANSACTION:
            return pruned


def prune_relay_threads(
    engine: Engine, source_id: int, kept: int = RELAY_THREADS_PER_SOURCE
) -> None:
    """Keep the threads with the latest reports: any publisher can name servers and threads."""
    with lost_connections(), engine.begin() as connection:
        lock(connection, f"settle.{source_id}")
        connection.execute(
            _QUERIES.text("delete_oldest_relay_threads"),
            {"source_id": source_id, "kept": kept},
        )
