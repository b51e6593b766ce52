"""Connections to Redis or Valkey, which redis-py sets up: TLS, unix sockets, AUTH.

Errors and logs never contain the URL, since it may contain a password.
"""

import re
import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from redis.connection import AbstractConnection
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    NoPermissionError,
    RedisError,
    ResponseError,
)

from accounting.capture.redis.tls_mismatch import describe_tls_mismatch
from accounting.capture.source import SourceLost
from accounting.domain.server_identity import ServerIdentity, cluster_node_ids, valid_id

REPLICA_FIELD: Final = re.compile(rb"slave\d+")
"""INFO's field for one replica: ``ip=...,port=...,state=...,offset=...,lag=...``"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """The fields of INFO, read at ``read_at``; None, empty or 0 where a field is missing.

    Times are in microseconds. ``started_at`` comes from the uptime in seconds;
    ``replication_offset`` is the end of the server's replication stream, in the history
    ``replication_id``. ``failover_state`` is ``no-failover`` unless the server executes FAILOVER;
    ``master_port`` is that of its own master. A collector is a replica at port 0, and
    ``has_real_replica`` says whether there is another one. ``is_shutting_down``: the server waits
    for its replicas before it exits. ``previous_replication_id``: of the history that its own one
    continues. ``node_ids``: of the nodes of its cluster, where this user may ask for them. The
    stream can be resumed after offset ``backlog_from``, and it will be possible for a while.
    """

    read_at: int
    run_id: str | None = None
    started_at: int | None = None
    role: str = ""
    is_cluster: bool = False
    replication_id: str | None = None
    replication_offset: int = 0
    failover_state: str = ""
    master_port: str = ""
    has_real_replica: bool = False
    is_shutting_down: bool = False
    previous_replication_id: str = ""
    node_ids: tuple[str, ...] = ()
    backlog_from: int | None = None

    def identity(self, address: str = "") -> ServerIdentity:
        """The ids of this server."""
        return ServerIdentity(
            address=address,
            run_id=valid_id(self.run_id or ""),
            replication_id=valid_id(self.replication_id or ""),
            previous_replication_id=valid_id(self.previous_replication_id),
            node_ids=self.node_ids,
            is_replica=self.role == "slave",
        )


BACKLOG_FIELDS: Final = (
    b"repl_backlog_active",
    b"repl_backlog_size",
    b"repl_backlog_first_byte_offset",
    b"repl_backlog_histlen",
)

MAX_FIELD_BYTES: Final = 64
"""Of a field of INFO that is kept; ids have 40."""


def connect(connection: AbstractConnection) -> None:
    """Connect and authenticate. Raises SourceLost, with advice if a retry can't help."""
    try:
        connection.connect()  # type: ignore[no-untyped-call]
        with suppress(ResponseError):  # the user may lack the permission
            execute_command(connection, "CLIENT", "SETNAME", "turn-accounting")
    except (RedisError, OSError) as error:
        lost = to_source_lost(error)
        if not lost.advice and (mismatch := describe_tls_mismatch(connection)) is not None:
            lost = SourceLost("redis_unreachable", *mismatch)
        raise lost from None


def execute_command(connection: AbstractConnection, *arguments: str | bytes) -> object:
    """The reply to one command. Raises ResponseError when the server refuses it."""
    connection.send_command(*arguments)  # type: ignore[no-untyped-call]
    return connection.read_response()


def execute_pipeline(
    connection: AbstractConnection, commands: Sequence[tuple[str | bytes, ...]]
) -> list[Any]:
    """The replies to several commands, which are sent together.

    Raises ResponseError when the server refuses one, after it has read all replies, so that the
    connection stays usable.
    """
    connection.send_packed_command(connection.pack_commands(commands))  # type: ignore[no-untyped-call]
    replies, error_reply = [], None
    for _ in commands:
        try:
            replies.append(connection.read_response(disable_decoding=True))
        except ResponseError as error:
            error_reply = error
    if error_reply:
        raise error_reply
    return replies


