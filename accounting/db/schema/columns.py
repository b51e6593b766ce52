"""The MetaData of the tables, and columns that several of them share."""

from sqlalchemy import BigInteger, Column, DateTime, MetaData, Numeric, Table

from accounting.domain.counters import COUNTERS

metadata = MetaData(schema="accounting")

timestamp = DateTime(timezone=True)


def eight_counters() -> list[Column[int]]:
    """The counters of both sides of the relay: COUNTERS."""
    return [Column(name, BigInteger, nullable=False) for name in COUNTERS]


def four_counters() -> list[Column[int]]:
    """The counters of one side, which a report has; another column says which side."""
    return [Column(name, BigInteger, nullable=False) for name in COUNTERS[:4]]


def usage_sums() -> list[Column[int]]:
    """The columns of every table with usage by hour, day or month."""
    return [
        *eight_counters(),
        Column("sessions_started", BigInteger, nullable=False),
        Column("sessions_ended", BigInteger, nullable=False),
        Column("session_microseconds", Numeric, nullable=False),
        Column("estimated_bytes", BigInteger, nullable=False),
    ]


def view_like(table: Table, name: str) -> Table:
    """A view with a table's columns. It is not in ``metadata``, so alembic does not check it."""
    return Table(
        name,
        MetaData(schema="accounting"),
        *(Column(column.name, column.type, primary_key=column.primary_key) for column in table.c),
    )
