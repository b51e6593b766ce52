"""The collector: runs a source into the spool, for ever, and records what may have been lost.

Owns the decisions about gaps and epochs, trying again, and the end of a run. Must not know how
messages come (that is the source's) or what they say.

Bounds of a gap. It begins at the last tick: what was published before that is stored, and of what
came after it nobody knows, since messages may have waited in Redis when the connection went. It is
written at once, stays open while nothing is captured, across restarts of this process too, and ends
when the new subscription is acknowledged.
"""

import fcntl
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from accounting.capture.source import Attachment, Source, SourceLost
from accounting.capture.spool import Spool, spool_path, wall_clock
from accounting.capture.subscriber import Subscriber
from accounting.config import Settings
from accounting.errors import ConfigurationError, SpoolError

log = structlog.get_logger()

first_delay_seconds = 0.1
longest_delay_seconds = 10.0

# Parsing keeps the interpreter busy: in a burst Python's 5 ms are long for the receiver to wait.
switch_interval_seconds = 0.001


def run_collector(
    settings: Settings, stop: threading.Event, *, clock: Callable[[], int] = wall_clock
) -> None:
    """Capture until `stop` is set, then store all that was read and return.

    Raises ConfigurationError for settings that can't work, SpoolError when the disk is full or the
    spool damaged or in use; what is lost then becomes a gap at the next start.
    """
    if settings.capture == "replication":
        raise ConfigurationError(
            "ACCOUNTING_CAPTURE='replication' is not there yet: expected 'auto' or 'subscribe'"
        )
    if settings.redis_url is None:
        raise ConfigurationError(
            "ACCOUNTING_REDIS_URL is not set: expected the Redis that coturn publishes to"
        )
    source = Subscriber(
        settings.redis_url.get_secret_value(),
        queue_bytes=settings.spool_queue_bytes,
        clock=clock,
    )
    if settings.capture == "auto":
        log.info("capturing by subscription", reason="replication is not there yet")
    path = spool_path(settings.data_dir, settings.source)
    with alone(path), Spool.open(path, settings.source, clock=clock) as spool:
        interval = sys.getswitchinterval()
        sys.setswitchinterval(switch_interval_seconds)
        try:
            collect(source, spool, stop)
        finally:
            sys.setswitchinterval(interval)


def collect(source: Source, spool: Spool, stop: threading.Event) -> None:
    """Run `source` into `spool` until `stop` is set, attaching again after every end."""
    note_loss(spool, "collector_restarted")
    delay_seconds = first_delay_seconds
    stored = 0
    while not stop.is_set():
        try:
            with source.attach(spool.state()) as stream:
                begin(spool, stream.attachment)
                for batch in stream.batches(stop):
                    spool.append(batch.messages, batch.captured_until)
                    stored += len(batch.messages)
                    if batch.captured_until is not None:
                        delay_seconds = first_delay_seconds
        except SourceLost as lost:
            note_loss(spool, lost.cause, str(lost))
            # Jitter: collectors that were cut off together must not come back together.
            pause_seconds = delay_seconds * random.uniform(0.5, 1.0)  # noqa: S311
            say = log.error if lost.advice else log.warning
            advice = {"advice": lost.advice} if lost.advice else {}
            say("not capturing", error=str(lost), retry_seconds=round(pause_seconds, 1), **advice)
            stop.wait(pause_seconds)
            delay_seconds = min(2 * delay_seconds, longest_delay_seconds)
    log.info("capture stopped", messages=stored)


def begin(spool: Spool, attachment: Attachment) -> None:
    """Close the gap that ends here; after a restart of Redis, begin another epoch."""
    with spool.transaction():
        state, gap = spool.state(), spool.current_gap()
        run = attachment.server_run
        restarted = run is not None and state.server_run is not None and run != state.server_run
        if restarted:
            # What was published while Redis was down is nowhere, whoever noticed first.
            spool.begin_epoch("redis_restarted")
            if gap:
                found = f"{gap.cause}: {gap.detail}" if gap.detail else gap.cause
                spool.amend_gap(gap.gap, "redis_restarted", f"found after {found}")
        if gap:
            spool.close_gap(gap.gap, attachment.at)
        if run is not None:
            spool.note_server(run)
        spool.tick(attachment.at)
    if gap:
        cause = "redis_restarted" if restarted else gap.cause
        log.warning("capturing again after a gap", gap=gap.gap, cause=cause)
    else:
        log.info("capturing")


def note_loss(spool: Spool, cause: str, detail: str = "") -> None:
    """Open a gap at the last tick, unless one is open already or nothing was ever captured."""
    with spool.transaction():
        captured_until = spool.state().captured_until
        if captured_until is not None and spool.current_gap() is None:
            spool.open_gap(captured_until, cause, detail)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the lock of a spool's collector. Raises SpoolError when another process has it."""
    lock = path.with_name(f"{path.name}.lock")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = lock.open("a")
    except OSError as error:
        raise SpoolError(f"{lock} can't be opened: {error.strerror}") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SpoolError(
                f"another collector writes the spool {path}: end it, or give this one its own"
                " ACCOUNTING_SOURCE"
            ) from None
        yield
