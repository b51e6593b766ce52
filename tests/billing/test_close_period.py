"""Closing a period: what it waits for, what it writes, and that it never changes afterwards."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from typing import Any

import psycopg
import pytest
from psycopg.errors import (
    DependentObjectsStillExist,
    FeatureNotSupported,
    IntegrityConstraintViolation,
)

from accounting.billing.close_period import close_period, close_periods, refresh_periods
from accounting.billing.statement_queries import LINE_NUMBERS
from accounting.db.locks import lock
from accounting.domain.statements import StatementCutoff, line_digest
from accounting.errors import NotYet, UsageError
from accounting.feed.number_feed import number_feed
from accounting.sources.retire import retire_source
from tests.support.billing_scenarios import (
    DAY,
    NOVEMBER,
    NOVEMBER_END_SECONDS,
    receive_november,
)
from tests.support.books import START, WRITER, Books
from tests.support.coturn_messages import FakeAllocation, counters_by_name
from tests.support.servers import wait_until


def period_states(books: Books) -> list[tuple[Any, ...]]:
    return [
        (row["period"], row["state"], row["waits_for"])
        for row in books.rows("periods", order="realm, starts_at")
    ]


def test_a_period_is_open_then_closing_then_closed(books: Books) -> None:
    receive_november(books)
    books.advance_clock(2 * DAY)
    books.run_jobs()
    assert close_periods(books.engine) == 0
    assert period_states(books) == [(NOVEMBER, "open", "its end")]
    books.advance_clock(NOVEMBER_END_SECONDS + 1)
    books.run_jobs()
    assert close_periods(books.engine) == 0
    grace = "its grace; source 'default' captured until 2026-12-01 00:00:01Z"
    assert period_states(books)[0] == (NOVEMBER, "closing", grace)
    books.advance_clock(NOVEMBER_END_SECONDS + 61)
    books.run_jobs()
    assert close_periods(books.engine) == 1
    assert period_states(books) == [
        (NOVEMBER, "closed", None),
        (date(2026, 12, 1), "open", "its end"),
    ]
    assert close_periods(books.engine) == 0


def test_a_statement_has_a_line_for_each_user_with_the_sums_of_the_hours(
    november_books: Books,
) -> None:
    lines = november_books.rows("statements", order="user_id")
    closed_at = november_books.rows("periods", order="starts_at")[0]["closed_at"]
    cutoff = StatementCutoff.from_text(lines[0]["cutoff"])
    assert cutoff.sources["default"].settled_until == november_books.micros_at(
        NOVEMBER_END_SECONDS + 61
    )
    assert (cutoff.highest_gap_id, cutoff.excluded_sources) == (0, ())
    keys = {row["user_id"]: row["user_key"] for row in november_books.rows("sessions")}
    for line, user, counts, seconds, estimated in (
        (lines[0], "alice", (1, 100, 2, 200), 100, 0),
        (lines[1], "bob", (5, 500, 6, 600), 90, 1100),
    ):
        numbers = [*counts, 0, 0, 0, 0, 1, 1, seconds * 1_000_000, estimated]
        assert line == {
            "realm": "example.org",
            "period": NOVEMBER,
            "user_id": user,
            "user_key": keys[user],
            **counters_by_name((*counts, 0, 0, 0, 0)),
            "sessions_started": 1,
            "sessions_ended": 1,
            "session_seconds": seconds,
            "estimated_bytes": estimated,
            "cutoff": cutoff.to_text(),
            "closed_at": closed_at,
            "digest": line_digest(
                realm="example.org",
                period=NOVEMBER,
                user_key=keys[user],
                numbers=numbers,
                cutoff=cutoff.to_text(),
            ),
        }
    assert len(lines) == 2
    assert len(LINE_NUMBERS) == 12


def test_closing_enqueues_one_event(november_books: Books) -> None:
    close_periods(november_books.engine)
    events = november_books.query(
        "SELECT payload FROM accounting.feed_outbox WHERE type = 'period.closed'"
    )
    assert [row["payload"] for row in events] == [
        {
            "realm": "example.org",
            "period": "2026-11-01",
            "starts_at": "2026-11-01T00:00:00+00:00",
            "ends_at": "2026-12-01T00:00:00+00:00",
            "time_zone": "UTC",
            "statements": 2,
            "without": [],
            "figures": statement_figures(november_books),
        }
    ]


def statement_figures(books: Books) -> str:
    """As ``domain.statements`` would hash the lines, but without their cutoffs."""
    columns = (*LINE_NUMBERS[:-2], "session_seconds", LINE_NUMBERS[-1])
    lines = b""
    for row in sorted(books.rows("statements"), key=lambda row: str(row["user_key"])):
        numbers = [
            int(row[name] * 10**6) if name == "session_seconds" else row[name] for name in columns
        ]
        lines += sha256(" ".join(map(str, [row["user_key"], *numbers])).encode()).digest()
    return sha256(lines).hexdigest()


def test_closing_waits_for_the_roll_up(books: Books) -> None:
    receive_november(books)
    books.advance_clock(2 * DAY)
    books.run_jobs()
    FakeAllocation(books, user="late", allocation=3).new(3 * DAY)
    books.advance_clock(NOVEMBER_END_SECONDS + 61)
    books.load()
    books.settle()
    assert close_periods(books.engine) == 0
    assert period_states(books)[0][2] == "the roll-up"
    books.rollup()
    assert close_periods(books.engine) == 1


def test_closing_waits_for_the_period_before(books: Books) -> None:
    receive_november(books)
    books.advance_clock(NOVEMBER_END_SECONDS + 40 * DAY)
    books.run_jobs()
    refresh_periods(books.engine)
    with pytest.raises(NotYet, match="waits for: period 2026-11-01"):
        close_period(books.engine, "example.org", date(2026, 12, 1))
    assert close_periods(books.engine) == 2
    assert period_states(books)[2][:2] == (date(2027, 1, 1), "open")


def recheck_sessions_at(books: Books, time: str) -> None:
    with psycopg.connect(books.url()) as connection:
        connection.execute("UPDATE accounting.sessions SET recheck_at = %s", [time])


def test_closing_waits_until_expired_sessions_have_ended(books: Books) -> None:
    """Otherwise recomputing the line at its cutoff would end them, and differ."""
    FakeAllocation(books).new(0)
    books.advance_clock(100)
    books.run_jobs()
    recheck_sessions_at(books, "infinity")
    books.advance_clock(NOVEMBER_END_SECONDS + 61)
    books.load()
    # As after a load that left more of them than one transaction ends.
    recheck_sessions_at(books, "-infinity")
    assert close_periods(books.engine) == 0
    assert period_states(books)[0][2] == "source 'default' has sessions to end"
    books.run_jobs()
    assert close_periods(books.engine) == 1
    assert books.rows("statements", "sessions_ended") == [{"sessions_ended": 1}]


def test_closing_excludes_a_retired_source_and_records_it(books: Books) -> None:
    receive_november(books, source="gone")
    books.advance_clock(2 * DAY, source="gone")
    books.advance_clock(NOVEMBER_END_SECONDS + 61)
    books.run_jobs()
    assert close_periods(books.engine) == 0
    retire_source(books.engine, "gone")
    assert close_periods(books.engine) == 1
    cutoff = StatementCutoff.from_text(books.rows("statements", "cutoff")[0]["cutoff"])
    assert cutoff.excluded_sources == ("gone",)
    assert cutoff.sources["gone"].settled_until == books.micros_at(2 * DAY)


def test_a_period_can_be_closed_with_a_source_excluded(books: Books) -> None:
    receive_november(books)
    books.advance_clock(2 * DAY, source="late")
    books.advance_clock(NOVEMBER_END_SECONDS + 61)
    books.run_jobs()
    with pytest.raises(NotYet, match="source 'late' captured until 2026-11-04 12:00:00Z"):
        close_period(books.engine, "example.org", NOVEMBER)
    result = close_period(books.engine, "example.org", NOVEMBER, excluded_sources=["late"])
    assert (result.line_count, result.excluded_sources) == (2, ("late",))
    assert (result.sums["received_bytes"], result.sums["sessions_ended"]) == (600, 2)
    assert period_states(books)[0][:2] == (NOVEMBER, "closed")


def test_no_period_closes_before_its_end_even_with_all_sources_excluded(books: Books) -> None:
    books.start = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=10)
    FakeAllocation(books).new(0)
    books.advance_clock(60)
    books.run_jobs()
    refresh_periods(books.engine)
    [period] = {row["period"] for row in books.rows("periods") if row["state"] == "open"}
    with pytest.raises(NotYet, match="its end"):
        close_period(books.engine, "example.org", period, excluded_sources=["default"])


def capture_far_ahead(books: Books, until: str) -> None:
    """Everything captured and settled up to a time, as by a collector whose clock is ahead."""
    with psycopg.connect(books.url()) as connection:
        connection.execute(
            "UPDATE accounting.sources SET captured_until = %(until)s, loaded_until = %(until)s",
            {"until": until},
        )
        connection.execute("UPDATE accounting.settle_watermarks SET settled_until = %s", (until,))


@pytest.mark.parametrize("until", ["2026-12-30", "2036-11-28", "9999-12-01"])
def test_no_period_closes_before_its_end_has_passed_on_the_databases_clock(
    books: Books, until: str
) -> None:
    receive_november(books)
    books.advance_clock(2 * DAY)
    books.run_jobs()
    capture_far_ahead(books, until)
    end = datetime(2026, 12, 1, tzinfo=UTC)
    for now, state, waits in (
        (datetime(2026, 11, 28, tzinfo=UTC), "open", "its end"),
        (end - timedelta(microseconds=1), "open", "its end"),
        (end, "closing", "its grace"),
        (end + timedelta(seconds=60), "closing", "its grace"),
    ):
        books.set_database_clock(now)
        assert close_periods(books.engine) == 0
        assert period_states(books)[0] == (NOVEMBER, state, waits)
        for excluded_sources in ((), ("default",)):
            with pytest.raises(NotYet, match=f"waits for: {waits}"):
                close_period(
                    books.engine, "example.org", NOVEMBER, excluded_sources=excluded_sources
                )
    books.set_database_clock(end + timedelta(seconds=61))
    assert close_periods(books.engine) == 1
    assert [row["period"] for row in books.rows("periods", order="period")] == [
        NOVEMBER,
        date(2026, 12, 1),
    ]


def test_no_period_closes_early_when_no_source_is_in_service(books: Books) -> None:
    receive_november(books)
    books.advance_clock(2 * DAY)
    books.run_jobs()
    capture_far_ahead(books, "2036-11-28")
    retire_source(books.engine, "default")
    books.set_database_clock(datetime(2026, 11, 28, tzinfo=UTC))
    assert close_periods(books.engine) == 0
    assert period_states(books) == [(NOVEMBER, "open", "its end")]


def test_a_database_clock_that_is_ahead_closes_nothing_that_is_not_captured(books: Books) -> None:
    receive_november(books)
    books.advance_clock(2 * DAY)
    books.run_jobs()
    books.set_database_clock(datetime(2036, 11, 28, tzinfo=UTC))
    assert close_periods(books.engine) == 0
    waits = "source 'default' captured until 2026-11-04 12:00:00Z"
    assert period_states(books)[0] == (NOVEMBER, "closing", waits)
    books.set_database_clock()
    assert close_periods(books.engine) == 0
    assert period_states(books) == [(NOVEMBER, "open", "its end")]


def record_clocks(books: Books, **ahead: str) -> None:
    """How far the clocks of the sources' collectors are ahead of the database's."""
    with psycopg.connect(books.url()) as connection:
        for source, interval in ahead.items():
            connection.execute(
                "INSERT INTO accounting.source_leases SELECT source_id, 'h', 'h', now(), now(),"
                " extract(epoch FROM %s::interval) FROM accounting.sources WHERE source = %s"
                " ON CONFLICT (source_id) DO UPDATE"
                " SET clock_ahead_seconds = excluded.clock_ahead_seconds",
                (interval, source),
            )


def test_closing_waits_while_the_databases_clock_is_ahead_of_every_collectors(
    books: Books,
) -> None:
    """Else a clock that is wrong there would close periods as surely as a collector's did."""
    receive_november(books)
    books.advance_clock(NOVEMBER_END_SECONDS + 61, source="second")
    books.advance_clock(NOVEMBER_END_SECONDS + 61)
    books.run_jobs()
    record_clocks(books, default="-32 days", second="-32 days 1 second")
    assert close_periods(books.engine) == 0
    [(_, state, waits)] = [row for row in period_states(books) if row[0] == NOVEMBER]
    assert state == "closing"
    assert waits.startswith("the clocks: its grace is over on the database's, but not on any coll")
    record_clocks(books, second="1 second")
    assert close_periods(books.engine) == 1


