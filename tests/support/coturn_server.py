"""A real coturn for tests, with coturn's test client and an echoing peer.

Debian's package ``coturn`` has all three programs. ``tests/support/coturn_log.py`` reads the log.
"""

import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from accounting.embedded import child
from tests.support.servers import ADDRESS, RANDOM, Server, free_port, wait_until

REALM: Final = "example.org"
RELAY_PORTS: Final = 400
CLIENT_SECONDS: Final = 60.0


def is_installed() -> bool:
    return shutil.which("turnserver") is not None


class TurnServer(Server):
    """Debian's turnserver on a loopback address, publishing to the Redis at `redis_port`.

    With ``secret`` it accepts TURN REST credentials, otherwise the long-term credentials of
    ``users`` (name to password). With ``certificate``, of ``key``, it also takes TLS at
    ``tls_port``. With ``cli_password`` its command line is at ``cli_port``. Each
    start writes its own log: each process numbers sessions from 1.
    """

    def __init__(
        self,
        redis_port: int,
        *,
        users: Mapping[str, str] | None = None,
        secret: str | None = None,
        realm: str = REALM,
        database: int = 0,
        redis_password: str = "",
        relay_threads: int = 2,
        cli_password: str | None = None,
        address: str = ADDRESS,
        certificate: Path | None = None,
        key: Path | None = None,
        options: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.address = address
        self.certificate = certificate
        self.key = key
        self.tls_port = free_port()
        self.redis_port = redis_port
        self.users = dict(users or {})
        self.secret = secret
        self.realm = realm
        self.database = database
        self.redis_password = redis_password
        self.relay_threads = relay_threads
        self.cli_password = cli_password
        self.options = list(options)
        self.port = free_port()
        self.cli_port = free_port()
        self.first_relay_port = RANDOM.randrange(10_000, 32_000 - RELAY_PORTS)
        self.starts = 0

    def command(self) -> list[str]:
        statsdb = f"ip={ADDRESS} dbname={self.database} port={self.redis_port} connect_timeout=2"
        if self.redis_password:
            statsdb += f" password={self.redis_password}"
        if self.secret is not None:
            authentication = ["--use-auth-secret", f"--static-auth-secret={self.secret}"]
        else:
            authentication = ["--lt-cred-mech"]
            for name, password in self.users.items():
                authentication += ["--user", f"{name}:{password}"]
        command_line = ["--no-cli"]
        if self.cli_password is not None:
            command_line = [f"--cli-port={self.cli_port}", f"--cli-password={self.cli_password}"]
        secure = ["--no-tls"]
        if self.certificate is not None:
            secure = [f"--tls-listening-port={self.tls_port}"]
            secure += [f"--cert={self.certificate}", f"--pkey={self.key}"]
        return [
            "turnserver",
            "-n",
            "--verbose",
            f"--listening-ip={self.address}",
            f"--listening-port={self.port}",
            f"--relay-ip={ADDRESS}",
            f"--min-port={self.first_relay_port}",
            f"--max-port={self.first_relay_port + RELAY_PORTS - 1}",
            f"--relay-threads={self.relay_threads}",
            f"--realm={self.realm}",
            *authentication,
            f"--redis-statsdb={statsdb}",
            "--allow-loopback-peers",
            *command_line,
            *secure,
            "--no-dtls",
            "--no-rfc5780",
            # A file, because standard output is buffered and a kill would lose its end.
            f"--log-file={self.coturn_log(self.starts)}",
            "--simple-log",
            "--no-stdout-log",
            f"--pidfile={self.directory / 'turnserver.pid'}",
            f"--userdb={self.directory / 'turndb'}",
            *self.options,
        ]

    def coturn_log(self, start: int) -> str:
        return str(self.directory / f"coturn-{start}.log")

    def start(self) -> None:
        self.starts += 1
        super().start()

    def is_ready(self) -> bool:
        # Each relay thread opens a TCP listener; the UDP listener opens last. A request over the
        # network would use up an allocation id.
        text = self.log_bytes()
        return text.count(b"TCP listener opened") >= self.relay_threads and b"UDP listener" in text

    def log_bytes(self, start: int | None = None) -> bytes:
        """The log of one start (1, 2, ...; the last by default)."""
        try:
            with open(self.coturn_log(start or self.starts), "rb") as log:  # noqa: PTH123
                return log.read()
        except FileNotFoundError:
            return b""

    def log_text(self) -> str:
        """The logs of all starts."""
        logs = [self.log_bytes(start) for start in range(1, self.starts + 1)]
        return b"".join(logs).decode(errors="replace")


class EchoPeer(Server):
    """coturn's turnutils_peer: sends every datagram back."""

    def __init__(self) -> None:
        super().__init__()
        self.port = free_port()

    def command(self) -> list[str]:
        return ["turnutils_peer", "-L", ADDRESS, "-p", str(self.port)]

    def is_ready(self) -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.settimeout(0.2)
            probe.connect((ADDRESS, self.port))
            try:
                probe.send(b"ping")
                return probe.recv(16) == b"ping"
            except OSError:
                return False


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRun:
    """A finished client: its exit code, its output and its own counts of messages."""

    code: int
    output: str
    sent_messages: int
    received_messages: int


def client_command(
    server: TurnServer,
    user: str,
    password: str = "",
    *,
    peer_port: int | None = None,
    tcp: bool = False,
    tls: bool = False,
    address: str | None = None,
    tcp_relay: bool = False,
    messages: int = 50,
    size: int = 200,
    clients: int = 1,
    interval_ms: int = 1,
    secret: str | None = None,
    options: Sequence[str] = (),
) -> list[str]:
    """The command of turnutils_uclient.

    With a peer each client has one allocation. Without a peer, clients send to one another in
    pairs, so their number is rounded up to an even one. ``address``: another one of the server.
    """
    address = address or server.address
    port = server.tls_port if tls else server.port
    command = ["turnutils_uclient", "-c", "-p", str(port), "-L", address]
    command += ["-n", str(messages), "-l", str(size), "-z", str(interval_ms)]
    if tcp_relay:
        command += ["-T", "-m", str(clients + clients % 2)]
    elif peer_port is None:
        command += ["-y", "-m", str(clients + clients % 2)]
    else:
        command += ["-e", ADDRESS, "-r", str(peer_port), "-m", str(clients)]
    if tcp or tls:
        command.append("-t")
    if tls:
        command.append("-S")
    command += ["-u", user]
    command += ["-W", secret] if secret is not None else ["-w", password]
    return [*command, *options, address]


def run_client(
    server: TurnServer,
    user: str,
    password: str = "",
    *,
    tcp: bool = False,
    tls: bool = False,
    address: str | None = None,
    messages: int = 50,
    size: int = 200,
    clients: int = 1,
    interval_ms: int = 1,
    secret: str | None = None,
    peer: bool = True,
    options: Sequence[str] = (),
) -> ClientRun:
    """Run coturn's client to its end, with an echoing peer unless ``peer`` is false.

    A wrong password shows in the exit code and the output; it raises no error. ``options`` are
    further ones of turnutils_uclient. Its allocations close about a second after its end: see
    ``wait_until_closed``. Over UDP it leaves one more allocation open, without traffic: the one
    with which it probes the server.
    """
    with EchoPeer() as echo:
        done = subprocess.run(
            client_command(
                server,
                user,
                password,
                peer_port=echo.port if peer else None,
                tcp=tcp,
                tls=tls,
                address=address,
                messages=messages,
                size=size,
                clients=clients,
                interval_ms=interval_ms,
                secret=secret,
                options=options,
            ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=CLIENT_SECONDS,
            check=False,
        )
    output = done.stdout.decode(errors="replace")
    return ClientRun(
        code=done.returncode,
        output=output,
        sent_messages=_last_number(r"tot_send_msgs=(\d+)", output),
        received_messages=_last_number(r"tot_recv_msgs=(\d+)", output),
    )


def wait_until_closed(server: TurnServer, deadline_seconds: float = 20.0) -> None:
    """Wait until coturn has closed every session of its last start that a client released."""

    def is_closed() -> bool:
        log = server.log_bytes()
        released = set(re.findall(rb"session (\d+): refreshed, [^\n]*, lifetime=0\s", log))
        return released <= set(re.findall(rb"session (\d+): delete: ", log))

    wait_until(is_closed, deadline_seconds, "sessions that clients released are still open")


@contextmanager
def running_client(
    server: TurnServer,
    user: str,
    password: str = "",
    *,
    interval_ms: int = 1,
    messages: int = 10**6,
) -> Iterator[subprocess.Popen[bytes]]:
    """A client that sends until the block ends; it is then killed and closes no allocation."""
    with EchoPeer() as echo:
        command = client_command(
            server,
            user,
            password,
            peer_port=echo.port,
            messages=messages,
            interval_ms=interval_ms,
        )
        with (server.directory / "client.log").open("ab") as output:
            process = child.spawn(command, output=output, death_signal=signal.SIGKILL)
        try:
            yield process
        finally:
            process.kill()
            process.wait(10)


def _last_number(pattern: str, text: str) -> int:
    numbers = re.findall(pattern, text)
    return int(numbers[-1]) if numbers else 0
