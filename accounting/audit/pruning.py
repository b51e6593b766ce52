"""Prune what unauthenticated clients can make grow; part of the job ``retain``.

A client that never authenticates has interims, and so reports, a session, and a name. A session
that is over and was never confirmed can't be billed any more: after the retention, or when there
are too many, only its usage by realm and hour stays (docs/operations.md, "What grows"). Recomputing
the books from the reports gives the same without it, as its reports go in the same transaction.

The transactions are small, each complete in itself. Nothing that was billed is deleted.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import Connection, Engine, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import Uuid

from accounting.audit import finalized_queries
from accounting.db.clock import database_now
from accounting.db.engine import lost_connections
from accounting.db.locks import lock, require_lock
from accounting.db.queries import Queries
from accounting.domain.session_fold import first_position
from accounting.identities import writer_locks
from accounting.sources import source_queries, watermark_queries

_QUERIES: Final = Queries("accounting.audit")

BATCH: Final = 5_000
"""The most sessions, rejected messages or sightings that one transaction deletes."""
NO_SESSION: Final = UUID(int=0)
SIGHTING_DAYS: Final = 1
"""How long key sightings of users without a session are kept."""
RELAY_THREADS_PER_SOURCE: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneLimits:
    """The settings: how long details are kept, and how many sessions that were never confirmed."""

    unattributed_days: int = 7
    unattributed_sessions: int = 100_000
    rejected_days: int = 30


@dataclass(frozen=True, slots=True)
class _Batch:
    """What one transaction did. ``last``: the last session it looked at; None: there is none."""

    last: UUID | None
    deleted: int


def prune(engine: Engine, limits: PruneLimits) -> int:
    """Delete what is over the limits; returns how many sessions and rejected messages.

    Raises LockHeld while another scheduler runs the job, and ConnectionLost.
    """
    with lost_connections(), engine.connect() as connection:
        now = database_now(connection)
        source_ids = [source.source_id for source in source_queries.all_sources(connection)]
    pruned = _prune_rejected(engine, now - timedelta(days=limits.rejected_days))
    seen_before = now - timedelta(days=limits.unattributed_days)
    for source_id in source_ids:
        after = UUID(int=source_id << 112)
        newest = _newest_over_limit(engine, source_id, limits.unattributed_sessions)
        while True:
            batch = _prune_sessions(engine, source_id, after, seen_before, newest)
            pruned += batch.deleted
            if batch.last is None:
                break
            after = batch.last
        pruned += _prune_sightings(engine, source_id, now - timedelta(days=SIGHTING_DAYS))
        prune_relay_threads(engine, source_id)
    return pruned


def _prune_rejected(engine: Engine, received_before: datetime) -> int:
    pruned = 0
    while True:
        with lost_connections(), engine.begin() as connection:
            count: int = connection.execute(
                text("SELECT accounting.prune_rejected(:before, :most)"),
                {"before": received_before, "most": BATCH},
            ).scalar_one()
        pruned += count
        if count < BATCH:
            return pruned


def _newest_over_limit(engine: Engine, source_id: int, kept: int) -> UUID:
    """The newest session of a source that is over the limit; NO_SESSION: none is."""
    with lost_connections(), engine.connect() as connection:
        found: UUID | None = connection.execute(
            _QUERIES.text("newest_unconfirmed"),
            {
                "after": UUID(int=source_id << 112),
                "source_end": _source_end(source_id),
                "kept": kept,
            },
        ).scalar()
    return found or NO_SESSION


def _source_end(source_id: int) -> UUID:
    """A session id after all of a source."""
    return UUID(int=(source_id + 1) << 112)


def _prune_sessions(
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
                "limit": BATCH,
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
            usernames = _delete_unused_names(connection)
            _count(
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


def _prune_sightings(engine: Engine, source_id: int, before: datetime) -> int:
    """Prune sightings in order of time. New ones are left: their users may get sessions soon."""
    pruned = 0
    while True:
        with lost_connections(), engine.begin() as connection:
            span = connection.execute(
                _QUERIES.text("next_sightings"),
                {"source_id": source_id, "before": before, "most": BATCH},
            ).one()
            connection.execute(_QUERIES.text("drop_pruned_tables"))
            count = connection.execute(
                _QUERIES.text("prune_sightings"),
                {
                    "source_id": source_id,
                    "since": span.since,
                    "before": span.before,
                    "most": BATCH,
                },
            ).rowcount
            if not count and span.since is None:
                return pruned
            _count(
                connection,
                source_id,
                sightings=count,
                usernames=_delete_unused_names(connection) if count else 0,
                sightings_until=span.before,
            )
        pruned += count


def _delete_unused_names(connection: Connection) -> int:
    """Delete those of the pruned names that nothing refers to; returns how many usernames.

    A loader has names in its cache that it then does not insert: none may be at work, and it
    forgets them when it finds that usernames were pruned.
    """
    writer_locks.lock_out_loaders(connection)
    connection.execute(text("ANALYZE pruned_names"))
    connection.execute(_QUERIES.text("create_names_in_use"))
    usernames: int = connection.execute(_QUERIES.text("delete_unused_usernames")).scalar_one()
    connection.execute(_QUERIES.text("delete_unused_users"))
    return usernames


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


def _count(
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
