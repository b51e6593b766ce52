"""What settling makes of reports: sessions, their usage by the hour, and relay threads."""

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Index,
    Integer,
    SmallInteger,
    Table,
    Text,
    Uuid,
    text,
)

from accounting.db.schema.columns import eight_counters, metadata, timestamp, view_like

settle_watermarks = Table(
    "settle_watermarks",
    metadata,
    Column("source_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("epoch", Integer, nullable=False, server_default=text("0")),
    Column("position", BigInteger, nullable=False, server_default=text("0")),
    Column("received_at", timestamp),
    Column("settled_until", timestamp),
    Column("last_sighting_epoch", Integer, nullable=False, server_default=text("0")),
    Column("last_sighting_position", BigInteger, nullable=False, server_default=text("0")),
    Column("last_sighting", BigInteger, nullable=False, server_default=text("0")),
    Column("version", Integer, nullable=False, server_default=text("0")),
)

sessions = Table(
    "sessions",
    metadata,
    Column("session_id", Uuid, primary_key=True),
    Column("user_key", Uuid, primary_key=True),
    Column("username_key", Uuid, nullable=False),
    Column("realm_id", Integer, nullable=False),
    Column("database", Integer, nullable=False),
    Column("allocation_id", BigInteger, nullable=False),
    Column("started_at", timestamp, nullable=False),
    Column("last_seen_at", timestamp, nullable=False),
    Column("expires_at", timestamp, nullable=False),
    Column("recheck_at", timestamp, nullable=False),
    *eight_counters(),
    Column("end_events", Integer, nullable=False, server_default=text("0")),
    Column("source_id", SmallInteger, nullable=False),
    Column("new_count", SmallInteger, nullable=False),
    Column("deleted_count", SmallInteger, nullable=False),
    Column("client_total_count", SmallInteger, nullable=False),
    Column("peer_total_count", SmallInteger, nullable=False),
    Column("phase", SmallInteger, nullable=False),
    Column("start_known", Boolean, nullable=False),
    Column("lifetime_known", Boolean, nullable=False),
    Column("confirmed", Boolean, nullable=False),
    Column("estimated", Boolean, nullable=False),
    Column("disputed", Boolean, nullable=False),
    Column("ended_at", timestamp),
    Column("single_hour", timestamp),
    Column("end_cause", Text),
    Column("transport", Text),
    Column("client_address", Text),
    Column("server_address", Text),
    Column("client_total", ARRAY(BigInteger), nullable=False),
    Column("peer_total", ARRAY(BigInteger), nullable=False),
    Index(
        "sessions_live",
        "started_at",
        postgresql_where=text("ended_at IS NULL AND confirmed"),
    ),
    Index("sessions_disputed", "started_at", postgresql_where=text("disputed AND confirmed")),
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
        "single_hour",
        postgresql_where=text("NOT confirmed AND single_hour IS NOT NULL"),
    ),
)

session_usage = Table(
    "session_usage",
    metadata,
    Column("session_id", Uuid, primary_key=True),
    Column("starts_at", timestamp, primary_key=True),
    Column("user_key", Uuid, primary_key=True),
    Column("realm_id", Integer, nullable=False),
    Column("confirmed", Boolean, nullable=False),
    Column("estimated", Boolean, nullable=False),
    Column("started", Boolean, nullable=False),
    Column("ended", Boolean, nullable=False),
    Column("active_from", timestamp, nullable=False),
    Column("active_to", timestamp, nullable=False),
    *eight_counters(),
    CheckConstraint("active_to >= active_from", name="active_is_not_backwards"),
    Index("session_usage_carried", "realm_id", "starts_at", postgresql_where=text("NOT started")),
    Index(
        "session_usage_unattributed",
        "realm_id",
        "starts_at",
        postgresql_where=text("NOT confirmed"),
    ),
)

# session_usage, and a row for each session that lies within one hour.
session_hours = view_like(session_usage, "session_hours")

set_aside_reports = Table(
    "set_aside_reports",
    metadata,
    Column("source_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("epoch", Integer, primary_key=True, autoincrement=False),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("sighting", BigInteger, primary_key=True, autoincrement=False),
    Column("realm_id", Integer, nullable=False),
    Column("received_at", timestamp, nullable=False),
    Column("reason", Text, nullable=False),
    Column("set_aside_at", timestamp, nullable=False, server_default=text("now()")),
    Index("set_aside_reports_by_realm", "realm_id"),
)

relay_threads = Table(
    "relay_threads",
    metadata,
    Column("source_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("database", Integer, primary_key=True, autoincrement=False),
    Column("server", Text, primary_key=True),
    Column("thread", SmallInteger, primary_key=True, autoincrement=False),
    Column("last_report_at", timestamp, nullable=False),
    Column("highest_id", BigInteger, nullable=False),
    Column("highest_at", timestamp),
    Column("restarted_at", timestamp),
    Column("missed_count", Integer, nullable=False),
    Column("not_explained_by_gap", Boolean, nullable=False),
    Column("overdue_since", timestamp),
    CheckConstraint(
        "(missed_count > 0) = (overdue_since IS NOT NULL)", name="missed_reports_have_a_due_time"
    ),
)
