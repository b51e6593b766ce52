"""Runs the web server until it is to stop.

A client that sends its request slowly, or not at all, is disconnected: uvicorn itself would wait
for ever, and has room for so many connections only.
"""

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from accounting.config import UNIX_PREFIX
from accounting.errors import ConfigurationError
from accounting.web.arrival import Proxies, network_of

BACKLOG: Final = 128
KEEP_ALIVE_SECONDS: Final = 15
REQUEST_SECONDS: Final = 10.0
"""A client must send the head of its request within this time."""
UNREAD_MILLISECONDS: Final = 60_000
"""A client that does not read its answer is disconnected after this time."""
GRACE_SECONDS: Final = 1.0
"""At the end a request has so long; then its client is disconnected, also one that polls."""
STOP_SECONDS: Final = 4
"""What has not ended by then is cancelled."""
MOST_CONNECTIONS: Final = 256
"""More are answered with 503."""
CLIENT_CONNECTIONS: Final = 64
"""More of one client that is no proxy are closed at once, so that it does not take all."""
MAX_HEAD_BYTES: Final = 16_384
"""The head of a request. The gate answers smaller ones, which are too large, in words."""
IDLE_CONNECTIONS: Final = 2
"""So many connections to Postgres stay open; while more of the threads read, there are more."""
STATEMENT_SECONDS: Final = 10
"""No request holds a thread for longer than a few statements of this time."""
UNIX_MODE: Final = 0o660


def serve(
    app: ASGIApp, listener: socket.socket, stop: threading.Event, proxies: Proxies | None = None
) -> None:
    """Serve on a listening socket until ``stop`` is set, then let requests end.

    ``proxies``: they connect for many clients.
    """
    protocol: Any = partial(_Protocol, proxies or Proxies())
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        log_config=None,
        log_level="error",  # it warns about what any client sends
        access_log=False,
        server_header=False,
        proxy_headers=False,  # the gate reads them, from named proxies only
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=STOP_SECONDS,
        limit_concurrency=MOST_CONNECTIONS,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        lifespan="off",
    )
    _Server(config, stop).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Stops by an event: the signals belong to the process."""

    def __init__(self, config: uvicorn.Config, stop: threading.Event) -> None:
        super().__init__(config)
        self._stop = stop

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        hang_up = asyncio.get_running_loop().call_later(GRACE_SECONDS, self._hang_up)
        try:
            await super().shutdown(sockets)
        finally:
            hang_up.cancel()

    def _hang_up(self) -> None:
        """Disconnect all clients: their requests end as if they had left."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._stop.is_set()


class _Protocol(H11Protocol):
    """Closes connections whose request does not arrive in time, and too many of one client."""

    _deadline: asyncio.TimerHandle | None = None

    def __init__(self, proxies: Proxies, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._proxies = proxies
        self.network: str | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.network = self._client_network()
        if self.network is not None and self._count_of_client() > CLIENT_CONNECTIONS:
            self.transport.close()
            return
        self._start_deadline()

    def _client_network(self) -> str | None:
        """What counts as one client; None for a proxy, and for a Unix socket."""
        if self.client is None or self._proxies.include_text(self.client[0]):
            return None
        return network_of(self.client[0])

    def _count_of_client(self) -> int:
        """The open connections of this client, with this one."""
        return sum(
            isinstance(other, _Protocol) and other.network == self.network
            for other in self.connections
        )

    def data_received(self, data: bytes) -> None:
        if not self._is_busy():
            self._start_deadline()
        super().data_received(data)
        if self._is_busy():
            self._stop_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_deadline()
        super().connection_lost(exc)

    def _is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _start_deadline(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(REQUEST_SECONDS, self._give_up)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if not self._is_busy():
            self.transport.close()


@contextmanager
def listening(address: str, host: str, port: int) -> Iterator[socket.socket]:
    """A listening socket. Raises ConfigurationError where the address can't be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ConfigurationError(f"can't listen on {address}: {reason}") from None
    with listener:
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_MILLISECONDS)
        # Connections have the options of their listener. asyncio would set this one, but only on
        # sockets that name their protocol, which these do not: without it the body of an answer
        # waits some 40 ms for the client to acknowledge its head.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield listener


@contextmanager
def listening_on_path(path: Path) -> Iterator[socket.socket]:
    """A listening Unix socket, for this user and its group, which is removed at the end.

    Raises ConfigurationError where it can't be had.
    """
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            if path.is_socket() and not _is_served(path):
                path.unlink()
            listener.bind(str(path))
            path.chmod(UNIX_MODE)
            listener.listen(BACKLOG)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConfigurationError(f"can't listen on {UNIX_PREFIX}{path}: {reason}") from None
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True
