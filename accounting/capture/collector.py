"""The collector: runs a source into the spool, for ever, and records what may have been lost.

Owns the decisions about gaps and epochs, trying again, and the end of a run. Must not know how
messages come (that is the source's) or what they say.

Bounds of a gap. It begins at the last tick: what was published before that is stored, and of what
came after it nobody knows, since messages may have waited in Redis when the connection went. It is
written at once, stays open while nothing is captured, across restarts of this process too, and ends
when the new subscription is acknowledged.
"""

import random
import sys
import threading
from collections.abc import Callable, Sequence

import structlog

from accounting.capture.clock import wall_clock
from accounting.capture.redis.address import parse_address
from accounting.capture.redis.key_scan import KeyScan
from accounting.capture.source import Attachment, Batch, Source, SourceLost
from accounting.capture.source_selection import make_source
from accounting.capture.spool.collector_lock import LastExit, lock_spool
from accounting.capture.spool.file import spool_path
from accounting.capture.spool.records import Gap, RawKeySighting, SpoolState
from accounting.capture.spool.spool import Spool
from accounting.config import Settings
from accounting.errors import ConfigurationError, SpoolDiskError

log = structlog.get_logger()

MIN_RETRY_SECONDS = 0.1
MAX_RETRY_SECONDS = 10.0

# Parsing keeps the interpreter busy: in a burst Python's 5 ms are long for the receiver to wait.
SWITCH_INTERVAL_SECONDS = 0.001

# Redis counts its uptime between two whole seconds.
UPTIME_RESOLUTION = 1_000_000


def run_collector(
    settings: Settings, stop: threading.Event, *, clock: Callable[[], int] = wall_clock
) -> None:
    """Capture until `stop` is set, then store all that was read and return.

    Raises ConfigurationError for settings that can't work, SpoolError when the disk is full or the
    spool damaged or in use; what is lost then becomes a gap at the next start.
    """
    if settings.redis_url is None:
        raise ConfigurationError(
            "ACCOUNTING_REDIS_URL is not set: expected the Redis that coturn publishes to"
        )
    url = settings.redis_url.get_secret_value()
    source = make_source(
        settings.capture,
        url,
        queue_bytes=settings.spool_queue_bytes,
        clock=clock,
    )
    path = spool_path(settings.data_dir, settings.source)
    with lock_spool(path) as last, Spool.open(path, settings.source, clock=clock) as spool:
        interval = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
        scan = KeyScan(parse_address(url), clock=clock)
        try:
            capture_loop(source, spool, stop, scan, last)
        except SpoolDiskError:
            last.record_disk_failure()
            raise
        finally:
            scan.stop()
            sys.setswitchinterval(interval)


def capture_loop(
    source: Source,
    spool: Spool,
    stop: threading.Event,
    scan: KeyScan | None = None,
    last: LastExit | None = None,
) -> None:
    """Run `source` into `spool` until `stop` is set, attaching again after every end.

    `scan` looks at the status keys after the first attachment and after every gap. `last` tells
    how the collector before this one ended.
    """
    scanned = False
    was_disk = last is not None and last.disk_failed
    open_gap_if_needed(spool, "disk_full" if was_disk else "collector_restarted")
    delay_seconds = MIN_RETRY_SECONDS
    stored = 0
    while not stop.is_set():
        try:
            with source.attach(spool.state(), stop) as stream:
                missed = on_attached(spool, stream.attachment, was_disk=was_disk)
                was_disk = False
                if last is not None:
                    last.clear()
                if scan is not None and (missed or not scanned):
                    scan.start()
                    scanned = True
                for batch in stream.batches(stop):
                    store_batch(spool, batch, scan.drain() if scan is not None else ())
                    stored += len(batch.messages)
                    if batch.captured_until is not None:
                        delay_seconds = MIN_RETRY_SECONDS
        except SourceLost as lost:
            open_gap_if_needed(spool, lost.cause, str(lost))
            # Jitter: collectors that were cut off together must not come back together.
            pause_seconds = delay_seconds * random.uniform(0.5, 1.0)  # noqa: S311
            say = log.error if lost.advice else log.warning
            advice = {"advice": lost.advice} if lost.advice else {}
            say("not capturing", error=str(lost), retry_seconds=round(pause_seconds, 1), **advice)
            stop.wait(pause_seconds)
            delay_seconds = min(2 * delay_seconds, MAX_RETRY_SECONDS)
    log.info("capture stopped", messages=stored)


