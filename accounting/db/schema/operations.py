"""The tables about the service itself: what it counted, how its jobs went, whom it hears.

Must not hold figures that anybody is billed by.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    Integer,
    SmallInteger,
    Table,
    Text,
    text,
)

from accounting.db.schema.columns import metadata, timestamp

relay_threads = Table(
    "relay_threads",
    metadata,
    Column("source_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("database", Integer, primary_key=True, autoincrement=False),
    Column("server", Text, primary_key=True),
    Column("thread", SmallInteger, primary_key=True, autoincrement=False),
    Column("heard_at", timestamp, nullable=False),
    Column("highest_id", BigInteger, nullable=False, server_default=text("0")),
    Column("highest_at", timestamp),
    Column("restarted_at", timestamp),
    Column("unheard", Integer, nullable=False, server_default=text("0")),
    Column("certain", Boolean, nullable=False, server_default=text("false")),
    Column("owed_since", timestamp),
    CheckConstraint("(unheard > 0) = (owed_since IS NOT NULL)", name="unheard_lives_owe_something"),
)

job_runs = Table(
    "job_runs",
    metadata,
    Column("job", Text, primary_key=True),
    Column("runs", BigInteger, nullable=False, server_default=text("0")),
    Column("failures", BigInteger, nullable=False, server_default=text("0")),
    Column("failures_in_a_row", Integer, nullable=False, server_default=text("0")),
    Column("last_succeeded_at", timestamp),
    Column("last_seconds", Double),
    Column("last_failed_at", timestamp),
    Column("last_error", Text),
)

tallies = Table(
    "tallies",
    metadata,
    Column("source_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("counted", Text, primary_key=True),
    Column("detail", Text, primary_key=True),
    Column("total", BigInteger, nullable=False),
)
