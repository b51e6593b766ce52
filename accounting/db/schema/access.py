"""Who may read the books over HTTP: tokens and browser sessions, in a schema of their own."""

from sqlalchemy import (
    Column,
    Identity,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
)

from accounting.db.schema.columns import metadata, timestamp

SCHEMA = "access"

tokens = Table(
    "tokens",
    metadata,
    Column("number", Integer, Identity(always=True), primary_key=True),
    Column("label", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("realm", Text),
    Column("user_key", Uuid),
    Column("created_at", timestamp, nullable=False),
    Column("expires_at", timestamp),
    Column("revoked_at", timestamp),
    Column("last_used_at", timestamp),
    UniqueConstraint("digest", name="token_digest_is_unique"),
    schema=SCHEMA,
)

browser_sessions = Table(
    "sessions",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("number", Integer, nullable=False),
    Column("opened_at", timestamp, nullable=False),
    Column("expires_at", timestamp, nullable=False),
    Index("sessions_by_token", "number"),
    schema=SCHEMA,
)
