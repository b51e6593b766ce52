"""The service's processes: ``up`` (all of it), ``collect``, ``load`` and ``schedule``.

``up`` runs the embedded servers and three child processes: ``collect``, ``schedule`` and ``serve``,
the web server, which it can do without. ``collect`` captures in its own process and has ``load`` as
a child, so that parsing never delays the receiver.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Final

import structlog

from accounting import embedded
from accounting.audit.pruning import PruneLimits
from accounting.capture.clock import CaptureClock, capture_time
from accounting.capture.spool.file import spool_path
from accounting.capture.spool.spool import Spool
from accounting.capture.wake_up import WakeUpReceiver
from accounting.config import Settings, environment_variable
from accounting.db import migrations
from accounting.db.engine import Engine, lost_connections
from accounting.db.revisions import head_revision
from accounting.domain.client_addresses import ClientAddresses
from accounting.domain.realm_rules import RealmRule
from accounting.embedded import EmbeddedPostgres, EmbeddedValkey
from accounting.errors import (
    ConfigurationError,
    ConnectionLost,
    NotAllowed,
    ServerError,
    UsageError,
)
from accounting.front.cell_views import upgrade
from accounting.front.cells import is_front, refuse_front
from accounting.identities import time_zone_check
from accounting.ingest.load_loop import run_loader
from accounting.ingest.loader import Loader
from accounting.ops import servers
from accounting.ops.collector_process import FIRST_ANSWER_TIMEOUT_SECONDS, run_while_leased
from accounting.ops.fork_server import ProcessStarter
from accounting.ops.monitoring.health import evaluate
from accounting.ops.monitoring.snapshot import SnapshotReader
from accounting.ops.processes import ChildProcess, supervise
from accounting.ops.registry import Job, with_settings
from accounting.ops.servers import READER_ROLE, WRITER_ROLE
from accounting.ops.web_process import web_process
from accounting.waiting import Backoff
from accounting.webhooks.delivery import DeliverySettings

log = structlog.get_logger()

CAPTURE_START_TIMEOUT_SECONDS: Final = 60.0
"""The line for turnserver.conf waits at most this long for capture to begin; Redis may be away."""
DATABASE_VARIABLE: Final = environment_variable("database_url")
CONFIGURATION_EXIT_CODE: Final = 2
"""A child process exits so when a setting can't work, and would again."""
COLLECT_STOP_TIMEOUT_SECONDS: Final = 45.0
SCHEDULE_STOP_TIMEOUT_SECONDS: Final = 60.0
MIN_RETRY_SECONDS: Final = 0.1
MAX_RETRY_SECONDS: Final = 5.0
"""Between attempts to reach a database that is away."""
CHECKPOINT_MAX_AGE_MICROSECONDS: Final = 15_000_000
"""A collector writes a checkpoint every second; with an older one it is not capturing."""


def default_rule(settings: Settings) -> RealmRule:
    """The rule of realms that have none of their own."""
    return RealmRule(time_zone=settings.time_zone, grace_seconds=settings.grace_seconds)


