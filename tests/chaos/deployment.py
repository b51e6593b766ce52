"""The deployment of a fault run: a cell and its front.

The cell has Redis, Postgres, two collecting machines and a scheduling one. The servers and
processes have proxies between them; processes that exited are restarted.
The main thread must start them all, since they end with the thread that started them.
"""

import resource
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Literal

import psycopg
import redis
from psycopg.rows import dict_row

from accounting.audit.differences import Difference
from accounting.db import migrations
from accounting.db.engine import open_engine
from accounting.embedded import DATABASE
from accounting.front.verify import verify_installation
from tests.chaos.faulty_proxy import FaultyProxy
from tests.chaos.front import Front, running_front
from tests.chaos.machine import POSTGRES, SETTINGS, Machine, connect_postgres, connect_tcp
from tests.chaos.publisher import Publisher
from tests.support import faulty_libc
from tests.support.books import WRITER
from tests.support.certificates import CertificateAuthority, can_issue
from tests.support.faulty_libc import POSTGRES_NAME, REDIS_NAME, FaultyMachine
from tests.support.pgbouncer import PgBouncer
from tests.support.servers import ADDRESS, PostgresServer, RedisServer, ValkeyServer, free_port
from tests.support.system_postgres import find_program

Capture = Literal["replication", "subscribe"]
Ability = Literal["libc", "tls", "pooler", "front"]
"""What a fault needs: a C compiler, a Redis with TLS, PgBouncer, a front."""
PACE: Final = threading.Event()
"""Never set; its wait is the pause between two checks of a condition."""
REDIS_CLASSES: Final[Mapping[str, type[RedisServer]]] = {
    "valkey": ValkeyServer,
    "redis": RedisServer,
}
BACKLOG_BYTES: Final = 32 << 20
REDIS: Final = {
    "repl-diskless-sync-delay": "0",
    "repl-backlog-size": str(BACKLOG_BYTES),
    "client-output-buffer-limit": "replica 0 0 0",
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
POLL_SECONDS: Final = 0.1


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
        self.histories: list[str] = []

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
            " (SELECT count(*) FROM accounting.usage_deltas),"
            " (SELECT coalesce(array_agg(history), '{}') FROM accounting.source_histories)"
            " FROM reporting.sources WHERE source = 'default'"
        ).fetchone()
        if row is None:
            return
        settled, loaded, holder, self.delta_count, self.histories = row
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
    front: Front | None = None
    intruders: int = 0
    restores: int = 0

    @property
    def abilities(self) -> frozenset[Ability]:
        """What this deployment has for the faults that need it."""
        found: dict[Ability, bool] = {
            "libc": self.scheduler.faulty is not None,
            "tls": self.authority is not None,
            "pooler": self.pooler is not None,
            "front": self.front is not None,
        }
        return frozenset(ability for ability, has in found.items() if has)

    def new_redis(self) -> RedisServer:
        """Another server, as the master is configured; not started."""
        return new_redis(self.redis_kind, self.authority)

    @property
    def machines(self) -> list[Machine]:
        of_front = [] if self.front is None else [self.front.scheduler]
        return [*self.collectors, self.scheduler, *of_front]

    @property
    def database_wires(self) -> list[FaultyProxy]:
        """Those between the collecting machines and Postgres."""
        return [machine.database_proxy for machine in self.collectors]

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

    def wait_until_position_is_known(self) -> None:
        """The other machine can take over only once the position in the stream is known."""
        first = self.collectors[0].service
        assert first is not None
        first.wait_until_capturing()
        while not (self.watcher.settled_until and self.query(POSITION_IS_KNOWN[self.capture])):
            self.restart_exited()
            PACE.wait(POLL_SECONDS)

    def knows_history(self) -> bool:
        """Whether the source has the history of the master, so that it is no other source's.

        After a restart or a failover of Redis, a collector under another name may be the first one.
        Postgres may be stopped, so this asks the watcher.
        """
        with suppress(redis.RedisError), self.client() as client:
            history = client.info("replication")["master_replid"]
            return f"history {history}" in self.watcher.histories
        return False

    def verify(self) -> list[Difference]:
        """The differences that verify finds while the schedulers run: of the cell and the front."""
        books = self.postgres if self.front is None else self.front.postgres
        engine = open_engine(books.url())
        try:
            return list(verify_installation(engine))
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
        if self.front is not None:
            self.front.cell_wire.mend()

    def tracebacks(self) -> list[str]:
        """The lines of the logs with a traceback; there must be none."""
        return [
            f"{path.relative_to(self.directory)}: {line[-1500:]}"
            for path in sorted(self.directory.glob("*/*.log"))
            for line in path.read_text(errors="replace").splitlines()
            if "Traceback" in line
        ]


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
    directory: Path, *, server: str, capture: Capture, rate: float, seed: int, has_front: bool
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
        front = None
        if has_front:
            front = stack.enter_context(running_front(directory / "front", postgres, library))
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
            front,
        )
        stack.callback(lambda: deployment.master.__exit__(None, None, None))
        master.start()
        for each in deployment.machines:
            stack.callback(each.stop)
        for each in deployment.machines:
            stack.callback(each.end)
        stack.callback(deployment.end_faults)
        deployment.watcher.start()
        stack.callback(deployment.watcher.stop)
        collectors[0].restart_if_exited()
        deployment.wait_until_position_is_known()
        stack.enter_context(publisher)
        publisher.pause()
        yield deployment
