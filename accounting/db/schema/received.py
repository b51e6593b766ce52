"""The tables of what came: reports, what was no report, what was seen of keys, what was dropped.

Nothing here is computed; all that is right of it can be made anew from it.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
    Integer,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    Uuid,
    text,
)

from accounting.db.schema.columns import four_counters, metadata, timestamp

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
