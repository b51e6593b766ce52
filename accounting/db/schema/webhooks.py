"""Webhooks: endpoints with their positions in the feed, requests, and events that were refused."""

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    Double,
    Identity,
    Index,
    Integer,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from accounting.db.schema.columns import metadata, timestamp

webhooks = Table(
    "webhooks",
    metadata,
    Column("number", Integer, Identity(always=True), primary_key=True),
    Column("url", Text, nullable=False),
    Column("format", Text, nullable=False),
    Column("types", ARRAY(Text)),
    Column("realm_id", Integer),
    Column("options", JSONB, nullable=False, server_default=text("'{}'")),
    Column("allows_private", Boolean, nullable=False),
    Column("batch_size", Integer, nullable=False),
    Column("parallel", Integer, nullable=False),
    Column("secret", Text, nullable=False),
    Column("previous_secret", Text),
    Column("previous_until", timestamp),
    Column("api_key", Text),
    Column("version", Integer, nullable=False, server_default=text("1")),
    Column("created_at", timestamp, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("seqs_ahead", ARRAY(BigInteger), nullable=False, server_default=text("'{}'")),
    Column("history", Uuid),
    Column("counted_from", timestamp),
    Column("lease", Uuid),
    Column("leased_until", timestamp),
    Column("failures", Integer, nullable=False, server_default=text("0")),
    Column("failing_since", timestamp),
    Column("next_attempt_at", timestamp),
    Column("in_doubt_since", timestamp),
    Column("last_failure", Text),
    Column("disabled_at", timestamp),
    Column("disabled_cause", Text),
    Column("disabled_reason", Text),
    Column("delivered_events", BigInteger, nullable=False, server_default=text("0")),
    Column("delivered_at", timestamp),
)

webhook_attempts = Table(
    "webhook_attempts",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("attempt_id", BigInteger, Identity(always=True), primary_key=True),
    Column("attempted_at", timestamp, nullable=False),
    Column("first_seq", BigInteger, nullable=False),
    Column("last_seq", BigInteger, nullable=False),
    Column("events", Integer, nullable=False),
    Column("taken", Integer, nullable=False),
    Column("status", Integer),
    Column("failure", Text),
    Column("seconds", Double, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("history", Uuid),
    Index("webhook_attempts_by_time", "attempted_at"),
)

webhook_refusals = Table(
    "webhook_refusals",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("event_id", Uuid, primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("type", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("refused_at", timestamp, nullable=False),
)

webhook_customers = Table(
    "webhook_customers",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("user_key", Uuid, primary_key=True),
    Column("customer", Text, nullable=False),
)
