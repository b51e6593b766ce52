"""What is between a front and a cell: a Unix socket that a test cuts, or lets hang."""

import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

from psycopg.conninfo import conninfo_to_dict

from accounting.front import join
from tests.support.fronts import Front
from tests.support.redis_proxy import close

PORT: Final = 5432


class CellLink:
    """Passes bytes on. Cut, it refuses as a server that is down; held, it answers nothing."""

    def __init__(self, directory: Path, target: str) -> None:
        self._path = directory / f".s.PGSQL.{PORT}"
        self._target = target
        self._listener: socket.socket | None = None
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._flows = threading.Event()
        self._flows.set()
        self._bytes_until_held: int | None = None
        self.restore()

    def cut(self) -> None:
        """End all connections, and refuse others."""
        listener, self._listener = self._listener, None
        if listener is not None:
            close(listener)
            self._path.unlink()
        self._flows.set()
        while self._sockets:
            close(self._sockets.pop())

    def hold(self) -> None:
        """Accept connections and bytes, and pass nothing on: as a server that hangs."""
        self._flows.clear()

    def hold_after(self, count: int) -> None:
        """Hold once the cell has sent so many bytes more."""
        self._bytes_until_held = count

    def restore(self) -> None:
        """Pass on again what came, and what comes."""
        self._flows.set()
        if self._listener is None:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(self._path))
            self._path.chmod(0o777)
            self._listener.listen(128)
            self._start(self._accept, self._listener)

    def end(self) -> None:
        self.cut()
        for thread in self._threads:
            thread.join()

    def _start(self, run: object, *arguments: object) -> None:
        thread = threading.Thread(target=run, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client = listener.accept()[0]
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._target)
            self._sockets += [client, server]
            self._start(self._pass_on, client, server, False)
            self._start(self._pass_on, server, client, True)

    def _pass_on(self, source: socket.socket, target: socket.socket, is_answer: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                self._flows.wait()
                if is_answer and self._bytes_until_held is not None:
                    self._bytes_until_held -= len(data)
                    if self._bytes_until_held < 0:
                        self._bytes_until_held = None
                        self._flows.clear()
                        self._flows.wait()
                target.sendall(data)
        close(source)
        close(target)


@contextmanager
def cell_link(front: Front, cell: str) -> Iterator[CellLink]:
    """Let a cell join again through a link."""
    url = front.cells[cell].url()
    parts = conninfo_to_dict(url)
    with tempfile.TemporaryDirectory(prefix="ta-link-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        link = CellLink(directory, f"{parts['host']}/.s.PGSQL.{parts['port']}")
        try:
            at = f"postgresql://{parts['user']}@/{parts['dbname']}"
            through = f"{at}?host={quote(name, safe='/')}&port={PORT}"
            join.join_cell(front.engine, cell, through, None)
            yield link
        finally:
            link.end()