def run_all(
    settings: Settings,
    stop: threading.Event,
    announce: Callable[[str, EmbeddedValkey | None, str | None], None],
    starter: ProcessStarter,
) -> None:
    """Run everything until ``stop`` is set, then drain: capture, load, settle, roll up.

    Once everything runs, ``announce`` receives the URL by which coturn reaches Redis, and the
    embedded Valkey where that is it, and the address of the page where it is served.
    """
    servers.check_data_dir(settings.data_dir)
    with ExitStack() as stack:
        environment: dict[str, str] = {}
        reader_url: str | None = None
        postgres: EmbeddedPostgres | None = None
        if settings.database_url is None:
            postgres = stack.enter_context(
                embedded.run_postgres(settings.data_dir, cancelled=stop.is_set)
            )
            run_to_end(starter, "prepare-embedded", {DATABASE_VARIABLE: postgres.url()})
            environment[DATABASE_VARIABLE] = postgres.url(WRITER_ROLE)
            reader_url = postgres.url(READER_ROLE)
        else:
            run_to_end(starter, "prepare", {})
        valkey: EmbeddedValkey | None = None
        if settings.redis_url is None:
            valkey = stack.enter_context(
                embedded.run_valkey(settings.data_dir, settings.valkey_port, cancelled=stop.is_set)
            )
            environment["ACCOUNTING_REDIS_URL"] = valkey.url
            redis_url = valkey.coturn_url
        else:
            redis_url = settings.redis_url.get_secret_value()
        stack.enter_context(serve_metrics(settings, captures=True))
        environment["ACCOUNTING_METRICS_LISTEN"] = "off"
        collect = ChildProcess(
            starter, "collect", environment, stop_timeout_seconds=COLLECT_STOP_TIMEOUT_SECONDS
        )
        schedule = ChildProcess(
            starter, "schedule", environment, stop_timeout_seconds=SCHEDULE_STOP_TIMEOUT_SECONDS
        )
        after_the_drain = stack.enter_context(ExitStack())
        # The stack stops ``collect`` first, so that ``schedule`` settles everything captured.
        stack.callback(schedule.stop)
        stack.callback(collect.stop)
        children = [collect, schedule]
        for child in children:
            child.start()
        _wait_for_capture(settings, children, collect, stop)
        if not stop.is_set():
            web = web_process(settings, starter, reader_url)
            if web is not None:
                after_the_drain.callback(web.process.stop)
                web.process.start()
                children.append(web.process)
            announce(redis_url, valkey, None if web is None else web.address)
        embedded_servers = [server for server in (postgres, valkey) if server is not None]
        supervise(
            children, stop, until=lambda: any(server.has_ended() for server in embedded_servers)
        )
        for server in embedded_servers:  # another `up` may wait for it from now on
            server.owner_lock.announce_stop()
            if server.has_ended():
                log.error("an embedded server has ended by itself", log=str(server.log_path))
                # A service manager, or the operator, starts it again with its recovery.
                raise ServerError(
                    f"an embedded server has ended by itself: {server.log_path} may say why; start "
                    "`up` again"
                )
        log.info("stopping: draining what was captured")


def _wait_for_capture(
    settings: Settings,
    children: Sequence[ChildProcess],
    collect: ChildProcess,
    stop: threading.Event,
) -> None:
    """Return when capture runs, or has not begun in time. Raises ConfigurationError if it can't.

    An operator who has the line for turnserver.conf starts coturn: from then on capture must run.
    """
    deadline = time.monotonic() + CAPTURE_START_TIMEOUT_SECONDS
    supervise(
        children,
        stop,
        until=lambda: (
            is_capturing(settings)
            or time.monotonic() > deadline
            or collect.exit_code == CONFIGURATION_EXIT_CODE
        ),
    )
    if collect.exit_code == CONFIGURATION_EXIT_CODE:
        raise ConfigurationError("capture was refused, for the reason above")
    if not stop.is_set() and not is_capturing(settings):
        log.error("not capturing yet: messages published before capture starts are lost")


def run_to_end(starter: ProcessStarter, command: str, environment: Mapping[str, str]) -> None:
    """Run a command in a process of its own, whose memory goes with it.

    Raises SystemExit with its exit code when it fails; it has written why.
    """
    code = starter.wait(starter.start(command, {**os.environ, **environment}, 0.0))
    if code:
        raise SystemExit(code if code > 0 else 1)


def _database(
    settings: Settings, command: str, stop: threading.Event
) -> AbstractContextManager[Engine]:
    return servers.database(
        settings,
        WRITER_ROLE,
        program=f"turn-accounting {command}",
        may_create=True,
        cancelled=stop.is_set,
    )


def prepare_database(settings: Settings, *, is_embedded: bool) -> None:
    """Upgrade the database to this version, and check that it can account in the time zone."""
    with servers.database(settings, may_create=True) as engine:
        # The writer role lacks the right to upgrade, so an upgraded schema is left alone.
        if migrations.current_revision(engine) != head_revision():
            upgrade(engine)
            if is_embedded:
                migrations.allow_role_logins(engine)
        refuse_front(engine)
        check_default_time_zone(engine, settings)


def run_collector_process(
    settings: Settings,
    stop: threading.Event,
    starter: ProcessStarter,
    *,
    clock: CaptureClock | None = None,
) -> None:
    """Capture, and load what was captured, until ``stop`` is set; then flush both."""
    servers.check_data_dir(settings.data_dir)
    with (
        _database(settings, "collect", stop) as engine,
        serve_metrics(settings, captures=True),
    ):
        _refuse_front_soon(engine)
        run_while_leased(settings, engine, stop, starter, clock=clock)


def _refuse_front_soon(engine: Engine) -> None:
    """Raise UsageError on a front, if the database answers soon: capture does not wait for it."""
    answer = Future[None]()

    def ask() -> None:
        try:
            if migrations.current_revision(engine) == head_revision():
                refuse_front(engine)
            answer.set_result(None)
        except BaseException as error:  # noqa: BLE001  # raised again by ``result``
            answer.set_exception(error)

    threading.Thread(target=ask, name="refuse-front", daemon=True).start()
    with suppress(ConnectionLost, NotAllowed, TimeoutError):
        answer.result(FIRST_ANSWER_TIMEOUT_SECONDS)


