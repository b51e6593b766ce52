"""Rows of ``buckets``: the bounds of a realm's hours, days and months."""

from collections.abc import Iterable

from sqlalchemy import Connection, select, update
from sqlalchemy.dialects.postgresql import insert

from accounting.db.schema import buckets
from accounting.domain.calendar import Bucket, BucketLength, Calendar, from_micros, to_micros


def insert_buckets(
    connection: Connection, rows: Iterable[tuple[int, BucketLength, Bucket]]
) -> None:
    """Insert the bounds of buckets that have usage, unless they are stored. Rows may repeat."""
    distinct = sorted(
        {
            (realm_id, length, bucket.starts_at, bucket.ends_at, bucket.time_zone)
            for realm_id, length, bucket in rows
        }
    )
    if distinct:
        connection.execute(
            insert(buckets).on_conflict_do_nothing(),
            [
                {
                    "realm_id": realm_id,
                    "level": length.value,
                    "starts_at": from_micros(starts_at),
                    "ends_at": from_micros(ends_at),
                    "time_zone": time_zone,
                }
                for realm_id, length, starts_at, ends_at, time_zone in distinct
            ],
        )


def redraw_buckets(connection: Connection, realm_id: int, calendar: Calendar, since: int) -> None:
    """Update the ends of a realm's buckets that reach ``since``, where its calendar changed.

    ``since`` in microseconds. There is no usage after it, so that no bucket's start changes.
    """
    stored = connection.execute(
        select(buckets.c.level, buckets.c.starts_at).where(
            buckets.c.realm_id == realm_id, buckets.c.ends_at >= from_micros(since)
        )
    ).all()
    for length, starts_at in stored:
        bucket = calendar.bucket(BucketLength(length), to_micros(starts_at))
        connection.execute(
            update(buckets)
            .where(
                buckets.c.realm_id == realm_id,
                buckets.c.level == length,
                buckets.c.starts_at == starts_at,
            )
            .values(ends_at=from_micros(bucket.ends_at), time_zone=bucket.time_zone)
        )
