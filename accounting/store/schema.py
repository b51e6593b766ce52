"""The private tables, as SQLAlchemy Core sees them. ``alembic check`` holds them to the migrations.

Says what stands where; the migrations say it to Postgres, with the constraints that matter.
"""

from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    Double,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from accounting.model.counters import COUNTERS

metadata = MetaData(schema="accounting")

_time = DateTime(timezone=True)


def _eight() -> list[Column[int]]:
    return [Column(name, BigInteger, nullable=False) for name in COUNTERS]


def _four() -> list[Column[int]]:
    return [
        Column(name, BigInteger, nullable=False, server_default=text("0")) for name in COUNTERS[:4]
    ]


installation = Table(
    "installation",
    metadata,
    Column("id", Boolean, primary_key=True, server_default=text("true")),
    Column("identity_key", LargeBinary, nullable=False),
)

sources = Table(
    "sources",
    metadata,
    Column("source_id", SmallInteger, Identity(always=True), primary_key=True),
    Column("source", Text, nullable=False),
    Column("mode", Text, nullable=False),
    Column("epoch", Integer, nullable=False, server_default=text("0")),
    Column("position", BigInteger, nullable=False, server_default=text("0")),
    Column("captured_until", _time),
    Column("loaded_until", _time),
    Column("last_received_at", _time),
    Column("retired_at", _time),
    Column("replication_id", Text),
    Column("stream_database", Integer),
    Column("loaded_by", Text),
    UniqueConstraint("source", name="source_is_unique"),
)

