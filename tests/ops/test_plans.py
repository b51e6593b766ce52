"""No scheduled statement scans a growing table, by the plans that Postgres executed.

auto_explain reports the plan of every statement, also within functions, so that none can be
forgotten here. The tables have just enough rows that a scan is the wrong plan. Of the reports that
is one day, since a BRIN index is a gain only where it leaves out many pages.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import psycopg
import pytest
from sqlalchemy import event

from accounting.db.engine import Engine, open_engine
from accounting.ops.monitoring.status_queries import read_database_status
from accounting.ops.registry import JOBS
from accounting.reporting.live import MOST_REPORTS, LiveReader
from accounting.reporting.reader import DatabaseReader
from accounting.web.app import create_app
from accounting.webhooks.endpoints import add_endpoint
from benchmarks.scale import QUICK
from benchmarks.web_books import LARGEST_REALM, fill
from benchmarks.web_routes import route_names, route_paths
from tests.support.asgi import request
from tests.support.books import Books
from tests.support.coturn_messages import FakeAllocation
from tests.support.servers import free_port

GROWING: Final = {
    "sessions_closed",
    "session_usage",
    "user_usage_hourly",
    "user_usage_daily",
    "user_usage_monthly",
    "users",
    "usernames",
    "feed",
    "statements",
    "adjustments",
    "rejected_messages",
    "key_sightings",
}
"""These tables, and the partitions of the reports, grow as long as the service runs."""

SMALL_INDEXES: Final = {
    f"sessions_{partition}_{name}"
    for partition in ("open", "closed")
    for name in ("live", "disputed", "unattributed")
}

EXPLAIN: Final = (
    "-c session_preload_libraries=auto_explain -c auto_explain.log_min_duration=0"
    " -c auto_explain.log_nested_statements=on -c auto_explain.log_format=json"
    " -c auto_explain.log_level=warning"
)
DAY: Final = 86_400

LIVE: Final = """
INSERT INTO accounting.users (user_key, realm_id, user_id)
SELECT md5(n::text)::uuid, realm_id, 'user' || n
FROM accounting.realms, generate_series(1, 100000) n;
CREATE TEMP TABLE live AS SELECT e.*, n FROM accounting.sessions e, generate_series(1, 100000) n;
UPDATE live SET session_id = md5(n::text)::uuid, user_key = md5(n::text)::uuid,
    username_key = md5(n::text)::uuid, allocation_id = n + 1000,
    started_at = started_at - n * interval '10 ms';
ALTER TABLE live DROP COLUMN n;
INSERT INTO accounting.sessions SELECT * FROM live;
CREATE TEMP TABLE report AS
SELECT r.*, n FROM accounting.reports r, generate_series(1, 60000) n WHERE r.kind = 4;
UPDATE report SET position = position + n, received_at = received_at + n * interval '5 ms',
    user_key = md5(n::text)::uuid, username_key = md5(n::text)::uuid, allocation_id = n + 1000;
ALTER TABLE report DROP COLUMN n;
INSERT INTO accounting.reports SELECT * FROM report;
DROP TABLE live, report;
"""
"""Sessions of as many users, and five minutes of reports."""
TWO_MINUTES: Final = 24_000
"""So many of these reports come in the time that a first frame covers."""
REPORTS_IN_A_RANGE: Final = 30_000
"""No more reports than these are in one range of the index on their time."""
LOADED: Final = """
UPDATE accounting.sources SET (position, loaded_until) = (
    SELECT position, received_at FROM accounting.reports ORDER BY position DESC OFFSET %s LIMIT 1
) RETURNING position
"""

HISTORY: Final = """
INSERT INTO accounting.realms (realm, realm_bytes) VALUES ('past', 'past');
INSERT INTO accounting.realm_rules (
    realm_id, holds_from, time_zone, anchor_day, grace_seconds, username_rule, separator
) SELECT realm_id, '-infinity', 'UTC', 1, 60, 'auto', ':'
FROM accounting.realms;
INSERT INTO accounting.sources (source, mode, retired_at) VALUES ('past', 'replication', now());
CREATE TEMP TABLE past AS
SELECT n, md5(n::text)::uuid AS id, md5((n % 4000)::text)::uuid AS user_key,
    timestamptz '2026-07-30 00:00+00' + n * interval '400 seconds' AS at,
    (SELECT realm_id FROM accounting.realms WHERE realm = 'past') AS realm_id,
    (SELECT source_id FROM accounting.sources WHERE source = 'past') AS source_id