def test_a_dry_run_returns_the_result_and_changes_nothing(books: Books) -> None:
    receive_november(books)
    books.advance_clock(NOVEMBER_END_SECONDS + 61)
    books.run_jobs()
    result = close_period(books.engine, "example.org", NOVEMBER, dry_run=True)
    assert (result.line_count, result.sums["sent_bytes"]) == (2, 800)
    assert period_states(books)[0] == (NOVEMBER, "closing", None)
    assert books.rows("statements") == []
    assert books.query("SELECT FROM accounting.feed_outbox WHERE type = 'period.closed'") == []


@pytest.mark.parametrize(
    ("realm", "period", "excluded_sources", "message"),
    [
        ("example.com", NOVEMBER, [], "no realm 'example.com' is known: known are 'example.org'"),
        ("example.org", date(2026, 11, 2), [], "no period that begins on 2026-11-02"),
        ("example.org", NOVEMBER, ["other"], "no source 'other' is known: known are 'default'"),
        ("example.org", NOVEMBER, [], "closed already, since "),
    ],
)
def test_a_wrong_close_is_refused(
    november_books: Books, realm: str, period: date, excluded_sources: list[str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        close_period(november_books.engine, realm, period, excluded_sources=excluded_sources)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE accounting.statements SET sent_bytes = 0",
        "DELETE FROM accounting.statements",
        "TRUNCATE accounting.statements",
        (
            "INSERT INTO accounting.statements SELECT gen_random_uuid(), realm_id, period,"
            " 0,0,0,0,0,0,0,0,0,0,0,0, digest FROM accounting.statements LIMIT 1"
        ),
        "UPDATE accounting.adjustments SET sent_bytes = 0",
        "DELETE FROM accounting.adjustments",
        "TRUNCATE accounting.adjustments",
        "UPDATE accounting.periods SET starts_at = starts_at - interval '1 hour'",
        "UPDATE accounting.periods SET cutoff = '{}' WHERE closed_at IS NOT NULL",
        "UPDATE accounting.periods SET closed_at = NULL, cutoff = NULL",
        "DELETE FROM accounting.periods",
        "TRUNCATE accounting.periods",
    ],
)
@pytest.mark.parametrize("role", [None, "turn_accounting_owner", WRITER])
def test_no_role_can_change_a_closed_period(
    adjusted: Books, statement: str, role: str | None
) -> None:
    """Triggers refuse the superuser and the owner; the writer lacks most privileges as well."""
    refused = (IntegrityConstraintViolation, psycopg.errors.InsufficientPrivilege)
    with psycopg.connect(adjusted.url(role)) as connection, pytest.raises(refused) as raised:
        connection.execute(statement.encode())
    assert role == WRITER or isinstance(raised.value, IntegrityConstraintViolation)


