"""The job ``forward``: the feeds of the cells, in the one feed of the front.

Every event of a cell arrives once, in the order of its cell, whatever ends in between.
"""

import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import psycopg
import pytest
from psycopg.sql import SQL, Identifier
from sqlalchemy import event
from structlog.testing import capture_logs

from accounting.db.engine import open_engine
from accounting.db.queries import Queries
from accounting.errors import LockHeld, UsageError
from accounting.feed.client import Feed
from accounting.feed.number_feed import number_feed
from accounting.front.feed.forward_feed import forward_feed
from accounting.front.join import join_cell, leave
from accounting.ops.doctor.findings import Level
from accounting.ops.doctor.flow import check_flow
from accounting.ops.monitoring.health import evaluate
from tests.support.books import (
    READER,
    WRITER,
    Books,
    channel,
    cloned_database,
    status_payload,
)
from tests.support.command import turn_accounting
from tests.support.crash_injection import CrashInjector, crashing_engine, run_through_crashes
from tests.support.fronts import HOUR, Front, call, database_time
from tests.support.monitoring import metrics_of, read_snapshot
from tests.support.restored_database import back_up, restore_database
from tests.support.servers import PostgresServer

OF_THE_FRONT = ("period.closed", "adjustment.posted")
TABLES = ("feed_outbox", "feed_positions", "forwarded_closings", "cells", "realms", "realm_rules",
    "users")  # fmt: skip


def fill(front: Front) -> None:
    """Two cells, in which alice does the same in the same hour, and bob in one."""
    for cell in front.cells:
        call(front, cell, "alice", 0, 1)
    call(front, "south", "bob", HOUR, 2, realm="example.net")
    pass_hours(front, 10)


def pass_hours(front: Front, hours: float) -> None:
    front.advance_clocks(hours * HOUR)
    front.run_jobs()
    for books in front.cells.values():
        number_feed(books.engine)


def forward(front: Front) -> int:
    """Forward and number; returns how many events of cells were read."""
    read = forward_feed(front.books.engine)
    number_feed(front.books.engine)
    return read


def feed(books: Books) -> list[dict[str, Any]]:
    return books.rows("feed", "type", "realm", "payload", order="seq")


def feed_of(front: Front, cell: str) -> list[dict[str, Any]]:
    """The events that the front has of a cell, as the cell has them."""
    rows = [row for row in feed(front.books) if row["payload"].get("cell") == cell]
    for row in rows:
        del row["payload"]["cell"]
    return rows


def check_feeds(front: Front) -> None:
    """The front has each cell's events once, in their order, and nothing is waiting."""
    assert front.books.query("SELECT FROM accounting.feed_outbox") == []
    for cell, books in front.cells.items():
        assert feed_of(front, cell) == [r for r in feed(books) if r["type"] not in OF_THE_FRONT]


def counted(front: Front) -> Counter[tuple[str, str, str]]:
    """The bytes that were received of each user and hour, by the feed."""
    sums: Counter[tuple[str, str, str]] = Counter()
    for row in feed(front.books):
        payload = row["payload"]
        if row["type"] == "usage.counted":
            key = row["realm"], payload["user_key"], payload["starts_at"]
            sums[key] += payload["received_bytes"]
    return sums


def usage(front: Front) -> Counter[tuple[str, str, str]]:
    """The same by the views of the front."""
    query = """
        SELECT realm, user_key::text, accounting.iso_time(starts_at) AS starts_at, received_bytes
        FROM reporting.user_usage_hourly WHERE received_bytes > 0
    """
    return Counter(
        {
            (row["realm"], row["user_key"], row["starts_at"]): row["received_bytes"]
            for row in front.books.query(query)
        }
    )


def test_every_event_arrives_in_the_order_of_its_cell(front: Front) -> None:
    read = forward(front)
    assert read == sum(len(feed(books)) for books in front.cells.values()) > 8
    check_feeds(front)
    assert {row["realm"] for row in feed(front.books)} == {"example.org", "example.net"}
    assert counted(front) == usage(front)
    assert forward(front) == 0
    names = front.books.query("SELECT user_id FROM accounting.users ORDER BY user_id")
    assert [row["user_id"] for row in names] == ["alice", "bob"]


def test_corrections_of_two_cells_add_up(front: Front) -> None:
    forward(front)
    name = channel("status", user="alice", allocation=7)
    for hours, payload in (
        (10.5, status_payload("new", 40_000)),
        (14, status_payload("refreshed", 40_000)),  # seconds of hours that were counted
    ):
        for cell in front.cells:
            front.receive(cell, HOUR * hours, name, payload)
        pass_hours(front, hours + 2)
    forward(front)
    check_feeds(front)
    assert counted(front) == usage(front)
    corrected = {
        row["payload"]["cell"]
        for row in feed(front.books)
        if row["type"] == "usage.counted" and row["payload"]["correction"]
    }
    assert corrected == {"north", "south"}


