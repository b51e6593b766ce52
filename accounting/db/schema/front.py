"""The cells of a front, and the front of a cell."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
    Index,
    Integer,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from accounting.db.schema.columns import metadata, timestamp, usage_sums

front = Table(
    "front",
    metadata,
    Column("id", Boolean, primary_key=True, server_default=text("true")),
    Column("initialized_at", timestamp, nullable=False, server_default=text("clock_timestamp()")),
    Column("peaks_read_until", timestamp, nullable=False, server_default=text("'-infinity'")),
    Column("peaks_compared_at", timestamp, nullable=False, server_default=text("'-infinity'")),
)

front_peak_hours = Table(
    "front_peak_hours",
    metadata,
    Column("realm", Text, primary_key=True),
    Column("starts_at", timestamp, primary_key=True),
    Column("counted_from", JSONB, nullable=False),
)

front_peaks = Table(
    "front_peaks",
    metadata,
    Column("realm", Text, primary_key=True),
    Column("dimension", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("starts_at", timestamp, primary_key=True),
    Column("peak_sessions", BigInteger, nullable=False),
    Index("front_peaks_by_hour", "realm", "starts_at"),
)

cells = Table(
    "cells",
    metadata,
    Column("cell_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("cell", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("revision", Text, nullable=False),
    Column("front_revision", Text, nullable=False),
    Column("joined_at", timestamp, nullable=False, server_default=text("clock_timestamp()")),
    Column("adjustments_until", timestamp, nullable=False, server_default=text("'-infinity'")),
    Column("database_id", Uuid, nullable=False),
    Column("bill_from", Date),
    Column("feed_failing_since", timestamp),
    Column("feed_retry_at", timestamp),
    Column("feed_error", Text),
    UniqueConstraint("cell", name="cell_is_unique"),
    UniqueConstraint("database_id", name="database_is_one_cell"),
)

feed_positions = Table(
    "feed_positions",
    metadata,
    Column("database_id", Uuid, primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, nullable=False),
    Column("history", Uuid, nullable=False),
    Column("forwarded_at", timestamp, nullable=False, server_default=text("clock_timestamp()")),
)

forwarded_closings = Table(
    "forwarded_closings",
    metadata,
    Column("database_id", Uuid, primary_key=True),
    Column("realm", Text, primary_key=True),
    Column("period", Date, primary_key=True),
    Column("seq", BigInteger, nullable=False),
)

billed_closings = Table(
    "billed_closings",
    metadata,
    Column("realm_id", Integer, primary_key=True, autoincrement=False),
    Column("period", Date, primary_key=True),
    Column("database_id", Uuid, primary_key=True),
    Column("cell", Text, nullable=False),
    Column("cutoff", Text, nullable=False),
    Index("billed_closings_by_database", "database_id"),
)

statement_parts = Table(
    "statement_parts",
    metadata,
    Column("realm_id", Integer, primary_key=True, autoincrement=False),
    Column("period", Date, primary_key=True),
    Column("user_key", Uuid, primary_key=True),
    Column("database_id", Uuid, primary_key=True),
    Column("cell", Text, nullable=False),
    *usage_sums(),
    Column("digest", Text, nullable=False),
)

sources_of_cells = Table(
    "sources_of_cells",
    metadata,
    Column("cell", Text, primary_key=True),
    Column("source", Text, primary_key=True),
    Column("source_id", SmallInteger, nullable=False),
)

membership = Table(
    "membership",
    metadata,
    Column("id", Boolean, primary_key=True, server_default=text("true")),
    Column("front", Text, nullable=False),
    Column("cell", Text, nullable=False),
    Column("joined_at", timestamp, nullable=False, server_default=text("clock_timestamp()")),
)
