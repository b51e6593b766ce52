"""The service's processes put together: ``up`` (all of it), ``collect``, ``load``, ``schedule``.

``up`` holds the embedded servers and two parts, ``collect`` and ``schedule``; ``collect`` captures
in its own process and has ``load`` as a part, so that parsing never keeps the receiver waiting.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Final
from urllib.parse import urlsplit

import structlog

from accounting import embedded
from accounting.capture.clock import wall_clock
from accounting.capture.spool.file import spool_path
from accounting.capture.spool.spool import Spool
from accounting.config import Settings
from accounting.db import migrations
from accounting.db.engine import Engine, open_engine
from accounting.domain.realm_rules import RealmRule
from accounting.errors import ConnectionLost
from accounting.ops import collector_process as collecting
from accounting.ops.monitoring.health import Health, evaluate
from accounting.ops.monitoring.server import serve
from accounting.ops.monitoring.snapshot import SnapshotReader
from accounting.ops.processes import ChildProcess, supervise
from accounting.ops.registry import Job, with_settings
from accounting.ops.scheduler import run_scheduler

log = structlog.get_logger()

WRITER_ROLE: Final = "turn_accounting_writer"
READER_ROLE: Final = "turn_accounting_reader"
CAPTURE_START_TIMEOUT_SECONDS: Final = 60.0
"""How long the line for turnserver.conf waits for capture to begin; Redis may be away."""
COLLECT_STOP_TIMEOUT_SECONDS: Final = 45.0
SCHEDULE_STOP_TIMEOUT_SECONDS: Final = 60.0
CHECKPOINT_MAX_AGE_MICROSECONDS: Final = 15_000_000
"""A collector ticks every second; one that has not for so long is not at work."""


@contextmanager
def database(settings: Settings, role: str | None = None) -> Iterator[Engine]:
    """An engine on the configured database, or as ``role`` on the embedded one.

    The embedded one is that of a running ``up``, or started for as long as this lasts, and is
    always at this version's schema.
    """
    with database_url(settings, role) as url:
        engine = open_engine(url)
        try:
            yield engine
        finally:
            engine.dispose()


@contextmanager
def database_url(settings: Settings, role: str | None = None) -> Iterator[str]:
    """The URL of the same database, with its password: for who connects without an engine."""
    with ExitStack() as stack:
        if settings.database_url is not None:
            yield settings.database_url.get_secret_value()
        else:
            server = stack.enter_context(embedded.attach_or_start(settings.data_dir))
            prepare_embedded_database(server)
            yield server.url(role)


def prepare_embedded_database(server: embedded.EmbeddedPostgres) -> None:
    """Bring the embedded database to this version, with roles that may connect to it."""
    engine = open_engine(server.url())
    try:
        if migrations.current(engine) != migrations.head():
            migrations.upgrade(engine)
            migrations.let_roles_log_in(engine)
    finally:
        engine.dispose()


def redis_url(settings: Settings) -> str | None:
    """The configured Redis, or the embedded Valkey of a running ``up``; None without either."""
    if settings.redis_url is not None:
        return settings.redis_url.get_secret_value()
    server = embedded.running_valkey(settings.data_dir)
    return None if server is None else server.url


def turnserver_conf_line(url: str) -> str:
    """The line for turnserver.conf for an operator's Redis; the password is theirs to fill in."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return "# coturn speaks TCP only: let Redis listen on a port, and name it in redis-statsdb"
    if parts.scheme.endswith("+sentinel"):
        return "# coturn asks no sentinels: give redis-statsdb an address that follows the master"
    words = [
        f"ip={parts.hostname or '127.0.0.1'}",
        f"dbname={parts.path.strip('/') or 0}",
        *(["password=<password>"] if parts.password else []),
        f"port={parts.port or 6379}",
        "connect_timeout=30",
    ]
    return f'redis-statsdb="{" ".join(words)}"'


def default_rule(settings: Settings) -> RealmRule:
    """What holds for realms that nobody set up."""
    return RealmRule(time_zone=settings.time_zone, grace_seconds=settings.grace_seconds)


