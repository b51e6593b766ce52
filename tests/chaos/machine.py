"""A machine of a fault run: one command of the service, behind proxies."""

import signal
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.chaos.faulty_proxy import FaultyProxy
from tests.support.faulty_libc import FaultyMachine
from tests.support.servers import ADDRESS, PostgresServer
from tests.support.service import SERVICE, Service, descendants, send_signal

LEASE_SECONDS: Final = 2
# A killed Postgres must keep its commits; the run simulates no crash of the operating system.
POSTGRES: Final = {"synchronous_commit": "on"}
SETTINGS: Final = {
    "ACCOUNTING_LEASE_SECONDS": str(LEASE_SECONDS),
    "ACCOUNTING_SETTLE_INTERVAL_SECONDS": "0.3",
    "ACCOUNTING_ROLLUP_INTERVAL_SECONDS": "0.3",
}


@dataclass(slots=True)
class Machine:
    """A machine that runs one command of the service, behind its own proxies."""

    name: str
    command: str
    directory: Path
    settings: Mapping[str, str]
    database_proxy: FaultyProxy
    redis_proxy: FaultyProxy | None = None
    service: Service | None = None
    is_held_down: bool = False
    starts: int = 0
    faulty: FaultyMachine | None = None
    _next: float = 0.0

    def restart_if_exited(self) -> None:
        """Restart the command 0.2 s after its exit, as a process supervisor does."""
        if self.service is not None and self.service.process.poll() is None:
            return
        if self.service is not None:
            self.service, self._next = None, time.monotonic() + 0.2
        if not self.is_held_down and time.monotonic() >= self._next:
            self.service = Service(self.command, self.directory, self.settings, module=SERVICE)
            self.starts += 1

    def pid(self, part: str = "") -> int:
        """The pid of a child process, or of the command itself; 0 while it does not run."""
        if self.service is None or self.service.process.poll() is not None:
            return 0
        return self.service.child_pid(part) if part else self.service.pid

    def end(self) -> None:
        """Let the command end, without waiting for it."""
        if pid := self.pid():
            for each in (pid, *descendants(pid)):
                send_signal(each, signal.SIGCONT)
            send_signal(pid, signal.SIGTERM)

    def stop(self) -> None:
        """Wait until the command has ended, after :meth:`end`."""
        if self.service is not None:
            self.service.__exit__(None, None, None)


def connect_tcp(port: int) -> socket.socket:
    return socket.create_connection((ADDRESS, port), timeout=None)


def connect_postgres(postgres: PostgresServer) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(str(postgres.running.socket_dir / ".s.PGSQL.5432"))
    except AssertionError:
        sock.close()
        raise ConnectionRefusedError("it is down") from None
    except OSError:
        sock.close()
        raise
    return sock
