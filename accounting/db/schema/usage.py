"""Usage by hour, day and month, and the changes that the roll-up has not added yet.

A closed period is billed by its statement (``schema.billing``), not by these tables.
"""

from typing import Final

from sqlalchemy import BigInteger, Column, Index, Integer, Table, Text, Uuid, text

from accounting.db.schema.columns import metadata, timestamp, usage_sums, view_like
from accounting.domain.counters import COUNTERS

_DELTAS: Final = (
    *COUNTERS,
    "sessions_started",
    "sessions_ended",
    "session_microseconds",
    "estimated_bytes",
)

usage_deltas = Table(
    "usage_deltas",
    metadata,
    Column("realm_id", Integer, nullable=False),
    Column("user_key", Uuid, nullable=False),
    Column("starts_at", timestamp, nullable=False),
    *(Column(name, BigInteger, nullable=False, server_default=text("0")) for name in _DELTAS),
)

server_deltas = Table(
    "server_deltas",
    metadata,
    Column("realm_id", Integer, nullable=False),
    Column("starts_at", timestamp, nullable=False),
    Column("server", Text, nullable=False),
    Column("transport", Text, nullable=False),
    *(
        Column(name, BigInteger, nullable=False, server_default=text("0"))
        for name in (*_DELTAS, "sessions_carried")
    ),
    Column("received_from", timestamp),
    Column("received_until", timestamp),
)

peak_deltas = Table(
    "peak_deltas",
    metadata,
    Column("realm_id", Integer, nullable=False),
    Column("starts_at", timestamp, nullable=False),
    Column("slice_at", timestamp, nullable=False),
)

realm_peak_slices = Table(
    "realm_peak_slices",
    metadata,
    Column("realm_id", Integer, primary_key=True),
    Column("starts_at", timestamp, primary_key=True),
    Column("slice_at", timestamp, primary_key=True),
    Column("dimension", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("session_delta", BigInteger, nullable=False),
    Column("session_peak", BigInteger, nullable=False),
)

peak_versions = Table(
    "peak_versions",
    metadata,
    Column("realm_id", Integer, primary_key=True, autoincrement=False),
    Column("starts_at", timestamp, primary_key=True),
    Column("version", Uuid, nullable=False, server_default=text("gen_random_uuid()")),
    Column("changed_at", timestamp, nullable=False, server_default=text("clock_timestamp()")),
    Index("peak_versions_by_change", "changed_at"),
)

buckets = Table(
    "buckets",
    metadata,
    Column("realm_id", Integer, primary_key=True, autoincrement=False),
    Column("level", Text, primary_key=True),
    Column("starts_at", timestamp, primary_key=True),
    Column("ends_at", timestamp, nullable=False),
    Column("time_zone", Text, nullable=False),
    Column("tzdata_version", Text, nullable=False),
)


def _next_check(length: str) -> list[Column[int]]:
    """Hours also have the score at which the limits of their user are looked at again."""
    if length != "hourly":
        return []
    return [Column("next_check_score", BigInteger, nullable=False, server_default=text("0"))]


user_usage = {
    length: Table(
        f"user_usage_{length}",
        metadata,
        Column("user_key", Uuid, primary_key=True),
        Column("starts_at", timestamp, primary_key=True),
        Column("realm_id", Integer, nullable=False),
        *usage_sums(),
        *_next_check(length),
        Index(f"user_usage_{length}_by_realm", "realm_id", "starts_at"),
    )
    for length in ("hourly", "daily", "monthly")
}

# The views add the hours that are not folded into days and months yet.
whole_user_usage = {
    "hourly": user_usage["hourly"],
    "daily": view_like(user_usage["daily"], "user_days"),
    "monthly": view_like(user_usage["monthly"], "user_months"),
}

fold_watermarks = Table(
    "fold_watermarks",
    metadata,
    Column("realm_id", Integer, primary_key=True, autoincrement=False),
    Column("folded_until", timestamp, nullable=False),
    Column("last_hour_ends_at", timestamp, nullable=False, server_default=text("'-infinity'")),
)

realm_usage = {
    length: Table(
        f"realm_usage_{length}",
        metadata,
        Column("realm_id", Integer, primary_key=True, autoincrement=False),
        Column("starts_at", timestamp, primary_key=True),
        *usage_sums(),
        Column("peak_sessions", BigInteger, nullable=False),
    )
    for length in ("hourly", "daily", "monthly")
}

changed_hours = Table(
    "changed_hours",
    metadata,
    Column("realm_id", Integer, primary_key=True, autoincrement=False),
    Column("starts_at", timestamp, primary_key=True),
    Column("changed_at", timestamp, nullable=False),
    Index("changed_hours_by_time", "changed_at"),
)

server_usage_hourly = Table(
    "server_usage_hourly",
    metadata,
    Column("realm_id", Integer, primary_key=True, autoincrement=False),
    Column("starts_at", timestamp, primary_key=True),
    Column("server", Text, primary_key=True),
    Column("transport", Text, primary_key=True),
    *usage_sums(),
)

server_load = Table(
    "server_load",
    metadata,
    Column("realm_id", Integer, primary_key=True, autoincrement=False),
    Column("server", Text, primary_key=True),
    Column("live_sessions", BigInteger, nullable=False),
)

server_traffic = Table(
    "server_traffic",
    metadata,
    Column("slot_at", timestamp, primary_key=True),
    Column("realm_id", Integer, primary_key=True, autoincrement=False),
    Column("server", Text, primary_key=True),
    Column("received_bytes", BigInteger, nullable=False),
    Column("sent_bytes", BigInteger, nullable=False),
    Column("sessions_started", BigInteger, nullable=False),
)

dimension_peaks_hourly = Table(
    "dimension_peaks_hourly",
    metadata,
    Column("realm_id", Integer, primary_key=True, autoincrement=False),
    Column("starts_at", timestamp, primary_key=True),
    Column("dimension", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("peak_sessions", BigInteger, nullable=False),
)

# With the hours that are not folded yet.
dimension_peaks = view_like(dimension_peaks_hourly, "dimension_peaks")
