"""The judgement on what flows: that events arrive, and come all the way into the books.

Pure: one look at the service in, findings out.
"""

from collections.abc import Iterator
from typing import Final

from accounting.ops.doctor.findings import Finding, error, ok, warning
from accounting.ops.monitoring.health import (
    MAX_CAPTURE_LAG_SECONDS,
    SECOND,
    capture_problems,
    database_problems,
    format_duration,
    silence_warnings,
)
from accounting.ops.monitoring.snapshot import Snapshot
from accounting.ops.monitoring.status_queries import DatabaseStatus

COMPONENT: Final = "events"
QUIET_SECONDS: Final = 3600
REJECTED_SHARE: Final = 0.01
SOURCE_STALE_SECONDS: Final = 600


def check_flow(watch: Snapshot) -> Iterator[Finding]:
    """Judge what the spool of this machine and the books tell."""
    if watch.spool is not None:
        yield from _capture(watch)
    if watch.database is None or not watch.database.is_at_head:
        return
    if watch.spool is None and not watch.database.sources:
        yield warning(
            COMPONENT,
            "sources",
            "no source was ever captured",
            "run `turn-accounting collect` beside each Redis that coturn publishes to",
        )
    troubles = list(database_problems(watch.database))
    for trouble in troubles:
        yield error(
            COMPONENT, "books", trouble, "see that `turn-accounting schedule` runs, its log"
        )
    if not troubles:
        yield ok(COMPONENT, "books", "loading and settling keep up")
    yield from _other_sources(watch)
    yield from _rejected(watch.database)
    for sentence in silence_warnings(watch.database.silent_threads, watch.taken_at):
        seen, _, advice = sentence.rpartition(": ")
        yield warning(COMPONENT, "silence", seen, advice)


def _capture(watch: Snapshot) -> Iterator[Finding]:
    assert watch.spool is not None
    state = watch.spool.state
    if watch.active_host is not None:
        yield ok(COMPONENT, "capture", f"stands by: {watch.active_host} collects this source")
        return
    troubles = list(capture_problems(watch))
    for trouble in troubles:
        yield error(
            COMPONENT,
            "capture",
            trouble,
            "see that `turn-accounting collect` (or `up`) runs, its log, and what is said of Redis",
        )
    if not troubles:
        lag = max(0, watch.taken_at - (state.captured_until or 0)) / SECOND
        yield ok(COMPONENT, "capture", f"captured until {lag:.1f} s ago, by {state.mode or '?'}")
    newest_at = watch.spool.newest_at
    if newest_at is None:
        yield warning(
            COMPONENT,
            "arrival",
            "not a single event has arrived yet",
            "put redis-statsdb into turnserver.conf, restart coturn, and make a call",
        )
        return
    age = (watch.taken_at - newest_at) / SECOND
    if age > QUIET_SECONDS:
        yield warning(
            COMPONENT,
            "arrival",
            f"the last event arrived {format_duration(age)} ago",
            "if there were calls since: look for `redis` in coturn's log, and restart it",
        )
    else:
        yield ok(COMPONENT, "arrival", f"the last event arrived {format_duration(age)} ago")


def _other_sources(watch: Snapshot) -> Iterator[Finding]:
    """Sources that this machine does not capture, as the books know them."""
    assert watch.database is not None
    for source in watch.database.sources:
        if watch.spool is not None and source.source == watch.source and not watch.active_host:
            continue
        name, lag = f"source {source.source!r}", source.captured_lag_seconds
        if source.gap_from is not None:
            since = format_duration((watch.taken_at - source.gap_from) / SECOND)
            yield error(
                COMPONENT,
                "sources",
                f"{name}: not captured for {since}, a gap is open ({source.gap_cause})",
                "run doctor where it is collected",
            )
        elif lag is None or lag > SOURCE_STALE_SECONDS:
            age = "ever" if lag is None else format_duration(lag)
            yield error(
                COMPONENT,
                "sources",
                f"{name}: not captured for {age}",
                f"start its collector, or `turn-accounting source retire {source.source}`",
            )
        elif lag > MAX_CAPTURE_LAG_SECONDS:
            yield warning(
                COMPONENT,
                "sources",
                f"{name}: {format_duration(lag)} behind",
                "run doctor where it is collected",
            )
        else:
            yield ok(COMPONENT, "sources", f"{name}: {format_duration(lag)} behind")


def _rejected(books: DatabaseStatus) -> Iterator[Finding]:
    counted = {"loaded": 0, "rejected": 0}
    for _, name, _, total in books.message_counts:
        counted[name] = counted.get(name, 0) + total
    rejected, all_of_them = counted["rejected"], sum(counted.values())
    if not rejected:
        yield ok(COMPONENT, "rejected", "no message was rejected")
        return
    seen = f"{rejected:,} of {all_of_them:,} messages were rejected"
    if rejected > REJECTED_SHARE * all_of_them:
        yield warning(
            COMPONENT,
            "rejected",
            seen,
            "SELECT reason, count(*) FROM reporting.rejected_messages GROUP BY 1: something else "
            "publishes there, or this coturn is newer than this version",
        )
    else:
        yield ok(COMPONENT, "rejected", seen)
