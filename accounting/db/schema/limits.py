"""Limits of usage, and which of their thresholds were reached."""

from typing import Final
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Column,
    Identity,
    Index,
    Integer,
    Numeric,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY

from accounting.db.schema.columns import metadata, timestamp

REALM_KEY: Final = UUID(int=0)
"""The user_key of what the realm as a whole has reached; migrations/sql write it out."""

_SHOWN_KEY: Final = text(f"(nullif(user_key, '{REALM_KEY}'::uuid))")
"""As the view has it: null for a limit of the realm."""

limits = Table(
    "limits",
    metadata,
    Column("limit_id", Integer, Identity(always=True), primary_key=True),
    Column("realm_id", Integer, nullable=False),
    Column("whom", Text, nullable=False),
    Column("user_key", Uuid),
    Column("measure", Text, nullable=False),
    Column("direction", Text, nullable=False),
    Column("per", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("thresholds", ARRAY(Integer), nullable=False),
    Column("set_at", timestamp, nullable=False),
    Index("limits_by_per", "realm_id", "per", "set_at"),
    Index(
        "limits_of_users_by_measure",
        "realm_id",
        "measure",
        postgresql_where=text("whom <> 'realm'"),
    ),
    UniqueConstraint(
        "realm_id",
        "whom",
        "user_key",
        "measure",
        "direction",
        "per",
        name="limit_is_set_once",
        postgresql_nulls_not_distinct=True,
    ),
)

limit_states = Table(
    "limit_states",
    metadata,
    Column("limit_id", Integer, primary_key=True, autoincrement=False),
    Column("realm_id", Integer, nullable=False),
    Column("user_key", Uuid, primary_key=True),
    Column("starts_at", timestamp, primary_key=True),
    Column("threshold", Integer, primary_key=True, autoincrement=False),
    Column("ends_at", timestamp, nullable=False),
    Column("time_zone", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("usage", Numeric, nullable=False),
    Column("reached_at", timestamp, nullable=False),
    Column("cleared_at", timestamp),
    Column("times_reached", Integer, nullable=False),
    Index("limit_states_by_realm", "realm_id", "starts_at", "limit_id", "threshold", _SHOWN_KEY),
    Index("limit_states_by_user", _SHOWN_KEY, "starts_at", "limit_id", "threshold"),
    Index(
        "limits_reached",
        "limit_id",
        "threshold",
        "ends_at",
        postgresql_where=text("cleared_at IS NULL"),
    ),
    Index(
        "limits_reached_in_realm",
        "realm_id",
        "threshold",
        "ends_at",
        postgresql_where=text("cleared_at IS NULL"),
    ),
)

limit_cells = Table(
    "limit_cells",
    metadata,
    Column("cell_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("joined_at", timestamp, nullable=False),
    Column("changed_until", timestamp, nullable=False),
)

waiting_limits = Table(
    "waiting_limits",
    metadata,
    Column("realm_id", Integer, primary_key=True, autoincrement=False),
)

limit_periods = Table(
    "limit_periods",
    metadata,
    Column("realm_id", Integer, primary_key=True, autoincrement=False),
    Column("starts_at", timestamp, nullable=False),
    Column("ends_at", timestamp, nullable=False),
    Column("time_zone", Text, nullable=False),
)
