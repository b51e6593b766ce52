"""The foreign server of a cell, its user mapping, and the views over all cells."""

from collections.abc import Mapping

from psycopg import sql
from psycopg.errors import FdwInvalidOptionName
from sqlalchemy import Connection

from accounting.db.engine import psycopg_connection
from accounting.db.queries import Queries
from accounting.db.revisions import head_revision, migrations_directory
from accounting.errors import UsageError
from accounting.front.cell_url import login_options, server_options
from accounting.front.cells import limit_statements

_QUERIES = Queries("accounting.front")
IMPORT_SECONDS = 60.0


def create_server(connection: Connection, cell: str, url: str, password: str | None) -> None:
    """Create the foreign server of a cell; one that it had is dropped by :func:`drop_former`.

    It does not connect to the cell. Only a superuser may map a login that needs no password. Raises
    UsageError for an option of the URL that the front's Postgres does not know.
    """
    server = sql.Identifier(f"cell_{cell}")
    cursor = psycopg_connection(connection).cursor()
    if connection.execute(_QUERIES.text("has_server"), {"server": f"cell_{cell}"}).scalar_one():
        cursor.execute(sql.SQL("ALTER SERVER {} RENAME TO {}").format(server, _former(cell)))
    try:
        cursor.execute(
            sql.SQL("CREATE SERVER {} FOREIGN DATA WRAPPER postgres_fdw OPTIONS ({})").format(
                server, _options(server_options(url))
            )
        )
    except FdwInvalidOptionName as error:
        raise UsageError(
            f"the URL of cell '{cell}': {error.diag.message_primary} of the front's Postgres"
        ) from None
    cursor.execute(
        sql.SQL("ALTER SERVER {} OWNER TO turn_accounting_owner").format(server),
    )
    connection.execute(_QUERIES.text("log_no_passwords"))
    cursor.execute(
        sql.SQL("CREATE USER MAPPING FOR turn_accounting_owner SERVER {} OPTIONS ({})").format(
            server, _options(login_options(url, password))
        )
    )


def drop_server(connection: Connection, cell: str) -> None:
    """Drop the foreign server and the foreign tables of a cell that no view reads any more."""
    cursor = psycopg_connection(connection).cursor()
    name = sql.Identifier(f"cell_{cell}")
    cursor.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(name))
    cursor.execute(sql.SQL("DROP SERVER IF EXISTS {} CASCADE").format(name))


def drop_former(connection: Connection, cell: str) -> None:
    """Drop the server that a cell had before, which no view reads any more."""
    cursor = psycopg_connection(connection).cursor()
    cursor.execute(sql.SQL("DROP SERVER IF EXISTS {} CASCADE").format(_former(cell)))


def _former(cell: str) -> sql.Identifier:
    return sql.Identifier(f"cell_{cell} (former)")


def import_views(connection: Connection, cell: str, revision: str) -> None:
    """Make the foreign tables of a cell, by asking it for its views, and the views over them.

    Raises ConnectionLost for a cell that does not answer.
    """
    limit_statements(connection, IMPORT_SECONDS)
    connection.execute(
        _QUERIES.text("import_cell"),
        {"cell": cell, "revision": revision, "front_revision": head_revision()},
    )
    limit_statements(connection, 0)


def define_functions(connection: Connection) -> None:
    """Define the functions of ``reporting`` that read private tables in a cell."""
    path = migrations_directory() / "sql" / "front_functions.sql"
    connection.exec_driver_sql(path.read_text().replace("%", "%%"))


def define_views(connection: Connection) -> None:
    """Define the views of ``reporting`` over the cells that there are."""
    connection.execute(_QUERIES.text("define_front_views"))


def _options(options: Mapping[str, str]) -> sql.Composed:
    return sql.SQL(", ").join(
        sql.SQL("{} {}").format(sql.Identifier(name), sql.Literal(value))
        for name, value in options.items()
    )