def run_all(settings: Settings, stop: threading.Event, announce: Callable[[str], None]) -> None:
    """Run everything until ``stop`` is set, then drain: capture, load, settle, roll up.

    ``announce`` gets the line for turnserver.conf once everything runs.
    """
    with ExitStack() as stack:
        environment: dict[str, str] = {}
        if settings.database_url is None:
            server = stack.enter_context(
                embedded.run_postgres(settings.data_dir, cancelled=stop.is_set)
            )
            prepare_embedded_database(server)
            environment["ACCOUNTING_DATABASE_URL"] = server.url(WRITER_ROLE)
        else:
            with database(settings) as engine:
                # Not when there is nothing to do: the writer role may not, and need not.
                if migrations.current(engine) != migrations.head():
                    migrations.upgrade(engine)
        if settings.redis_url is None:
            valkey = stack.enter_context(
                embedded.run_valkey(settings.data_dir, settings.valkey_port, cancelled=stop.is_set)
            )
            environment["ACCOUNTING_REDIS_URL"] = valkey.url
            line = valkey.statsdb_line
        else:
            line = turnserver_conf_line(settings.redis_url.get_secret_value())
        stack.enter_context(serve_metrics(settings, captures=True))
        environment["ACCOUNTING_METRICS_LISTEN"] = "off"
        collect_part = ChildProcess("collect", environment)
        schedule_part = ChildProcess("schedule", environment)
        # Ended in this order: what is captured is loaded before the last settling.
        stack.callback(schedule_part.stop, SCHEDULE_STOP_TIMEOUT_SECONDS)
        stack.callback(collect_part.stop, COLLECT_STOP_TIMEOUT_SECONDS)
        for part in (collect_part, schedule_part):
            part.start()
        parts = [collect_part, schedule_part]
        # What coturn publishes from the moment that the line is given is to be heard.
        patience = time.monotonic() + CAPTURE_START_TIMEOUT_SECONDS
        supervise(parts, stop, until=lambda: is_capturing(settings) or time.monotonic() > patience)
        if not stop.is_set():
            if not is_capturing(settings):
                log.error("not capturing yet: what is published before that is not heard")
            announce(line)
        supervise(parts, stop, until=lambda: False)
        log.info("stopping: draining what was captured")


def run_collector_process(settings: Settings, stop: threading.Event) -> None:
    """Capture, and load what was captured, until ``stop`` is set; then flush both."""
    with database(settings, WRITER_ROLE) as engine, serve_metrics(settings, captures=True):
        collecting.run_while_leased(settings, engine, stop)


def run_loader_process(settings: Settings, stop: threading.Event) -> None:
    """Load the spool of this source until ``stop`` is set, then what is left of it."""
    with database(settings, WRITER_ROLE) as engine:
        collecting.load(settings, engine, default_rule(settings), stop)


def run_scheduler_process(settings: Settings, stop: threading.Event) -> None:
    """Run the jobs until ``stop`` is set."""
    intervals = {
        "settle": settings.settle_interval_seconds,
        "rollup": settings.rollup_interval_seconds,
    }
    with database(settings, WRITER_ROLE) as engine:
        # With the database away the jobs try again for ever; with the wrong one they never could.
        with suppress(ConnectionLost):
            migrations.require_head(engine)
        with serve_metrics(settings, captures=False):
            run_scheduler(engine, intervals, stop, configured_jobs(settings))


def configured_jobs(settings: Settings) -> Mapping[str, Job]:
    """The jobs by name, as the settings have them."""
    return with_settings(report_retention_days=settings.report_retention_days)


def is_capturing(settings: Settings) -> bool:
    """Whether a collector is attached now: it ticks, and no gap is open."""
    path = spool_path(settings.data_dir, settings.source)
    if not path.exists():
        return False
    with Spool.open(path, settings.source) as spool:
        until = spool.state().captured_until or 0
        return (
            wall_clock() - until < CHECKPOINT_MAX_AGE_MICROSECONDS and spool.current_gap() is None
        )


def configured_database_url(settings: Settings) -> str | None:
    """The configured Postgres, or the embedded one of a running ``up``; None without either."""
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    server = embedded.running_postgres(settings.data_dir)
    return None if server is None else server.url(WRITER_ROLE)


def check_health(settings: Settings) -> Health:
    """What is wrong, in words. Starts nothing; looks at capture only where something captures."""
    captures = spool_path(settings.data_dir, settings.source).exists()
    with SnapshotReader(settings, partial(configured_database_url, settings)) as watcher:
        return evaluate(watcher.read(), captures=captures)


@contextmanager
def serve_metrics(settings: Settings, *, captures: bool) -> Iterator[None]:
    """Serve metrics and health while this lasts, where the settings say so."""
    if settings.metrics_listen is None:
        yield
        return
    with (
        SnapshotReader(settings, partial(configured_database_url, settings)) as watcher,
        serve(settings.metrics_listen, watcher.read, partial(evaluate, captures=captures)),
    ):
        yield