def to_source_lost(error: Exception) -> SourceLost:
    """Convert an error of redis-py."""
    if isinstance(error, AuthenticationError | AuthorizationError | NoPermissionError):
        return SourceLost(
            "redis_unreachable",
            f"Redis refuses the log-in: {error}",
            "check the user and password in ACCOUNTING_REDIS_URL",
        )
    advice = ""
    if isinstance(error.__context__, ssl.SSLError):
        advice = "check the certificates and the TLS options in ACCOUNTING_REDIS_URL"
    return SourceLost("redis_unreachable", f"Redis can't be reached: {error}", advice)


def send_and_take_socket(connection: AbstractConnection, command: bytes) -> socket.socket:
    """Send a command that starts a stream, and return the socket. Raises SourceLost.

    The caller must read from the socket itself: redis-py would silently reconnect and subscribe
    again after a disconnect. It still closes the socket.
    """
    sock = connection._get_socket()  # noqa: SLF001
    if sock is None:
        raise SourceLost("disconnected", "Redis closed the connection")
    try:
        sock.sendall(command)
    except OSError as error:
        raise SourceLost("disconnected", error.strerror or str(error)) from None
    return sock


def shutdown_socket(connection: AbstractConnection) -> None:
    """End a connection while another thread reads from it: that thread gets an error at once.

    Does not call ``SSLSocket.shutdown``, which would drop the TLS state that the thread is using.
    """
    sock = connection._get_socket()  # noqa: SLF001
    if sock is not None:
        with suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)


def read_server_info(connection: AbstractConnection, clock: Callable[[], int]) -> ServerInfo:
    """Read INFO in one round trip. Raises ResponseError when the server refuses it."""
    asked_at = clock()
    replies = execute_pipeline(connection, [("INFO", "server"), ("INFO", "replication")])
    info = dict(
        line.split(b":", 1)
        for reply in replies
        if isinstance(reply, bytes)
        for line in reply.splitlines()
        if b":" in line
    )

    def field_text(name: bytes) -> str:
        value: bytes = info.get(name, b"")
        return value[:MAX_FIELD_BYTES].decode("ascii", "replace")

    is_cluster = "cluster" in (field_text(b"redis_mode"), field_text(b"server_mode"))
    uptime = field_text(b"uptime_in_seconds")
    offset = field_text(b"master_repl_offset")
    return ServerInfo(
        read_at=asked_at,
        run_id=field_text(b"run_id") or None,
        started_at=asked_at - int(uptime) * 1_000_000 if uptime.isdigit() else None,
        role=field_text(b"role"),
        is_cluster=is_cluster,
        replication_id=field_text(b"master_replid") or None,
        replication_offset=int(offset) if offset.isdigit() else 0,
        failover_state=field_text(b"master_failover_state"),
        master_port=field_text(b"master_port"),
        has_real_replica=any(
            REPLICA_FIELD.fullmatch(name) and b",port=0," not in value
            for name, value in info.items()
        ),
        is_shutting_down=b"shutdown_in_milliseconds" in info,
        previous_replication_id=field_text(b"master_replid2"),
        node_ids=_read_node_ids(connection) if is_cluster else (),
        backlog_from=_backlog_from(*map(field_text, BACKLOG_FIELDS)),
    )


def _backlog_from(is_active: str, size: str, first: str, length: str) -> int | None:
    """Without what the next eighth of the backlog's size would overwrite."""
    if is_active != "1" or not (size.isdigit() and first.isdigit() and length.isdigit()):
        return None
    free = int(size) - int(length)
    return int(first) - 1 + max(0, int(size) // 8 - free)


def _read_node_ids(connection: AbstractConnection) -> tuple[str, ...]:
    with suppress(ResponseError):
        reply = execute_command(connection, "CLUSTER", "NODES")
        if isinstance(reply, bytes):
            return cluster_node_ids(reply.decode("ascii", "replace").splitlines())
    return ()


def try_read_server_info(connection: AbstractConnection, clock: Callable[[], int]) -> ServerInfo:
    """Read INFO; all fields are empty if the user lacks the permission. Raises SourceLost."""
    try:
        return read_server_info(connection, clock)
    except ResponseError:
        return ServerInfo(read_at=clock())
    except (RedisError, OSError) as error:
        raise to_source_lost(error) from None