def store_batch(spool: Spool, batch: Batch, keys: Sequence[RawKeySighting]) -> None:
    """Write a batch, and then what was seen of the keys, together."""
    with spool.transaction():
        spool.append(
            batch.messages,
            batch.captured_until,
            positions=batch.positions,
            resume_point=batch.resume_point,
            estimated_count=batch.estimated_count,
        )
        if keys:
            spool.add_sightings(keys)


def on_attached(spool: Spool, attachment: Attachment, *, was_disk: bool = False) -> bool:
    """Close the gap that ends here, or record one that is found out only now; begin an epoch.

    A new epoch wherever something may be missing: in another mode, after a restart of Redis or a
    failover, in a stream that begins anew although it was to go on. Also where offsets go on in
    another history: another collector may know the same offsets from a history that was lost, and
    an epoch must mean one thing to both. `was_disk`: a full disk kept this from being done sooner.
    Returns whether there was a gap.
    """
    with spool.transaction():
        state = spool.state()
        cause = gap_cause(state, attachment, was_disk=was_disk)
        gap = resolve_gap(spool, state.captured_until, cause)
        if cause is not None:
            spool.start_epoch(cause)
        if gap is not None:
            spool.close_gap(gap.number, attachment.captured_from)
        spool.set_mode(attachment.mode)
        if attachment.server_run_id is not None:
            spool.set_server_run_id(attachment.server_run_id)
        if attachment.resume_point is not None:
            spool.append((), resume_point=attachment.resume_point)
        if not attachment.continued:
            # What a stream that goes on brings first is older: there the next tick proves it.
            spool.checkpoint(attachment.captured_from)
    if gap is not None:
        log.warning(
            "capturing again after a gap", mode=attachment.mode, gap=gap.number, cause=gap.cause
        )
    elif attachment.continued:
        log.info("capturing again where it had stopped", mode=attachment.mode)
    else:
        log.info("capturing", mode=attachment.mode)
    return gap is not None


def resolve_gap(spool: Spool, captured_until: int | None, cause: str | None) -> Gap | None:
    """The gap that ends now: the open one, under the name of what was found out, or a new one."""
    gap = spool.current_gap()
    if cause is None or captured_until is None:
        return gap
    if gap is None:
        spool.open_gap(captured_until, cause)
    elif gap.cause != cause:
        found = f"{gap.cause}: {gap.detail}" if gap.detail else gap.cause
        spool.set_gap_cause(gap.number, cause, f"found after {found}")
    return spool.current_gap()


def gap_cause(state: SpoolState, attachment: Attachment, *, was_disk: bool = False) -> str | None:
    """Why messages may be nowhere, by how the stream began; None when there is no reason.

    Another replication id or run id is another server, or the same one after a restart: what
    coturn published between the two is nowhere, also when the stream goes on without a break.
    """
    if state.captured_until is None:
        return None
    if state.mode is not None and state.mode != attachment.mode:
        return "mode_changed"
    here, there = state.resume_point, attachment.resume_point
    run = attachment.server_run_id
    is_another = run is not None and state.server_run_id is not None and run != state.server_run_id
    is_another_history = (
        here is not None and there is not None and here.replication_id != there.replication_id
    )
    if is_another or (attachment.continued and is_another_history):
        began_at = attachment.server_started_at
        ran_before = began_at is not None and began_at + UPTIME_RESOLUTION < state.captured_until
        return "failover" if ran_before else "redis_restarted"
    if attachment.mode == "replication" and not attachment.continued:
        return "disk_full" if was_disk else "backlog_overrun"
    return None


def open_gap_if_needed(spool: Spool, cause: str, detail: str = "") -> None:
    """Open a gap at the last tick, unless one is open already or nothing was ever captured.

    And unless a stream is to be gone on with: whether that lost something shows when it does.
    """
    with spool.transaction():
        state = spool.state()
        if state.captured_until is None or state.resume_point is not None or spool.current_gap():
            return
        spool.open_gap(state.captured_until, cause, detail)
