"""Billing periods, their statements and adjustments. Triggers keep closed ones unchanged."""

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    Date,
    Index,
    Integer,
    Numeric,
    Table,
    Text,
    Uuid,
    text,
)

from accounting.db.schema.columns import eight_counters, metadata, timestamp, usage_sums

periods = Table(
    "periods",
    metadata,
    Column("realm_id", Integer, primary_key=True, autoincrement=False),
    Column("period", Date, primary_key=True),
    Column("starts_at", timestamp, nullable=False),
    Column("ends_at", timestamp, nullable=False),
    Column("due_at", timestamp, nullable=False),
    Column("time_zone", Text, nullable=False),
    Column("closed_at", timestamp),
    Column("cutoff", Text),
)

statements = Table(
    "statements",
    metadata,
    Column("user_key", Uuid, primary_key=True),
    Column("realm_id", Integer, primary_key=True, autoincrement=False),
    Column("period", Date, primary_key=True),
    *usage_sums(),
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
    *eight_counters(),
    Column("session_microseconds", Numeric, nullable=False),
    Column("reason", Text, nullable=False),
    Column("author", Text, nullable=False),
    Column("manual", Boolean, nullable=False),
    Column("posted_at", timestamp, nullable=False, server_default=text("now()")),
    Column("database_id", Uuid),
    CheckConstraint("posted_in > period", name="posted_after_what_it_corrects"),
    CheckConstraint("manual = (author <> 'turn-accounting')", name="late_usage_has_one_author"),
    Index("adjustments_by_period", "realm_id", "period", "user_key"),
    Index("adjustments_by_user", "user_key"),
    Index("adjustments_by_posting", "realm_id", "posted_in"),
)

periods_to_adjust = Table(
    "periods_to_adjust",
    metadata,
    Column("realm_id", Integer, nullable=False),
    Column("period", Date, nullable=False),
    Column("user_key", Uuid, nullable=False),
)
