"""Rows of ``limits`` and ``limit_states``, and the usage that is compared with them.

A writer holds the lock ``rollup``. Times are microseconds since the epoch. ``per`` of a limit is
the length of its buckets; ``level`` is the length of the usage that they are summed from.
"""

from collections.abc import Collection, Iterable, Mapping
from decimal import Decimal
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import Connection

from accounting.db.binary_copy import binary_cursor, copy_rows
from accounting.db.engine import prefer_index_scans, psycopg_connection
from accounting.db.queries import Queries
from accounting.db.schema.limits import REALM_KEY
from accounting.domain.calendar import Bucket, to_micros
from accounting.feed.outbox import EventType

_QUERIES: Final = Queries("accounting.usage.limits")
_LEVELS: Final = {"hour": "hourly", "day": "daily", "month": "monthly"}
_BUCKETS: Final = (
    ("realm_id", "int4"),
    ("per", "text"),
    ("level", "text"),
    ("starts_at", "timestamptz"),
    ("ends_at", "timestamptz"),
    ("time_zone", "text"),
    ("folded_until", "timestamptz"),
)


class LimitedLength(NamedTuple):
    """A length of limits that a realm has. ``set_at``: since when the oldest holds."""

    realm_id: int
    per: str
    set_at: int


class LimitBucket(NamedTuple):
    """A bucket of the limits of one length."""

    realm_id: int
    per: str
    bucket: Bucket


class Limit(NamedTuple):
    """What an event says of its limit."""

    limit_id: int
    realm_id: int
    whom: str
    measure: str
    direction: str
    per: str
    amount: int


class WhoseLimit(NamedTuple):
    """Whose usage a limit is of, and what it counts. ``user_key``: of one user's."""

    realm_id: int
    user_key: UUID | None
    measure: str


class StoredLimit(NamedTuple):
    """What can change of a limit."""

    limit_id: int
    amount: int
    thresholds: tuple[int, ...]


class Crossing(NamedTuple):
    """A threshold that was reached, or is no longer reached.

    ``reached_amount``: the amount when it was reached, the last time of ``times_reached``.
    """

    type: EventType
    limit_id: int
    user_key: UUID
    starts_at: int
    threshold: int
    ends_at: int
    usage: Decimal
    reached_amount: int
    times_reached: int


class WrongState(NamedTuple):
    """A threshold that is reached and has no state (`missing`), or the reverse (`unfounded`).

    ``usage``: of the bucket, which starts at ``starts_at``. ``stored_usage``: what the state says.
    """

    kind: str
    limit_id: int
    user_key: UUID
    starts_at: int
    threshold: int
    usage: Decimal
    stored_usage: Decimal | None


class LateCheck(NamedTuple):
    """The last hour of a user, with a ``next_check_score`` above the ``highest`` right one."""

    user_key: UUID
    starts_at: int
    next_check_score: int
    highest: int


def limited_lengths(connection: Connection, realm_ids: Collection[int]) -> list[LimitedLength]:
    """The lengths of the limits of some realms."""
    rows = connection.execute(_QUERIES.text("limited_lengths"), {"realm_ids": list(realm_ids)})
    return [LimitedLength(realm_id, per, to_micros(set_at)) for realm_id, per, set_at in rows]


def read_limits(connection: Connection, limit_ids: Iterable[int]) -> dict[int, Limit]:
    """Limits by their numbers."""
    rows = connection.execute(_QUERIES.text("read_limits"), {"limit_ids": list(limit_ids)})
    return {row.limit_id: Limit(*row) for row in rows}


def find_limit(connection: Connection, values: Mapping[str, Any]) -> StoredLimit | None:
    """The limit of the same usage, if there is one."""
    row = connection.execute(_QUERIES.text("find_limit"), values).one_or_none()
    return None if row is None else StoredLimit(row.limit_id, row.amount, tuple(row.thresholds))


def insert_limit(connection: Connection, values: Mapping[str, Any]) -> int:
    """Insert a limit; returns its number."""
    number: int = connection.execute(_QUERIES.text("insert_limit"), values).scalar_one()
    return number


def change_limit(connection: Connection, limit_id: int, values: Mapping[str, Any]) -> None:
    """Change the amount and the thresholds of a limit."""
    connection.execute(_QUERIES.text("change_limit"), {"limit_id": limit_id, **values})


def find_whose(connection: Connection, limit_id: int) -> WhoseLimit | None:
    """Whose usage a limit is of; None for an unknown limit."""
    row = connection.execute(_QUERIES.text("whose_limit"), {"limit_id": limit_id}).one_or_none()
    return None if row is None else WhoseLimit(*row)


def only_user(connection: Connection, limit_id: int) -> UUID | None:
    """The user whom alone it concerns that a limit is set or removed; None: all of the realm.

    The scores of all users change with the first and the last limit of users that counts a measure.
    """
    whose = find_whose(connection, limit_id)
    if whose is None or whose.user_key is None:
        return None
    values = {"realm_id": whose.realm_id, "measure": whose.measure, "limit_id": limit_id}
    has_others = connection.execute(_QUERIES.text("counts_measure"), values).scalar_one()
    return whose.user_key if has_others else None


