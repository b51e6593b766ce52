"""The check of the flow of events: whether they arrive, and whether they reach the books."""

from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Final

from accounting.domain.limits import THE_LIMIT
from accounting.installation import install_command
from accounting.ops.doctor.findings import Finding, error, format_bytes, ok, warning
from accounting.ops.monitoring.health import (
    MAX_CAPTURE_LAG_SECONDS,
    MAX_CLOCK_ERROR_SECONDS,
    SECOND,
    capture_problems,
    cell_faults,
    cell_status_problems,
    cell_warnings,
    clock_offsets,
    database_problems,
    describe_cell,
    describe_gaps,
    describe_offset,
    format_duration,
    has_new_gaps,
    identity_problems,
    is_burst_of_names,
    set_aside_problems,
    silence_warnings,
    webhook_warnings,
)
from accounting.ops.monitoring.snapshot import Snapshot
from accounting.ops.monitoring.status_queries import DatabaseStatus
from accounting.plurals import counted

COMPONENT: Final = "events"
CELLS: Final = "cells"
QUIET_SECONDS: Final = 3600
REJECTED_SHARE: Final = 0.01
SOURCE_STALE_SECONDS: Final = 600
_NO_SOURCE: Final = warning(
    COMPONENT,
    "sources",
    "no source was ever captured",
    "run `turn-accounting collect` beside each Redis that coturn publishes to",
)
WEBHOOK_LIBRARIES: Final = ("certifi", "httpcore", "standardwebhooks")


def check_flow(snapshot: Snapshot) -> Iterator[Finding]:
    """Check what the snapshot has of this machine's spool and of the database."""
    if snapshot.spool is not None:
        yield from _check_capture(snapshot)
    database = snapshot.database
    if database is None or not database.is_at_head:
        return
    if database.is_front:
        yield from _check_cell_states(database)
        yield from _check_cells(database)
    elif snapshot.spool is None and not database.sources:
        yield _NO_SOURCE
    problems = list(database_problems(database))
    for problem in problems:
        yield error(
            COMPONENT,
            "books",
            problem,
            "check that `turn-accounting schedule` runs, and its log; end a session that keeps a "
            "lock with pg_terminate_backend(), or its program",
        )
    if not problems:
        keeps_up = "loading and settling keep up" if not database.is_front else "jobs keep up"
        yield ok(COMPONENT, "books", keeps_up)
    for problem in set_aside_problems(database):
        observed, _, advice = problem.rpartition(": ")
        yield error(COMPONENT, "set-aside", observed, advice)
    if not database.is_front:
        yield from _check_sources(snapshot, database)
    yield from _check_webhooks(database)
    if database.limits:
        yield _check_limits(database)


def _check_sources(snapshot: Snapshot, database: DatabaseStatus) -> Iterator[Finding]:
    """What a front does not have: sources, and what came of them."""
    yield from _check_other_sources(snapshot)
    yield _check_gaps(database)
    yield from _check_clocks(snapshot)
    yield from _check_notices(database)
    yield _check_rejected(database)
    yield _check_unattributed(database)
    for sentence in silence_warnings(database.silent_threads, snapshot.taken_at):
        observed, _, advice = sentence.rpartition(": ")
        yield warning(COMPONENT, "silence", observed, advice)


def _check_cell_states(database: DatabaseStatus) -> Iterator[Finding]:
    """The cells of a front, each in short."""
    for problem in cell_status_problems(database):
        yield error(
            CELLS,
            "reachable",
            problem,
            "start its Postgres, or correct its URL with `turn-accounting front join`; until then "
            "its periods do not close here, and reads fail or lack it (ACCOUNTING_CELLS_AWAY)",
        )
    faulty = set()
    for sentence in cell_faults(database):
        observed, _, advice = sentence.rpartition(": ")
        faulty.add(observed.split(": ")[0])
        yield warning(CELLS, "health", observed, advice)
    for cell in database.cell_states:
        if not cell.away and f"cell '{cell.cell}'" not in faulty:
            yield ok(CELLS, "health", describe_cell(cell))


