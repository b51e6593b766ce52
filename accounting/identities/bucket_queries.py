"""Rows of ``buckets``: the bounds of a realm's hours, days and months."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, select, update
from sqlalchemy.dialects.postgresql import insert

from accounting.db.queries import Queries
from accounting.db.schema import buckets, limit_periods, limit_states, limits
from accounting.domain.calendar import (
    TIME_MIN,
    Bucket,
    BucketLength,
    Calendar,
    from_micros,
    to_micros,
)
from accounting.domain.limits import limit_bucket
from accounting.domain.realm_rules import RealmRules
from accounting.domain.time_zones import tzdata_version

_QUERIES: Final = Queries("accounting.identities")


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
                    "tzdata_version": tzdata_version(),
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
            .values(
                ends_at=from_micros(bucket.ends_at),
                time_zone=bucket.time_zone,
                tzdata_version=tzdata_version(),
            )
        )


def redraw_limit_states(
    connection: Connection, realm_id: int, rules: RealmRules, since: int
) -> None:
    """Update the ends of the buckets in which limits of a realm count, as its rules changed.

    ``since`` as for :func:`redraw_buckets`.
    """
    of_realm = (
        limit_states.c.limit_id == limits.c.limit_id,
        limits.c.realm_id == realm_id,
        limit_states.c.ends_at >= from_micros(since),
    )
    stored = connection.execute(
        select(limits.c.per, limit_states.c.starts_at).where(*of_realm).distinct()
    ).all()
    for per, starts_at in stored:
        bucket = limit_bucket(rules, per, to_micros(starts_at))
        connection.execute(
            update(limit_states)
            .where(*of_realm, limits.c.per == per, limit_states.c.starts_at == starts_at)
            .values(ends_at=from_micros(bucket.ends_at), time_zone=bucket.time_zone)
        )
    period = select(limit_periods.c.starts_at).where(
        limit_periods.c.realm_id == realm_id, limit_periods.c.ends_at >= from_micros(since)
    )
    for starts_at in connection.execute(period).scalars().all():
        bucket = limit_bucket(rules, "period", to_micros(starts_at))
        connection.execute(
            update(limit_periods)
            .where(limit_periods.c.realm_id == realm_id)
            .values(ends_at=from_micros(bucket.ends_at), time_zone=bucket.time_zone)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MovedBuckets:
    """Buckets of a realm that are elsewhere by the present data about time zones.

    ``since``: the start of the first. ``versions``: of the data that they were computed with.
    """

    realm_id: int
    since: datetime
    count: int
    versions: tuple[str, ...]


def moved_buckets(
    connection: Connection, calendars: Mapping[int, Calendar]
) -> Iterator[MovedBuckets]:
    """The realms with stored hours, days or months that the present data would put elsewhere.

    Most realms share a time zone and so their buckets, which are computed once for each zone.
    """
    zones: dict[str, Calendar] = {}
    moved: dict[int, list[tuple[datetime, str]]] = {}
    for row in connection.execute(_QUERIES.text("earlier_buckets"), {"version": tzdata_version()}):
        length, starts_at = BucketLength(row.level), to_micros(row.starts_at)
        stored = Bucket(
            starts_at=starts_at, ends_at=to_micros(row.ends_at), time_zone=row.time_zone
        )
        if row.time_zone not in zones:
            zones[row.time_zone] = Calendar([(TIME_MIN, row.time_zone)])
        if zones[row.time_zone].bucket(length, starts_at) == stored:
            continue
        for realm_id in row.realm_ids:  # its rules may have ended the bucket
            if calendars[realm_id].bucket(length, starts_at) != stored:
                moved.setdefault(realm_id, []).append((row.starts_at, row.tzdata_version))
    for realm_id, borders in sorted(moved.items()):
        yield MovedBuckets(
            realm_id=realm_id,
            since=min(border for border, _ in borders),
            count=len(borders),
            versions=tuple(sorted({version for _, version in borders})),
        )
