"""The deployment of a fault run: Redis, Postgres, two collecting machines and a scheduling one.

It starts the servers and processes with proxies between them, and restarts processes that exited.
The main thread must start them all, since they end with the thread that started them.
"""

import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Literal

import psycopg
import redis
from psycopg.rows import dict_row

from accounting.audit.differences import Difference
from accounting.audit.verify import verify
from accounting.db import migrations
from accounting.db.engine import open_engine
from accounting.embedded import DATABASE
from tests.chaos.faulty_proxy import FaultyProxy
from tests.chaos.publisher import Publisher
from tests.support import faulty_libc
from tests.support.books import WRITER
from tests.support.certificates import CertificateAuthority, can_issue
from tests.support.faulty_libc import POSTGRES_NAME, REDIS_NAME, FaultyMachine
from tests.support.pgbouncer import PgBouncer
from tests.support.servers import ADDRESS, PostgresServer, RedisServer, ValkeyServer, free_port
from tests.support.service import SERVICE, Service, descendants, send_signal
from tests.support.system_postgres import find_program

Capture = Literal["replication", "subscribe"]
Ability = Literal["libc", "tls", "pooler"]
"""What a fault needs: a C compiler, a Redis with TLS, PgBouncer."""
PACE: Final = threading.Event()
"""Never set; its wait is the pause between two checks of a condition."""
REDIS_CLASSES: Final[Mapping[str, type[RedisServer]]] = {
    "valkey": ValkeyServer,
    "redis": RedisServer,
}
BACKLOG_BYTES: Final = 32 << 20
LEASE_SECONDS: Final = 2
REDIS: Final = {
    "repl-diskless-sync-delay": "0",
    "repl-backlog-size": str(BACKLOG_BYTES),
    "client-output-buffer-limit": "replica 0 0 0",
}
# A killed Postgres must keep its commits; the run simulates no crash of the operating system.
POSTGRES: Final = {"synchronous_commit": "on"}
SETTINGS: Final = {
    "ACCOUNTING_LEASE_SECONDS": str(LEASE_SECONDS),
    "ACCOUNTING_SETTLE_INTERVAL_SECONDS": "0.3",
    "ACCOUNTING_ROLLUP_INTERVAL_SECONDS": "0.3",
}
POSITION_IS_KNOWN: Final[Mapping[Capture, str]] = {
    "replication": "SELECT FROM accounting.sources WHERE replication_id IS NOT NULL",
    "subscribe": "SELECT FROM accounting.sources",
}
OWN_SETTINGS: Final[Mapping[str, Any]] = {
    "client_encoding": "utf8",
    "options": "-c extra_float_digits=1 -c statement_timeout=0 -c default_transaction_read_only=off"
    " -c datestyle=ISO -c search_path=pg_catalog",
}
"""Whatever the database is set to."""
UNLIMITED: Final = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
POLL_SECONDS: Final = 0.05


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

    def stop(self) -> None:
        if self.service is not None:
            for pid in (self.service.pid, *descendants(self.service.pid)):
                send_signal(pid, signal.SIGCONT)
            self.service.__exit__(None, None, None)


class DatabaseWatcher:
    """Polls the database in a thread: the watermarks of the books and the holder of the lease."""

    def __init__(self, postgres: PostgresServer) -> None:
        self._postgres = postgres
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._lock = threading.Lock()
        self._waiting: list[tuple[str, float]] = []
        self.recoveries: list[tuple[str, float]] = []
        self.settled_until = 0.0
        self.loaded_until = 0.0
        self.lease_holder = ""
        self.delta_count = 0

    def await_recovery(self, kind: str) -> None:
        """Measure the time until everything published before now is settled."""
        with self._lock:
            self._waiting.append((kind, time.time()))

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                url = self._postgres.url()
                with psycopg.connect(url, autocommit=True, **OWN_SETTINGS) as connection:
                    while not self._stopping.wait(POLL_SECONDS):
                        self._read_status(connection)
            except psycopg.Error:  # also while its tables are being restored
                self._stopping.wait(POLL_SECONDS)

    def _read_status(self, connection: "psycopg.Connection[Any]") -> None:
        row = connection.execute(
            "SELECT extract(epoch FROM settled_until)::float, extract(epoch FROM loaded_until)"
            "::float, (SELECT holder FROM accounting.source_leases"
            " WHERE expires_at > clock_timestamp()),"
            " (SELECT count(*) FROM accounting.usage_deltas) FROM reporting.sources"
        ).fetchone()
        if row is None:
            return
        settled, loaded, holder, self.delta_count = row
        self.settled_until, self.loaded_until = settled or 0.0, loaded or 0.0
        self.lease_holder = holder or ""
        now = time.time()
        with self._lock:
            for kind, since in self._waiting:
                if self.settled_until >= since:
                    self.recoveries.append((kind, now - since))
            self._waiting = [
                (kind, since) for kind, since in self._waiting if self.settled_until < since
            ]


