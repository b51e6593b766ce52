"""What the tables share: one MetaData, and columns that many of them have.

Owns their types: times know their zone, counters are exact. Must not name a table.
"""

from sqlalchemy import BigInteger, Column, DateTime, MetaData, Numeric, Table, text

from accounting.domain.counters import COUNTERS

metadata = MetaData(schema="accounting")

timestamp = DateTime(timezone=True)


def eight_counters() -> list[Column[int]]:
    """What a client and its peers moved, both ways."""
    return [Column(name, BigInteger, nullable=False) for name in COUNTERS]


def four_counters() -> list[Column[int]]:
    """What one report says of one side."""
    return [
        Column(name, BigInteger, nullable=False, server_default=text("0")) for name in COUNTERS[:4]
    ]


def usage_sums() -> list[Column[int]]:
    """What sums of usage have, whatever they sum up."""
    return [
        *eight_counters(),
        Column("sessions_started", BigInteger, nullable=False),
        Column("sessions_ended", BigInteger, nullable=False),
        Column("session_microseconds", Numeric, nullable=False),
        Column("estimated_bytes", BigInteger, nullable=False),
    ]


def view_like(table: Table, name: str) -> Table:
    """A view with a table's columns. Migrations make it; ``alembic check`` doesn't see it."""
    return Table(
        name,
        MetaData(schema="accounting"),
        *(Column(column.name, column.type, primary_key=column.primary_key) for column in table.c),
    )
