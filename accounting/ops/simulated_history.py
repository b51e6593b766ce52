"""Fill empty books with a simulated history, by the path that real messages take.

The messages come with their times to a spool of its own, as a collector would have stored them. The
loader and the jobs do the rest: they run whenever a period is due, so that what comes later for a
closed period becomes adjustments. Redis is not used.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine

from accounting.capture.spool.file import spool_path
from accounting.capture.spool.spool import Spool
from accounting.db.clock import database_now
from accounting.db.engine import lost_connections
from accounting.domain.calendar import to_micros
from accounting.domain.counters import COUNTERS
from accounting.domain.identity import UsernameRule
from accounting.domain.realm_rules import RealmRule
from accounting.errors import UsageError
from accounting.identities.realm_rules import set_rule
from accounting.ingest.loader import Loader
from accounting.ops.registry import JOBS
from accounting.progress import Progress, no_progress
from accounting.reporting import billing_queries, usage_queries, view_queries, view_query
from accounting.reporting.reader import DatabaseReader
from accounting.simulator.history import (
    History,
    HistoryScenario,
    JobsDue,
    Messages,
    Outage,
)
from accounting.simulator.history_oracle import (
    GRACE_SECONDS,
    HistoryExpected,
    HistoryRealm,
    LineKey,
)
from accounting.sources.retire import retire_source
from accounting.sources.source_queries import all_sources

SOURCE: Final = "simulated"
"""The source of a history. It is retired at the end, so that no period waits for it."""
JOBS_IN_ORDER: Final = ("settle", "rollup", "gaps", "close", "adjust", "feed")
"""In this order one run of each is enough."""
STREAM_BYTES: Final = 60
"""What a message takes in a replication stream beside its channel and payload, about."""
DAY: Final = 86_400_000_000


def now_of_empty_books(engine: Engine) -> int:
    """The database's now, in microseconds. Raises UsageError unless its books are empty."""
    with lost_connections(), engine.begin() as connection:
        sources = [source.source for source in all_sources(connection)]
        if sources:
            raise UsageError(
                "a history is only simulated in empty books: these have the "
                f"source '{sources[0]}'; name another database, or another data directory"
            )
        return to_micros(database_now(connection))


def simulate_history(
    engine: Engine, scenario: HistoryScenario, progress: Progress = no_progress
) -> HistoryExpected:
    """Fill the books with a history; returns what they must show.

    The units of ``progress`` are days. Raises UsageError unless the books are empty.
    """
    now_of_empty_books(engine)
    history = History(scenario)
    for realm in history.realms:
        _set_rules(engine, realm)
    days = (scenario.until - history.begins_at) // DAY
    with tempfile.TemporaryDirectory(prefix="turn-accounting-history-") as directory:
        began_at = history.begins_at
        with Spool.open(
            spool_path(Path(directory), SOURCE), SOURCE, clock=lambda: began_at
        ) as spool:
            spool.set_mode("replication")
            spool.checkpoint(began_at)
            loader = Loader(engine, spool, RealmRule())
            for step in history.run():
                match step:
                    case Messages(until, messages):
                        _capture(spool, until, messages)
                        day = (until - began_at) // DAY
                        progress(day, days, doing="simulating days")
                    case Outage(from_at, to_at, cause):
                        gap = spool.open_gap(from_at, cause)
                        spool.start_epoch(cause)
                        spool.close_gap(gap, to_at)
                    case JobsDue():
                        while loader.load_ahead():
                            pass
                        for name in JOBS_IN_ORDER:
                            JOBS[name].run(engine)
    retire_source(engine, SOURCE)
    return history.expected()


def _set_rules(engine: Engine, realm: HistoryRealm) -> None:
    changes = {
        "time_zone": realm.time_zone,
        "anchor_day": 1,
        "grace_seconds": GRACE_SECONDS,
        "username_rule": UsernameRule.REST if realm.is_rest else UsernameRule.PLAIN,
        "separator": ":",
    }
    set_rule(engine, realm.name, changes, default=RealmRule(), holds_from=None)


