"""Upgrade the database to this version's schema, and check that it has it.

The name of each migration's file starts with its revision. Importing Alembic takes a seventh of a
process' start, so only the functions that need it import it: every process checks the revision,
which doesn't.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import psycopg
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, ProgrammingError

from accounting.db.engine import lost_connections
from accounting.db.locks import lock
from accounting.db.queries import Queries
from accounting.db.revisions import head_revision, migrations_directory
from accounting.db.schema import metadata
from accounting.errors import AccountingError

if TYPE_CHECKING:
    from alembic.config import Config

_QUERIES: Final = Queries("accounting.db")
OWNER: Final = "turn_accounting_owner"
MAX_UPGRADE_SECONDS: Final = 3600.0
"""How long an upgrade waits for another one."""
PREPARE_ATTEMPTS: Final = 5

# The last one is "tuple concurrently updated", for two that grant the same.
_CREATED_MEANWHILE: Final = (
    psycopg.errors.UniqueViolation,
    psycopg.errors.DuplicateObject,
    psycopg.errors.DuplicateSchema,
    psycopg.errors.DuplicateTable,
    psycopg.errors.InternalError_,
)


def _config(connection: Connection) -> "Config":
    from alembic.config import Config  # noqa: PLC0415  # see the module's docstring

    config = Config()
    config.set_main_option("script_location", str(migrations_directory()).replace("%", "%%"))
    config.attributes["connection"] = connection
    config.attributes["metadata"] = metadata
    return config


def current_revision(engine: Engine) -> str | None:
    """The revision that the database has; None before the first."""
    with lost_connections(), engine.connect() as connection:
        table = connection.scalar(text("SELECT to_regclass('accounting.alembic_version')"))
        if table is None:
            return None
        revision: str | None = connection.scalar(
            text("SELECT version_num FROM accounting.alembic_version")
        )
        return revision


def upgrade(engine: Engine, *, finish: Callable[[Connection], None] | None = None) -> str:
    """Upgrade to :func:`head_revision`, in one transaction, as the owner role.

    ``finish`` is called at its end, also when there was nothing to upgrade.
    Raises :class:`AccountingError` if the database is not in UTF-8, or if this user may not create
    the roles or act as the owner.
    """
    from alembic import command  # noqa: PLC0415  # see the module's docstring

    _prepare(engine)
    with lost_connections(), engine.begin() as connection:
        connection.execute(text(f"SET LOCAL ROLE {OWNER}"))
        # Of two concurrent upgrades, the second waits, and has nothing left to do.
        lock(connection, "migrations", wait_seconds=MAX_UPGRADE_SECONDS)
        command.upgrade(_config(connection), "head")
        if finish is not None:
            finish(connection)
    return head_revision()


def _prepare(engine: Engine) -> None:
    """Create what the first upgrade needs: the roles, the schemas and the table of the locks.

    Nothing locks out another first upgrade yet, which may create the same at the same moment.
    """
    for attempt in range(1, PREPARE_ATTEMPTS + 1):
        try:
            with lost_connections(), engine.begin() as connection:
                _require_utf8(connection)
                _create_roles_and_schemas(connection)
        except DBAPIError as error:
            if attempt == PREPARE_ATTEMPTS or not isinstance(error.orig, _CREATED_MEANWHILE):
                raise
        else:
            return


def _create_roles_and_schemas(connection: Connection) -> None:
    try:
        connection.execute(_QUERIES.text("roles"))
        connection.execute(text(f"SET LOCAL ROLE {OWNER}"))
        connection.execute(text("CREATE SCHEMA IF NOT EXISTS accounting"))
        connection.execute(text("CREATE SCHEMA IF NOT EXISTS reporting"))
        connection.execute(_QUERIES.text("locks"))
    except ProgrammingError as error:
        if isinstance(error.orig, _CREATED_MEANWHILE):
            raise
        raise AccountingError(
            f"this user may not set up the roles ({str(error.orig).splitlines()[0]}): "
            "let a superuser run `turn-accounting db upgrade` once, or create the roles "
            "turn_accounting_owner, turn_accounting_writer and turn_accounting_reader, "
            "grant CREATE on the database to the first, and the first to this user"
        ) from error


def _require_utf8(connection: Connection) -> None:
    """Usernames are UTF-8, and the encoding of a database can't change."""
    database, encoding = connection.execute(_QUERIES.text("database_encoding")).one()
    if encoding != "UTF8":
        raise AccountingError(
            f"the database '{database}' has the encoding {encoding}, which can't store all "
            "usernames: make another one with CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE "
            "template0"
        )


def allow_role_logins(engine: Engine) -> None:
    """Allow the roles to log in: for an embedded server, which trusts its socket."""
    with lost_connections(), engine.begin() as connection:
        for role in (OWNER, "turn_accounting_writer", "turn_accounting_reader"):
            connection.execute(text(f"ALTER ROLE {role} LOGIN"))


def check_metadata(connection: Connection) -> None:
    """Raise alembic's AutogenerateDiffsDetected if tables and metadata differ."""
    from alembic import command  # noqa: PLC0415  # see the module's docstring

    command.check(_config(connection))


def require_head(engine: Engine) -> None:
    """Raise :class:`AccountingError` unless the database has this version's schema."""
    revision, required = current_revision(engine), head_revision()
    if revision != required:
        raise AccountingError(
            f"the database is at revision {revision or 'none'}, this version needs {required}: "
            "run `turn-accounting db upgrade`"
        )
