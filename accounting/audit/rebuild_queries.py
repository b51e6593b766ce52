"""Replaces the stored books of one realm by the recomputed ones.

Writes only rows that differ. Statements stay: closed periods are queued for adjustment instead.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, delete, exists, insert, or_, select, tuple_
from sqlalchemy.dialects.postgresql import insert as upsert

from accounting.audit.comparison import columns_differ, derived_columns
from accounting.audit.recomputed_tables import recomputed_table
from accounting.db.queries import Queries
from accounting.db.schema import (
    buckets,
    dimension_peaks_hourly,
    realm_peak_slices,
    realm_usage,
    rebuilds,
    server_usage_hourly,
    session_usage,
    sessions,
    user_usage,
)
from accounting.domain.calendar import Bucket, BucketLength, from_micros, to_micros
from accounting.sessions.session_queries import stage_sessions
from accounting.sources import source_queries, watermark_queries
from accounting.usage.rollup_queries import create_staged_deltas

_QUERIES: Final = Queries("accounting.audit")


def replace_realm(connection: Connection, realm_id: int) -> int:
    """Replace all rows of a realm that differ; returns how many were written or deleted.

    The caller holds the locks of settling and of the roll-up, and has recomputed that realm alone.
    """
    connection.execute(_QUERIES.text("queue_rebuilt_periods"), {"realm_id": realm_id})
    connection.execute(_QUERIES.text("move_single_hours"))
    replaced = 0
    for table in (
        sessions,
        session_usage,
        *user_usage.values(),
        *realm_usage.values(),
        server_usage_hourly,
        dimension_peaks_hourly,
    ):
        recomputed = recomputed_table(table)
        keys = [column.name for column in table.primary_key]
        same_key = [recomputed.c[key] == table.c[key] for key in keys]
        replaced += connection.execute(
            delete(table).where(table.c.realm_id == realm_id, ~exists().where(*same_key))
        ).rowcount
        compared = derived_columns(table)
        if table is sessions:
            compared.append("single_hour")
        equal = exists().where(*same_key, ~or_(*columns_differ(table.c, recomputed.c, compared)))
        rows = select(recomputed).where(~equal.correlate(recomputed))
        if table is sessions:
            # No unique constraint spans the partitions, so that an upsert is impossible.
            staged = stage_sessions(connection, rows)
            same_id = [staged.c[key] == sessions.c[key] for key in keys]
            connection.execute(delete(sessions).where(exists().where(*same_id)))
            replaced += connection.execute(
                insert(sessions).from_select(staged.c.keys(), select(staged))
            ).rowcount
            continue
        query = upsert(table).from_select(rows.selected_columns.keys(), rows)
        values: dict[str, Any] = {
            column.name: query.excluded[column.name]
            for column in table.c
            if column.name not in keys
        }
        replaced += connection.execute(
            query.on_conflict_do_update(index_elements=keys, set_=values)
        ).rowcount
    for name in ("delete_server_load", "insert_server_load", "set_last_hour"):
        connection.execute(_QUERIES.text(name), {"realm_id": realm_id})
    sources = [source.source_id for source in source_queries.all_sources(connection)]
    watermark_queries.open_sessions_changed(connection, sources)
    # The roll-up counts a slice from the sessions when it next needs it.
    connection.execute(delete(realm_peak_slices).where(realm_peak_slices.c.realm_id == realm_id))
    connection.execute(_QUERIES.text("set_peak_versions"), {"realm_id": realm_id})
    return replaced


def last_hour_end(connection: Connection, realm_id: int) -> int:
    """The end of a realm's last hour that is recomputed, or in the feed; 0 without usage."""
    ends_at = connection.execute(
        _QUERIES.text("last_recomputed_hour"), {"realm_id": realm_id}
    ).scalar_one()
    return 0 if ends_at is None else to_micros(ends_at)


def stage_feed_differences(
    connection: Connection, realm_id: int, spans: Sequence[tuple[datetime, datetime]]
) -> None:
    """Stage by how much users' hours in ``spans`` differ from the feed, as the roll-up's deltas."""
    create_staged_deltas(connection)
    connection.execute(
        _QUERIES.text("stage_feed_differences"),
        {
            "realm_id": realm_id,
            "sinces": [since for since, _ in spans],
            "untils": [until for _, until in spans],
        },
    )


def note_changed_hours(connection: Connection, realm_id: int) -> None:
    """Note that all hours of a realm changed, for a front that has limits."""
    connection.execute(_QUERIES.text("note_rebuilt_hours"), {"realm_id": realm_id})


def delete_buckets(
    connection: Connection, realm_id: int, wrong: Iterable[tuple[BucketLength, Bucket]]
) -> None:
    """Delete buckets of a realm."""
    keys = [(length.value, from_micros(bucket.starts_at)) for length, bucket in wrong]
    if keys:
        connection.execute(
            delete(buckets).where(
                buckets.c.realm_id == realm_id,
                tuple_(buckets.c.level, buckets.c.starts_at).in_(keys),
            )
        )


def record_rebuild(connection: Connection, realm_id: int, reason: str, rows_replaced: int) -> None:
    """Record why a realm was rebuilt."""
    connection.execute(
        insert(rebuilds).values(realm_id=realm_id, reason=reason, rows_replaced=rows_replaced)
    )
