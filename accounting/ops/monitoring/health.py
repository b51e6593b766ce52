"""The health of the service: problems and warnings, as sentences, from one snapshot.

Has the thresholds and texts of ``/healthz`` and ``turn-accounting health``.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Final

from accounting.capture.clock import MAX_CLOCK_ERROR
from accounting.config import Settings
from accounting.domain.gap_causes import cause_in_words
from accounting.ops import servers
from accounting.ops.monitoring.snapshot import Snapshot, SnapshotReader
from accounting.ops.monitoring.status_queries import DatabaseStatus, RealmStatus, SilentThread
from accounting.plurals import counted
from accounting.reporting.cells import CellState, describe_change

MAX_CAPTURE_LAG_SECONDS: Final = 60
"""Capture writes a checkpoint every second."""
MAX_STAGE_LAG_SECONDS: Final = 300
"""Loading and settling may be this far behind capture: after an outage they have to catch up."""
JOB_FAILURES_LIMIT: Final = 3
MAX_BLOCKED_SECONDS: Final = 300
"""Jobs share their locks, and other schedulers run them too, but each gets its turn."""
WEBHOOK_FAILING_SECONDS: Final = 3600
"""A receiver that is restarted is away for minutes."""
CELL_FAILING_SECONDS: Final = 60
"""A cell that is restarted is away for seconds."""
BURST_NAMES: Final = 100
BURST_RATIO: Final = 10
"""A burst is at least so many new names in an hour, and so many times those of an hour before."""
DISK_FULL_BYTES: Final = 100 * 10**6
SECOND: Final = 1_000_000
MAX_CLOCK_ERROR_SECONDS: Final = MAX_CLOCK_ERROR / SECOND


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """``problems`` make the service unhealthy; ``warnings`` are about something else, as coturn."""

    problems: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def check_health(settings: Settings) -> Health:
    """Evaluate the service's health. Starts nothing; checks capture only where a spool is."""
    servers.check_data_dir(settings.data_dir)
    with SnapshotReader(settings, partial(servers.running_database_url, settings)) as reader:
        snapshot = reader.read()
    has_spool = snapshot.spool is not None or snapshot.spool_error is not None
    return evaluate(snapshot, captures=has_spool)


def evaluate(snapshot: Snapshot, *, captures: bool) -> Health:
    """Evaluate a snapshot. ``captures``: whether this machine should collect its source."""
    problems: list[str] = []
    if captures:
        problems += capture_problems(snapshot)
        free_bytes = snapshot.disk_free_bytes
        if free_bytes is not None and free_bytes < DISK_FULL_BYTES:
            problems.append(
                f"source {snapshot.source!r}: the spool's disk has {free_bytes / 1e6:.0f} MB left, "
                "and a full one stops capture: make room"
            )
    if snapshot.database_error is not None:
        problems.append(snapshot.database_error)
    warnings = list(clock_warnings(snapshot))
    if snapshot.database is not None:
        problems += database_problems(snapshot.database)
        problems += cell_status_problems(snapshot.database)
        if snapshot.database.is_at_head:
            problems += identity_problems(snapshot.database)
            problems += set_aside_problems(snapshot.database)
        warnings += cell_faults(snapshot.database)
        warnings += gap_warnings(snapshot.database)
        warnings += webhook_warnings(snapshot.database)
        warnings += cell_warnings(snapshot.database)
        warnings += silence_warnings(snapshot.database.silent_threads, snapshot.taken_at)
    return Health(problems=tuple(problems), warnings=tuple(warnings))


def capture_problems(snapshot: Snapshot) -> Iterator[str]:
    """The problems of capture on this machine."""
    if snapshot.spool_error is not None:
        yield snapshot.spool_error
    elif snapshot.active_host is not None:
        return
    elif snapshot.spool is None or snapshot.spool.state.captured_until is None:
        yield f"source {snapshot.source!r}: nothing was captured yet, Redis was never reached"
    elif snapshot.spool.gap is not None:
        gap = snapshot.spool.gap
        cause = f"{gap.cause}: {gap.detail}" if gap.detail else gap.cause
        yield (
            f"source {snapshot.source!r}: not capturing for "
            f"{_age(gap.from_at, snapshot.taken_at)}, a gap is open ({cause})"
        )
    else:
        lag_seconds = (snapshot.taken_at - snapshot.spool.state.captured_until) // SECOND
        if lag_seconds > MAX_CAPTURE_LAG_SECONDS:
            yield (
                f"source {snapshot.source!r}: not capturing for {format_duration(lag_seconds)}: "
                "Redis is out of reach, or the collector hangs or does not run"
            )