FROM generate_series(0, 19999) n;
SELECT accounting.ensure_report_partition(day::date) FROM generate_series(
    timestamp '2026-10-29', timestamp '2026-11-06', interval '1 day') day;
INSERT INTO accounting.reports (
    source_id, epoch, position, received_at, time_estimated, database, realm_id,
    username_key, user_key, allocation_id, kind, side,
    received_packets, received_bytes, sent_packets, sent_bytes
) SELECT source_id, 1, n, timestamptz '2026-10-29 00:00+00' + n * interval '38 seconds', false, 0,
    realm_id, user_key, user_key, n, 4, 0, 0, 0, 0, 0
FROM past;
INSERT INTO accounting.reports (
    source_id, epoch, position, received_at, time_estimated, database, realm_id,
    username_key, user_key, allocation_id, kind, side,
    received_packets, received_bytes, sent_packets, sent_bytes
) SELECT source_id, 2, n * 2 + half, timestamptz '2026-11-02 00:00+00'
        + (n * 2 + half) * interval '2 seconds', false, 0,
    realm_id, user_key, user_key, n, 4, 0, 0, 0, 0, 0
FROM past CROSS JOIN generate_series(0, 1) half ORDER BY n, half;
INSERT INTO accounting.sessions (
    session_id, user_key, username_key, realm_id, source_id, database, allocation_id,
    started_at, last_seen_at, expires_at, recheck_at, start_known, lifetime_known,
    ended_at, end_cause, phase, confirmed, transport, client_address, server_address,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    new_count, deleted_count, client_total_count, peer_total_count, client_total, peer_total,
    estimated, disputed, end_events
) SELECT id, user_key, user_key, realm_id, source_id, 0, n, at, at, at, at, true, true,
    at + interval '1 second', 'deleted', 0, true, 'UDP', 'client', 'server', 1, 2, 3, 4, 5, 6, 7, 8,
    1, 1, 1, 1, '{1,2,3,4}', '{1,2,3,4}', false, false, 1
FROM past;
INSERT INTO accounting.session_usage (
    session_id, starts_at, user_key, realm_id, confirmed, estimated, started, ended,
    active_from, active_to,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes
) SELECT id, date_trunc('hour', at), user_key, realm_id, true, false, true, true,
    at, at + interval '1 second', 1, 2, 3, 4, 5, 6, 7, 8
FROM past;
INSERT INTO accounting.user_usage_hourly (
    user_key, starts_at, realm_id,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes
) SELECT user_key, at, realm_id, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1, 1, 1 FROM past;
INSERT INTO accounting.user_usage_daily
SELECT user_key, at, realm_id, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1, 1, 1 FROM past;
INSERT INTO accounting.user_usage_monthly SELECT * FROM accounting.user_usage_daily;
INSERT INTO accounting.users (user_key, realm_id, user_id)
SELECT user_key, realm_id, n::text FROM past WHERE n < 4000;
INSERT INTO accounting.usernames (user_key, username_key, username)
SELECT user_key, user_key, n::text FROM past WHERE n < 4000;
INSERT INTO accounting.feed (seq, event_id, type, realm_id, payload, created_at)
SELECT n + 1, id, 'session.ended', realm_id, '{}', at FROM past;
INSERT INTO accounting.feed_outbox (event_id, type, realm_id, payload)
SELECT md5('waits' || n)::uuid, 'session.ended', realm_id, '{}' FROM past WHERE n < 8000;
INSERT INTO accounting.rejected_messages (
    source_id, epoch, position, received_at, database, channel, payload, reason
) SELECT source_id, 1, n, at, 0, 'channel', 'payload', 'reason' FROM past;
INSERT INTO accounting.key_sightings (
    source_id, epoch, position, sighting, database, realm_id, username_key, user_key,
    allocation_id, scan_started_at, seen_at, idle_seconds
) SELECT source_id, 1, n, 1, 0, realm_id, user_key, user_key, n, at, at, 1 FROM past;
INSERT INTO accounting.periods (realm_id, period, starts_at, ends_at, due_at, time_zone)
SELECT realm_id, month, month, month + interval '1 month', month + interval '1 month', 'UTC'
FROM accounting.realms, generate_series(
    timestamp '2026-07-01', timestamp '2026-10-01', interval '1 month') month;
