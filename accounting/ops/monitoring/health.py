"""Is all well? What is wrong, in words, from one look at the service.

Owns the thresholds and the words of `/healthz` and `turn-accounting health`. Pure: what was seen
comes in, sentences go out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from accounting.ops.monitoring.snapshot import Snapshot
from accounting.ops.monitoring.status_queries import DatabaseStatus, SilentThread

MAX_CAPTURE_LAG_SECONDS: Final = 60
"""Capture proves every second how far it has come."""
MAX_STAGE_LAG_SECONDS: Final = 300
"""Loading and settling may lag behind capture for so long: after an outage they catch up."""
JOB_FAILURES_LIMIT: Final = 3
DISK_FULL_BYTES: Final = 100 * 10**6
SECOND: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """``troubles`` are wrong; ``suspicions`` are worth a look, and no fault of this service."""

    problems: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def evaluate(watch: Snapshot, *, captures: bool) -> Health:
    """Judge what was seen. ``captures``: whether this machine is there to collect its source."""
    troubles: list[str] = []
    if captures:
        troubles += capture_problems(watch)
        free = watch.disk_free_bytes
        if free is not None and free < DISK_FULL_BYTES:
            troubles.append(
                f"source {watch.source!r}: the spool's disk has {free / 1e6:.0f} MB left, "
                "and a full one stops capture: make room"
            )
    if watch.database_error is not None:
        troubles.append(watch.database_error)
    suspicions: list[str] = []
    if watch.database is not None:
        troubles += database_problems(watch.database)
        suspicions += silence_warnings(watch.database.silent_threads, watch.taken_at)
    return Health(problems=tuple(troubles), warnings=tuple(suspicions))


def capture_problems(watch: Snapshot) -> Iterator[str]:
    """What is wrong with capturing on this machine."""
    if watch.spool_error is not None:
        yield watch.spool_error
    elif watch.active_host is not None:
        return
    elif watch.spool is None or watch.spool.state.captured_until is None:
        yield f"source {watch.source!r}: nothing was captured yet, Redis was never reached"
    elif watch.spool.gap is not None:
        gap = watch.spool.gap
        why = f"{gap.cause}: {gap.detail}" if gap.detail else gap.cause
        yield (
            f"source {watch.source!r}: not capturing for {_since(gap.from_at, watch.taken_at)}, "
            f"a gap is open ({why})"
        )
    else:
        lag = (watch.taken_at - watch.spool.state.captured_until) // SECOND
        if lag > MAX_CAPTURE_LAG_SECONDS:
            yield (
                f"source {watch.source!r}: not capturing for {format_duration(lag)}: "
                "Redis is out of reach, or the collector hangs or does not run"
            )


def database_problems(books: DatabaseStatus) -> Iterator[str]:
    """What is wrong with loading, settling and the jobs, of all sources."""
    if not books.is_at_head:
        yield (
            f"Postgres: the database is at revision {books.revision or 'none'}, not at this "
            "version's: run `turn-accounting db upgrade`"
        )
        return
    for source in books.sources:
        captured = source.captured_lag_seconds
        if captured is None:
            continue
        for stage, lag in (
            ("loading", source.loaded_lag_seconds),
            ("settling", source.settled_lag_seconds),
        ):
            if lag is None or lag - captured > MAX_STAGE_LAG_SECONDS:
                behind = (
                    "never ran" if lag is None else f"is {format_duration(lag - captured)} behind"
                )
                yield f"source {source.source!r}: {stage} {behind}"
                break
    for job in books.jobs:
        if job.failures_in_a_row >= JOB_FAILURES_LIMIT:
            yield (
                f"job {job.job} failed {job.failures_in_a_row} times in a row ({job.last_error}): "
                "see the scheduler's log"
            )


def silence_warnings(threads: tuple[SilentThread, ...], now: int) -> list[str]:
    """A sentence for each coturn of which relay threads are silent."""
    sentences = []
    for (source, database, server), group in groupby(
        threads, key=lambda one: (one.source, one.database, one.server)
    ):
        silent = list(group)
        numbers = ", ".join(str(one.thread) for one in silent)
        since = _since(min(one.silent_since for one in silent), now)
        unheard = sum(one.missed_count for one in silent)
        sentences.append(
            f"coturn {server or 'of unknown address'} (source {source!r}, database {database}): "
            f"relay thread{'s' if len(silent) > 1 else ''} {numbers} silent for {since} while "
            f"{unheard} allocation{'s' if unheard > 1 else ''} ran out unheard: unless it was "
            "stopped, its connection to Redis is dead; restart it"
        )
    return sentences


def _since(moment: int, now: int) -> str:
    return format_duration((now - moment) / SECOND)


def format_duration(seconds: float) -> str:
    """A length of time for people, in its largest unit."""
    for name, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{max(0.0, seconds):.0f} s"