def database_problems(database: DatabaseStatus) -> Iterator[str]:
    """The problems of the schema, and of loading, settling and the jobs, for all sources."""
    if not database.is_at_head:
        yield (
            f"Postgres: the database is at revision {database.revision or 'none'}, not at this "
            "version's: run `turn-accounting db upgrade`"
        )
        return
    lags = [source.captured_lag_seconds or 0.0 for source in database.sources]
    if min(lags, default=0.0) < -MAX_CAPTURE_LAG_SECONDS:
        yield (
            f"Postgres: its clock stepped back by {format_duration(-min(lags))}, and times stand "
            "still until it is there again: run `turn-accounting doctor`"
        )
    for source in database.sources:
        captured_lag = source.captured_lag_seconds
        if captured_lag is None:
            continue
        for stage, lag in (
            ("loading", source.loaded_lag_seconds),
            ("settling", source.settled_lag_seconds),
        ):
            if lag is None or lag - captured_lag > MAX_STAGE_LAG_SECONDS:
                state = (
                    "never ran"
                    if lag is None
                    else f"is {format_duration(lag - captured_lag)} behind"
                )
                yield f"source {source.source!r}: {stage} {state}"
                break
    for job in database.jobs:
        if job.failures_in_a_row >= JOB_FAILURES_LIMIT:
            yield (
                f"job {job.job} failed {job.failures_in_a_row} times in a row ({job.last_error}): "
                "see the scheduler's log"
            )
        if job.blocked_seconds > MAX_BLOCKED_SECONDS:
            yield (
                f"job {job.job} has not run for {format_duration(job.blocked_seconds)}: "
                f"{job.blocked_by}"
            )


def cell_status_problems(database: DatabaseStatus) -> Iterator[str]:
    """A sentence for each cell of a front that can't be read as it should be."""
    for cell in database.cell_states:
        if cell.away:
            yield f"cell '{cell.cell}' does not answer: {cell.away}"
        elif change := describe_change(cell):
            yield f"cell '{cell.cell}': {change}"


def cell_faults(database: DatabaseStatus) -> Iterator[str]:
    """What is wrong in the cells of a front, in short: their own health has it in full."""
    for cell in database.cell_states:
        parts = list(_faults(cell))
        if parts:
            yield f"cell '{cell.cell}': {', '.join(parts)}: run `turn-accounting doctor` there"


def _faults(cell: CellState) -> Iterator[str]:
    if cell.away:
        return
    if abs(cell.clock_ahead_seconds) > MAX_CLOCK_ERROR_SECONDS:
        side = "ahead of" if cell.clock_ahead_seconds > 0 else "behind"
        yield f"its clock is {abs(cell.clock_ahead_seconds):.2f} s {side} the front's"
    for stage, lag, limit in (
        ("captured", cell.captured_lag_seconds, MAX_CAPTURE_LAG_SECONDS),
        ("settled", cell.settled_lag_seconds, MAX_STAGE_LAG_SECONDS),
    ):
        if cell.sources and (lag is None or lag > limit):
            until = "never" if lag is None else f"until {format_duration(lag)} ago"
            yield f"{stage} {until}"
    if cell.open_gaps:
        yield counted(cell.open_gaps, "open gap")
    if cell.failing_jobs:
        yield counted(cell.failing_jobs, "failing job")


def describe_cell(cell: CellState) -> str:
    """A cell that answers and lacks nothing."""
    sources = counted(cell.sources, "source")
    lag = cell.captured_lag_seconds
    until = "" if lag is None else f", captured until {format_duration(lag)} ago"
    return f"cell '{cell.cell}': {sources}{until}"


def describe_gaps(database: DatabaseStatus) -> str:
    """The gaps that are open now, and those of the last day and week."""
    open_sources = [source.source for source in database.sources if source.gap_from is not None]
    parts = [f"open now: {', '.join(map(repr, open_sources))}"] if open_sources else []
    before = 0
    for recent in database.recent_gaps:
        span = format_duration(recent.hours * 3600)
        if recent.gaps > before:
            parts.append(
                f"{recent.gaps:,} in {span}, {format_duration(recent.seconds)} in all, "
                f"{'the longest' if recent.gaps > 1 else 'cause'}: {cause_in_words(recent.cause)}"
            )
            before = recent.gaps
    return "; ".join(parts) or f"none in {span}"


def has_new_gaps(database: DatabaseStatus) -> bool:
    """Whether a gap is open, or ended within a day."""
    is_open = any(source.gap_from is not None for source in database.sources)
    return is_open or any(recent.gaps for recent in database.recent_gaps[:1])


def gap_warnings(database: DatabaseStatus) -> Iterator[str]:
    """A sentence on the gaps where one is open or ended within a day."""
    if has_new_gaps(database):
        yield f"gaps: {describe_gaps(database)}: see `turn-accounting gaps`"