def _check_capture(snapshot: Snapshot) -> Iterator[Finding]:
    assert snapshot.spool is not None
    state = snapshot.spool.state
    if snapshot.active_host is not None:
        yield ok(COMPONENT, "capture", f"stands by: {snapshot.active_host} collects this source")
        return
    problems = list(capture_problems(snapshot))
    for problem in problems:
        yield error(
            COMPONENT,
            "capture",
            problem,
            "check that `turn-accounting collect` (or `up`) runs, its log, and the findings on "
            "Redis",
        )
    if not problems:
        lag_seconds = max(0, snapshot.taken_at - (state.captured_until or 0)) / SECOND
        yield ok(
            COMPONENT, "capture", f"captured until {lag_seconds:.1f} s ago, by {state.mode or '?'}"
        )
    newest_at = snapshot.spool.newest_at
    if newest_at is None:
        yield warning(
            COMPONENT,
            "arrival",
            "not a single event has arrived yet",
            "put redis-statsdb into turnserver.conf, restart coturn, and make a call",
        )
        return
    age_seconds = (snapshot.taken_at - newest_at) / SECOND
    observed = f"the last event arrived {format_duration(age_seconds)} ago"
    if age_seconds > QUIET_SECONDS:
        yield warning(
            COMPONENT,
            "arrival",
            observed,
            "if there were calls since: look for `redis` in coturn's log, and restart it",
        )
    else:
        yield ok(COMPONENT, "arrival", observed)


def _check_other_sources(snapshot: Snapshot) -> Iterator[Finding]:
    """The sources that this machine does not capture, as the database has them."""
    assert snapshot.database is not None
    for source in snapshot.database.sources:
        is_own = snapshot.spool is not None and source.source == snapshot.source
        if is_own and not snapshot.active_host:
            continue
        name, lag_seconds = f"source {source.source!r}", source.captured_lag_seconds
        if source.gap_from is not None:
            gap_age = format_duration((snapshot.taken_at - source.gap_from) / SECOND)
            yield error(
                COMPONENT,
                "sources",
                f"{name}: not captured for {gap_age}, a gap is open ({source.gap_cause})",
                "run doctor where it is collected",
            )
        elif lag_seconds is None or lag_seconds > SOURCE_STALE_SECONDS:
            age = "ever" if lag_seconds is None else format_duration(lag_seconds)
            yield error(
                COMPONENT,
                "sources",
                f"{name}: not captured for {age}",
                f"start its collector, or `turn-accounting source retire {source.source}`",
            )
        elif lag_seconds > MAX_CAPTURE_LAG_SECONDS:
            yield warning(
                COMPONENT,
                "sources",
                f"{name}: {format_duration(lag_seconds)} behind",
                "run doctor where it is collected",
            )
        else:
            yield ok(COMPONENT, "sources", f"{name}: {format_duration(lag_seconds)} behind")


def _check_gaps(database: DatabaseStatus) -> Finding:
    """A warning for a day. An open gap is an error of its source besides."""
    observed = describe_gaps(database)
    if not has_new_gaps(database):
        return ok(COMPONENT, "gaps", observed)
    return warning(
        COMPONENT,
        "gaps",
        observed,
        'run `turn-accounting gaps`; "Gaps" in docs/operations.md of the project has the causes',
    )


def _check_limits(database: DatabaseStatus) -> Finding:
    """Nothing is wrong where a limit is reached."""
    statuses = [status for status in database.limits if status.threshold == THE_LIMIT]
    limits = counted(sum(status.limits for status in statuses), "limit")
    by_realms = sum(status.realm_reached for status in statuses)
    by_users = sum(status.users_reached for status in statuses)
    observed = f"{limits} of usage; reached now: by realms {by_realms:,}, by users {by_users:,}"
    return ok(COMPONENT, "limits", observed)


def _check_notices(database: DatabaseStatus) -> Iterator[Finding]:
    for problem in identity_problems(database):
        observed, _, advice = problem.rpartition(": ")
        yield error(COMPONENT, "identity", observed, advice)
    for source, is_error, notice in database.notices:
        if not is_error:
            yield ok(COMPONENT, "sources", f"source {source!r} {notice}")


