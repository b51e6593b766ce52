"""How the runs of each job went."""

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    Integer,
    Table,
    Text,
    text,
)

from accounting.db.schema.columns import metadata, timestamp

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
    Column("blocked_since", timestamp),
    Column("blocked_at", timestamp),
    Column("blocked_by", Text),
)