INSERT INTO accounting.statements (
    user_key, realm_id, period,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    sessions_started, sessions_ended, session_microseconds, estimated_bytes, digest
) SELECT user_key, realm_id, '2026-10-01', 1, 2, 3, 4, 5, 6, 7, 8, 1, 1, 1, 1, repeat('0', 64)
FROM past WHERE n < 4000;
UPDATE accounting.periods SET closed_at = now(), cutoff = '{}';
INSERT INTO accounting.periods (realm_id, period, starts_at, ends_at, due_at, time_zone)
SELECT realm_id, '2026-11-01', '2026-11-01+00', '2026-12-01+00', '2026-12-01 00:01+00', 'UTC'
FROM accounting.realms;
INSERT INTO accounting.adjustments (
    adjustment_id, user_key, realm_id, period, posted_in,
    received_packets, received_bytes, sent_packets, sent_bytes,
    peer_received_packets, peer_received_bytes, peer_sent_packets, peer_sent_bytes,
    session_microseconds, reason, author, manual
) SELECT id, user_key, realm_id, '2026-10-01', '2026-11-01', 1, 2, 3, 4, 5, 6, 7, 8, 1,
    'reason', 'author', true
FROM past;
DROP TABLE past;
"""


def read_rows(plan: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """How many rows of each table a plan read, also those that a filter removed."""
    if "Relation Name" in plan:
        removed = ("Rows Removed by Filter", "Rows Removed by Index Recheck")
        rows = plan["Actual Rows"] + sum(plan.get(name, 0) for name in removed)
        yield plan["Relation Name"], round(rows * plan["Actual Loops"])
    for below in plan.get("Plans", ()):
        yield from read_rows(below)


def scanned_tables(plan: Mapping[str, Any], *, limited: bool = False) -> Iterator[str]:
    """The tables that a plan scans completely, also by an index.

    SMALL_INDEXES are exempt. ``limited``: whether a LIMIT above stops the scan after some rows.
    """
    limited = limited or plan["Node Type"] == "Limit"
    index = plan.get("Index Name")
    along_index = index is not None and index not in SMALL_INDEXES and "Index Cond" not in plan
    if plan["Node Type"] == "Seq Scan" or (along_index and not limited):
        yield plan.get("Relation Name") or re.sub("_(pkey|by_.*)$", "", str(index))
    for below in plan.get("Plans", ()):
        yield from scanned_tables(below, limited=limited)


class Plans:
    """The plan of each statement that an engine executes, as auto_explain reports it."""

    def __init__(self, books: Books, explain: str = EXPLAIN) -> None:
        self.statements: list[Mapping[str, Any]] = []
        separator = "&" if "?" in books.url() else "?"
        options = explain.replace(" ", "%20").replace("=", "%3D")
        url = f"{books.url()}{separator}options={options}"
        self.engine: Engine = open_engine(url)
        self.reader = DatabaseReader(url)
        event.listen(self.engine, "connect", self._connected)

    def _connected(self, connection: psycopg.Connection[Any], _record: object) -> None:
        connection.add_notice_handler(self._noticed)

    def _noticed(self, notice: psycopg.errors.Diagnostic) -> None:
        message = notice.message_primary or ""
        if "plan:" in message:
            self.statements.append(json.loads(message.partition("plan:")[2]))

    def close(self) -> None:
        self.engine.dispose()
        self.reader.close()

    def growing_table_scans(self) -> list[str]:
        """The statements that scan a growing table completely, each with that table."""
        return [
            f"{table}: {statement['Query Text']}"
            for statement in self.statements
            for table in scanned_tables(statement["Plan"])
            if table in GROWING or table.startswith("reports_")
        ]


@pytest.fixture
def unfilled_plans(books: Books) -> Iterator[Plans]:
    plans = Plans(books)
    yield plans
    plans.close()


@pytest.fixture
def plans(books: Books, unfilled_plans: Plans) -> Plans:
    with psycopg.connect(books.url()) as connection:
        connection.execute(HISTORY)
    analyze(books)
    return unfilled_plans


def analyze(books: Books) -> None:
    with psycopg.connect(books.url(), autocommit=True) as connection:
        connection.execute("ANALYZE")


def receive_every_kind(books: Books) -> None:
    """Messages for every job: open, closed and unauthenticated sessions, and a gap."""
    for number in range(20):
        allocation = FakeAllocation(books, user=f"user{number}", allocation=number)
        allocation.new(number)
        allocation.interim(100 + number, 1, 100, 1, 100)
        if number % 2:
            allocation.close(200 + number, (2, 200, 2, 200), (0, 0, 0, 0))
    FakeAllocation(books, user="mallory", allocation=99).interim(300, 1, 100, 1, 100)
    gap = books.spool().open_gap(books.micros_at(310), "connection_lost")
    books.spool().close_gap(gap, books.micros_at(320))


def run_every_job(books: Books, plans: Plans) -> None:
    books.load()
    for job in JOBS.values():
        job.run(plans.engine)
    read_database_status(plans.engine)


def test_no_scheduled_statement_scans_a_growing_table(books: Books, plans: Plans) -> None:
    receive_every_kind(books)
    refused = f"http://127.0.0.1:{free_port()}/"  # nothing listens there
    for types, realm in ((["period.closed"], None), (["adjustment.posted"], "past")):
        add_endpoint(
            books.engine, url=refused, types=types, realm=realm, allows_private=True,
            from_start=True,
        )  # fmt: skip
    books.advance_clock(400)
    run_every_job(books, plans)
    late_allocation = FakeAllocation(books, user="user2", allocation=2)  # expires, then reports
    books.advance_clock(2_000)
    run_every_job(books, plans)
    late_allocation.interim(2_010, 1, 100, 1, 100)
    books.advance_clock(2_020)
    run_every_job(books, plans)
    late_allocation.refreshed(2_030)
    books.advance_clock(40 * DAY)
    run_every_job(books, plans)
    books.query(
        "UPDATE accounting.sources SET retired_at = now() WHERE source = 'past' RETURNING 1"
    )
    run_every_job(books, plans)
    periods = [row for row in books.rows("periods", order="period") if row["realm"] != "past"]
    assert [row["state"] for row in periods] == ["closed", "open"]
    assert [row["end_cause"] for row in books.rows("sessions", "end_cause")].count("expired") == 10
    assert len(plans.statements) > 100
    assert plans.growing_table_scans() == []


@pytest.mark.long
def test_top_reads_few_of_a_hundred_thousand_live_sessions(books: Books) -> None:
    """A frame reads what was reported since the last one, and no other sessions."""
    allocation = FakeAllocation(books)
    allocation.new(0)
    allocation.interim(1, 1, 100, 1, 100)
    books.advance_clock(2)
    books.run_jobs()
    with psycopg.connect(books.url()) as connection:
        connection.execute(LIVE)
    books.query("SELECT brin_summarize_new_values('accounting.reports_20261102_received_at_idx')")
    analyze(books)
    plans = Plans(books, f"{EXPLAIN} -c auto_explain.log_analyze=on")
    reader = LiveReader(plans.reader)
    with plans.reader.transaction() as connection:
        connection.add_notice_handler(plans._noticed)
    first = TWO_MINUTES + REPORTS_IN_A_RANGE
    for not_loaded, reports, summed in (
        (500, first, MOST_REPORTS),
        (0, REPORTS_IN_A_RANGE, 500),
    ):
        books.query(LOADED, [not_loaded])
        plans.statements.clear()
        state = reader.read()
        assert state.everything.short.received == pytest.approx(20_000, rel=0.01)
        rows: Counter[str] = Counter()
        for statement in plans.statements:
            for table, count in read_rows(statement["Plan"]):
                rows[table] += count
        assert 500 <= rows["reports_20261102"] <= reports
        assert rows["users"] <= summed + 1_000
        assert rows["sessions_open"] <= summed + 1_000
    assert len(state.sessions) >= 100
    plans.close()


def test_no_page_and_no_answer_of_the_api_scans_a_growing_table(
    books: Books, unfilled_plans: Plans
) -> None:
    fill(books.url(), replace(QUICK, web_users=5_000))
    plans = unfilled_plans
    with plans.reader.transaction() as connection:
        connection.add_notice_handler(plans._noticed)
    app = create_app(plans.reader)
    names = route_names(books.url(), LARGEST_REALM)
    scans = []
    for name, path in route_paths(names).items():
        plans.statements.clear()
        request(app, path)
        assert plans.statements or name == "openapi"
        scans += [
            f"{name}: {scan}"
            for scan in plans.growing_table_scans()
            if not scan.startswith("adjustments: ")  # of which this realm has a third
            and "statement_previews" not in scan  # which has all hours of a period
        ]
    assert scans == []
