"""Rebuilding, stored: the books of one realm replaced by what is staged beside them.

Only rows that differ are written. What is closed is not touched: its users are marked, so that
adjustments are posted for it.
"""

from collections.abc import Iterable
from typing import Any, Final

from sqlalchemy import Connection, delete, exists, func, insert, or_, select, tuple_
from sqlalchemy.dialects.postgresql import insert as upsert

from accounting.audit.comparison import derived_columns, recomputed_table, unequal
from accounting.db.queries import Queries
from accounting.db.schema import (
    buckets,
    realm_peak_slices,
    realm_usage,
    rebuilds,
    session_usage,
    sessions,
    user_usage,
)
from accounting.domain.calendar import from_micros

_QUERIES: Final = Queries("accounting.audit")
_SESSION_QUERIES: Final = Queries("accounting.sessions")


def replace_realm(connection: Connection, realm_id: int) -> int:
    """Replace all rows of a realm that differ; returns how many were written or removed.

    The caller holds the locks of settling and of the roll-up, and has staged that realm alone.
    """
    connection.execute(_QUERIES.text("touch_rebuilt_periods"), {"realm_id": realm_id})
    connection.execute(_QUERIES.text("prove_single_hours"))
    replaced = 0
    for table in (sessions, session_usage, *user_usage.values(), *realm_usage.values()):
        proof = recomputed_table(table)
        keys = [column.name for column in table.primary_key]
        same = [proof.c[key] == table.c[key] for key in keys]
        removed = connection.execute(
            delete(table).where(table.c.realm_id == realm_id, ~exists().where(*same))
        )
        replaced += removed.rowcount
        compared = derived_columns(table)
        if table is sessions:
            compared.append("single_hour")
        equal = exists().where(*same, ~or_(*unequal(table.c, proof.c, compared)))
        rows = select(proof).where(~equal.correlate(proof))
        if table is sessions:
            # As settling does it: the feed is told of each end that is another now.
            connection.execute(_SESSION_QUERIES.text("create_staged_sessions"))
            staged = recomputed_table(table, "staged_sessions")
            connection.execute(insert(staged).from_select(list(proof.c.keys()), rows))
            connection.execute(_SESSION_QUERIES.text("enqueue_session_ended"))
            rows = select(staged)
        query = upsert(table).from_select(list(proof.c.keys()), rows)
        values: dict[str, Any] = {
            column.name: query.excluded[column.name]
            for column in table.c
            if column.name not in keys
        }
        if "end_events" in values:
            values["end_events"] = func.greatest(table.c.end_events, query.excluded.end_events)
        written = connection.execute(query.on_conflict_do_update(index_elements=keys, set_=values))
        replaced += written.rowcount
    # Counted anew from the sessions as they are now, when next touched.
    connection.execute(delete(realm_peak_slices).where(realm_peak_slices.c.realm_id == realm_id))
    return replaced


def delete_buckets(connection: Connection, realm_id: int, wrong: Iterable[tuple[str, int]]) -> None:
    """Remove buckets, by level and start, whose borders are wrong."""
    found = [(level, from_micros(starts_at)) for level, starts_at in wrong]
    if found:
        connection.execute(
            delete(buckets).where(
                buckets.c.realm_id == realm_id,
                tuple_(buckets.c.level, buckets.c.starts_at).in_(found),
            )
        )


def record_rebuild(connection: Connection, realm_id: int, reason: str, rows_replaced: int) -> None:
    """Keep why a realm was rebuilt."""
    connection.execute(
        insert(rebuilds).values(realm_id=realm_id, reason=reason, rows_replaced=rows_replaced)
    )
