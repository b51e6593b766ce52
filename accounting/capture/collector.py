"""The collector: runs a source into the spool until it is stopped, and records gaps and epochs.

A gap begins at the last checkpoint: messages published before it are stored, and later ones may
still have been in Redis when the connection broke. The gap is written at once and stays open while
nothing is captured, also across restarts of this process. It ends when the new stream begins.
"""

import sys
import threading
from collections.abc import Sequence
from typing import Final

import structlog

from accounting.capture.clock import CaptureClock
from accounting.capture.clock_correction import ClockCorrection
from accounting.capture.redis.address import ReloadedAddress
from accounting.capture.redis.key_scan import KeyScan
from accounting.capture.source import Attachment, Batch, Source, SourceLost
from accounting.capture.source_selection import make_source
from accounting.capture.spool.collector_lock import LastExit, lock_spool
from accounting.capture.spool.file import spool_path
from accounting.capture.spool.records import Gap, RawKeySighting, SpoolState
from accounting.capture.spool.spool import Spool
from accounting.capture.wake_up import WakeUpSender
from accounting.config import Settings, reload_secret
from accounting.domain.client_addresses import ClientAddresses, reduced_payload
from accounting.domain.server_identity import (
    UNKNOWN_SERVER,
    ServerIdentity,
    is_other_history,
)
from accounting.errors import ConfigurationError, SpoolDiskError
from accounting.waiting import Backoff

log = structlog.get_logger()

MIN_RETRY_SECONDS: Final = 0.1
MAX_RETRY_SECONDS: Final = 10.0

SWITCH_INTERVAL_SECONDS: Final = 0.001
"""Python's default of 5 ms keeps the receiving thread waiting too long while a burst is parsed."""

UPTIME_RESOLUTION_MICROSECONDS: Final = 1_000_000
"""Redis gives its uptime in whole seconds."""


def run_collector(
    settings: Settings, stop: threading.Event, *, clock: CaptureClock | None = None
) -> None:
    """Capture until ``stop`` is set, then store everything received and return.

    ``clock`` times what is received; another thread feeds it readings of the database's clock.

    Raises ConfigurationError for settings that can't work, SpoolError when the disk is full or the
    spool is damaged or in use; the next start then records a gap.
    """
    clock = clock or CaptureClock()
    address = redis_address(settings)
    source = make_source(
        settings.capture,
        address,
        queue_bytes=settings.spool_queue_bytes,
        clock=clock,
    )
    path = spool_path(settings.data_dir, settings.source)
    with lock_spool(path) as last_exit, Spool.open(path, settings.source, clock=clock.now) as spool:
        interval = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
        scan = KeyScan(address, clock=clock)
        times = ClockCorrection(clock, spool)
        wake_up = WakeUpSender(path)
        try:
            times.start()
            capture_loop(
                source,
                spool,
                stop,
                times,
                scan,
                last_exit,
                wake_up,
                client_addresses=ClientAddresses(settings.client_addresses),
            )
        except SpoolDiskError:
            last_exit.record_disk_failure()
            raise
        finally:
            scan.stop()
            wake_up.close()
            sys.setswitchinterval(interval)


def redis_address(settings: Settings) -> ReloadedAddress:
    """The Redis to capture from, with its secret read again. Raises ConfigurationError."""
    if settings.redis_url is None:
        raise ConfigurationError(
            "ACCOUNTING_REDIS_URL is not set: expected the Redis that coturn publishes to"
        )
    loaded_url = settings.redis_url.get_secret_value()
    return ReloadedAddress(lambda: reload_secret(settings, "redis_url") or loaded_url)


def capture_loop(
    source: Source,
    spool: Spool,
    stop: threading.Event,
    times: ClockCorrection,
    scan: KeyScan | None = None,
    last_exit: LastExit | None = None,
    wake_up: WakeUpSender | None = None,
    *,
    client_addresses: ClientAddresses = ClientAddresses.KEEP,
) -> None:
    """Run ``source`` into ``spool`` until ``stop`` is set; attach again after every disconnect.

    ``times`` corrects the clock's times before they are stored. ``scan`` runs after the first
    attachment and after every gap. ``last_exit`` says how the previous collector ended.
    ``wake_up`` wakes the loader after each batch with messages. ``client_addresses``: what is
    stored of them.
    """
    scanned = False
    disk_failed = last_exit is not None and last_exit.disk_failed
    open_gap_if_needed(spool, "disk_full" if disk_failed else "collector_restarted")
    backoff = Backoff(MIN_RETRY_SECONDS, MAX_RETRY_SECONDS)
    stored_count = 0
    while not stop.is_set():
        times.follow_database()
        try:
            with source.attach(times.to_timeline(spool.state()), stop) as stream:
                attachment = times.corrected(stream.attachment)
                had_gap = on_attached(spool, attachment, disk_failed=disk_failed)
                disk_failed = False
                if last_exit is not None:
                    last_exit.clear()
                if scan is not None and (had_gap or not scanned):
                    scan.start()
                    scanned = True
                for batch in stream.batches(stop):
                    times.follow_database()
                    sightings = scan.drain() if scan is not None else ()
                    store_batch(spool, batch, sightings, times, client_addresses)
                    if wake_up is not None and batch.messages:
                        wake_up.send()
                    stored_count += len(batch.messages)
                    if batch.captured_until is not None:
                        backoff.reset()
        except SourceLost as lost:
            open_gap_if_needed(spool, lost.cause, str(lost))
            pause_seconds = backoff.next_pause()
            write_log = log.error if lost.advice else log.warning
            write_log(
                "not capturing",
                error=str(lost),
                retry_seconds=round(pause_seconds, 1),
                **({"advice": lost.advice} if lost.advice else {}),
            )
            stop.wait(pause_seconds)
    log.info("capture stopped", messages=stored_count)


