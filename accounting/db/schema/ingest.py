"""What was received: reports, rejected messages and sightings of status keys."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Integer,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    Uuid,
)

from accounting.db.schema.columns import four_counters, metadata, timestamp

reports = Table(
    "reports",
    metadata,
    Column("source_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("epoch", Integer, primary_key=True, autoincrement=False),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("received_at", timestamp, primary_key=True),
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
    *four_counters(),
    postgresql_partition_by="RANGE (received_at)",
)

rejected_messages = Table(
    "rejected_messages",
    metadata,
    Column("source_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("epoch", Integer, primary_key=True, autoincrement=False),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("received_at", timestamp, nullable=False),
    Column("database", Integer, nullable=False),
    Column("channel", LargeBinary, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("reason", Text, nullable=False),
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
    Column("scan_started_at", timestamp, nullable=False),
    Column("seen_at", timestamp, nullable=False),
    Column("idle_seconds", Integer, nullable=False),
)

message_counts = Table(
    "message_counts",
    metadata,
    Column("source_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("outcome", Text, primary_key=True),
    Column("reason", Text, primary_key=True),
    Column("total", BigInteger, nullable=False),
)
