"""Adversarial streams of messages, and all views as one value to compare.

A stream is a list of steps: messages with their times, ticks, gaps. `play` runs it through a spool
and the jobs, all at once or cut into pieces by a plan; `all_rows` then returns all that `reporting`
shows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import psycopg
from hypothesis import strategies as st
from psycopg.rows import dict_row
from psycopg.sql import SQL, Identifier

from accounting.db.engine import Engine
from accounting.identities.realm_rules import set_rule
from accounting.ingest.loader import Loader
from accounting.usage.rollup import rollup
from tests.support.books import (
    READER,
    Books,
    channel,
    status_payload,
    sum_counters,
    traffic_payload,
)
from tests.support.servers import PostgresServer
from tests.support.truncate import empty_database

VIEWS: Final = (
    "sessions",
    "user_usage_hourly",
    "user_usage_daily",
    "user_usage_monthly",
    "realm_usage_hourly",
    "realm_usage_daily",
    "realm_usage_monthly",
    "server_usage_hourly",
    "server_usage_daily",
    "transport_usage_hourly",
    "transport_usage_daily",
    "unattributed_usage",
    "allocation_events",
    "traffic_reports",
    "rejected_messages",
    "capture_gaps",
    "radacct",
)
SOURCES: Final = ("one", "two")
ZONES: Final[Mapping[str, str]] = {
    "example.org": "America/New_York",
    "": "Asia/Kolkata",
    "howe": "Australia/Lord_Howe",
}
BEGIN: Final = datetime(2026, 10, 31, 22, 50, tzinfo=UTC)
"""Shortly before a month ends in every zone, a day before New York's clock goes back."""
LONG_AFTER: Final = 400_000.0


class Allocation(NamedTuple):
    """A key of the streams."""

    source: str
    database: int
    realm: str
    user: str
    allocation: int