settling = Table(
    "settling",
    metadata,
    Column("source_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("epoch", Integer, nullable=False, server_default=text("0")),
    Column("position", BigInteger, nullable=False, server_default=text("0")),
    Column("received_at", _time),
    Column("until", _time),
    Column("sighted_epoch", Integer, nullable=False, server_default=text("0")),
    Column("sighted_position", BigInteger, nullable=False, server_default=text("0")),
    Column("sighted", BigInteger, nullable=False, server_default=text("0")),
)

source_leases = Table(
    "source_leases",
    metadata,
    Column("source_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("holder", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("renewed_at", _time, nullable=False),
    Column("expires_at", _time, nullable=False),
)

key_sightings = Table(
    "key_sightings",
    metadata,
    Column("source_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("epoch", Integer, primary_key=True, autoincrement=False),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("sighting", BigInteger, primary_key=True, autoincrement=False),
    Column("database", Integer, nullable=False),
    Column("realm_id", Integer, nullable=False),
    Column("username_key", Uuid, nullable=False),
    Column("user_key", Uuid, primary_key=True),
    Column("allocation_id", BigInteger, nullable=False),
    Column("began_at", _time, nullable=False),
    Column("seen_at", _time, nullable=False),
    Column("idle_seconds", Integer, nullable=False),
)

epochs = Table(
    "epochs",
    metadata,
    Column("source_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("epoch", Integer, primary_key=True, autoincrement=False),
    Column("token", Text, nullable=False),
    Column("began_at", _time, nullable=False),
    Column("cause", Text, nullable=False),
    UniqueConstraint("source_id", "token", name="epoch_token_is_unique"),
)

capture_gaps = Table(
    "capture_gaps",
    metadata,
    Column("gap_id", BigInteger, Identity(always=True), primary_key=True),
    Column("source_id", SmallInteger, nullable=False),
    Column("token", Text, nullable=False),
    Column("gap", Integer, nullable=False),
    Column("from_at", _time, nullable=False),
    Column("to_at", _time),
    Column("cause", Text, nullable=False),
    Column("detail", Text, nullable=False, server_default=text("''")),
    Column("epoch", Integer, nullable=False, server_default=text("0")),
    Column("position", BigInteger, nullable=False, server_default=text("0")),
    Column("outcome", Text, nullable=False, server_default=text("''")),
    UniqueConstraint("source_id", "token", "gap", name="gap_is_recorded_once"),
    Index("capture_gaps_open", "source_id", postgresql_where=text("to_at IS NULL")),
)

realms = Table(
    "realms",
    metadata,
    Column("realm_id", Integer, Identity(always=True), primary_key=True),
    Column("realm", Text, nullable=False),
    Column("realm_bytes", LargeBinary, nullable=False),
    UniqueConstraint("realm_bytes", name="realm_is_unique"),
)

realm_rules = Table(
    "realm_rules",
    metadata,
    Column("realm_id", Integer, primary_key=True, autoincrement=False),
    Column("holds_from", _time, primary_key=True),
    Column("time_zone", Text, nullable=False),
    Column("anchor_day", SmallInteger, nullable=False),
    Column("grace_seconds", Integer, nullable=False),
    Column("username_rule", Text, nullable=False),
    Column("separator", Text, nullable=False),
)

users = Table(
    "users",
    metadata,
    Column("user_key", Uuid, primary_key=True),
    Column("realm_id", Integer, nullable=False),
    Column("user_id", Text, nullable=False),
    Index("users_by_name", "realm_id", "user_id"),
)

usernames = Table(
    "usernames",
    metadata,
    Column("user_key", Uuid, primary_key=True),
    Column("username_key", Uuid, primary_key=True),
    Column("username", Text, nullable=False),
)

reports = Table(
    "reports",
    metadata,
    Column("source_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("epoch", Integer, primary_key=True, autoincrement=False),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("received_at", _time, primary_key=True),
    Column("time_estimated", Boolean, nullable=False),
    Column("database", Integer, nullable=False),
    Column("realm_id", Integer, nullable=False),
    Column("username_key", Uuid, nullable=False),
    Column("user_key", Uuid, primary_key=True),
    Column("allocation_id", BigInteger, nullable=False),
    Column("kind", SmallInteger, nullable=False),
    Column("side", SmallInteger),
    Column("lifetime", Integer),
    Column("transport", Text),
    Column("server_address", Text),
    Column("client_address", Text),
    *_four(),
    postgresql_partition_by="RANGE (received_at)",
)

rejected_messages = Table(
    "rejected_messages",
    metadata,
    Column("source_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("epoch", Integer, primary_key=True, autoincrement=False),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("received_at", _time, nullable=False),
    Column("database", Integer, nullable=False),
    Column("channel", LargeBinary, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("reason", Text, nullable=False),
)

sessions = Table(
    "sessions",
    metadata,
    Column("session_id", Uuid, primary_key=True),
    Column("user_key", Uuid, primary_key=True),
    Column("username_key", Uuid, nullable=False),
    Column("realm_id", Integer, nullable=False),
    Column("source_id", SmallInteger, nullable=False),
    Column("database", Integer, nullable=False),
    Column("allocation_id", BigInteger, nullable=False),
    Column("started_at", _time, nullable=False),
    Column("last_seen_at", _time, nullable=False),
    Column("expires_at", _time, nullable=False),
    Column("due_at", _time, nullable=False),
    Column("start_known", Boolean, nullable=False),
    Column("lifetime_known", Boolean, nullable=False),
    Column("ended_at", _time),
    Column("end_cause", Text),
    Column("standing", SmallInteger, nullable=False),
    Column("vouched", Boolean, nullable=False),
    Column("transport", Text),
    Column("client_address", Text),
    Column("server_address", Text),
    *_eight(),
    Column("news", SmallInteger, nullable=False),
    Column("deletes", SmallInteger, nullable=False),
    Column("client_totals", SmallInteger, nullable=False),
    Column("peer_totals", SmallInteger, nullable=False),
    Column("client_total", ARRAY(BigInteger), nullable=False),
    Column("peer_total", ARRAY(BigInteger), nullable=False),
    Column("estimated", Boolean, nullable=False),
    Column("disputed", Boolean, nullable=False),
    Column("ends", Integer, nullable=False, server_default=text("0")),
    Column("only_hour", _time),
    Index(
        "sessions_standing",
        "username_key",
        "allocation_id",
        "source_id",
        "database",
        postgresql_where=text("standing > 0"),
    ),
    Index(
        "sessions_due",
        "source_id",
        "due_at",
        postgresql_where=text("ended_at IS NULL AND standing = 1"),
    ),
    Index(
        "sessions_live",
        "started_at",
        postgresql_where=text("ended_at IS NULL AND vouched"),
    ),
    Index("sessions_disputed", "started_at", postgresql_where=text("disputed AND vouched")),
    Index("sessions_by_user", "user_key", "started_at"),
    Index("sessions_by_realm", "realm_id", "started_at"),
    Index(
        "sessions_by_end",
        "realm_id",
        "ended_at",
        postgresql_where=text("ended_at IS NOT NULL"),
    ),
    Index(
        "sessions_unattributed",
        "realm_id",
        "only_hour",
        postgresql_where=text("NOT vouched AND only_hour IS NOT NULL"),
    ),
)

session_usage = Table(
    "session_usage",
    metadata,
    Column("session_id", Uuid, primary_key=True),
    Column("starts_at", _time, primary_key=True),
    Column("user_key", Uuid, primary_key=True),
    Column("realm_id", Integer, nullable=False),
    Column("vouched", Boolean, nullable=False),
    Column("estimated", Boolean, nullable=False),
    Column("started", Boolean, nullable=False),
    Column("ended", Boolean, nullable=False),
    Column("active_from", _time, nullable=False),
    Column("active_to", _time, nullable=False),
    *_eight(),
    CheckConstraint("active_to >= active_from", name="active_is_not_backwards"),
    Index("session_usage_carried", "realm_id", "starts_at", postgresql_where=text("NOT started")),
    Index(
        "session_usage_unattributed",
        "realm_id",
        "starts_at",
        postgresql_where=text("NOT vouched"),
    ),
)

# A view: the rows of session_usage, and one for each session that lives within one hour.
session_hours = Table(
    "session_hours",
    MetaData(schema="accounting"),
    *(
        Column(column.name, column.type, primary_key=column.primary_key)
        for column in session_usage.c
    ),
)

touched_hours = Table(
    "touched_hours",
    metadata,
    Column("realm_id", Integer, nullable=False),
    Column("user_key", Uuid, nullable=False),
    Column("starts_at", _time, nullable=False),
    *(
        Column(name, BigInteger, nullable=False, server_default=text("0"))
        for name in (
            *COUNTERS,
            "sessions_started",
            "sessions_ended",
            "session_microseconds",
            "estimated_bytes",
            "sessions_carried",
        )
    ),
)

touched_slices = Table(
    "touched_slices",
    metadata,
    Column("realm_id", Integer, nullable=False),
    Column("starts_at", _time, nullable=False),
    Column("slice_at", _time, nullable=False),
)

realm_slices = Table(
    "realm_slices",
    metadata,
    Column("realm_id", Integer, primary_key=True),
    Column("starts_at", _time, primary_key=True),
    Column("slice_at", _time, primary_key=True),
    Column("net", BigInteger, nullable=False),
    Column("top", BigInteger, nullable=False),
)

buckets = Table(
    "buckets",
    metadata,
    Column("realm_id", Integer, primary_key=True, autoincrement=False),
    Column("level", Text, primary_key=True),
    Column("starts_at", _time, primary_key=True),
    Column("ends_at", _time, nullable=False),
    Column("time_zone", Text, nullable=False),
)


def _usage_sums() -> list[Column[int]]:
    return [
        *_eight(),
        Column("sessions_started", BigInteger, nullable=False),
        Column("sessions_ended", BigInteger, nullable=False),
        Column("session_microseconds", Numeric, nullable=False),
        Column("estimated_bytes", BigInteger, nullable=False),
    ]


user_usage = {
    length: Table(
        f"user_usage_{length}",
        metadata,
        Column("user_key", Uuid, primary_key=True),
        Column("starts_at", _time, primary_key=True),
        Column("realm_id", Integer, nullable=False),
        *_usage_sums(),
        Index(f"user_usage_{length}_by_realm", "realm_id", "starts_at"),
    )
    for length in ("hourly", "daily", "monthly")
}

realm_usage = {
    length: Table(
        f"realm_usage_{length}",
        metadata,
        Column("realm_id", Integer, primary_key=True, autoincrement=False),
        Column("starts_at", _time, primary_key=True),
        *_usage_sums(),
        Column("peak_sessions", BigInteger, nullable=False),
    )
    for length in ("hourly", "daily", "monthly")
}

relay_threads = Table(
    "relay_threads",
    metadata,
    Column("source_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("database", Integer, primary_key=True, autoincrement=False),
    Column("server", Text, primary_key=True),
    Column("thread", SmallInteger, primary_key=True, autoincrement=False),
    Column("heard_at", _time, nullable=False),
    Column("highest_id", BigInteger, nullable=False, server_default=text("0")),
    Column("highest_at", _time),
    Column("restarted_at", _time),
    Column("unheard", Integer, nullable=False, server_default=text("0")),
    Column("certain", Boolean, nullable=False, server_default=text("false")),
    Column("owed_since", _time),
    CheckConstraint("(unheard > 0) = (owed_since IS NOT NULL)", name="unheard_lives_owe_something"),
)

job_runs = Table(
    "job_runs",
    metadata,
    Column("job", Text, primary_key=True),
    Column("runs", BigInteger, nullable=False, server_default=text("0")),
    Column("failures", BigInteger, nullable=False, server_default=text("0")),
    Column("failures_in_a_row", Integer, nullable=False, server_default=text("0")),
    Column("last_succeeded_at", _time),
    Column("last_seconds", Double),
    Column("last_failed_at", _time),
    Column("last_error", Text),
)

tallies = Table(
    "tallies",
    metadata,
    Column("source_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("counted", Text, primary_key=True),
    Column("detail", Text, primary_key=True),
    Column("total", BigInteger, nullable=False),
)


def _end() -> list[Column[Any]]:
    """What an event has that tells of the end of a session, instead of a payload."""
    return [
        Column("allocation_id", BigInteger),
        Column("started_at", _time),
        Column("ended_at", _time),
        *(Column(name, BigInteger) for name in COUNTERS),
        Column("session_id", Uuid),
        Column("user_key", Uuid),
        Column("number", Integer),
        Column("database", Integer),
        Column("source_id", SmallInteger),
        Column("start_known", Boolean),
        Column("total_reported", Boolean),
        Column("estimated", Boolean),
        Column("disputed", Boolean),
        Column("end_cause", Text),
    ]


feed_outbox = Table(
    "feed_outbox",
    metadata,
    Column("outbox_id", BigInteger, Identity(always=True), primary_key=True),
    Column("event_id", Uuid, nullable=False),
    Column("type", Text, nullable=False),
    Column("realm_id", Integer, nullable=False),
    Column("payload", JSONB),
    Column("created_at", _time, nullable=False, server_default=text("now()")),
    *_end(),
)

feed = Table(
    "feed",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("event_id", Uuid, nullable=False),
    Column("type", Text, nullable=False),
    Column("realm_id", Integer, nullable=False),
    Column("payload", JSONB),
    Column("created_at", _time, nullable=False),
    *_end(),
    UniqueConstraint("event_id", name="event_is_told_once"),
)

feed_consumers = Table(
    "feed_consumers",
    metadata,
    Column("consumer", Text, primary_key=True),
    Column("login", Text, nullable=False),
    Column("seq", BigInteger, nullable=False, server_default=text("0")),
    Column("moved_at", _time, nullable=False, server_default=text("now()")),
    Column("worker", Text, nullable=False, server_default=text("''")),
)

periods = Table(
    "periods",
    metadata,
    Column("realm_id", Integer, primary_key=True, autoincrement=False),
    Column("period", Date, primary_key=True),
    Column("starts_at", _time, nullable=False),
    Column("ends_at", _time, nullable=False),
    Column("due_at", _time, nullable=False),
    Column("time_zone", Text, nullable=False),
    Column("closed_at", _time),
    Column("cutoff", Text),
)

statements = Table(
    "statements",
    metadata,
    Column("user_key", Uuid, primary_key=True),
    Column("realm_id", Integer, primary_key=True, autoincrement=False),
    Column("period", Date, primary_key=True),
    *_usage_sums(),
    Column("digest", Text, nullable=False),
    Index("statements_by_period", "realm_id", "period"),
)

adjustments = Table(
    "adjustments",
    metadata,
    Column("adjustment_id", Uuid, primary_key=True),
    Column("user_key", Uuid, primary_key=True),
    Column("realm_id", Integer, nullable=False),
    Column("period", Date, nullable=False),
    Column("posted_in", Date, nullable=False),
    *_eight(),
    Column("session_microseconds", Numeric, nullable=False),
    Column("reason", Text, nullable=False),
    Column("author", Text, nullable=False),
    Column("manual", Boolean, nullable=False),
    Column("posted_at", _time, nullable=False, server_default=text("now()")),
    CheckConstraint("posted_in > period", name="posted_after_what_it_corrects"),
    Index("adjustments_by_period", "realm_id", "period", "user_key"),
    Index("adjustments_by_posting", "realm_id", "posted_in"),
)

touched_periods = Table(
    "touched_periods",
    metadata,
    Column("realm_id", Integer, nullable=False),
    Column("period", Date, nullable=False),
    Column("user_key", Uuid, nullable=False),
)

rebuilds = Table(
    "rebuilds",
    metadata,
    Column("rebuild_id", Uuid, primary_key=True, server_default=text("gen_random_uuid()")),
    Column("realm_id", Integer, nullable=False),
    Column("rebuilt_at", _time, nullable=False, server_default=text("now()")),
    Column("reason", Text, nullable=False),
    Column("rows_replaced", BigInteger, nullable=False),
)

proofs = Table(
    "proofs",
    metadata,
    Column("realm_id", Integer, primary_key=True, autoincrement=False),
    Column("period", Date, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("positions", Text, nullable=False),
    Column("verified_at", _time, nullable=False),
    Column("checked_at", _time, nullable=False),
    Column("differences", BigInteger, nullable=False),
)

dropped_reports = Table(
    "dropped_reports",
    metadata,
    Column("day", Date, primary_key=True),
    Column("realm_id", Integer, primary_key=True, autoincrement=False),
    Column("source_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("reports", BigInteger, nullable=False),
    Column("dropped_at", _time, nullable=False, server_default=text("now()")),
)

dropped_positions = Table(
    "dropped_positions",
    metadata,
    Column("source_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("epoch", Integer, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("received_at", _time, nullable=False),
    Column("last_session_id", Uuid, nullable=False),
)

carried_lives = Table(
    "carried_lives",
    metadata,
    *(
        Column(column.name, column.type, primary_key=column.primary_key, nullable=column.nullable)
        for column in sessions.c
        if column.name not in {"due_at", "ends", "only_hour"}
    ),
    Column("entries", ARRAY(BigInteger), nullable=False),
    Index("carried_lives_by_name", "username_key"),
)

sealed_sessions = Table(
    "sealed_sessions",
    metadata,
    Column("realm_id", Integer, primary_key=True, autoincrement=False),
    Column("day", Date, primary_key=True),
    Column("sessions", BigInteger, nullable=False),
    Column("digest", Numeric, nullable=False),
)

erasures = Table(
    "erasures",
    metadata,
    Column("user_key", Uuid, primary_key=True),
    Column("erased_at", _time, primary_key=True, server_default=text("now()")),
)