def run_loader_process(settings: Settings, stop: threading.Event) -> None:
    """Load the spool of this source until ``stop`` is set, then the rest of it."""
    path = spool_path(settings.data_dir, settings.source)
    with (
        _database(settings, "load", stop) as engine,
        Spool.open(path, settings.source) as spool,
    ):
        with suppress(ConnectionLost):
            migrations.require_head(engine)
            check_default_time_zone(engine, settings)
        loader = Loader(
            engine,
            spool,
            default_rule(settings),
            settings.lease_seconds,
            settings.rejected_messages_per_hour,
            client_addresses=ClientAddresses(settings.client_addresses),
        )
        run_loader(
            loader,
            stop,
            retention=timedelta(seconds=settings.spool_retention_seconds),
            wake_up=WakeUpReceiver(path, stop),
        )


def run_scheduler_process(settings: Settings, stop: threading.Event) -> None:
    """Run the jobs until ``stop`` is set."""
    intervals_seconds = {
        "settle": settings.settle_interval_seconds,
        "rollup": settings.rollup_interval_seconds,
    }
    with (
        _database(settings, "schedule", stop) as engine,
        serve_metrics(settings, captures=False),
    ):
        on_front = wait_for_kind(engine, stop)
        if on_front is None:
            return
        # APScheduler is imported only here, as no other process needs its memory.
        from accounting.ops.scheduler import run_scheduler  # noqa: PLC0415

        jobs = configured_jobs(settings, is_front=on_front)
        run_scheduler(engine, intervals_seconds, stop, jobs)


def is_front_database(engine: Engine) -> bool:
    """Whether the jobs of a database are those of a front."""
    with lost_connections(), engine.connect() as connection:
        return is_front(connection)


def wait_for_kind(engine: Engine, stop: threading.Event) -> bool | None:
    """Whether the database is a front, once it answers; None when ``stop`` is set before.

    Raises ConfigurationError for another schema, with which no job succeeds.
    """
    backoff = Backoff(MIN_RETRY_SECONDS, MAX_RETRY_SECONDS)
    is_logged = False
    while True:
        try:
            migrations.require_head(engine)
            return is_front_database(engine)
        except ConnectionLost as error:
            if not is_logged:
                log.warning("no job can run now, trying again", reason=str(error))
                is_logged = True
            if stop.wait(backoff.next_pause()):
                return None


def check_default_time_zone(engine: Engine, settings: Settings) -> None:
    """Raise ConfigurationError when Postgres does not agree on the time zone of new realms."""
    try:
        with lost_connections(), engine.connect() as connection:
            time_zone_check.check_default_time_zone(connection, settings.time_zone)
    except UsageError as error:
        raise ConfigurationError(f"{environment_variable('time_zone')}: {error}") from error


def configured_jobs(settings: Settings, *, is_front: bool = False) -> Mapping[str, Job]:
    """The jobs by name, as the settings have them. ``is_front``: those of a front."""
    return with_settings(
        report_retention_days=settings.report_retention_days,
        report_archive=settings.report_archive,
        prune_limits=PruneLimits(
            unattributed_days=settings.unattributed_retention_days,
            unattributed_sessions=settings.unattributed_sessions,
            rejected_days=settings.rejected_retention_days,
        ),
        delivery=DeliverySettings(private_addresses=settings.webhook_private_addresses),
        is_front=is_front,
    )


def is_capturing(settings: Settings) -> bool:
    """Whether a collector captures now: its last checkpoint is recent, and no gap is open."""
    path = spool_path(settings.data_dir, settings.source)
    if not path.exists():
        return False
    with Spool.open(path, settings.source) as spool:
        state = spool.state()
        age = capture_time(state) - (state.captured_until or 0)
        return age < CHECKPOINT_MAX_AGE_MICROSECONDS and spool.current_gap() is None


@contextmanager
def serve_metrics(settings: Settings, *, captures: bool) -> Iterator[None]:
    """Serve metrics and health until the block ends, where the settings say so."""
    if settings.metrics_listen is None:
        yield
        return
    # Not before it is needed: with the libraries of HTTP and metrics it takes 4 MB.
    from accounting.ops.monitoring.server import serve  # noqa: PLC0415

    with (
        SnapshotReader(settings, partial(servers.running_database_url, settings)) as reader,
        serve(settings.metrics_listen, reader.read, partial(evaluate, captures=captures)),
    ):
        yield
