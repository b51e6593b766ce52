"""The views of a front have the rows that one database with everything would have."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.support.books import READER
from tests.support.fronts import Front, open_front
from tests.support.servers import PostgresServer

HOUR = 3600.0


@pytest.fixture(scope="module")
def front(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Front]:
    """Users who roam over three cells for two days, a realm in all of them, and one in one."""
    with open_front(postgres_server, tmp_path_factory.mktemp("front")) as front:
        for number, cell in enumerate(front.cells):
            for user in range(3):
                call(front, cell, b"example.org", f"roamer{user}".encode(), number * 600, user + 1)
            call(front, cell, b"example.org", f"{cell} only".encode(), HOUR * 20, 9)
            front.receive(cell, 90_000, b"turn/realm/r/user/u/allocation/x/status", b"new")
            front.receive(
                cell,
                90_001,
                b"turn/realm/example.org/user/scan/allocation/000000000000000077/traffic",
                b"rcvp=1, rcvb=100, sentp=1, sentb=50",
            )
        call(front, "south", b"example.net", b"alice", HOUR * 3, 4)
        front.advance_clocks(HOUR * 48)
        front.run_jobs()
        yield front


def call(front: Front, cell: str, realm: bytes, user: bytes, at: float, number: int) -> None:
    """A session of an hour and a half with three interims and a total."""
    channel = b"turn/realm/%b/user/%b/allocation/%018d/" % (realm, user, number)
    front.receive(cell, at, channel + b"status", b"new lifetime=600, local=192.0.2.1:3478")
    for interim in range(3):
        traffic = b"rcvp=4096, rcvb=%d, sentp=10, sentb=1000" % (400_000 * number)
        front.receive(cell, at + 1800 * interim + 10, channel + b"traffic", traffic)
        front.receive(
            cell, at + 1800 * interim + 20, channel + b"status", b"refreshed lifetime=3600"
        )
    end = at + 1.5 * HOUR
    front.receive(cell, end, channel + b"status", b"deleted")
    total = b"rcvp=12300, rcvb=%d, sentp=31, sentb=3100" % (1_200_500 * number)
    front.receive(cell, end + 0.1, channel + b"total_traffic", total)


VIEWS = (
    "sources", "rejected_messages", "rejected_message_counts", "allocation_events",
    "traffic_reports", "sessions", "radacct", "unattributed_usage",
    "user_usage_hourly", "user_usage_daily", "user_usage_monthly",
    "realm_usage_hourly", "realm_usage_daily", "realm_usage_monthly",
    "server_usage_hourly", "server_usage_daily", "transport_usage_hourly",
    "transport_usage_daily", "statement_previews",
)  # fmt: skip


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_has_the_rows_of_the_whole(front: Front, view: str) -> None:
    rows = front.rows(view)
    assert rows, "the scenario has nothing for this view"
    assert sorted(map(repr, rows)) == sorted(map(repr, front.whole.rows(view)))


def test_columns_types_and_comments_are_those_of_a_cell(front: Front) -> None:
    query = """
        SELECT c.relname, a.attname, a.attnum, format_type(a.atttypid, a.atttypmod) AS type,
            a.attcollation::regcollation::text AS collation,
            col_description(c.oid, a.attnum) AS comment, obj_description(c.oid) AS view_comment,
            c.relacl::text AS rights
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
        WHERE c.relnamespace = 'reporting'::regnamespace AND c.relkind = 'v'
        ORDER BY c.relname, a.attnum
    """
    assert front.books.query(query) == front.whole.query(query)


def plan(front: Front, query: str, *before: str) -> str:
    with psycopg.connect(front.books.url(READER)) as connection:
        for statement in before:
            connection.execute(statement)
        rows = connection.execute(f"EXPLAIN (VERBOSE, COSTS OFF) {query}").fetchall()
    return "\n".join(row[0] for row in rows)


def test_cells_are_asked_at_once_and_with_the_condition(front: Front) -> None:
    text = plan(
        front,
        "SELECT sum(received_bytes) FROM reporting.user_usage_daily"
        " WHERE realm = 'example.org' AND user_id = 'roamer1' AND starts_at >= '2026-11-01'",
    )
    assert text.count("Async Foreign Scan") == 3
    assert text.count("(realm = 'example.org')") == 3
    assert text.count("(user_id = 'roamer1')") == 3
    assert text.count("(starts_at >= '2026-11-01") == 3


def test_a_session_can_leave_a_cell_out(front: Front) -> None:
    query = "SELECT source FROM reporting.sources"
    text = plan(front, query, "SET turn_accounting.without_cells = 'north,west'")
    assert text.count("Remote SQL") == 1
    assert "cell_south" in text
