"""A TCP proxy in front of a Redis server, for faults of the network."""

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

from tests.support.servers import RedisServer


class Proxy:
    """Passes bytes between clients and a server; can inject, alter, delay and disconnect.

    ``alter`` replaces bytes that clients send; a connection that sends ``close_at`` is closed.
    """

    def __init__(
        self,
        server: RedisServer,
        *,
        alter: tuple[bytes, bytes] = (b"", b""),
        close_at: bytes | None = None,
    ) -> None:
        self._server = server
        self._alter = alter
        self._close_at = close_at
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"
        self._clients: list[socket.socket] = []
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._refuses = False
        # Clients that sent PSYNC: they receive nothing while streams are held.
        self._streams: set[socket.socket] = set()
        self._streams_released = threading.Event()
        self._streams_released.set()
        self._polls_released = threading.Event()
        self._polls_released.set()

    def inject(self, text: bytes) -> None:
        """Send ``text`` to the last client. Only between whole messages."""
        self._clients[-1].sendall(text)

    def inject_into_stream(self, data: bytes) -> None:
        """Send bytes to the last client that subscribed or replicates."""
        self._last_stream.sendall(data)

    def cut(self) -> None:
        """Close every connection and refuse new ones."""
        self._refuses = True
        for sock in self._sockets:
            close(sock)

    def mend(self) -> None:
        """Accept connections again."""
        self._refuses = False

    def retarget(self, server: RedisServer) -> None:
        """Lead to another server from now on, like an address that moves in a failover."""
        self._server = server
        self.cut()
        self.mend()

    def hold_streams(self) -> None:
        """Hold back what replication streams would receive; other connections continue."""
        self._streams_released.clear()

    def hold_polls(self) -> None:
        """Hold back what other connections would receive, once a client has sent PSYNC."""
        self._polls_released.clear()

    def release_polls(self) -> None:
        self._polls_released.set()

    def release_streams(self) -> None:
        self._streams_released.set()

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._streams_released.set()
        self._polls_released.set()
        for sock in (self._listener, *self._sockets):
            close(sock)
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            if self._refuses:
                close(client)
                continue
            server = socket.create_connection(("127.0.0.1", self._server.port))
            self._clients.append(client)
            self._sockets += [client, server]
            for pump in (self._to_server, self._to_client):
                thread = threading.Thread(target=pump, args=(client, server))
                self._threads.append(thread)
                thread.start()

    def _to_server(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(1 << 16):
                if self._close_at is not None and self._close_at in data:
                    break
                if b"PSYNC" in data:
                    self._streams.add(client)
                if b"PSYNC" in data or b"PSUBSCRIBE" in data:
                    self._last_stream = client
                server.sendall(data.replace(*self._alter) if self._alter[0] else data)
        close(server)
        close(client)

    def _to_client(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(1 << 16):
                if client in self._streams:
                    self._streams_released.wait(60)
                elif self._streams:
                    self._polls_released.wait(60)
                client.sendall(data)
        close(client)


def close(sock: socket.socket) -> None:
    """Close a socket, even while another thread reads from it."""
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