@dataclass(slots=True)
class Deployment:
    """All servers and processes."""

    capture: Capture
    redis_kind: type[RedisServer]
    master: RedisServer
    postgres: PostgresServer
    directory: Path
    collectors: list[Machine]
    scheduler: Machine
    publisher: Publisher
    watcher: DatabaseWatcher
    authority: CertificateAuthority | None = None
    pooler: PgBouncer | None = None
    intruders: int = 0

    @property
    def abilities(self) -> frozenset[Ability]:
        """What this deployment has for the faults that need it."""
        found: dict[Ability, bool] = {
            "libc": self.scheduler.faulty is not None,
            "tls": self.authority is not None,
            "pooler": self.pooler is not None,
        }
        return frozenset(ability for ability, has in found.items() if has)

    def new_redis(self) -> RedisServer:
        """Another server, as the master is configured; not started."""
        return new_redis(self.redis_kind, self.authority)

    @property
    def machines(self) -> list[Machine]:
        return [*self.collectors, self.scheduler]

    @property
    def leader(self) -> Machine:
        """The machine that held the lease at the last poll."""
        for machine in self.collectors:
            if str(machine.directory) in self.watcher.lease_holder:
                return machine
        return self.collectors[0]

    def is_leader(self, machine: Machine) -> bool:
        """Whether the machine held the lease at the last poll."""
        return str(machine.directory) in self.watcher.lease_holder

    def restart_exited(self) -> None:
        for machine in self.machines:
            machine.restart_if_exited()

    def query(self, query: str, values: tuple[object, ...] = ()) -> list[dict[str, Any]]:
        """Rows, as the superuser, without a proxy."""
        url = self.postgres.url()
        with psycopg.connect(url, row_factory=dict_row) as connection:
            connection.execute("SET timezone = 'UTC'")
            return connection.execute(query, values).fetchall()

    def verify(self) -> list[Difference]:
        """The differences that verify finds while the scheduler runs."""
        engine = open_engine(self.postgres.url())
        try:
            return list(verify(engine))
        finally:
            engine.dispose()

    def configure_postgres(self, *statements: str) -> None:
        """Run statements outside a transaction, also while the default is read-only."""
        with self.superuser() as connection:
            for statement in statements:
                connection.execute(statement)

    def superuser(self, database: str = DATABASE) -> "psycopg.Connection[Any]":
        """A connection without a proxy, outside a transaction."""
        return psycopg.connect(
            self.postgres.url(database=database), autocommit=True, **OWN_SETTINGS
        )

    @contextmanager
    def client(self, server: RedisServer | None = None) -> "Iterator[redis.Redis]":
        """A client of the master or of another server."""
        url = (server or self.master).url
        with redis.Redis.from_url(url, socket_timeout=10) as client:
            yield client

    def end_faults(self) -> None:
        """Let all machines run and all proxies pass."""
        for machine in self.machines:
            machine.is_held_down = False
            if machine.faulty is not None:
                machine.faulty.set_right()
            machine.database_proxy.mend()
            if machine.redis_proxy is not None:
                machine.redis_proxy.mend()

    def tracebacks(self) -> list[str]:
        """The lines of the logs with a traceback; there must be none."""
        return [
            f"{path.relative_to(self.directory)}: {line[-1500:]}"
            for path in sorted(self.directory.glob("*/*.log"))
            for line in path.read_text(errors="replace").splitlines()
            if "Traceback" in line
        ]


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


