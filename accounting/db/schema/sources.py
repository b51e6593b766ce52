"""Sources: how far each is captured and loaded, which collector has it, and its gaps."""

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    FetchedValue,
    Identity,
    Index,
    Integer,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from accounting.db.schema.columns import metadata, timestamp

sources = Table(
    "sources",
    metadata,
    # Numbered by a trigger.
    Column("source_id", SmallInteger, FetchedValue(), primary_key=True, autoincrement=False),
    Column("source", Text, nullable=False),
    Column("mode", Text, nullable=False),
    Column("epoch", Integer, nullable=False, server_default=text("0")),
    Column("position", BigInteger, nullable=False, server_default=text("0")),
    Column("captured_until", timestamp),
    Column("loaded_until", timestamp),
    Column("last_received_at", timestamp),
    Column("retired_at", timestamp),
    Column("reopened_at", timestamp),
    Column("replication_id", Text),
    Column("stream_database", Integer),
    Column("loaded_by_host", Text),
    UniqueConstraint("source", name="source_is_unique"),
)

source_leases = Table(
    "source_leases",
    metadata,
    Column("source_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("holder", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("renewed_at", timestamp, nullable=False),
    Column("expires_at", timestamp, nullable=False),
    Column("clock_ahead_seconds", Double),
    Column("server", Text, nullable=False, server_default=text("''")),
    Column("server_seen_at", timestamp),
)

other_sources = Table(
    "other_sources",
    metadata,
    Column("source", Text, primary_key=True),
    Column("source_id", SmallInteger, nullable=False),
    Column("cell", Text, nullable=False),
    Index("other_sources_by_number", "source_id"),
)

former_source_names = Table(
    "former_source_names",
    metadata,
    Column("former_name", Text, primary_key=True),
    Column("source_id", SmallInteger, nullable=False),
    Column("renamed_at", timestamp, nullable=False, server_default=text("clock_timestamp()")),
)

source_histories = Table(
    "source_histories",
    metadata,
    Column("history", Text, primary_key=True),
    Column("source_id", SmallInteger, nullable=False),
    Column("claimed_at", timestamp, nullable=False, server_default=text("clock_timestamp()")),
    Index("source_histories_by_source", "source_id", "claimed_at"),
)

source_conflicts = Table(
    "source_conflicts",
    metadata,
    Column("conflict_id", BigInteger, Identity(always=True), primary_key=True),
    Column("source_id", SmallInteger, nullable=False),
    Column("holder", Text, nullable=False),
    Column("server", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("from_at", timestamp, nullable=False),
    Column("last_seen_at", timestamp, nullable=False),
    UniqueConstraint("source_id", "holder", name="conflict_is_recorded_once"),
)

epochs = Table(
    "epochs",
    metadata,
    Column("source_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("epoch", Integer, primary_key=True, autoincrement=False),
    Column("token", Text, nullable=False),
    Column("started_at", timestamp, nullable=False),
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
    Column("from_at", timestamp, nullable=False),
    Column("to_at", timestamp),
    Column("cause", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("outcome", Text, nullable=False, server_default=text("''")),
    UniqueConstraint("source_id", "token", "gap", name="gap_is_recorded_once"),
    Index("capture_gaps_open", "source_id", postgresql_where=text("to_at IS NULL")),
)
