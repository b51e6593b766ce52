"""The locks that a login with the role of the reader can take."""

from typing import Any, Final

import psycopg
from psycopg import sql

JOB_LOCKS: Final = ("feed", "gaps", "partitions", "report_partition", "retain", "rollup")


def views(connection: "psycopg.Connection[Any]") -> list[sql.Identifier]:
    """The public views."""
    rows = connection.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'reporting'::regnamespace"
        " AND relkind = 'v' ORDER BY 1"
    ).fetchall()
    assert rows
    return [sql.Identifier("reporting", name) for (name,) in rows]


def hold_readers_locks(connection: "psycopg.Connection[Any]") -> None:
    """Take every lock that a reader can take, and keep the transaction open."""
    connection.execute(
        "SELECT pg_advisory_xact_lock(hashtextextended('accounting.' || name, 0)),"
        " pg_advisory_xact_lock(hashtext('accounting.' || name))"
        " FROM (SELECT unnest(%s::text[]) UNION ALL"
        " SELECT 'settle.' || number FROM generate_series(1, 9) AS number) AS names (name)",
        [[*JOB_LOCKS, "migrations", "ensure_report_partition"]],
    )
    for view in views(connection):
        connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(view))
        connection.execute(sql.SQL("SELECT * FROM {} LIMIT 1").format(view))
    connection.execute("NOTIFY accounting_feed, 'nonsense'")
