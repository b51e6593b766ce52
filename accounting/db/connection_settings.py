"""The settings of a Postgres session that this package relies on, applied in each transaction.

A database or a login can set each of them otherwise (``ALTER DATABASE``, ``ALTER ROLE``); so can
PGOPTIONS or the URL. They are applied as ``SET LOCAL`` at the start of each transaction:
poolers refuse unknown startup options, and in transaction mode a session setting stays on a server
connection that another client gets next. All go in one message, for about 0.1 ms. ``SET`` takes no
snapshot, so that a transaction can still choose its isolation level and take locks before its first
read.

Not here: ``default_transaction_read_only``, which an operator or a full disk sets to stop writes,
and ``synchronous_commit``, where a standby may deserve ``remote_apply``; `doctor` reports ``off``.
"""

from collections.abc import Sequence
from functools import cache
from typing import Final

import psycopg
from psycopg import sql

from accounting.db.queries import Queries

_QUERIES: Final = Queries("accounting.db")

# Postgres' minor releases of August 2024 added restrict_nonsystem_relation_kind.
_RESTRICTS_KINDS_SINCE: Final = {15: 150_008, 16: 160_004}
_LIMITS_TRANSACTIONS_SINCE: Final = 170_000


def settings_statement(connection: psycopg.Connection) -> str:
    """The statements that apply the settings, for the version of that server."""
    return _statement(connection.info.server_version)


def apply_settings(
    connection: psycopg.Connection,
    *,
    as_reader: bool = False,
    without_cells: Sequence[str] = (),
    is_front: bool = False,
) -> None:
    """Apply the settings to the transaction that a connection is in.

    ``as_reader``: also take the reader's role, which gives up all other rights until the end of the
    transaction. ``without_cells``: of a front, which are left out. ``is_front``: plans contain
    which cells are read, and another client of a pooler may have left some out: they are remade.
    """
    statement = settings_statement(connection).encode()
    if is_front:
        statement += b";\n" + _QUERIES.driver("forget_plans")
    if without_cells:
        left_out = sql.SQL(";\nSET LOCAL turn_accounting.without_cells = {}").format(
            sql.Literal(",".join(without_cells))
        )
        statement += left_out.as_bytes(connection)
    if as_reader:
        statement += b";\n" + _QUERIES.driver("become_reader")
    connection.execute(statement)


@cache
def _statement(version: int) -> str:
    names = ["settings"]
    if version >= _RESTRICTS_KINDS_SINCE.get(version // 10_000, 170_000):
        names.append("settings_restricted_kinds")
    if version >= _LIMITS_TRANSACTIONS_SINCE:
        names.append("settings_transaction_timeout")
    lines = ";\n".join(_QUERIES.driver(name).decode() for name in names).splitlines()
    return "\n".join(line for line in lines if not line.startswith("--"))
