"""Connections of psycopg, and what their errors mean.

No SQLAlchemy is imported here: a command that reads needs none.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from accounting.errors import CellAway, ConfigurationError, ConnectionLost, NotAllowed

CONNECT_SECONDS: Final = 10


class Connector:
    """Opens connections to a libpq URL.

    ``reload_url`` is called when a connection is refused: another URL is tried at once, such as one
    with a new password. ``settings``: of the session, from its start. ``connect_seconds``: how long
    a server may take to let in.
    """

    def __init__(
        self,
        url: str,
        application_name: str,
        reload_url: Callable[[], str] | None,
        settings: Mapping[str, str] | None = None,
        *,
        connect_seconds: int = CONNECT_SECONDS,
    ) -> None:
        try:
            conninfo_to_dict(url)
        except psycopg.ProgrammingError:
            raise ConfigurationError(
                "ACCOUNTING_DATABASE_URL: not a libpq URL: expected postgresql://user@host/database"
            ) from None
        self._url = url
        self._application_name = application_name
        self._reload_url = reload_url
        self._settings = settings or {}
        self._connect_seconds = connect_seconds

    def with_settings(self, settings: Mapping[str, str]) -> "Connector":
        """Opens the same connections with these settings."""
        return Connector(self._url, self._application_name, self._reload_url, settings)

    def __call__(self) -> psycopg.Connection:
        try:
            return self._open()
        except psycopg.OperationalError:
            reloaded_url = self._url if self._reload_url is None else self._reload_url()
            if reloaded_url == self._url:
                raise
            self._url = reloaded_url
            return self._open()

    def _open(self) -> psycopg.Connection:
        url = self._url
        if self._settings:
            options = conninfo_to_dict(url).get("options") or os.environ.get("PGOPTIONS", "")
            settings = [f"-c {name}={value}" for name, value in self._settings.items()]
            url = make_conninfo(url, options=" ".join([str(options), *settings]).strip())
        return connect(
            url, application_name=self._application_name, connect_seconds=self._connect_seconds
        )


def connect(
    url: str,
    *,
    application_name: str,
    autocommit: bool = False,
    connect_seconds: int = CONNECT_SECONDS,
) -> psycopg.Connection:
    """Connect to a libpq URL as every part of this package does. Raises psycopg.Error."""
    return psycopg.connect(
        url,
        autocommit=autocommit,
        prepare_threshold=None,
        application_name=application_name,
        client_encoding="utf8",  # texts are read before the first transaction
        connect_timeout=connect_seconds,
        # Detect a dead server within seconds; the kernel's default is two hours.
        keepalives_idle=10,
        keepalives_interval=5,
        keepalives_count=3,
        tcp_user_timeout=20_000,
    )


# While a backup is restored, the database exists before its tables do. Collectors read the sources
# first, loaders, when they start, the rules, and the commands of a front whether it is one; any
# other missing table is a bug. The quotation marks around the name in the message differ by
# lc_messages.
_FIRST_TABLE: Final = re.compile(r"\baccounting\.(sources|realm_rules|front)\b")


@contextmanager
def lost_connections() -> Iterator[None]:
    """Raise :class:`ConnectionLost` for every error that says the server is unavailable.

    On a front, :class:`CellAway` for an unavailable cell. Raises :class:`NotAllowed` for a missing
    privilege, which an operator must grant. Other errors pass unchanged.
    """
    try:
        yield
    except Exception as error:
        cause = getattr(error, "orig", error)  # of an error of SQLAlchemy: that of psycopg
        if isinstance(cause, psycopg.errors.InsufficientPrivilege):
            raise NotAllowed(
                f"Postgres: {str(cause).splitlines()[0]}: expected a user with the role "
                "turn_accounting_writer, or turn_accounting_reader to read"
            ) from error
        if isinstance(cause, psycopg.errors.UndefinedTable) and _FIRST_TABLE.search(str(cause)):
            raise ConnectionLost(
                f"Postgres: {str(cause).splitlines()[0]}: the database is being restored, or was "
                "never brought to this version by `turn-accounting db upgrade`, or `front init`"
            ) from error
        if isinstance(cause, psycopg.Error) and (away := _cell_away(cause)) is not None:
            raise away from error
        invalidated = getattr(error, "connection_invalidated", False)
        if invalidated or (isinstance(cause, psycopg.Error) and _is_server_unavailable(cause)):
            raise ConnectionLost(f"Postgres: {str(cause).strip().splitlines()[0]}") from error
        raise


_SERVER_OF_CELL: Final = re.compile(r"\bcell_([a-z0-9][a-z0-9_-]*)")
"""In messages of postgres_fdw. The quotation marks around the name differ by lc_messages."""


def _cell_away(error: psycopg.Error) -> CellAway | None:
    """What postgres_fdw says of the connection to a cell; None for any other error.

    It names the server only where it can't connect. Of a connection that breaks, and of one that
    the cell ends, it only passes on what libpq or the cell said.
    """
    if not (error.diag.source_function or "").startswith(_OF_POSTGRES_FDW):
        return None
    primary = error.diag.message_primary or ""
    if isinstance(error, psycopg.errors.SqlclientUnableToEstablishSqlconnection):
        match = _SERVER_OF_CELL.search(primary)
        return CellAway(match[1] if match else None, _reason(error.diag.message_detail or primary))
    if isinstance(error, psycopg.errors.ProhibitedSqlStatementAttempted):
        return CellAway(None, _LACKS_LOGIN)
    if (reason := missing_tables(error)) is not None:
        return CellAway(None, reason)
    if _is_server_unavailable(error):
        return CellAway(None, primary.strip().splitlines()[0])
    return None


def missing_tables(error: Exception) -> str | None:
    """Why a cell lacks what its front reads there, if that is the error.

    A cell had its tables when it joined, so a missing one is no bug, as it would be in the database
    itself.
    """
    cause = getattr(error, "orig", error)
    if not isinstance(cause, psycopg.errors.UndefinedTable | psycopg.errors.InvalidSchemaName):
        return None
    said = str(cause).splitlines()[0]
    return f"{said}: the database is being restored, or is at another revision"


def needs_password(error: BaseException) -> bool:
    """Whether a server asked for a password, and none was given."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, psycopg.Error) and cause.pgconn is not None:
            return bool(cause.pgconn.needs_password)
        cause = cause.__cause__
    return False


def _reason(detail: str) -> str:
    """The last attempt to connect of those that libpq lists; it indents its hints."""
    lines = [line for line in detail.splitlines() if line and not line[0].isspace()]
    return lines[-1] if lines else detail.strip()


_LACKS_LOGIN: Final = (
    "the front has no password for it, as after a restore of a dump that no superuser made: let it "
    "join again"
)
_OF_POSTGRES_FDW: Final = ("pgfdw_", "connect_pg_server", "libpqsrv_", "check_conn_params")
"""The functions of its source that report such errors."""


def _is_server_unavailable(error: psycopg.Error) -> bool:
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        return True  # a standby, or a server that was set to read-only for a while
    if isinstance(error, psycopg.InternalError) and error.sqlstate is None:
        return True  # psycopg's own: a pooler ended the connection amid an answer
    if not isinstance(error, psycopg.OperationalError):
        return False
    # No SQLSTATE: the connection broke. 08 connection, 53 resources, 57 operator intervention,
    # 40 serialization and deadlock, 55P03 lock timeout.
    state = error.sqlstate
    return state is None or state[:2] in {"08", "53", "57", "40"} or state == "55P03"
