"""Writes what a batch changed: sessions, their hours, and the queues of roll-up and feed."""

from collections.abc import Mapping

from sqlalchemy import Connection

from accounting.domain.calendar import BucketLength
from accounting.domain.realm_rules import RealmRules
from accounting.identities import bucket_queries
from accounting.sessions import session_hour_queries, session_queries, usage_deltas
from accounting.sessions.session_changes import SessionChanges


def write_changes(
    connection: Connection,
    changes: SessionChanges,
    rules: Mapping[int, RealmRules],
    received: tuple[int | None, int | None],
) -> None:
    """Write them, in the transaction that moves the source past their evidence.

    ``received``: from when until when the evidence was received, where that is known.
    """
    if not changes:
        return
    usage = changes.usage
    session_hour_queries.merge_pending(connection, changes.merged)
    session_hour_queries.update_flags(connection, usage.flag_changes)
    session_queries.write_sessions(connection, changes)
    session_hour_queries.add_hours(connection, usage.hour_rows)
    usage_deltas.queue_usage_deltas(connection, usage.deltas())
    usage_deltas.queue_server_deltas(connection, usage.server_deltas, received)
    usage_deltas.queue_server_deltas(connection, usage.earlier_deltas)
    usage_deltas.queue_peak_deltas(connection, usage.peak_slices)
    bucket_queries.insert_buckets(
        connection,
        (
            (
                realm_id,
                BucketLength.HOUR,
                rules[realm_id].calendar.bucket(BucketLength.HOUR, starts_at),
            )
            for realm_id, starts_at in usage.realm_hours
        ),
    )
