"""The feed: unnumbered events, the numbered feed, and the positions of its consumers."""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Identity,
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

from accounting.db.schema.columns import metadata, timestamp
from accounting.domain.counters import COUNTERS


def _figures() -> list[Column[Any]]:
    """The columns of session.ended and usage.counted, which have no payload."""
    return [
        Column("allocation_id", BigInteger),
        Column("started_at", timestamp),
        Column("ended_at", timestamp),
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
        Column("sessions_started", BigInteger),
        Column("sessions_ended", BigInteger),
        Column("session_microseconds", BigInteger),
        Column("estimated_bytes", BigInteger),
        Column("is_correction", Boolean),
    ]


feed_outbox = Table(
    "feed_outbox",
    metadata,
    Column("outbox_id", BigInteger, Identity(always=True), primary_key=True),
    Column("event_id", Uuid, nullable=False),
    Column("type", Text, nullable=False),
    Column("realm_id", Integer),
    Column("payload", JSONB),
    Column("created_at", timestamp, nullable=False, server_default=text("now()")),
    *_figures(),
    Index(
        "feed_outbox_corrections",
        "user_key",
        "started_at",
        postgresql_where=text("is_correction"),
    ),
)

feed = Table(
    "feed",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("event_id", Uuid, nullable=False),
    Column("type", Text, nullable=False),
    Column("realm_id", Integer),
    Column("payload", JSONB),
    Column("created_at", timestamp, nullable=False),
    *_figures(),
    UniqueConstraint("event_id", name="event_is_numbered_once"),
    Index(
        "feed_counted_hours",
        "realm_id",
        "started_at",
        postgresql_where=text("is_correction IS NOT NULL"),
    ),
    Index("feed_corrections", "user_key", "started_at", postgresql_where=text("is_correction")),
)

feed_batches = Table(
    "feed_batches",
    metadata,
    Column("last_seq", BigInteger, primary_key=True, autoincrement=False),
    Column("history", Uuid, nullable=False),
)

feed_consumers = Table(
    "feed_consumers",
    metadata,
    Column("consumer", Text, primary_key=True),
    Column("login", Text, nullable=False),
    Column("seq", BigInteger, nullable=False, server_default=text("0")),
    Column("moved_at", timestamp, nullable=False, server_default=text("now()")),
    Column("worker", Text, nullable=False, server_default=text("''")),
)