def new_redis(redis_kind: type[RedisServer], authority: CertificateAuthority | None) -> RedisServer:
    """A server that is not started; with TLS on a port of its own if there is an authority."""
    if authority is None:
        return redis_kind(REDIS)
    files = {
        "tls-port": str(free_port()),
        "tls-auth-clients": "no",
        "tls-ca-cert-file": str(authority.certificate),
        "tls-key-file": str(authority.key),
        "tls-cert-file": str(authority.issue(timedelta(days=1))),
    }
    return redis_kind({**REDIS, **files})


def collectors_port(server: RedisServer) -> int:
    """The port for collectors: that of TLS, if the server has one."""
    return int(server.options.get("tls-port", server.port))


@contextmanager
def running_deployment(
    directory: Path, *, server: str, capture: Capture, rate: float, seed: int
) -> Iterator[Deployment]:
    """A deployment that runs and captures; it ends with the block."""
    kind = REDIS_CLASSES[server]
    with ExitStack() as stack:
        directory.mkdir(parents=True, exist_ok=True)
        postgres = stack.enter_context(PostgresServer(settings=POSTGRES))
        engine = open_engine(postgres.url())
        migrations.upgrade(engine)
        migrations.allow_role_logins(engine)
        engine.dispose()
        authority = None
        if server == "redis" and can_issue():
            authority = CertificateAuthority(
                directory / "authority", hosts=[REDIS_NAME], addresses=[*faulty_libc.ADDRESSES]
            )
        master = new_redis(kind, authority)
        pooler = None
        if find_program("pgbouncer") is not None:
            pooler = stack.enter_context(PgBouncer(postgres, pool_size=20))
        library = faulty_libc.build(directory) if faulty_libc.compiler() else None
        databases = [0] if capture == "subscribe" else [0, 3]
        deployment: Deployment

        def connect_pooled() -> socket.socket:
            return connect_postgres(postgres) if pooler is None else connect_tcp(pooler.pooled.port)

        def machine(name: str, command: str) -> Machine:
            is_pooled = name != "first"
            database = stack.enter_context(
                FaultyProxy(connect_pooled if is_pooled else lambda: connect_postgres(postgres))
            )
            home = directory / name
            faulty = FaultyMachine(home / "machine") if library is not None else None
            redis_host, postgres_host = (
                (REDIS_NAME, POSTGRES_NAME) if faulty is not None else (ADDRESS, ADDRESS)
            )
            url = f"postgresql://{WRITER}@{postgres_host}:{database.port}/{DATABASE}"
            settings = {
                **SETTINGS,
                "ACCOUNTING_CAPTURE": capture,
                "ACCOUNTING_DATABASE_URL": f"{url}?sslmode=disable&gssencmode=disable",
            }
            if faulty is not None and library is not None:
                settings |= faulty.environment(library)
            wire = None
            if command == "collect":
                wire = stack.enter_context(
                    FaultyProxy(lambda: connect_tcp(collectors_port(deployment.master)))
                )
                location = f"{redis_host}:{wire.port}/0"
                settings["ACCOUNTING_REDIS_URL"] = (
                    f"redis://{location}"
                    if authority is None
                    else f"rediss://{location}?ssl_ca_certs={authority.certificate}"
                )
            return Machine(name, command, home, settings, database, wire, faulty=faulty)

        names = ["first", "second"] if capture == "replication" else ["first"]
        collectors = [machine(name, "collect") for name in names]
        publisher = Publisher(lambda: deployment.master.port, databases, rate, seed)
        deployment = Deployment(
            capture,
            kind,
            master,
            postgres,
            directory,
            collectors,
            machine("scheduler", "schedule"),
            publisher,
            DatabaseWatcher(postgres),
            authority,
            pooler,
        )
        stack.callback(lambda: deployment.master.__exit__(None, None, None))
        master.start()
        for each in deployment.machines:
            stack.callback(each.stop)
        stack.callback(deployment.end_faults)
        deployment.watcher.start()
        stack.callback(deployment.watcher.stop)
        collectors[0].restart_if_exited()
        assert collectors[0].service is not None
        collectors[0].service.wait_until_capturing()
        # The other machine can take over only once the position in the stream is known.
        while not (
            deployment.watcher.settled_until and deployment.query(POSITION_IS_KNOWN[capture])
        ):
            deployment.restart_exited()
            PACE.wait(POLL_SECONDS)
        stack.enter_context(publisher)
        publisher.pause()
        yield deployment
