"""Watches which server an address leads to, on a connection and in a thread of its own.

Nothing waits for it: the last answer stays valid while the server can't be reached.
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

from redis.connection import AbstractConnection
from redis.exceptions import RedisError, ResponseError

from accounting.capture.redis.address import Address
from accounting.capture.redis.connection import (
    ServerInfo,
    connect,
    read_server_info,
    shutdown_socket,
)
from accounting.capture.source import SourceLost
from accounting.domain.server_identity import ServerIdentity


class WatchedServer(NamedTuple):
    """What the last poll found. Times of the monotonic clock.

    It was asked for at ``asked_at``, and every poll since ``first_seen_at`` found the same server
    in the same history. Its stream can be resumed after offset ``backlog_from``.
    """

    identity: ServerIdentity
    first_seen_at: float
    asked_at: float
    backlog_from: int | None = None


class ServerWatch:
    """Polls every ``poll_seconds`` while :meth:`running`."""

    def __init__(self, address: Address, *, poll_seconds: float, clock: Callable[[], int]) -> None:
        self._address = address
        self._poll_seconds = poll_seconds
        self._clock = clock
        self._connection: AbstractConnection | None = None
        self._shown_address = ""
        self._latest: WatchedServer | None = None
        self._polled = threading.Event()
        self._stopping = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Poll until the block ends. A poll in flight is cut off."""
        with ThreadPoolExecutor(1, thread_name_prefix="server-watch") as executor:
            thread = executor.submit(self._run)
            try:
                yield
            finally:
                self._stopping.set()
                if (connection := self._connection) is not None:
                    shutdown_socket(connection)
        thread.result()

    @property
    def latest(self) -> WatchedServer | None:
        """The last answer; None while there was none, or the server does not identify itself."""
        return self._latest

    def wait_for_first_poll(self, timeout_seconds: float) -> None:
        """Wait until the first poll was answered or has failed, or the timeout is over."""
        self._polled.wait(timeout_seconds)

    # -- in the thread

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._poll()
                self._polled.set()
                self._stopping.wait(self._poll_seconds)
        finally:
            self._disconnect()

    def _poll(self) -> None:
        asked_at = time.monotonic()
        try:
            server = self._read()
        except ResponseError:
            return  # this user may not ask
        except (RedisError, OSError, SourceLost):
            self._disconnect()
            return
        identity = server.identity(self._shown_address)
        if not identity.histories:
            return
        last = self._latest
        is_same = last is not None and last.identity == identity
        first_seen_at = last.first_seen_at if last is not None and is_same else time.monotonic()
        self._latest = WatchedServer(identity, first_seen_at, asked_at, server.backlog_from)

    def _read(self) -> ServerInfo:
        if self._connection is None:
            endpoint = self._address.resolve()
            self._shown_address = endpoint.shown_address
            self._connection = endpoint.new_connection()
            connect(self._connection)
        return read_server_info(self._connection, self._clock)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()  # type: ignore[no-untyped-call]
