"""The collector's process: captures in a thread, and loads in a child process.

Only the collector with the source's lease works. The others stand by; the one that acquires the
lease continues at the loaded position.
"""

import threading
from contextlib import suppress
from typing import Final

import structlog

from accounting.capture.clock import CaptureClock, wall_clock
from accounting.capture.collector import redis_address, run_collector
from accounting.capture.redis.server_watch import ServerWatch
from accounting.capture.spool.file import spool_path
from accounting.capture.spool.rename import rename_spool
from accounting.capture.spool.spool import Spool
from accounting.capture.spool.status import read_status
from accounting.config import Settings
from accounting.db.engine import Engine
from accounting.errors import ConnectionLost
from accounting.ingest.source_lease import must_take_over, take_over
from accounting.ops.fork_server import ProcessStarter
from accounting.ops.lease_keeper import LeaseKeeper
from accounting.ops.processes import ChildProcess, supervise
from accounting.sources.rename import former_names

log = structlog.get_logger()

FIRST_ANSWER_TIMEOUT_SECONDS: Final = 4.0
"""A collector captures without the lease when the database does not answer within this time."""
STANDBY_POLL_SECONDS: Final = 0.2
LOAD_STOP_TIMEOUT_SECONDS: Final = 30.0


def run_while_leased(
    settings: Settings,
    engine: Engine,
    stop: threading.Event,
    starter: ProcessStarter,
    *,
    clock: CaptureClock | None = None,
) -> None:
    """Capture and load while no other collector has the lease, until ``stop`` is set; then flush.

    ``clock`` times what is received. The database's clock corrects it.

    Raises whatever ends capture: ConfigurationError, SpoolError, or a bug. A SourceConflict is one
    of the first: this collector would count messages twice, or can't count what it sees.
    """
    standing_by = False
    clock = clock or CaptureClock()
    _adopt_renamed_spool(settings, engine)
    watch = ServerWatch(
        redis_address(settings),
        poll_seconds=settings.lease_seconds / 4,
        clock=wall_clock,
    )
    with (
        Spool.open(spool_path(settings.data_dir, settings.source), settings.source) as spool,
        watch.running(),
    ):
        lease = LeaseKeeper(
            engine, spool, settings.lease_seconds, clock, watch, mode=settings.capture
        )
        with lease.running():
            lease.wait_for_first_answer(FIRST_ANSWER_TIMEOUT_SECONDS)
            while not stop.is_set():
                if lease.other_holder:
                    if not standing_by:
                        log.warning("standing by", reason=lease.other_holder)
                    standing_by = True
                    stop.wait(STANDBY_POLL_SECONDS)
                    continue
                position = lease.books_position
                if position is not None and must_take_over(spool, position, watch.latest):
                    log.warning("taking over at the loaded position")
                    take_over(spool, position)
                standing_by = False
                _capture_and_load(settings, stop, starter, spool, lease, watch, clock)


def _adopt_renamed_spool(settings: Settings, engine: Engine) -> None:
    """Continue the spool of a source that was renamed while its collector was stopped."""
    path = spool_path(settings.data_dir, settings.source)
    others = [other for other in path.parent.glob("*.sqlite3") if other != path]
    status = read_status(settings.data_dir, settings.source)
    if not others or (status is not None and status.state.captured_from is not None):
        return
    with suppress(ConnectionLost):  # a spool is lost then at worst, which is a gap
        for name in former_names(engine, settings.source):
            if rename_spool(settings.data_dir, name, settings.source):
                log.info("continuing the spool of the renamed source", former_name=name)
                return


def _capture_and_load(
    settings: Settings,
    stop: threading.Event,
    starter: ProcessStarter,
    spool: Spool,
    lease: LeaseKeeper,
    watch: ServerWatch,
    clock: CaptureClock,
) -> None:
    """Capture and load until ``stop`` is set, capture ends, or another collector takes over."""
    failures: list[BaseException] = []
    stop_capture = threading.Event()

    def capture() -> None:
        try:
            run_collector(settings, stop_capture, clock=clock)
        except BaseException as error:  # noqa: BLE001  # raised again below, in the main thread
            failures.append(error)

    def is_over() -> bool:
        return (
            not capture_thread.is_alive()
            or bool(lease.other_holder)
            or must_take_over(spool, lease.books_position, watch.latest)
        )

    capture_thread = threading.Thread(target=capture, name="capture")
    loader = ChildProcess(starter, "load", stop_timeout_seconds=LOAD_STOP_TIMEOUT_SECONDS)
    capture_thread.start()
    try:
        loader.start()
        supervise([loader], stop, until=is_over)
    finally:
        stop_capture.set()
        capture_thread.join()
        loader.stop()
    if failures:
        raise failures[0]
