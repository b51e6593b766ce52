"""The judgement on what flows: that events arrive, and come all the way into the books.

Pure: one look at the service in, findings out.
"""

from collections.abc import Iterator
from typing import Final

from accounting.ops.doctor.findings import Finding, error, ok, warning
from accounting.ops.monitoring.health import (
    CAPTURE_LAG_SECONDS,
    SECOND,
    books_troubles,
    capture_troubles,
    in_words,
    silence_in_words,
)
from accounting.ops.monitoring.snapshot import Watch
from accounting.ops.monitoring.status_queries import BooksWatch

SUBJECT: Final = "events"
QUIET_SECONDS: Final = 3600
REJECTED_SHARE: Final = 0.01
STALE_SECONDS: Final = 600


def judge_flow(watch: Watch) -> Iterator[Finding]:
    """Judge what the spool of this machine and the books tell."""
    if watch.spool is not None:
        yield from _capture(watch)
    if watch.books is None or not watch.books.is_at_head:
        return
    if watch.spool is None and not watch.books.sources:
        yield warning(
            SUBJECT,
            "sources",
            "no source was ever captured",
            "run `turn-accounting collect` beside each Redis that coturn publishes to",
        )
    troubles = list(books_troubles(watch.books))
    for trouble in troubles:
        yield error(SUBJECT, "books", trouble, "see that `turn-accounting schedule` runs, its log")
    if not troubles:
        yield ok(SUBJECT, "books", "loading and settling keep up")
    yield from _other_sources(watch)
    yield from _rejected(watch.books)
    for sentence in silence_in_words(watch.books.silent_threads, watch.at):
        seen, _, advice = sentence.rpartition(": ")
        yield warning(SUBJECT, "silence", seen, advice)


def _capture(watch: Watch) -> Iterator[Finding]:
    assert watch.spool is not None
    state = watch.spool.state
    if watch.standby_of is not None:
        yield ok(SUBJECT, "capture", f"stands by: {watch.standby_of} collects this source")
        return
    troubles = list(capture_troubles(watch))
    for trouble in troubles:
        yield error(
            SUBJECT,
            "capture",
            trouble,
            "see that `turn-accounting collect` (or `up`) runs, its log, and what is said of Redis",
        )
    if not troubles:
        lag = max(0, watch.at - (state.captured_until or 0)) / SECOND
        yield ok(SUBJECT, "capture", f"captured until {lag:.1f} s ago, by {state.mode or '?'}")
    newest_at = watch.spool.newest_at
    if newest_at is None:
        yield warning(
            SUBJECT,
            "arrival",
            "not a single event has arrived yet",
            "put redis-statsdb into turnserver.conf, restart coturn, and make a call",
        )
        return
    age = (watch.at - newest_at) / SECOND
    if age > QUIET_SECONDS:
        yield warning(
            SUBJECT,
            "arrival",
            f"the last event arrived {in_words(age)} ago",
            "if there were calls since: look for `redis` in coturn's log, and restart it",
        )
    else:
        yield ok(SUBJECT, "arrival", f"the last event arrived {in_words(age)} ago")


def _other_sources(watch: Watch) -> Iterator[Finding]:
    """Sources that this machine does not capture, as the books know them."""
    assert watch.books is not None
    for source in watch.books.sources:
        if watch.spool is not None and source.source == watch.source and not watch.standby_of:
            continue
        name, lag = f"source {source.source!r}", source.captured_lag_seconds
        if source.gap_from is not None:
            since = in_words((watch.at - source.gap_from) / SECOND)
            yield error(
                SUBJECT,
                "sources",
                f"{name}: not captured for {since}, a gap is open ({source.gap_cause})",
                "run doctor where it is collected",
            )
        elif lag is None or lag > STALE_SECONDS:
            age = "ever" if lag is None else in_words(lag)
            yield error(
                SUBJECT,
                "sources",
                f"{name}: not captured for {age}",
                f"start its collector, or `turn-accounting source retire {source.source}`",
            )
        elif lag > CAPTURE_LAG_SECONDS:
            yield warning(
                SUBJECT,
                "sources",
                f"{name}: {in_words(lag)} behind",
                "run doctor where it is collected",
            )
        else:
            yield ok(SUBJECT, "sources", f"{name}: {in_words(lag)} behind")


def _rejected(books: BooksWatch) -> Iterator[Finding]:
    counted = {"loaded": 0, "rejected": 0}
    for _, name, _, total in books.message_counts:
        counted[name] = counted.get(name, 0) + total
    rejected, all_of_them = counted["rejected"], sum(counted.values())
    if not rejected:
        yield ok(SUBJECT, "rejected", "no message was rejected")
        return
    seen = f"{rejected:,} of {all_of_them:,} messages were rejected"
    if rejected > REJECTED_SHARE * all_of_them:
        yield warning(
            SUBJECT,
            "rejected",
            seen,
            "SELECT reason, count(*) FROM reporting.rejected_messages GROUP BY 1: something else "
            "publishes there, or this coturn is newer than this version",
        )
    else:
        yield ok(SUBJECT, "rejected", seen)
