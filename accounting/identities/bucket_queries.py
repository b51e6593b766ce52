"""TODO."""

from collections.abc import Iterable

from sqlalchemy import Connection, select, update
from sqlalchemy.dialects.postgresql import insert

from accounting.db.schema import buckets
from accounting.domain.calendar import Bucket, BucketLength, Calendar, from_micros, to_micros


def insert_buckets(
    connection: Connection, rows: Iterable[tuple[int, BucketLength, Bucket]]
) -> None:
    """Write the borders of buckets that hold usage, once each."""
    distinct = sorted(
        {
            (realm_id, level, bucket.starts_at, bucket.ends_at, bucket.time_zone)
            for realm_id, level, bucket in rows
        }
    )
    if distinct:
        connection.execute(
            insert(buckets).on_conflict_do_nothing(),
            [
                {
                    "realm_id": realm_id,
                    "level": level.value,
                    "starts_at": from_micros(starts_at),
                    "ends_at": from_micros(ends_at),
                    "time_zone": time_zone,
                }
                for realm_id, level, starts_at, ends_at, time_zone in distinct
            ],
        )


def redraw_buckets(connection: Connection, realm_id: int, calendar: Calendar, since: int) -> None:
    """Redraw the ends of a realm's buckets that reach up to ``since`` by a calendar changed there.

    ``since`` in microseconds; nothing is accounted beyond it, so that no bucket's start moves.
    """
    held = connection.execute(
        select(buckets.c.level, buckets.c.starts_at).where(
            buckets.c.realm_id == realm_id, buckets.c.ends_at >= from_micros(since)
        )
    ).all()
    for level, starts_at in held:
        bucket = calendar.bucket(BucketLength(level), to_micros(starts_at))
        connection.execute(
            update(buckets)
            .where(
                buckets.c.realm_id == realm_id,
                buckets.c.level == level,
                buckets.c.starts_at == starts_at,
            )
            .values(ends_at=from_micros(bucket.ends_at), time_zone=bucket.time_zone)
        )
