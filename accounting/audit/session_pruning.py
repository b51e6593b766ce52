"""Prune sessions that are over and were never confirmed, with their reports, hours and names.

Their usage by realm and hour is added to ``pruned_usage``. As the reports go in the same
transaction, recomputing the books gives the same as before.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import Connection, Engine, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import Uuid

from accounting.audit import finalized_queries, name_pruning
from accounting.audit.pruned_counts import add_counts
from accounting.db.engine import lost_connections
from accounting.db.locks import lock, require_lock
from accounting.db.queries import Queries
from accounting.domain.session_ids import first_position
from accounting.sources import watermark_queries

_QUERIES: Final = Queries("accounting.audit")

SESSIONS_PER_TRANSACTION: Final = 5_000
NO_SESSION: Final = UUID(int=0)


@dataclass(frozen=True, slots=True)
class _Batch:
    """What one transaction did. ``last``: the last session it looked at; None: there is none."""

    last: UUID | None
    deleted: int


def prune_sessions(engine: Engine, source_id: int, *, seen_before: datetime, kept: int) -> int:
    """Prune the sessions of a source last seen before a time, and all but the newest ``kept``.

    Returns how many. Raises LockHeld while another scheduler runs the job, and ConnectionLost.
    """
    pruned = 0
    after = _source_start(source_id)
    newest = _newest_over_limit(engine, source_id, kept)
    while True:
        batch = _prune_batch(engine, source_id, after, seen_before, newest)
        pruned += batch.deleted
        if batch.last is None:
            return pruned
        after = batch.last


def _newest_over_limit(engine: Engine, source_id: int, kept: int) -> UUID:
    """The newest session of a source that is over the limit; NO_SESSION: none is."""
    with lost_connections(), engine.connect() as connection:
        found: UUID | None = connection.execute(
            _QUERIES.text("newest_unconfirmed"),
            {
                "after": _source_start(source_id),
                "source_end": _source_end(source_id),
                "kept": kept,
            },
        ).scalar()
    return found or NO_SESSION


def _source_start(source_id: int) -> UUID:
    """A session id before all of a source, whose number its ids begin with."""
    return UUID(int=source_id << 112)


def _source_end(source_id: int) -> UUID:
    """A session id after all of a source."""
    return _source_start(source_id + 1)


def _prune_batch(
    engine: Engine, source_id: int, after: UUID, seen_before: datetime, newest: UUID
) -> _Batch:
    """Prune the next sessions of a source.

    Settling waits: it must not add to the sessions meanwhile. A rebuild would restore some.
    """
    with lost_connections(), engine.begin() as connection:
        require_lock(connection, "retain")
        lock(connection, f"settle.{source_id}")
        run = _QUERIES.text
        connection.execute(run("drop_pruned_tables"))
        connection.execute(
            run("create_pruned_sessions"),
            {
                "after": after,
                "source_end": _source_end(source_id),
                "seen_before": seen_before,
                "newest": newest,
                "limit": SESSIONS_PER_TRANSACTION,
            },
        )
        last: UUID | None = connection.execute(
            text("SELECT session_id FROM pruned_sessions ORDER BY session_id DESC LIMIT 1")
        ).scalar()
        if last is None:
            return _Batch(None, 0)
        connection.execute(text("ANALYZE pruned_sessions"))
        connection.execute(run("keep_related_sessions"))
        if connection.execute(run("create_finalized_from_pruned")).rowcount:
            finalized_queries.subtract_pruned(connection)
        reports = _delete_reports(connection, source_id, last)
        connection.execute(run("add_pruned_usage"))
        sessions: int = connection.execute(run("delete_pruned_sessions")).scalar_one()
        if sessions:
            connection.execute(run("create_names_of_pruned_sessions"))
            sightings: int = connection.execute(
                run("prune_sightings_of_names"), {"source_id": source_id}
            ).scalar_one()
            usernames = name_pruning.delete_unused_names(connection)
            add_counts(
                connection,
                source_id,
                sessions=sessions,
                reports=reports,
                usernames=usernames,
                sightings=sightings,
            )
        return _Batch(last, sessions)


def _delete_reports(connection: Connection, source_id: int, last: UUID) -> int:
    """Delete the reports of the pruned sessions; returns how many.

    They lie from the first session's position to that of the first session which began after the
    last report.
    """
    rows = connection.execute(_QUERIES.text("read_pruned_with_reports")).all()
    if not rows:
        return 0
    session_ids = [row.session_id for row in rows]
    following: UUID | None = connection.execute(
        _QUERIES.text("first_session_after"),
        {
            "after": last,
            "source_end": _source_end(source_id),
            "started_after": rows[0].last_seen_at,
        },
    ).scalar()
    first = first_position(session_ids[0].bytes)
    if following is None:
        watermark = watermark_queries.read_watermark(connection, source_id)
        end = watermark.epoch, watermark.position
    else:
        end = first_position(following.bytes)
    query = text(
        "SELECT accounting.delete_unattributed_reports(CAST(:source_id AS smallint), :sessions,"
        " :from_epoch, :from_position, :to_epoch, :to_position)"
    ).bindparams(bindparam("sessions", session_ids, ARRAY(Uuid)))
    deleted: int = connection.execute(
        query,
        {
            "source_id": source_id,
            "from_epoch": first[0],
            "from_position": first[1],
            "to_epoch": end[0],
            "to_position": end[1],
        },
    ).scalar_one()
    return deleted
