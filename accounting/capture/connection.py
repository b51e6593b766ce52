"""A connection to Redis or Valkey, set up by redis-py and then left to us.

Owns the way from a URL to a socket that is authenticated and speaks RESP2: TLS, unix sockets, AUTH,
ACL. Must not subscribe or read a message. No error or log of this module holds the URL.
"""

import ssl
from typing import Any

from redis.connection import AbstractConnection, Connection, parse_url
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    NoPermissionError,
    RedisError,
    ResponseError,
)

from accounting.capture.source import SourceLost
from accounting.errors import ConfigurationError

connect_timeout_seconds = 5.0

expected_url = (
    "ACCOUNTING_REDIS_URL is not understood: expected redis://[user:password@]host:port,"
    " rediss:// for TLS, or unix:///path, with options that redis-py knows"
)


def prepare(url: str) -> AbstractConnection:
    """An unconnected connection for `url`. Raises ConfigurationError when redis-py refuses it."""
    # The texts of these errors may hold parts of the URL, and with them the password.
    try:
        options: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
        kind = options.pop("connection_class", Connection)
        # Publishing ignores the database number, and choosing one takes a right that reading does
        # not need. RESP2 answers a PING in the order of the messages, with the words we match on.
        options.pop("db", None)
        options |= {
            "protocol": 2,
            "socket_timeout": connect_timeout_seconds,
            "socket_connect_timeout": connect_timeout_seconds,
        }
        connection: AbstractConnection = kind(**options)
    except (ValueError, TypeError, RedisError):
        raise ConfigurationError(expected_url) from None
    return connection


def connect(connection: AbstractConnection) -> str | None:
    """Connect and authenticate; returns the server's run id, None when it isn't told.

    Raises SourceLost, with advice when trying again can't help.
    """
    try:
        connection.connect()  # type: ignore[no-untyped-call]
        _name(connection)
        return _run_id(connection)
    except (AuthenticationError, AuthorizationError, NoPermissionError) as error:
        raise SourceLost(
            "redis_unreachable",
            f"Redis refuses the log-in: {error}",
            "set user and password in ACCOUNTING_REDIS_URL right",
        ) from None
    except (RedisError, OSError) as error:
        advice = ""
        if isinstance(error.__context__, ssl.SSLError):
            advice = "look at the certificates, and at what ACCOUNTING_REDIS_URL says of TLS"
        raise SourceLost("redis_unreachable", f"Redis can't be reached: {error}", advice) from None


def _name(connection: AbstractConnection) -> None:
    """Appear in CLIENT LIST under our name, where that is allowed."""
    connection.send_command("CLIENT", "SETNAME", "turn-accounting")  # type: ignore[no-untyped-call]
    try:
        connection.read_response()
    except ResponseError:
        return


def _run_id(connection: AbstractConnection) -> str | None:
    connection.send_command("INFO", "server")  # type: ignore[no-untyped-call]
    try:
        info = connection.read_response()
    except ResponseError:  # a user without the right to ask
        return None
    for line in bytes(info).splitlines():
        name, _, value = line.partition(b":")
        if name == b"run_id":
            return value.decode("ascii", "replace")
    return None
