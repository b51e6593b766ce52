"""What was received: reports, rejected messages and sightings of status keys."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Index,
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
    Column("source_id", SmallInteger, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("received_at", timestamp, nullable=False),
    Column("time_estimated", Boolean, nullable=False),
    Column("database", Integer, nullable=False),
    Column("realm_id", Integer, nullable=False),
    Column("username_key", Uuid, nullable=False),
    Column("user_key", Uuid, nullable=False),
    Column("allocation_id", BigInteger, nullable=False),
    Column("kind", SmallInteger, nullable=False),
    Column("side", SmallInteger),
    Column("lifetime", Integer),
    Column("transport", Text),
    Column("server_address", Text),
    Column("client_address", Text),
    *four_counters(),
    Index(
        "reports_by_time",
        "received_at",
        postgresql_using="brin",
        postgresql_with={"pages_per_range": 512, "autosummarize": "on"},
    ),
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
    Index("rejected_messages_by_time", "received_at"),
)

rejected_counts = Table(
    "rejected_counts",
    metadata,
    Column("source_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("starts_at", timestamp, primary_key=True),
    Column("reason", Text, primary_key=True),
    Column("messages", BigInteger, nullable=False),
    Column("stored", BigInteger, nullable=False),
    CheckConstraint("stored BETWEEN 0 AND messages", name="stored_messages_are_counted"),
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
    Index("key_sightings_by_time", "source_id", "seen_at"),
    Index("key_sightings_by_user", "user_key"),
)

message_counts = Table(
    "message_counts",
    metadata,
    Column("source_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("outcome", Text, primary_key=True),
    Column("reason", Text, primary_key=True),
    Column("total", BigInteger, nullable=False),
)
