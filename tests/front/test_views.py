"""The views of a front have the rows that one database with everything would have."""

from typing import Any
from uuid import UUID

import psycopg
import pytest

from tests.support.books import READER, Books
from tests.support.fronts import Front

VIEWS = (
    "sources", "rejected_messages", "rejected_message_counts", "allocation_events",
    "traffic_reports", "sessions", "radacct", "unattributed_usage",
    "user_usage_hourly", "user_usage_daily", "user_usage_monthly",
    "realm_usage_hourly", "realm_usage_daily", "realm_usage_monthly",
    "server_usage_hourly", "server_usage_daily", "transport_usage_hourly",
    "transport_usage_daily", "statement_previews",
)  # fmt: skip


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_has_the_rows_of_the_whole(roaming: Front, view: str) -> None:
    rows = roaming.rows(view)
    assert rows, "the scenario has nothing for this view"
    assert sorted(map(repr, rows)) == sorted(map(repr, roaming.whole.rows(view)))


def test_gaps_have_numbers_of_their_own(roaming: Front) -> None:
    [gap] = roaming.rows("capture_gaps")
    [of_cell] = roaming.cells["west"].rows("capture_gaps")
    assert gap["gap_id"] % 1024 == 3
    assert {**gap, "gap_id": of_cell["gap_id"]} == of_cell


CALLS = """
unattributed_hours('example.org', NULL, NULL)
unattributed_hours(NULL, '2026-11-03', NULL)
unattributed_names('example.org', '{2026-11-02, 2026-11-04, 2026-11-05}')
top_unattributed_names('example.org', '2026-11-01', 5)
users_of_month('example.org', '2026-11-01T00:00Z')
top_users('day', '{example.org}', '{2026-11-02T00:00Z}', 2)
usage_page('hour', 'example.org', '2026-11-02T12:00Z', NULL, NULL, 2)
usage_page('month', 'example.org', '2026-11-01T00:00Z', 'roamer0', '{00000000-0000-0000-0000-000000000000}', 9)
user_peak_sessions((SELECT user_key FROM reporting.sessions WHERE user_id = 'roamer1' LIMIT 1), NULL, NULL)
known_realms()
known_users('example.org', 'roamer')
known_users(NULL, '1700000000:west only')
possible_user_keys('1700000000:west only')
span_waits_for('example.org', NULL, NULL, true)
span_waits_for(NULL, '2026-11-02', '2026-11-05', true)
span_waits_for(NULL, '2026-11-02', '2026-11-05', false)
recent_traffic('south', '2026-11-04T10:00Z', 0, 0, 9, 999999, 3) t WHERE t.confirmed
recent_traffic('south', '2026-11-04T10:00Z', 0, 0, 9, 999999, 100) t WHERE t.confirmed
""".strip().splitlines()  # noqa: E501


@pytest.mark.parametrize("call", CALLS)
def test_a_function_returns_the_rows_of_the_whole(roaming: Front, call: str) -> None:
    rows = sorted(map(repr, roaming.rows(call)))
    assert rows, "the scenario has nothing for this function"
    assert rows == sorted(map(repr, roaming.whole.rows(call)))


def test_the_reports_of_a_session_are_those_of_its_cell(roaming: Front) -> None:
    [session] = roaming.rows("sessions WHERE user_id = 'roamer2' AND source = 'west'", "session_id")
    reports = [
        read_reports(books, session["session_id"]) for books in (roaming.books, roaming.whole)
    ]
    assert len(reports[0]) == 12
    assert reports[0] == reports[1]


def read_reports(books: Books, session_id: UUID) -> list[dict[str, Any]]:
    """All reports of a session, read three at a time."""
    reports: list[dict[str, Any]] = []
    after = "NULL, NULL, NULL"
    while rows := books.rows(f"session_reports('{session_id}', {after}, 3, 100000)"):
        last = rows[-1]
        if last["scanned_until"] is None:
            after = f"'{last['received_at']}', {last['epoch']}, {last['position']}"
        else:
            after = f"'{rows.pop()['scanned_until']}', 0, 0"
        reports += rows
    return reports


def test_columns_types_and_comments_are_those_of_a_cell(roaming: Front) -> None:
    query = """
        SELECT c.relname, a.attname, a.attnum, format_type(a.atttypid, a.atttypmod) AS type,
            a.attcollation::regcollation::text AS collation,
            col_description(c.oid, a.attnum) AS comment, obj_description(c.oid) AS view_comment,
            c.relacl::text AS rights
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
        WHERE c.relnamespace = 'reporting'::regnamespace AND c.relkind = 'v'
        ORDER BY c.relname, a.attnum
    """
    assert roaming.books.query(query) == roaming.whole.query(query)


def plan(roaming: Front, query: str, *before: str) -> str:
    with psycopg.connect(roaming.books.url(READER)) as connection:
        for statement in before:
            connection.execute(statement)
        rows = connection.execute(f"EXPLAIN (VERBOSE, COSTS OFF) {query}").fetchall()
    return "\n".join(row[0] for row in rows)


def test_cells_are_asked_at_once_and_with_the_condition(roaming: Front) -> None:
    text = plan(
        roaming,
        "SELECT sum(received_bytes) FROM reporting.user_usage_daily"
        " WHERE realm = 'example.org' AND user_id = 'roamer1' AND starts_at >= '2026-11-01'",
    )
    assert text.count("Async Foreign Scan") == 3
    assert text.count("(realm = 'example.org')") == 3
    assert text.count("(user_id = 'roamer1')") == 3
    assert text.count("(starts_at >= '2026-11-01") == 3


@pytest.mark.parametrize(
    "view", ["realm_usage_monthly", "server_usage_hourly", "transport_usage_daily"]
)
def test_cells_are_asked_for_peaks_at_once_and_with_the_condition(
    roaming: Front, view: str
) -> None:
    text = plan(
        roaming,
        f"SELECT starts_at, sent_bytes, peak_sessions FROM reporting.{view}"  # noqa: S608
        " WHERE realm = 'example.org' AND starts_at >= '2026-11-01'",
    )
    assert text.count("Async Foreign Scan") == 3
    assert text.count("(realm = 'example.org')") == 3
    assert text.count("(starts_at >= '2026-11-01") == 3
    assert text.count("accounting.front_peaks") == 1


def test_peaks_that_are_not_asked_for_are_not_looked_up(roaming: Front) -> None:
    text = plan(roaming, "SELECT starts_at, sent_bytes FROM reporting.realm_usage_daily")
    assert text.count("Async Foreign Scan") == 3
    assert "front_peaks" not in text


def test_a_session_can_leave_a_cell_out(roaming: Front) -> None:
    query = "SELECT source FROM reporting.sources"
    text = plan(roaming, query, "SET turn_accounting.without_cells = 'north,west'")
    assert text.count("Remote SQL") == 1
    assert "cell_south" in text