ALLOCATIONS: Final = (
    Allocation("one", 0, "example.org", "alice", 1),
    Allocation("one", 0, "example.org", "1999999999:alice", 1),
    Allocation("one", 0, "example.org", "alice", 2),
    Allocation("one", 1, "example.org", "alice", 1),
    Allocation("one", 0, "", "", 1),
    Allocation("one", 0, "howe", "alice", 1),
    Allocation("two", 0, "example.org", "alice", 1),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """After some seconds a source receives a message, or loses its connection for a while."""

    wait: float
    allocation: Allocation
    suffix: str
    payload: bytes
    gap_seconds: float = 0.0


_COUNTS: Final = st.builds(
    lambda counts, large: traffic_payload(*(count * large for count in counts)),
    st.tuples(*[st.integers(0, 3)] * 4),
    st.sampled_from([1, 1, 1000, 2**31]),
)
_LOCAL: Final = st.sampled_from(["192.0.2.1:3478", "192.0.2.1:3478", "192.0.2.2:3478", None])
_MESSAGES: Final = st.one_of(
    st.tuples(
        st.just("status"),
        st.builds(
            lambda word, lifetime, local: status_payload(word, lifetime, local=local),
            st.sampled_from(["new", "new", "refreshed", "deleted"]),
            st.sampled_from([0, 30, 600, 3600]),
            _LOCAL,
        ),
    ),
    st.tuples(st.sampled_from(["traffic", "traffic", "traffic/peer"]), _COUNTS),
    st.tuples(st.sampled_from(["total_traffic", "total_traffic/peer"]), _COUNTS),
    st.tuples(st.sampled_from(["status", "traffic"]), st.just(b"nonsense")),
)
STEPS: Final = st.lists(
    st.builds(
        lambda wait, of, said, gap: Step(
            wait=wait, allocation=of, suffix=said[0], payload=said[1], gap_seconds=gap
        ),
        st.sampled_from([0.0, 0.000001, 1.0, 30.0, 600.0, 700.0, 4000.0, 90_000.0]),
        st.sampled_from(ALLOCATIONS[:1] * 6 + ALLOCATIONS),
        _MESSAGES,
        st.sampled_from([0.0] * 9 + [20.0]),
    ),
    min_size=4,
    max_size=24,
)


class JobCall(NamedTuple):
    """Runs a job, with its batch size, before a step; ``tick`` advances the clocks instead."""

    before: int
    job: str
    size: int


PLANS: Final = st.lists(
    st.builds(
        JobCall,
        st.integers(0, 24),
        st.sampled_from(["load", "load ahead", "settle", "settle", "rollup", "tick"]),
        st.integers(1, 4),
    ),
    max_size=24,
)


class ScenarioPlayer:
    """Plays streams, in a database that is emptied before each."""

    def __init__(self, server: PostgresServer, name: str, engine: Engine) -> None:
        self._server = server
        self._name = name
        self._engine = engine

    def play(
        self,
        steps: Sequence[Step],
        plan: Sequence[JobCall] = (),
        *,
        memory_limit: int | None = None,
    ) -> dict[str, Any]:
        """All rows of all views, long after the stream.

        Without a plan the jobs run once, at the end. ``memory_limit``: of loaders that live through
        the plan; None: each load is by a new one.
        """
        empty_database(self._server, self._name)
        with TemporaryDirectory() as directory:
            books = Books(
                self._server,
                self._name,
                Path(directory),
                start=BEGIN,
                shared_engine=self._engine,
            )
            try:
                for realm, zone in ZONES.items():
                    set_rule(
                        books.engine,
                        realm,
                        {"time_zone": zone},
                        default=books.rule,
                        holds_from=None,
                    )
                if memory_limit is not None:
                    for source in SOURCES:
                        books._loaders[source] = Loader(
                            books.engine, books.spool(source), books.rule, memory_limit=memory_limit
                        )
                return _play(books, steps, plan)
            finally:
                books.close()


def _play(books: Books, steps: Sequence[Step], plan: Sequence[JobCall]) -> dict[str, Any]:
    pending: dict[str, list[tuple[int, int, bytes, bytes]]] = {source: [] for source in SOURCES}

    def capture() -> None:
        for source, messages in pending.items():
            books.receive_all(messages, source=source)
            messages.clear()

    now = 0.0
    for source in SOURCES:
        books.advance_clock(0, source=source)
    for index, step in enumerate(steps):
        for call in (call for call in plan if call.before == index):
            capture()
            _run_job(books, call, now)
        now += step.wait
        if step.gap_seconds:
            capture()
            now = _lose_connection(books, step.allocation.source, now, step.gap_seconds)
        allocation = step.allocation
        name = channel(
            step.suffix,
            user=allocation.user,
            realm=allocation.realm,
            allocation=allocation.allocation,
        )
        pending[allocation.source].append(
            (books.micros_at(now), allocation.database, name, step.payload)
        )
    capture()
    for source in SOURCES:
        books.advance_clock(now + LONG_AFTER, source=source)
    books.run_jobs()
    if plan:
        books.run_jobs()
    return all_rows(books)


def _lose_connection(books: Books, source: str, now: float, seconds: float) -> float:
    """Record a lost connection as the collector does; returns the time of the reconnect."""
    books.advance_clock(now, source=source)
    gap = books.spool(source).open_gap(books.micros_at(now), "connection_lost")
    books.spool(source).close_gap(gap, books.micros_at(now + seconds))
    return now + seconds + 0.001


def _run_job(books: Books, call: JobCall, now: float) -> None:
    match call.job:
        case "tick":
            for source in SOURCES:
                books.advance_clock(now, source=source)
        case "load" | "load ahead":
            for source in SOURCES:
                loader = books._loaders.get(source) or restarted_loader(books, source)
                books.follow_capture(source)
                (loader.load if call.job == "load" else loader.load_ahead)(call.size)
        case "settle":
            books.settle(call.size)
        case "rollup":
            rollup(books.engine, limit=call.size)


def restarted_loader(
    books: Books, source: str = "default", *, engine: Engine | None = None
) -> Loader:
    """A loader as after a restart, with empty caches."""
    books.follow_capture(source)
    return Loader(engine or books.engine, books.spool(source), books.rule)


def all_rows(books: Books) -> dict[str, Any]:
    """All rows of the views of ``reporting`` except ``sources``, which shows the jobs' progress."""
    with psycopg.connect(books.url(READER)) as connection:
        connection.execute("SET timezone = 'UTC'")
        cursor = connection.cursor(row_factory=dict_row)
        shown = {}
        for view in VIEWS:
            query = SQL("SELECT * FROM reporting.{}").format(Identifier(view))
            rows = cursor.execute(query).fetchall()
            for row in rows:
                row.pop("gap_id", None)  # numbered as they come, and some numbers are never used
            shown[view] = sorted(rows, key=repr)
        return shown


def assert_conserved(shown: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Sessions = hours = days = months, for users and for realms."""
    sessions = sum_counters(shown["sessions"])
    for subject in ("user", "realm"):
        for length in ("hourly", "daily", "monthly"):
            assert sum_counters(shown[f"{subject}_usage_{length}"]) == sessions, (
                f"{subject}_usage_{length}"
            )
