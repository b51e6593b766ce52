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
    Column("last_report_at", timestamp, nullable=False),
    Column("highest_id", BigInteger, nullable=False, server_default=text("0")),
    Column("highest_at", timestamp),
    Column("restarted_at", timestamp),
    Column("missed_count", Integer, nullable=False, server_default=text("0")),
    Column("not_explained_by_gap", Boolean, nullable=False, server_default=text("false")),
    Column("overdue_since", timestamp),
    CheckConstraint(
        "(missed_count > 0) = (overdue_since IS NOT NULL)", name="missed_reports_have_a_due_time"
    ),
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

message_counts = Table(
    "message_counts",
    metadata,
    Column("source_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("outcome", Text, primary_key=True),
    Column("reason", Text, primary_key=True),
    Column("total", BigInteger, nullable=False),
)
