"""The cells of a front, and the front of a cell."""

from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)

from accounting.db.schema.columns import metadata, timestamp

front = Table(
    "front",
    metadata,
    Column("id", Boolean, primary_key=True, server_default=text("true")),
    Column("initialized_at", timestamp, nullable=False, server_default=text("clock_timestamp()")),
)

cells = Table(
    "cells",
    metadata,
    Column("cell_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("cell", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("revision", Text, nullable=False),
    Column("joined_at", timestamp, nullable=False, server_default=text("clock_timestamp()")),
    Column("adjustments_until", timestamp, nullable=False, server_default=text("'-infinity'")),
    Column("feed_seq", BigInteger, nullable=False, server_default=text("0")),
    Column("feed_history", Uuid, nullable=False, server_default=text(f"'{UUID(int=0)}'")),
    UniqueConstraint("cell", name="cell_is_unique"),
)

membership = Table(
    "membership",
    metadata,
    Column("id", Boolean, primary_key=True, server_default=text("true")),
    Column("front", Text, nullable=False),
    Column("cell", Text, nullable=False),
    Column("joined_at", timestamp, nullable=False, server_default=text("clock_timestamp()")),
)