def delete_limit(connection: Connection, limit_id: int) -> None:
    """Delete a limit and its states."""
    connection.execute(_QUERIES.text("delete_limit"), {"limit_id": limit_id})


def create_scratch_tables(connection: Connection) -> None:
    """Create the scratch tables that the roll-up names, also where there is no limit."""
    for table in ("realms", "users"):
        connection.execute(_QUERIES.text(f"create_staged_limit_{table}"))


def stage_realms(connection: Connection, realm_ids: Iterable[int]) -> dict[int, int]:
    """Stage the realms whose users have limits; returns the start of the last hour of each.

    In place of those staged before.
    """
    connection.execute(_QUERIES.text("clear_limit_realms"))
    connection.execute(_QUERIES.text("stage_limit_realms"), {"realm_ids": list(realm_ids)})
    rows = connection.execute(_QUERIES.text("read_last_hours"))
    return {realm_id: to_micros(last_hour) for realm_id, last_hour in rows}


def stage_buckets(
    connection: Connection, buckets: Iterable[LimitBucket], folds: Mapping[int, int]
) -> None:
    """Stage the buckets to be looked at. ``folds``: the fold watermarks of their realms."""
    for table in ("limit_buckets", "limit_checks", "limit_usage", "next_checks"):
        connection.execute(_QUERIES.text(f"create_staged_{table}"))
    with binary_cursor(psycopg_connection(connection)) as cursor:
        copy_rows(
            cursor,
            "staged_limit_buckets",
            _BUCKETS,
            (
                (
                    realm_id,
                    per,
                    _level(per),
                    bucket.starts_at,
                    bucket.ends_at,
                    bucket.time_zone,
                    # The table of hours has all of them.
                    bucket.ends_at if per == "hour" else folds[realm_id],
                )
                for realm_id, per, bucket in buckets
            ),
        )


def note_periods(connection: Connection) -> None:
    """Note the billing periods of the staged buckets, for ``reporting.limit_usage``."""
    connection.execute(_QUERIES.text("note_limit_periods"))


def stage_users(connection: Connection, user_key: UUID | None) -> None:
    """Stage everyone with usage in the staged buckets, or only one user."""
    for level, length in _LEVELS.items():
        connection.execute(
            _QUERIES.text("stage_users", usage=f"user_usage_{length}"),
            {"level": level, "user_key": user_key},
        )


def stage_checks(connection: Connection) -> None:
    """Stage the limits of the staged users, and those of the realms."""
    with prefer_index_scans(connection):
        connection.execute(_QUERIES.text("stage_last_hours"))
        connection.execute(_QUERIES.text("stage_checks"), {"realm_key": REALM_KEY})


def stage_lost_states(connection: Connection, realm_id: int, user_key: UUID | None) -> None:
    """Stage what is reached in a realm, or by one user, where no usage is staged."""
    values = {"realm_id": realm_id, "user_key": user_key}
    connection.execute(_QUERIES.text("stage_lost_states"), values)


def count_usage(connection: Connection, lengths: Iterable[str]) -> None:
    """Sum the usage that is to be compared with the staged limits. ``lengths``: of these limits."""
    with prefer_index_scans(connection):
        for level in sorted({_level(length) for length in lengths}):
            for whose in ("user", "realm"):
                connection.execute(
                    _QUERIES.text(f"count_{whose}_usage", usage=f"{whose}_usage_{_LEVELS[level]}"),
                    {"level": level},
                )


def change_states(connection: Connection, removed: int | None) -> list[Crossing]:
    """Record which thresholds the staged usage reaches, and which no longer.

    ``removed``: a limit that reaches none in the buckets that run now.
    """
    with prefer_index_scans(connection):
        rows = connection.execute(_QUERIES.text("change_states"), {"removed": removed}).all()
    return [
        Crossing(*row)._replace(starts_at=to_micros(row.starts_at), ends_at=to_micros(row.ends_at))
        for row in rows
    ]


def change_reached_amounts(connection: Connection) -> None:
    """Give the amounts of changed limits to what the staged usage still reaches."""
    with prefer_index_scans(connection):
        connection.execute(_QUERIES.text("change_reached_amounts"))


def set_next_checks(connection: Connection) -> None:
    """Set up to which score the last hours of the staged users need no other look."""
    with prefer_index_scans(connection):
        connection.execute(_QUERIES.text("stage_next_checks"))
        connection.execute(_QUERIES.text("set_next_checks"))


def find_wrong_states(connection: Connection) -> list[WrongState]:
    """Where the stored states are not what the staged usage reaches."""
    with prefer_index_scans(connection):
        rows = connection.execute(_QUERIES.text("find_wrong_states")).all()
    return [WrongState(row[0], row[1], row[2], to_micros(row[3]), *row[4:]) for row in rows]


def find_late_checks(connection: Connection) -> list[LateCheck]:
    """The staged users whose limits would be looked at too late."""
    with prefer_index_scans(connection):
        connection.execute(_QUERIES.text("stage_next_checks"))
        rows = connection.execute(_QUERIES.text("find_late_checks")).all()
    return [LateCheck(row[0], to_micros(row[1]), *row[2:]) for row in rows]


def _level(length: str) -> str:
    """The length of the usage that a bucket is summed from: a period's is the day."""
    return "day" if length == "period" else length
