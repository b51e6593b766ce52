"""A connection to Redis or Valkey, set up by redis-py and then left to us.

Owns the way to a socket that is authenticated and speaks RESP2 (TLS, unix sockets, AUTH, ACL), and
what the server tells of itself. Must not subscribe or read a message. No error or log of this
module holds the URL.
"""

import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from redis.connection import AbstractConnection
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    NoPermissionError,
    RedisError,
    ResponseError,
)

from accounting.capture.source import SourceLost


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """What INFO tells, asked at `at` (microseconds); None or empty where it doesn't.

    `began_at` is the server's start by its own count of seconds, `offset` the end of its stream
    when it answered.
    """

    asked_at: int
    run_id: str | None
    started_at: int | None
    role: str
    is_cluster: bool
    replication_offset: int


def connect(connection: AbstractConnection) -> None:
    """Connect and authenticate. Raises SourceLost, with advice when trying again can't help."""
    try:
        connection.connect()  # type: ignore[no-untyped-call]
        with suppress(ResponseError):  # a user without the right to have a name
            execute_command(connection, "CLIENT", "SETNAME", "turn-accounting")
    except (RedisError, OSError) as error:
        raise to_source_lost(error) from None


def execute_command(connection: AbstractConnection, *words: str | bytes) -> object:
    """The answer to one command. Raises ResponseError when it is refused."""
    connection.send_command(*words)  # type: ignore[no-untyped-call]
    return connection.read_response()


def to_source_lost(error: Exception) -> SourceLost:
    """What an error of redis-py means to a source."""
    if isinstance(error, AuthenticationError | AuthorizationError | NoPermissionError):
        return SourceLost(
            "redis_unreachable",
            f"Redis refuses the log-in: {error}",
            "set user and password in ACCOUNTING_REDIS_URL right",
        )
    advice = ""
    if isinstance(error.__context__, ssl.SSLError):
        advice = "look at the certificates, and at what ACCOUNTING_REDIS_URL says of TLS"
    return SourceLost("redis_unreachable", f"Redis can't be reached: {error}", advice)


def take_socket(connection: AbstractConnection) -> socket.socket:
    """The socket, which is ours from here on; redis-py only closes it.

    It would subscribe again by itself after a disconnect, without a word.
    """
    sock = connection._get_socket()  # noqa: SLF001
    if sock is None:
        raise SourceLost("disconnected", "Redis closed the connection")
    return sock


def shutdown_socket(connection: AbstractConnection) -> None:
    """End a connection under another thread that waits for an answer: it gets an error at once."""
    sock = connection._get_socket()  # noqa: SLF001
    if sock is not None:
        with suppress(OSError):
            # Not the method of a TLS socket: that one takes the session away from the other thread.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)


def read_server_info(connection: AbstractConnection, clock: Callable[[], int]) -> ServerInfo:
    """Ask the server about itself, in one round trip. Raises ResponseError when it refuses."""
    at = clock()
    connection.send_packed_command(  # type: ignore[no-untyped-call]
        connection.pack_commands([("INFO", "server"), ("INFO", "replication")])  # type: ignore[no-untyped-call]
    )
    answers, refused = [], None
    for _ in range(2):  # both, whatever the first one says: the connection is used on
        try:
            answers.append(connection.read_response(disable_decoding=True))
        except ResponseError as error:
            refused = error
    if refused:
        raise refused
    info = dict(
        line.split(b":", 1) for answer in answers for line in answer.splitlines() if b":" in line
    )

    def text(name: bytes) -> str:
        value: bytes = info.get(name, b"")
        return value.decode("ascii", "replace")

    uptime = text(b"uptime_in_seconds")
    offset = text(b"master_repl_offset")
    return ServerInfo(
        asked_at=at,
        run_id=text(b"run_id") or None,
        started_at=at - int(uptime) * 1_000_000 if uptime.isdigit() else None,
        role=text(b"role"),
        is_cluster="cluster" in (text(b"redis_mode"), text(b"server_mode")),
        replication_offset=int(offset) if offset.isdigit() else 0,
    )


def try_read_server_info(connection: AbstractConnection, clock: Callable[[], int]) -> ServerInfo:
    """What the server tells, nothing where a user has no right to ask."""
    try:
        return read_server_info(connection, clock)
    except ResponseError:
        return ServerInfo(
            asked_at=clock(),
            run_id=None,
            started_at=None,
            role="",
            is_cluster=False,
            replication_offset=0,
        )
    except (RedisError, OSError) as error:
        raise to_source_lost(error) from None
