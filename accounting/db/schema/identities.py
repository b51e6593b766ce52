"""Realms and their rules, users and usernames; all other tables hold keys instead of names."""

from sqlalchemy import (
    Boolean,
    Column,
    Identity,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)

from accounting.db.schema.columns import metadata, timestamp

installation = Table(
    "installation",
    metadata,
    Column("id", Boolean, primary_key=True, server_default=text("true")),
    Column("identity_key", LargeBinary, nullable=False),
    Column("database_id", Uuid, nullable=False, server_default=text("gen_random_uuid()")),
)

realms = Table(
    "realms",
    metadata,
    Column("realm_id", Integer, Identity(always=True), primary_key=True),
    Column("realm", Text, nullable=False),
    Column("realm_bytes", LargeBinary, nullable=False),
    Column("client_addresses", Text, nullable=False, server_default=text("'keep'")),
    Column("named_in_radacct", Boolean, nullable=False, server_default=text("true")),
    UniqueConstraint("realm_bytes", name="realm_is_unique"),
    Index(
        "one_realm_is_not_named_in_radacct",
        "named_in_radacct",
        unique=True,
        postgresql_where=text("NOT named_in_radacct"),
    ),
)

realm_rules = Table(
    "realm_rules",
    metadata,
    Column("realm_id", Integer, primary_key=True, autoincrement=False),
    Column("holds_from", timestamp, primary_key=True),
    Column("time_zone", Text, nullable=False),
    Column("anchor_day", SmallInteger, nullable=False),
    Column("grace_seconds", Integer, nullable=False),
    Column("username_rule", Text, nullable=False),
    Column("separator", Text, nullable=False),
)

users = Table(
    "users",
    metadata,
    Column("user_key", Uuid, primary_key=True),
    Column("realm_id", Integer, nullable=False),
    Column("user_id", Text, nullable=False),
    Column("radacct_suffix", Text, nullable=False, server_default=text("''")),
    Index("users_by_name", "realm_id", "user_id"),
    Index("users_by_radacct_name", text("(user_id || radacct_suffix)"), postgresql_using="hash"),
)

usernames = Table(
    "usernames",
    metadata,
    Column("user_key", Uuid, primary_key=True),
    Column("username_key", Uuid, primary_key=True),
    Column("username", Text, nullable=False),
)

erasures = Table(
    "erasures",
    metadata,
    Column("user_key", Uuid, primary_key=True),
    Column("erased_at", timestamp, primary_key=True, server_default=text("now()")),
    Column("of_front", timestamp),
)
