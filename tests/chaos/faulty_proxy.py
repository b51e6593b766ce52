"""A TCP proxy between the service and a server: disconnects, holds traffic, loses commits.

It understands only as much of Postgres' protocol as it needs to find a COMMIT and its reply.
"""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Final, Literal, Self

from tests.support.servers import ADDRESS

CHUNK: Final = 1 << 16
COMMIT: Final = b"COMMIT\0"
"""How a COMMIT ends on the wire to Postgres, in the simple and in the extended protocol."""
WRITES: Final = b"FROM STDIN"
"""In a transaction that writes rows with COPY; one that renews a lease has none."""
READY: Final = b"Z\x00\x00\x00\x05"
"""ReadyForQuery: the end of each answer of Postgres; one byte follows."""

CommitLoss = Literal["answer", "request"]


class ProxiedConnection:
    """One connection through the proxy."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.has_written = False
        self.drops_reply = False

    def close(self) -> None:
        for sock in (self.client, self.server):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


class FaultyProxy:
    """Listens on ``address`` and connects each client to a server.

    ``reach`` opens a connection to the current server, which may change. ``commit``: how a COMMIT
    looks on the wire; ``writes``: what a transaction has whose COMMIT may be lost.
    """

    def __init__(
        self,
        reach: Callable[[], socket.socket],
        *,
        commit: bytes = COMMIT,
        writes: bytes = WRITES,
    ) -> None:
        self._connect_to_server = reach
        self._commit = commit
        self._writes = writes
        self.address = ADDRESS
        self._listener = socket.create_server((ADDRESS, 0))
        self.port: int = self._listener.getsockname()[1]
        self._connections: set[ProxiedConnection] = set()
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._passing = threading.Event()
        self._passing.set()
        self._is_cut = False
        self._commit_loss: CommitLoss | None = None
        self.lost_count = 0
        """The number of lost replies or requests."""

    # -- faults

    def disconnect(self) -> None:
        """Close all connections; new ones are accepted."""
        with self._lock:
            for link in self._connections:
                link.close()

    def cut(self) -> None:
        """Close all connections and refuse new ones."""
        self._is_cut = True
        self.disconnect()

    def silence(self) -> None:
        """Hold all bytes in both directions without closing connections."""
        self._passing.clear()

    def mend(self) -> None:
        """Pass everything again, first the held bytes, as TCP would retransmit them."""
        self._is_cut = False
        self._commit_loss = None
        self._passing.set()

    def move(self, address: str) -> None:
        """Listen on another address of this machine instead, and close all connections."""
        listener = socket.create_server((address, self.port))
        self._close_listener()
        self._listener, self.address = listener, address
        self._start(self._accept, listener)
        self.disconnect()

    def lose_commit(self, what: CommitLoss) -> None:
        """Lose the next COMMIT of a transaction that writes rows, or the reply to it."""
        self._commit_loss = what

    # -- passing on

    def __enter__(self) -> Self:
        self._start(self._accept, self._listener)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_cut = True
        self._passing.set()
        self._close_listener()
        self.disconnect()
        for thread in list(self._threads):
            thread.join(10)

    def _close_listener(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _start(self, work: Callable[..., None], *given: object) -> None:
        def run() -> None:
            try:
                work(*given)
            finally:
                self._threads.discard(threading.current_thread())

        thread = threading.Thread(target=run, name="wire", daemon=True)
        self._threads.add(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client = listener.accept()[0]
            except OSError:
                return
            self._start(self._connect, client)

    def _connect(self, client: socket.socket) -> None:
        self._passing.wait()
        try:
            if self._is_cut:
                raise ConnectionRefusedError
            server = self._connect_to_server()
        except OSError:
            client.close()
            return
        for sock in (client, server):
            if sock.family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = ProxiedConnection(client, server)
        with self._lock:
            self._connections.add(link)
        if self._is_cut:
            link.close()
        self._start(self._to_server, link)
        try:
            self._to_client(link)
        finally:
            with self._lock:
                self._connections.discard(link)

    def _to_server(self, link: ProxiedConnection) -> None:
        with suppress(OSError):
            while data := link.client.recv(CHUNK):
                self._passing.wait()
                if self._writes in data:
                    link.has_written = True
                if self._commit in data:
                    if self._commit_loss and link.has_written:
                        loss, self._commit_loss = self._commit_loss, None
                        self.lost_count += 1
                        if loss == "request":
                            break
                        link.drops_reply = True
                    link.has_written = False
                link.server.sendall(data)
        link.close()

    def _to_client(self, link: ProxiedConnection) -> None:
        with suppress(OSError):
            while data := link.server.recv(CHUNK):
                self._passing.wait()
                if not link.drops_reply:
                    link.client.sendall(data)
                elif data[-6:-1] == READY:  # committed, but the client gets no reply
                    break
        link.close()