def _check_clocks(snapshot: Snapshot) -> Iterator[Finding]:
    """The clocks of the machines that collect."""
    for source, ahead_seconds in clock_offsets(snapshot).items():
        observed = f"source {source!r}: {describe_offset(ahead_seconds)}"
        if abs(ahead_seconds) > MAX_CLOCK_ERROR_SECONDS:
            yield warning(
                COMPONENT,
                "clock",
                observed,
                "set it by NTP: until then every time of receipt is corrected by the database's "
                "clock",
            )
        else:
            yield ok(COMPONENT, "clock", observed)


def _check_cells(database: DatabaseStatus) -> Iterator[Finding]:
    """The feeds of the cells of a front."""
    if not database.is_front:
        return
    sentences = list(cell_warnings(database))
    for sentence in sentences:
        observed, _, advice = sentence.rpartition(": ")
        yield warning(COMPONENT, "cells", observed, advice)
    if not database.cells:
        yield warning(
            COMPONENT, "cells", "no cell has joined", "run `turn-accounting front join NAME URL`"
        )
    elif not sentences:
        cells = counted(len(database.cells), "cell")
        events = counted(sum(cell.forwarded_seq for cell in database.cells), "event")
        yield ok(COMPONENT, "cells", f"the feeds of {cells} are forwarded: {events}")


def _check_webhooks(database: DatabaseStatus) -> Iterator[Finding]:
    """The endpoints of webhooks; nothing where there are none."""
    webhooks = database.webhooks
    if not webhooks:
        return
    missing = [name for name in WEBHOOK_LIBRARIES if find_spec(name) is None]
    if missing:
        yield warning(
            COMPONENT,
            "webhooks",
            f"the library {missing[0]} is not installed here",
            f"where `turn-accounting schedule` runs: {install_command('webhooks')}",
        )
    sentences = list(webhook_warnings(database))
    for sentence in sentences:
        observed, _, advice = sentence.partition(": ")
        yield warning(COMPONENT, "webhooks", observed, advice)
    if refused := sum(webhook.refused_events for webhook in webhooks):
        yield warning(
            COMPONENT,
            "webhooks",
            f"{counted(refused, 'event')} refused: without a customer, or by the receiver",
            "`turn-accounting webhook deliveries --refused` has the reasons; after "
            "`webhook customers`, `webhook replay` sends them again",
        )
    if not sentences:
        events = counted(sum(webhook.delivered_events for webhook in webhooks), "event")
        yield ok(COMPONENT, "webhooks", f"{counted(len(webhooks), 'webhook')} took {events}")


def _check_unattributed(database: DatabaseStatus) -> Finding:
    """Some of it is normal: a warning only for a realm where names come in a burst."""
    realms = [realm for realm in database.realms if realm.unattributed_bytes]
    if not realms:
        return ok(COMPONENT, "failed-clients", "no traffic of the last day is unattributed")
    total, names = (
        sum(realm.unattributed_bytes for realm in realms),
        sum(realm.unattributed_names for realm in realms),
    )
    bursts = [realm for realm in realms if is_burst_of_names(realm)]
    if bursts:
        most = max(bursts, key=lambda realm: realm.new_unattributed_names)
        return warning(
            COMPONENT,
            "failed-clients",
            f"realm {most.realm!r}: {counted(most.new_unattributed_names, 'name')} that never "
            f"authenticated came in an hour, {most.unattributed_names:,} in 24 h",
            "somebody tries names, or coturn and what signs credentials disagree: see "
            '"Failed clients" in docs/operations.md of the project',
        )
    observed = (
        f"{format_bytes(total)} of the last day are unattributed, under {counted(names, 'name')}"
    )
    return ok(COMPONENT, "failed-clients", observed)


def _check_rejected(database: DatabaseStatus) -> Finding:
    totals: Counter[str] = Counter()
    for count in database.message_counts:
        totals[count.outcome] += count.total
    rejected_count, message_count = totals["rejected"], totals.total()
    if not rejected_count:
        return ok(COMPONENT, "rejected", "no message was rejected")
    observed = f"rejected: {rejected_count:,} of {counted(message_count, 'message')}"
    if rejected_count <= REJECTED_SHARE * message_count:
        return ok(COMPONENT, "rejected", observed)
    return warning(
        COMPONENT,
        "rejected",
        observed,
        "SELECT reason, count(*) FROM reporting.rejected_messages GROUP BY 1: something else "
        "publishes there, or this coturn is newer than this version",
    )
