"""Finds out, after a failed connection, whether only one of the two sides speaks TLS.

A plain server waits for the rest of what it takes for a command, and a TLS server closes the
connection: neither error names the cause.
"""

import socket
import ssl
from contextlib import suppress
from typing import Final

from redis.connection import AbstractConnection, Connection, SSLConnection

PROBE_TIMEOUT_SECONDS: Final = 2.0
REPLY_MARKS: Final = (b"+", b"-")


def describe_tls_mismatch(connection: AbstractConnection) -> tuple[str, str] | None:
    """What is wrong and the advice, if the URL's scheme and the server's port don't agree."""
    if isinstance(connection, SSLConnection):
        if _speaks_plain(connection):
            return (
                "Redis speaks no TLS at this port, and the URL asks for it (rediss://)",
                "set ACCOUNTING_REDIS_URL to Redis' TLS port, or write redis:// for a plain one",
            )
    elif isinstance(connection, Connection) and _speaks_tls(connection):
        return (
            "Redis expects TLS at this port, and the URL is a plain one (redis://)",
            "write rediss:// in ACCOUNTING_REDIS_URL, or name Redis' plain port",
        )
    return None


def _speaks_plain(connection: Connection) -> bool:
    with suppress(OSError), _connect(connection) as sock:
        sock.sendall(b"PING\r\n")
        return sock.recv(1) in REPLY_MARKS
    return False


def _speaks_tls(connection: Connection) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is sent
    with (
        suppress(OSError),
        _connect(connection) as sock,
        context.wrap_socket(sock, server_hostname=connection.host),
    ):
        return True
    return False


def _connect(connection: Connection) -> socket.socket:
    return socket.create_connection((connection.host, connection.port), PROBE_TIMEOUT_SECONDS)
