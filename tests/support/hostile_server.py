"""A server that sends whatever a test wants, without end, in the place of Redis."""

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

from tests.support.redis_proxy import close


class HostileServer:
    """Answers CLIENT, by which a client introduces itself, with ``+OK``, and the rest by a flood.

    That is ``header``, and then ``filler`` again and again, until the client has gone or
    ``limit_bytes`` are sent; after those it keeps the connection open.
    """

    def __init__(self, header: bytes, filler: bytes, *, limit_bytes: int = 1 << 30) -> None:
        self._header, self._filler = header, filler
        self._limit_bytes = limit_bytes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"
        self.sent_bytes = 0
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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
            self._sockets.append(client)
            thread = threading.Thread(target=self._serve, args=(client,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError):
            while introductions := client.recv(1 << 16).count(b"CLIENT"):
                client.sendall(b"+OK\r\n" * introductions)
            client.sendall(self._header)
            while self.sent_bytes < self._limit_bytes:
                client.sendall(self._filler)
                self.sent_bytes += len(self._filler)
            client.recv(1 << 16)
        close(client)