def store_batch(
    spool: Spool,
    batch: Batch,
    sightings: Sequence[RawKeySighting],
    times: ClockCorrection,
    client_addresses: ClientAddresses = ClientAddresses.KEEP,
) -> None:
    """Store a batch, and after it the sightings of the key scan, in one transaction.

    Positions stay what they are where ``client_addresses`` shortens messages.
    """
    messages = batch.messages
    if client_addresses is not ClientAddresses.KEEP:
        messages = [
            (received_at, database, channel, reduced_payload(payload, client_addresses))
            for received_at, database, channel, payload in messages
        ]
    with spool.transaction():
        spool.append(
            messages,
            batch.captured_until,
            positions=batch.positions,
            resume_point=batch.resume_point,
            estimated_count=batch.estimated_count,
            correction=times.correction,
        )
        if sightings:
            spool.add_sightings([times.corrected_sighting(sighting) for sighting in sightings])


def on_attached(spool: Spool, attachment: Attachment, *, disk_failed: bool = False) -> bool:
    """Close the open gap, or record one that only the new stream reveals; start an epoch.

    An epoch starts wherever messages may be missing: in another mode, after a restart of Redis or a
    failover, in a stream that could not resume. It also starts where a stream resumes under another
    replication id: another collector may have used the same offsets in a history that was lost, and
    an epoch must mean the same positions to both. ``disk_failed``: the previous collector ended at
    a disk error. Returns whether there was a gap.
    """
    with spool.transaction():
        state = spool.state()
        cause = gap_cause(
            state, attachment, disk_failed=disk_failed, last_server=spool.epochs()[-1].server
        )
        gap = resolve_gap(spool, state.captured_until, cause)
        if cause is not None:
            spool.start_epoch(cause)
        if gap is not None:
            spool.close_gap(gap.number, attachment.captured_from)
        spool.set_mode(attachment.mode)
        if attachment.server.histories:
            spool.set_server(attachment.server)
        if attachment.server_run_id is not None:
            spool.set_server_run_id(attachment.server_run_id)
        if attachment.resume_point is not None:
            spool.append((), resume_point=attachment.resume_point)
        if not attachment.continued:
            # A resumed stream first brings older messages: there the next checkpoint is the proof.
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
    """The gap that ends now: a new one, or the open one with the cause that became known."""
    gap = spool.current_gap()
    if cause is None or captured_until is None:
        return gap
    if gap is None:
        spool.open_gap(captured_until, cause)
    elif gap.cause != cause:
        first_cause = f"{gap.cause}: {gap.detail}" if gap.detail else gap.cause
        spool.set_gap_cause(gap.number, cause, f"found after {first_cause}")
    return spool.current_gap()


def gap_cause(
    state: SpoolState,
    attachment: Attachment,
    *,
    disk_failed: bool = False,
    last_server: ServerIdentity = UNKNOWN_SERVER,
) -> str | None:
    """Why messages may be missing, by how the stream began; None when none can be.

    Another replication id or run id means another server, or the same one after a restart: messages
    that coturn published between the two are lost, even when the stream resumes. ``last_server``:
    the one of the last epoch, by which a subscription sees another history of the same server.
    """
    if state.captured_until is None:
        return None
    if state.mode is not None and state.mode != attachment.mode:
        return "mode_changed"
    old, new = state.resume_point, attachment.resume_point
    run_id = attachment.server_run_id
    other_server = run_id is not None and state.server_run_id not in (None, run_id)
    other_history = old is not None and new is not None and old.replication_id != new.replication_id
    if other_server or (attachment.continued and other_history):
        started_at = attachment.server_started_at
        ran_before = (
            started_at is not None
            and started_at + UPTIME_RESOLUTION_MICROSECONDS < state.captured_until
        )
        return "failover" if ran_before else "redis_restarted"
    if attachment.mode == "replication" and not attachment.continued:
        return "disk_full" if disk_failed else "backlog_overrun"
    if attachment.mode == "subscribe" and is_other_history(last_server, attachment.server):
        return "failover"
    return None


def open_gap_if_needed(spool: Spool, cause: str, detail: str = "") -> None:
    """Open a gap at the last checkpoint, unless one is open or nothing was ever captured.

    None is opened either where a stream can resume: only the attempt shows whether anything is
    lost.
    """
    with spool.transaction():
        state = spool.state()
        if state.captured_until is None or state.resume_point is not None or spool.current_gap():
            return
        spool.open_gap(state.captured_until, cause, detail)
