"""Run a loader until it is stopped: retries, pauses, and pruning of what is loaded."""

import gc
import threading
import time
from datetime import timedelta
from functools import partial
from typing import Final

import structlog

from accounting.capture.spool.pruning import prune
from accounting.capture.spool.spool import Spool
from accounting.capture.wake_up import WakeUpReceiver
from accounting.db.migrations import require_head
from accounting.db.notification import NEW_REPORTS, notify
from accounting.errors import ConnectionLost, LeaseHeld, LockHeld, SourceConflict
from accounting.ingest.loader import Loader
from accounting.waiting import Backoff

log = structlog.get_logger()

POLL_SECONDS: Final = 0.1
"""The pause while there is nothing to load, where the collector wakes nobody."""
IDLE_SECONDS: Final = 5.0
"""The pause while there is nothing to load, unless the collector ends it."""
BATCH_WAIT_SECONDS: Final = 1.0
"""The pause once all is loaded: a transaction has a cost of its own, and writes each open session
once that got a report since the last."""
SMALL_BATCH_MESSAGES: Final = 50
SMALL_BATCH_WAIT_SECONDS: Final = 0.2
"""The pause after a batch of so few messages, which cost little however many transactions."""
MIN_RETRY_SECONDS: Final = 0.2
MAX_RETRY_SECONDS: Final = 10.0
PRUNE_SECONDS: Final = 60
DRAIN_SECONDS: Final = 20.0
"""How long a loader that was stopped goes on loading what is left."""


def run_loader(
    loader: Loader,
    stop: threading.Event,
    *,
    retention: timedelta,
    wake_up: WakeUpReceiver | None = None,
) -> None:
    """Load until ``stop`` is set, then what is left, for at most DRAIN_SECONDS.

    While Postgres can't be reached, another collector has the lease, or the spool was captured from
    a Redis of another source, retries without limit, with backoff and jitter: the spool keeps the
    messages. ``wake_up`` ends the pause when there is nothing to load. Notifies the schedulers of
    new reports.
    """
    backoff = Backoff(MIN_RETRY_SECONDS, MAX_RETRY_SECONDS)
    # A collection would traverse all sessions in memory; what is freed here makes no cycles.
    gc.disable()
    ready = False
    pruned_at = 0
    deadline = float("inf")
    on_commit = partial(notify, loader.engine, NEW_REPORTS)
    while time.monotonic() <= deadline:
        try:
            if not ready:
                require_head(loader.engine)
                ready = True
            loaded = loader.load_ahead(is_stopped=stop.is_set, on_commit=on_commit)
        except (ConnectionLost, LeaseHeld, LockHeld, SourceConflict) as error:
            if stop.is_set():
                log.warning("what is left stays in the spool", reason=str(error))
                return
            gc.collect()  # an error and its frames can be a cycle
            pause_seconds = backoff.next_pause()
            log.warning(
                "can't load now, trying again",
                reason=str(error),
                retry_seconds=round(pause_seconds, 1),
            )
            stop.wait(pause_seconds)
            continue
        if backoff.has_failed:
            log.info("loading again")
            backoff.reset()
        if stop.is_set():
            if not loaded:
                return
            deadline = min(deadline, time.monotonic() + DRAIN_SECONDS)
        elif not loaded:
            pruned_at = _prune(loader.spool, pruned_at, retention)
            _wait_for_messages(stop, wake_up)
        elif loader.caught_up:
            is_small = loaded <= SMALL_BATCH_MESSAGES
            stop.wait(SMALL_BATCH_WAIT_SECONDS if is_small else BATCH_WAIT_SECONDS)
    log.warning("what is left stays in the spool", reason="it takes too long to load")


def _wait_for_messages(stop: threading.Event, wake_up: WakeUpReceiver | None) -> None:
    if wake_up is None:
        stop.wait(POLL_SECONDS)
    else:
        wake_up.wait(IDLE_SECONDS if wake_up.is_working else POLL_SECONDS)


def _prune(spool: Spool, pruned_at: int, retention: timedelta) -> int:
    """Prune about once a minute of the spool's time; returns that time of the last pruning."""
    state = spool.state()
    # captured_until also advances while nothing is published: names must not stay for ever then.
    newest = state.confirmed_until
    if newest - pruned_at <= PRUNE_SECONDS * 1_000_000:
        return pruned_at
    prune(spool, newest - retention // timedelta(microseconds=1))
    return newest