@pytest.mark.parametrize("table", ["statements", "adjustments", "periods", "feed"])
@pytest.mark.parametrize("verb", ["DELETE FROM", "TRUNCATE"])
def test_disabling_triggers_for_a_session_does_not_help(
    adjusted: Books, table: str, verb: str
) -> None:
    number_feed(adjusted.engine)
    with psycopg.connect(adjusted.url()) as connection:
        connection.execute("SET session_replication_role = replica")
        with pytest.raises(IntegrityConstraintViolation):
            connection.execute(f"{verb} accounting.{table}".encode())


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE accounting.statements ALTER COLUMN sent_bytes TYPE bigint USING 0",
        "ALTER TABLE accounting.adjustments ALTER COLUMN sent_bytes TYPE bigint USING 0",
        "ALTER TABLE accounting.statements DROP COLUMN sent_bytes",
        "DROP TABLE accounting.statements",
    ],
)
def test_the_owner_cannot_rewrite_or_drop_what_a_view_shows(
    adjusted: Books, statement: str
) -> None:
    with (
        psycopg.connect(adjusted.url("turn_accounting_owner")) as connection,
        pytest.raises((FeatureNotSupported, DependentObjectsStillExist)),
    ):
        connection.execute(statement.encode())


def test_november_end_seconds_is_the_end_of_november() -> None:
    assert START + timedelta(seconds=NOVEMBER_END_SECONDS) == datetime(2026, 12, 1, tzinfo=UTC)