def webhook_warnings(database: DatabaseStatus) -> Iterator[str]:
    """A sentence for each endpoint that is disabled, or takes nothing for an hour."""
    for webhook in database.webhooks:
        name, behind = f"webhook {webhook.number}", counted(webhook.events_behind, "event")
        advice = "`turn-accounting webhook list` says why, and "
        if webhook.disabled_cause in ("in_doubt", "restored"):
            advice += f"what to compare before `webhook replay {webhook.number} --after SEQ`"
        else:
            advice += f"`webhook enable {webhook.number}` tries it again"
        if webhook.disabled_cause is not None:
            yield f"{name} is disabled, {behind} behind: {advice}"
        elif webhook.failing_seconds > WEBHOOK_FAILING_SECONDS:
            duration = format_duration(webhook.failing_seconds)
            yield f"{name} has taken nothing for {duration}, {behind} behind: {advice}"


def cell_warnings(database: DatabaseStatus) -> Iterator[str]:
    """A sentence for each cell whose feed this front can't read."""
    for cell in database.cells:
        if cell.failing_seconds > CELL_FAILING_SECONDS:
            yield (
                f"cell '{cell.cell}': its feed can't be read for "
                f"{format_duration(cell.failing_seconds)} ({cell.error}): its events come once it "
                "can, and no period of the front closes before"
            )


def set_aside_problems(database: DatabaseStatus) -> Iterator[str]:
    """A sentence for each source of which a bug in the fold keeps reports out of the sessions."""
    for source, reports, reason in database.set_aside:
        if reports:
            yield (
                f"source {source!r}: {counted(reports, 'report')} set aside, since folding raised "
                f"{reason}: report this bug, and run `turn-accounting rebuild` with the version "
                "that fixes it"
            )


def clock_offsets(snapshot: Snapshot) -> dict[str, float]:
    """How many seconds the clock of each source's collector is ahead of the database's.

    For this machine's source also without the database.
    """
    sources = snapshot.database.sources if snapshot.database is not None else ()
    offsets = {
        source.source: source.clock_ahead_seconds
        for source in sources
        if source.clock_ahead_seconds is not None
    }
    if snapshot.clock_ahead_seconds is not None and snapshot.active_host is None:
        offsets[snapshot.source] = snapshot.clock_ahead_seconds
    return offsets


def clock_warnings(snapshot: Snapshot) -> Iterator[str]:
    """A sentence for each collector whose machine has a wrong clock."""
    for source, ahead_seconds in clock_offsets(snapshot).items():
        if abs(ahead_seconds) > MAX_CLOCK_ERROR_SECONDS:
            yield f"source {source!r}: {describe_offset(ahead_seconds)}: set it by NTP"


def describe_offset(ahead_seconds: float) -> str:
    """How far the clock of a collector's machine is off."""
    side = "ahead of" if ahead_seconds > 0 else "behind"
    size = abs(ahead_seconds)
    text = f"{size:.2f} s" if size < 120 else format_duration(size)
    return f"the clock of its collector's machine is {text} {side} the database's"


def identity_problems(database: DatabaseStatus) -> Iterator[str]:
    """A sentence for each collector that was refused: two names for one Redis, or the reverse."""
    for name, is_error, notice in database.notices:
        if is_error:
            yield f"source {name!r}: {notice}"


def is_burst_of_names(realm: RealmStatus) -> bool:
    """Whether an hour brought many more names that never authenticated than the others of a day."""
    new = realm.new_unattributed_names
    earlier_per_hour = (realm.unattributed_names - new) / 23
    return new >= BURST_NAMES and new >= BURST_RATIO * earlier_per_hour


def silence_warnings(silent_threads: Sequence[SilentThread], now: int) -> Iterator[str]:
    """A sentence for each coturn server that has silent relay threads."""
    for (source, database, server), group in groupby(
        silent_threads, key=lambda thread: (thread.source, thread.database, thread.server)
    ):
        threads = list(group)
        numbers = ", ".join(str(thread.thread) for thread in threads)
        age = _age(min(thread.silent_since for thread in threads), now)
        missed_count = sum(thread.missed_count for thread in threads)
        yield (
            f"coturn {server or 'of unknown address'} (source {source!r}, database {database}): "
            f"relay thread{'s' if len(threads) > 1 else ''} {numbers} silent for {age} while "
            f"{missed_count} allocation{'s' if missed_count > 1 else ''} expired without a report: "
            "unless it was stopped, its connection to Redis is dead; restart it"
        )


def _age(since: int, now: int) -> str:
    return format_duration((now - since) / SECOND)


def format_duration(seconds: float) -> str:
    """A duration in its largest unit of which it has at least two."""
    for name, unit_seconds in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * unit_seconds:
            return f"{seconds / unit_seconds:.0f} {name}"
    return f"{max(0.0, seconds):.0f} s"
