"""Proofs of closed periods, rebuilds, and what replaces reports that were dropped."""

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Column,
    Date,
    Index,
    Integer,
    Numeric,
    SmallInteger,
    Table,
    Text,
    Uuid,
    text,
)

from accounting.db.schema.columns import metadata, timestamp
from accounting.db.schema.sessions import sessions
from accounting.domain.counters import COUNTERS

rebuilds = Table(
    "rebuilds",
    metadata,
    Column("rebuild_id", Uuid, primary_key=True, server_default=text("gen_random_uuid()")),
    Column("realm_id", Integer, nullable=False),
    Column("rebuilt_at", timestamp, nullable=False, server_default=text("now()")),
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
    Column("verified_at", timestamp, nullable=False),
    Column("checked_at", timestamp, nullable=False),
    Column("differences", BigInteger, nullable=False),
)

dropped_reports = Table(
    "dropped_reports",
    metadata,
    Column("day", Date, primary_key=True),
    Column("realm_id", Integer, primary_key=True, autoincrement=False),
    Column("source_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("reports", BigInteger, nullable=False),
    Column("dropped_at", timestamp, nullable=False, server_default=text("now()")),
)

dropped_positions = Table(
    "dropped_positions",
    metadata,
    Column("source_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("epoch", Integer, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("received_at", timestamp, nullable=False),
    Column("last_session_id", Uuid, nullable=False),
)

report_archives = Table(
    "report_archives",
    metadata,
    Column("day", Date, primary_key=True),
    Column("part", SmallInteger, primary_key=True, autoincrement=False),
    Column("place", Text, nullable=False),
    Column("manifest_sha256", Text, nullable=False),
    Column("reports", BigInteger, nullable=False),
    Column("sightings", BigInteger, nullable=False),
    Column("archived_at", timestamp, nullable=False, server_default=text("now()")),
    Column("checked_at", timestamp, nullable=False),
    Column("dropped_at", timestamp),
)

carried_sessions = Table(
    "carried_sessions",
    metadata,
    *(
        Column(column.name, column.type, primary_key=column.primary_key, nullable=column.nullable)
        for column in sessions.c
        if column.name not in {"recheck_at", "end_events", "single_hour"}
    ),
    Column("hourly_usage", ARRAY(BigInteger), nullable=False),
    Index("carried_sessions_by_name", "username_key"),
)

finalized_sessions = Table(
    "finalized_sessions",
    metadata,
    Column("realm_id", Integer, primary_key=True, autoincrement=False),
    Column("day", Date, primary_key=True),
    Column("sessions", BigInteger, nullable=False),
    Column("digest", Numeric, nullable=False),
)

pruned_usage = Table(
    "pruned_usage",
    metadata,
    Column("source_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("realm_id", Integer, primary_key=True, autoincrement=False),
    Column("starts_at", timestamp, primary_key=True),
    Column("sessions_started", BigInteger, nullable=False),
    *(Column(name, Numeric, nullable=False) for name in COUNTERS),
)

pruned_counts = Table(
    "pruned_counts",
    metadata,
    Column("source_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("sessions", BigInteger, nullable=False),
    Column("reports", BigInteger, nullable=False),
    Column("usernames", BigInteger, nullable=False),
    Column("sightings", BigInteger, nullable=False),
    Column("sightings_until", timestamp),
)
