"""An HTTP server that answers each request with whatever a test wants, byte by byte."""

import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple, Self

from tests.support.redis_proxy import close

Answer = Callable[[socket.socket], None]


class ReceivedRequest(NamedTuple):
    """A request. ``connection``: the number of its connection, from 1."""

    connection: int
    head: bytes
    body: bytes


def fixed(data: bytes) -> Answer:
    """The same bytes to each request."""
    return lambda client: client.sendall(data)


class ScriptedServer:
    """Reads requests and lets ``answer`` write to the connection; closes it when that raises."""

    def __init__(
        self,
        answer: Answer,
        *,
        tls: ssl.SSLContext | None = None,
        address: tuple[str, int] = ("127.0.0.1", 0),
    ) -> None:
        self._answer, self._tls = answer, tls
        self._listener = socket.create_server(address)
        self.port = self._listener.getsockname()[1]
        self.requests: list[ReceivedRequest] = []
        self.connections = 0
        self.ended = threading.Semaphore(0)
        """Released for each connection that has ended."""
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
            self.connections += 1
            self._sockets.append(client)
            thread = threading.Thread(target=self._serve, args=(client, self.connections))
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket, number: int) -> None:
        try:
            with suppress(OSError):
                if self._tls is not None:
                    client = self._tls.wrap_socket(client, server_side=True)
                    self._sockets.append(client)
                while request := self._read(client, number):
                    self.requests.append(request)
                    self._answer(client)
        finally:
            close(client)
            self.ended.release()

    @staticmethod
    def _read(client: socket.socket, number: int) -> ReceivedRequest | None:
        data = b""
        while b"\r\n\r\n" not in data:
            if not (part := client.recv(1 << 16)):
                return None
            data += part
        head, _, body = data.partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
        while len(body) < length:
            if not (part := client.recv(1 << 16)):
                return None
            body += part
        return ReceivedRequest(number, head, body)