def test_nothing_is_lost_or_doubled_by_a_crash_at_any_statement(front: Front) -> None:
    injector = CrashInjector()
    with crashing_engine(front.books, injector) as engine:
        crashes = run_through_crashes(
            front.books, injector, lambda: forward_feed(engine, limit=6), TABLES
        )
    assert crashes > 30
    number_feed(front.books.engine)
    check_feeds(front)


def test_nothing_is_lost_or_doubled_when_a_cell_s_sessions_end_at_any_statement(
    front: Front,
) -> None:
    query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
    engine = open_engine(front.books.url(WRITER))
    moments = [0, 0]

    @event.listens_for(engine, "before_cursor_execute")
    def _(*_: object) -> None:
        moments[0] += 1
        if moments[0] == moments[1]:
            front.books.query(query, [front.cells["north"].name])

    for moment in range(1, 60):
        moments[:] = 0, moment
        forward_feed(engine, limit=4)
        if moments[0] < moment:
            break
    engine.dispose()
    assert moments[0] < moments[1]
    forward(front)
    check_feeds(front)


def test_a_restored_cell_is_read_again_from_the_newest_position_that_it_has(front: Front) -> None:
    forward(front)
    north = front.cells["north"]
    end_sessions(north)
    back_up(north)
    [position] = positions(front, "north")
    call(front, "north", "alice", HOUR * 11, 4)
    pass_hours(front, 20)
    forward(front)
    lost = feed_of(front, "north")
    restore_database(north)
    call(front, "north", "carol", HOUR * 21, 5)
    pass_hours(front, 30)
    assert position["seq"] > 0
    with capture_logs() as logs:
        forward(front)
    [log] = [entry for entry in logs if entry["log_level"] == "warning"]
    assert (log["cell"], log["seq"]) == ("north", position["seq"])
    rows = feed_of(front, "north")
    assert rows[: len(lost)] == lost
    for row in feed(north):
        assert rows.count(row) == 1
    assert forward(front) == 0


def test_a_cell_that_was_restored_to_its_beginning_is_read_from_there(front: Front) -> None:
    north = front.cells["north"]
    end_sessions(north)
    back_up(north)
    forward(front)
    call(front, "north", "carol", HOUR * 11, 5)
    pass_hours(front, 20)
    forward(front)
    restore_database(north)
    front.books.query("DELETE FROM accounting.feed_positions WHERE number = 1 RETURNING 1")
    call(front, "north", "dave", HOUR * 21, 6)
    pass_hours(front, 30)
    forward(front)
    rows = feed_of(front, "north")
    for row in feed(north):
        assert rows.count(row) == 1
    assert positions(front, "north")[-1]["number"] == 1


def test_a_restored_front_reads_again_what_it_has_lost(front: Front) -> None:
    forward(front)
    front.engine.dispose()
    back_up(front.books)
    call(front, "north", "carol", HOUR * 11, 5)
    pass_hours(front, 20)
    forward(front)
    front.engine.dispose()
    restore_database(front.books)
    assert forward(front) > 0
    check_feeds(front)


def test_the_others_events_go_on_while_a_cell_is_away(front: Front) -> None:
    forward(front)
    with away(front.cells["north"]):
        call(front, "south", "carol", HOUR * 11, 7)
        for books in (front.cells["south"], front.whole):
            books.advance_clock(HOUR * 20, source="south")
            books.run_jobs()
            number_feed(books.engine)
        with capture_logs() as logs:
            assert forward(front) > 0
            assert forward(front) == 0
        warnings = [entry for entry in logs if entry["log_level"] == "warning"]
        assert [(entry["cell"], "not currently accepting" in entry["reason"]) for entry in warnings
        ] == [("north", True)]  # fmt: skip
        check_feed_of(front, "south")
        check_that_it_is_said(front)
        row = failure(front, "north")
        assert row["feed_failing_since"] is not None
        assert "not currently accepting" in row["feed_error"]
    call(front, "north", "alice", HOUR * 11, 8)
    pass_hours(front, 21)
    forward(front)
    check_feeds(front)
    assert set(failure(front, "north").values()) == {None}


