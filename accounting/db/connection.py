"""Connections of psycopg, and what their errors mean.

No SQLAlchemy is imported here: a command that reads needs none.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import psycopg
from psycopg.conninfo import conninfo_to_dict

from accounting.errors import ConfigurationError, ConnectionLost, NotAllowed


class Connector:
    """Opens connections to a libpq URL.

    ``reload_url`` is called when a connection is refused: another URL is tried at once, such as one
    with a new password.
    """

    def __init__(
        self, url: str, application_name: str, reload_url: Callable[[], str] | None
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

    def __call__(self) -> psycopg.Connection:
        try:
            return connect(self._url, application_name=self._application_name)
        except psycopg.OperationalError:
            reloaded_url = self._url if self._reload_url is None else self._reload_url()
            if reloaded_url == self._url:
                raise
            self._url = reloaded_url
            return connect(self._url, application_name=self._application_name)


def connect(url: str, *, application_name: str, autocommit: bool = False) -> psycopg.Connection:
    """Connect to a libpq URL as every part of this package does. Raises psycopg.Error."""
    return psycopg.connect(
        url,
        autocommit=autocommit,
        prepare_threshold=None,
        application_name=application_name,
        client_encoding="utf8",  # texts are read before the first transaction
        connect_timeout=10,
        # Detect a dead server within seconds; the kernel's default is two hours.
        keepalives_idle=10,
        keepalives_interval=5,
        keepalives_count=3,
        tcp_user_timeout=20_000,
    )


# While a backup is restored, the database exists before its tables do. Collectors read this table
# first; any other missing table is a bug. The quotation marks around the name in the message differ
# by lc_messages.
_FIRST_TABLE: Final = re.compile(r"\baccounting\.sources\b")


@contextmanager
def lost_connections() -> Iterator[None]:
    """Raise :class:`ConnectionLost` for every error that says the server is unavailable.

    Raises :class:`NotAllowed` for a missing privilege, which an operator must grant. Other errors
    pass unchanged.
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
                "never brought to this version by `turn-accounting db upgrade`"
            ) from error
        invalidated = getattr(error, "connection_invalidated", False)
        if invalidated or (isinstance(cause, psycopg.Error) and _is_server_unavailable(cause)):
            raise ConnectionLost(f"Postgres: {str(cause).strip().splitlines()[0]}") from error
        raise


def _is_server_unavailable(error: psycopg.Error) -> bool:
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        return True  # a standby, or a server that was set to read-only for a while
    if not isinstance(error, psycopg.OperationalError):
        return False
    # No SQLSTATE: the connection broke. 08 connection, 53 resources, 57 operator intervention,
    # 40 serialization and deadlock, 55P03 lock timeout.
    state = error.sqlstate
    return state is None or state[:2] in {"08", "53", "57", "40"} or state == "55P03"