def _capture(spool: Spool, until: int, messages: list[tuple[int, int, bytes, bytes]]) -> None:
    """Store messages as a collector does that follows the replication stream."""
    position = spool.state().captured_position
    positions = []
    for _, _, channel, payload in messages:
        position += len(channel) + len(payload) + STREAM_BYTES
        positions.append(position)
    spool.append(messages, until, positions=positions)


def differences(reader: DatabaseReader, expected: HistoryExpected) -> Iterator[str]:
    """Compare the books with what they must show; yields a line of text for each difference."""
    sessions, source = view_query.view("sessions"), {"source": SOURCE}
    of_source = sessions.where("source = %(source)s", **source)
    sums = {
        "sessions": view_query.sums(of_source, ()),
        "estimated sessions": view_query.sums(of_source.where("estimated"), ()),
        "disputed sessions": view_query.sums(of_source.where("disputed"), ()),
        "live sessions": view_query.sums(of_source.where("ended_at IS NULL"), ()),
        "capture gaps": view_query.sums(view_queries.gaps(source=SOURCE), ()),
    }
    numbers = (expected.sessions, expected.sessions_estimated, 0, 0, expected.gaps)
    for (what, query), number in zip(sums.items(), numbers, strict=True):
        [row] = reader.read_rows(query)
        yield from _compare(what, {"": {"count": row["row_count"]}}, {"": {"count": number}})
    realms = {realm for realm, _ in expected.closed}
    periods = reader.read_rows(billing_queries.periods())
    yield from _compare(
        "closed period",
        {
            (row["realm"], row["period"]): {"closed": int(row["state"] == "closed")}
            for row in periods
            if row["realm"] in realms
        },
        {key: {"closed": 1} for key in expected.closed},
    )
    names = {(row["realm"], row["starts_at"]): row["period"] for row in periods}
    months = {
        LineKey(row["realm"], names[row["realm"], row["starts_at"]], row["user_id"]): row
        for row in reader.read_rows(usage_queries.usage(by="user", per="month"))
    }
    yield from _compare("month", _of_views(months), expected.months)
    statements = {
        LineKey(row["realm"], row["period"], row["user_id"]): row
        for row in reader.read_rows(view_query.view("statements"))
    }
    yield from _compare("statement", _of_views(statements), expected.statements)
    late: dict[LineKey, Counter[str]] = {}
    for row in reader.read_rows(view_query.view("adjustments")):
        key = LineKey(row["realm"], row["period"], row["user_id"])
        late.setdefault(key, Counter()).update(_numbers(row))
    yield from _compare("adjustment", late, expected.adjustments)
    unattributed: dict[tuple[str, str], Counter[str]] = {}
    for row in reader.read_rows(view_query.view("unattributed_usage")):
        name = row["realm"], row["username"]
        unattributed.setdefault(name, Counter()).update(_numbers(row))
    yield from _compare(
        "unattributed usage",
        unattributed,
        {
            name: dict(zip(COUNTERS, counters, strict=True))
            for name, counters in expected.unattributed.items()
        },
    )


def _of_views(rows: Mapping[LineKey, Mapping[str, Any]]) -> dict[LineKey, Mapping[str, int]]:
    return {key: _numbers(row) for key, row in rows.items()}


def _numbers(row: Mapping[str, Any]) -> dict[str, int]:
    """The numbers of a row of a view, in the units of the oracle."""
    numbers = {name: int(row[name]) for name in COUNTERS}
    for name in ("sessions_started", "sessions_ended", "estimated_bytes"):
        if name in row:
            numbers[name] = int(row[name])
    if "session_seconds" in row:
        numbers["session_microseconds"] = int(row["session_seconds"] * 1_000_000)
    return numbers


def _compare(
    what: str,
    booked: Mapping[Any, Mapping[str, int]],
    expected: Mapping[Any, Mapping[str, int]],
) -> Iterator[str]:
    """The differences of two tables; a missing line is one of zeros."""
    none: Mapping[str, int] = {}
    for key in sorted({*booked, *expected}):
        left, right = booked.get(key, none), expected.get(key, none)
        for name in dict.fromkeys([*left, *right]):
            if left.get(name, 0) != right.get(name, 0):
                of = "" if key == "" else f" {' '.join(map(str, key))}"
                yield (
                    f"{what}{of}: {name} is {left.get(name, 0):,}, expected {right.get(name, 0):,}"
                )
