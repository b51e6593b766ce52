"""The feed: unnumbered events, the numbered feed, and the positions of its consumers."""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Identity,
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


def _session_end() -> list[Column[Any]]:
    """The columns of a session.ended event, which has no payload."""
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
    *_session_end(),
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
    *_session_end(),
    UniqueConstraint("event_id", name="event_is_numbered_once"),
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