@pytest.mark.long
def test_a_cell_that_hangs_delays_the_others_by_a_limited_time(front: Front) -> None:
    forward(front)
    query = """
        SELECT pid FROM pg_stat_activity
        WHERE datname = %s AND application_name = 'turn-accounting front'
    """
    north = front.cells["north"]
    sessions = [row["pid"] for row in north.query(query, [north.name])]
    assert sessions
    call(front, "north", "carol", HOUR * 11, 5)
    call(front, "south", "carol", HOUR * 11, 7)
    pass_hours(front, 20)
    for pid in sessions:
        os.kill(pid, signal.SIGSTOP)
    try:
        forward_feed(front.books.engine)
    finally:
        for pid in sessions:
            os.kill(pid, signal.SIGCONT)
    number_feed(front.books.engine)
    check_feed_of(front, "south")
    assert failure(front, "north")["feed_error"] == "canceling statement due to statement timeout"
    front.books.query("UPDATE accounting.cells SET feed_retry_at = now() RETURNING cell")
    forward(front)
    check_feeds(front)


def test_two_schedulers_forward_each_event_once(front: Front) -> None:
    def run() -> None:
        engine = open_engine(front.books.url(WRITER))
        read = -1
        while read:
            try:
                read = forward_feed(engine, limit=1)
            except LockHeld:
                continue
        engine.dispose()

    threads = [Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    number_feed(front.books.engine)
    check_feeds(front)
    query = "SELECT count(*), count(DISTINCT event_id) AS ids FROM accounting.feed"
    [row] = front.books.query(query)
    assert row["count"] == row["ids"]


def test_a_cell_that_joins_again_goes_on_from_where_it_was(front: Front) -> None:
    forward(front)
    before = feed(front.books)
    north = front.cells["north"]
    leave(front.engine, "north", without_its_usage=True)
    call(front, "north", "carol", HOUR * 11, 5)
    pass_hours(front, 20)
    assert forward(front) == 0
    join_cell(front.engine, "nord", north.url(), None)
    assert forward(front) == len(feed(north)) - len([r for r in before if is_of(r, "north")])
    assert feed(front.books)[: len(before)] == before
    rows = [*feed_of(front, "north"), *feed_of(front, "nord")]
    assert rows == feed(north)


def test_another_database_under_a_known_name_is_another_cell(
    front: Front, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    forward(front)
    leave(front.engine, "north", without_its_usage=True)
    with cloned_database(postgres_server) as name:
        books = Books(postgres_server, name, tmp_path / "other")
        books.directory.mkdir()
        books.set_database_clock(database_time(front.books))
        join_cell(front.engine, "north", books.url(), None)
        old = front.cells["north"]
        front.cells["north"] = books
        call(front, "north", "alice", 0, 1)  # as in the database that had the name before
        front.cells["north"].advance_clock(HOUR * 10, source="north")
        books.run_jobs()
        number_feed(books.engine)
        assert feed(books) == feed(old)
        forward(front)
        assert feed_of(front, "north") == feed(old) + feed(books)
        leave(front.engine, "north", without_its_usage=True)
        books.close()


def test_a_copy_of_a_cell_can_t_join(front: Front, postgres_server: PostgresServer) -> None:
    north = front.cells["north"]
    end_sessions(north)
    with cloned_database(postgres_server, north.name) as name:
        with psycopg.connect(postgres_server.url(database=name)) as connection:
            connection.execute("DELETE FROM accounting.membership")
        with pytest.raises(UsageError, match="is the database of cell 'north', or a copy of it"):
            join_cell(front.engine, "west", postgres_server.url(database=name), None)


def test_another_database_at_the_url_of_a_cell_is_not_read(front: Front) -> None:
    forward(front)
    before = feed(front.books)
    north = front.cells["north"]
    north.query("UPDATE accounting.installation SET database_id = gen_random_uuid() RETURNING 1")
    assert forward_feed(front.books.engine) == 0
    error = "its database is another than the one that joined: see its URL"
    assert failure(front, "north")["feed_error"] == error
    call(front, "south", "carol", HOUR * 11, 7)
    pass_hours(front, 20)
    assert forward_feed(front.books.engine) > 0
    assert failure(front, "north")["feed_error"] == error
    number_feed(front.books.engine)
    assert len(feed(front.books)) > len(before)
    check_feed_of(front, "south")


def test_a_cell_is_asked_for_the_next_events_only(front: Front) -> None:
    plans: list[str] = []
    with psycopg.connect(front.books.url(), autocommit=True) as connection:
        connection.add_notice_handler(lambda notice: plans.append(notice.message_primary or ""))
        for statement in (
            "LOAD 'auto_explain'", "SET auto_explain.log_min_duration = 0",
            "SET auto_explain.log_nested_statements = on", "SET auto_explain.log_verbose = on",
            "SET client_min_messages = log",
        ):  # fmt: skip
            connection.execute(statement)
        connection.execute("SELECT * FROM accounting.feed_of_cell('north', 3, 100)")
        connection.execute("SELECT accounting.feed_history_of_cell('north', 3)")
    remote = [line.strip() for plan in plans for line in plan.splitlines() if "Remote SQL" in line]
    events, batch = remote
    assert events == (
        "Remote SQL: SELECT seq, event_id, type, realm, payload FROM reporting.feed WHERE"
        " ((seq > 3::bigint)) ORDER BY seq ASC NULLS LAST LIMIT 100::bigint"
    )
    assert batch == (
        "Remote SQL: SELECT database_id, last_seq, history FROM cell.feed_batches WHERE"
        " ((last_seq >= 3::bigint)) ORDER BY last_seq ASC NULLS LAST LIMIT 1::bigint"
    )


def test_positions_get_fewer_with_their_age(front: Front) -> None:
    write = """
        INSERT INTO accounting.feed_positions (database_id, number, seq, history)
        SELECT database_id, n, n, gen_random_uuid() FROM accounting.cells, generate_series(1, %s) n
        WHERE cell = 'north' RETURNING 1
    """
    front.books.query(write, [20_000])
    with front.books.engine.begin() as connection:
        thin = Queries("accounting.front.feed").text("thin_positions")
        connection.execute(thin, {"cell": "north", "number": 20_000})
    kept = [row["number"] for row in positions(front, "north")]
    assert kept[-64:] == list(range(19_937, 20_001))
    assert len(kept) < 1000
    steps = pairwise(kept)
    assert all(after - before <= 1 + (20_000 - before) / 32 for before, after in steps)


def test_consumers_of_the_front_read_one_feed(front: Front) -> None:
    forward(front)
    with Feed(front.books.url(READER)) as client:
        events = list(client.consume("invoicer", follow=False))
    assert [e.seq for e in events] == list(range(1, len(events) + 1))
    call(front, "north", "carol", HOUR * 11, 5)
    pass_hours(front, 20)
    forward(front)
    with Feed(front.books.url(READER)) as client:
        more = list(client.consume("invoicer", follow=False))
    assert [e.seq for e in events + more] == [r["seq"] for r in front.rows("feed", "seq")]
    shown = turn_accounting("feed", "--json", database_url=front.books.url(READER))
    assert [row["payload"]["cell"] for row in shown.rows] == [
        e.payload["cell"] for e in events + more
    ]


def is_of(row: dict[str, Any], cell: str) -> bool:
    return bool(row["payload"]["cell"] == cell)


def check_feed_of(front: Front, cell: str) -> None:
    rows = [row for row in feed(front.cells[cell]) if row["type"] not in OF_THE_FRONT]
    assert feed_of(front, cell) == rows


def positions(front: Front, cell: str) -> list[dict[str, Any]]:
    return front.books.query(
        "SELECT p.number, p.seq FROM accounting.feed_positions p"
        " JOIN accounting.cells USING (database_id) WHERE cell = %s ORDER BY number",
        [cell],
    )


def check_that_it_is_said(front: Front) -> None:
    """Metrics, health and doctor of the front say for how long the cell is away."""
    front.books.query(
        "UPDATE accounting.cells SET feed_failing_since = feed_failing_since - interval '3 min'"
        " WHERE feed_failing_since IS NOT NULL RETURNING cell"
    )
    snapshot = read_snapshot(front.books)
    samples = metrics_of(snapshot)
    assert samples["turn_accounting_cell_feed_failing_seconds", "north"] >= 180
    assert samples["turn_accounting_cell_feed_failing_seconds", "south"] == 0
    assert samples["turn_accounting_cell_feed_forwarded_seq", "south"] > 0
    [warning] = evaluate(snapshot, captures=False).warnings
    assert warning.startswith("cell 'north': its feed can't be read for 3 min (")
    [finding] = [each for each in check_flow(snapshot) if each.check == "cells"]
    assert finding.level is Level.WARNING


def failure(front: Front, cell: str) -> dict[str, Any]:
    [row] = front.books.query(
        "SELECT feed_failing_since, feed_retry_at, feed_error FROM accounting.cells"
        " WHERE cell = %s",
        [cell],
    )
    return row


def end_sessions(books: Books) -> None:
    """End all sessions in a database: those of the front, too."""
    books.disconnect()
    with psycopg.connect(books.server.url(), autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s",
            [books.name],
        )


@contextmanager
def away(books: Books) -> Iterator[None]:
    """Within the block, nobody can connect to a database."""
    allow = SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
    with psycopg.connect(books.server.url(), autocommit=True) as connection:
        connection.execute(allow.format(Identifier(books.name), SQL("false")))
        end_sessions(books)
        yield
        connection.execute(allow.format(Identifier(books.name), SQL("true")))