def test_closing_waits_for_a_running_roll_up(books: Books) -> None:
    receive_november(books)
    books.advance_clock(NOVEMBER_END_SECONDS + 61)
    books.run_jobs()
    with ThreadPoolExecutor() as threads, books.engine.connect() as rolling_up:
        lock(rolling_up, "rollup")
        closing = threads.submit(close_periods, books.engine)
        wait_until(lambda: waiting_lock_count(books) == 1)
        assert books.rows("periods") == []
        rolling_up.rollback()
        assert closing.result(timeout=30) == 1


def test_closing_waits_for_a_running_settle_job(books: Books) -> None:
    """It then sees what the job committed, so lines and cutoff describe the same moment."""
    receive_november(books)
    books.advance_clock(NOVEMBER_END_SECONDS + 61)
    books.run_jobs()
    refresh_periods(books.engine)
    with ThreadPoolExecutor() as threads, books.engine.connect() as settling:
        lock(settling, f"settle.{books.source_id()}")
        settling.exec_driver_sql(
            "INSERT INTO accounting.usage_deltas"
            " SELECT realm_id, user_key, starts_at FROM accounting.user_usage_hourly"
        )
        closing = threads.submit(close_period, books.engine, "example.org", NOVEMBER)
        wait_until(lambda: waiting_lock_count(books) == 1)
        assert not closing.done()
        settling.commit()
        with pytest.raises(NotYet, match="waits for: the roll-up"):
            closing.result(timeout=30)


def waiting_lock_count(books: Books) -> int:
    [row] = books.query(
        "SELECT count(*) AS waiting FROM pg_locks JOIN pg_stat_activity USING (pid)"
        " WHERE locktype = 'transactionid' AND NOT granted AND datname = current_database()"
    )
    return int(row["waiting"])
