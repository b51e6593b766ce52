"""Retain drops reports only when nothing billed can be lost with them."""

from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import psycopg
import pytest
from psycopg.errors import IntegrityError

from accounting.audit.rebuild import rebuild
from accounting.audit.retention import expired_days, retain
from accounting.audit.trace import trace
from accounting.audit.trace_session import trace_session
from accounting.audit.verify import VerifyResult, verify
from accounting.billing.adjust import adjust
from accounting.billing.close_period import close_periods
from accounting.capture.spool.records import RawKeySighting
from accounting.domain.session_fold import KeyFold
from accounting.errors import AccountingError
from tests.support.books import WRITER, Books, CopiedFrom, channel
from tests.support.command import turn_accounting
from tests.support.corruptions import corrupt, difference_key
from tests.support.coturn_messages import OTHER_SERVER_ADDRESS, FakeAllocation
from tests.support.invariants import assert_closed_periods_add_up
from tests.support.retention_scenario import (
    CLOSING_SECONDS,
    DAY,
    DAYS_TO_DROP_ALL,
    DAYS_TO_DROP_ONE,
    DECEMBER_SECONDS,
    MIDNIGHT_SECONDS,
    close_two_days,
    kept_days,
    receive_two_days,
    run_jobs_and_close,
    without_reports,
)

NOVEMBER: Final = date(2026, 11, 1)


def blockers_by_day(books: Books, days: int = DAYS_TO_DROP_ALL) -> list[tuple[str, ...]]:
    """The blockers of each expired day; the first day must have some."""
    blockers = [expired.blockers for expired in expired_days(books.engine, days, dry_run=True)]
    assert retain(books.engine, days) == 0
    return blockers


def drop_first_day(books: Books) -> None:
    close_two_days(books)
    assert retain(books.engine, DAYS_TO_DROP_ONE) == 1
    assert kept_days(books) == [3, 4]


@pytest.fixture
def closed_books(copied_from: CopiedFrom, tmp_path: Path) -> Iterator[Books]:
    """Books of two days, whose period is closed."""
    with copied_from(close_two_days, tmp_path) as books:
        yield books


@pytest.fixture
def half_dropped(copied_from: CopiedFrom, tmp_path: Path) -> Iterator[Books]:
    """Books without the first day's reports, whose sessions go on after it."""
    with copied_from(drop_first_day, tmp_path) as books:
        yield books


def test_a_day_is_dropped_when_its_periods_are_closed_and_proved(closed_books: Books) -> None:
    before = without_reports(closed_books)
    days = expired_days(closed_books.engine, DAYS_TO_DROP_ALL)
    assert [(expired.day.day, expired.reports, expired.blockers) for expired in days] == [
        (2, 10, ()),
        (3, 10, ()),
        (4, 3, ()),
    ]
    assert kept_days(closed_books) == []
    assert without_reports(closed_books) == before
    result = VerifyResult()
    assert list(verify(closed_books.engine, result=result)) == []
    (dropped,) = result.partly_dropped
    assert dropped.proof is not None
    assert (dropped.realm, dropped.period, dropped.kept_since, dropped.proof.differences) == (
        "example.org", NOVEMBER, date(2026, 11, 5), 0,
    )  # fmt: skip
    assert_closed_periods_add_up(closed_books)


def test_a_dry_run_yields_the_days_and_drops_none(closed_books: Books) -> None:
    days = list(expired_days(closed_books.engine, DAYS_TO_DROP_ALL, dry_run=True))
    assert [expired.blockers for expired in days] == [(), (), ()]
    assert kept_days(closed_books) == [2, 3, 4]
    assert list(expired_days(closed_books.engine, DAYS_TO_DROP_ALL)) == days
    assert list(expired_days(closed_books.engine, DAYS_TO_DROP_ALL)) == []


def test_reports_are_kept_for_ever_without_a_setting(closed_books: Books) -> None:
    assert retain(closed_books.engine, None) == 0
    assert retain(closed_books.engine, 365) == 0
    assert kept_days(closed_books) == [2, 3, 4]


def test_the_age_of_reports_counts_by_the_clock_that_is_behind(closed_books: Books) -> None:
    """The database's, or what is captured: a clock that is ahead makes no report old."""
    closed_books.set_database_clock(datetime(2036, 11, 28, tzinfo=UTC))
    assert retain(closed_books.engine, 365) == 0
    with psycopg.connect(closed_books.url()) as connection:
        connection.execute("UPDATE accounting.sources SET captured_until = '2036-11-28'")
    closed_books.set_database_clock()
    assert retain(closed_books.engine, 365) == 0
    assert kept_days(closed_books) == [2, 3, 4]


def test_sessions_across_the_dropped_day_are_recomputed_from_the_carried_ones(
    half_dropped: Books,
) -> None:
    assert list(verify(half_dropped.engine)) == []
    assert list(rebuild(half_dropped.engine, "to be sure")) == []
    corrupt(half_dropped, "UPDATE accounting.reports SET sent_bytes = 1201 WHERE sent_bytes = 1200")
    assert {difference_key(difference) for difference in verify(half_dropped.engine)} >= {
        ("session_usage", "differs", "sent_bytes"),
        ("statements", "differs", "sent_bytes"),
    }


def test_rebuild_keeps_sessions_whose_reports_were_dropped(half_dropped: Books) -> None:
    before = without_reports(half_dropped)
    corrupt(half_dropped, "UPDATE accounting.sessions SET sent_bytes = 0 WHERE allocation_id = 2")
    corrupt(half_dropped, "DELETE FROM accounting.user_usage_daily")
    assert list(rebuild(half_dropped.engine, "a test"))
    assert without_reports(half_dropped) == before
    assert list(verify(half_dropped.engine)) == []


@pytest.mark.parametrize(
    "corruption",
    [
        "UPDATE accounting.sessions SET server_address = 'x' WHERE allocation_id = 1",
        pytest.param(
            "DELETE FROM accounting.sessions WHERE allocation_id = 1", marks=pytest.mark.long
        ),
        pytest.param(
            "UPDATE accounting.session_usage SET active_to = active_to + interval '1 second'",
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_changed_finalized_session_is_found_and_refused_by_rebuild(
    half_dropped: Books, corruption: str
) -> None:
    corrupt(half_dropped, corruption)
    (difference,) = [
        difference
        for difference in verify(half_dropped.engine)
        if difference.column.startswith("digest of a day")
    ]
    assert (difference.realm, difference.period, difference.what) == (
        "example.org",
        NOVEMBER,
        "sessions",
    )
    with pytest.raises(AccountingError, match="changed after their reports were dropped"):
        list(rebuild(half_dropped.engine, "a test"))


def test_a_statement_whose_reports_were_dropped_is_checked_by_its_digest(books: Books) -> None:
    """A source that was behind delivers reports after the cutoff; those are dropped too."""
    receive_two_days(books)
    behind = FakeAllocation(books, user="bob", allocation=9, source="behind")
    behind.new(50)
    behind.close(60, (7, 70, 7, 70), (0, 0, 0, 0))
    books.advance_clock(CLOSING_SECONDS)
    books.load()
    books.settle()
    books.rollup()
    close_periods(books.engine)
    assert retain(books.engine, DAYS_TO_DROP_ALL) == 3
    books.advance_clock(CLOSING_SECONDS, source="behind")
    books.run_jobs()
    assert adjust(books.engine) == 1
    assert kept_days(books) == [2]
    assert list(verify(books.engine)) == []
    assert retain(books.engine, DAYS_TO_DROP_ALL) == 1
    assert list(verify(books.engine)) == []
    assert_closed_periods_add_up(books)
    assert trace(books.engine, "example.org", NOVEMBER, user="bob").adds_up
    with psycopg.connect(books.url()) as connection:
        connection.execute("ALTER TABLE accounting.statements DISABLE TRIGGER ALL")
        connection.execute(
            "UPDATE accounting.statements SET sessions_started = 9 WHERE sessions_started = 1"
        )
    assert {difference_key(difference) for difference in verify(books.engine)} == {
        ("statements", "differs", "digest"),
        ("usage.counted", "differs", "sessions_started"),
    }


def test_trace_shows_the_dropped_reports_as_one_sum(half_dropped: Books) -> None:
    traced = trace(half_dropped.engine, "example.org", NOVEMBER, user="alice")
    assert traced.adds_up
    assert traced.partly_dropped is not None
    assert traced.partly_dropped.kept_since == date(2026, 11, 3)
    counters = {
        session.allocation_id: (
            session.dropped_counters,
            [report.counters[:4] for report in session.reports],
        )
        for session in traced.sessions
    }
    zero = (0, 0, 0, 0)
    assert counters == {
        1: ((3, 300, 2, 150, *zero), []),
        2: (
            (5, 500, 5, 500, *zero),
            [(7, 700, 7, 700), zero, (1, 100, 0, 0), zero],
        ),
        4: (
            (1, 1, 1, 1, *zero),
            [(2, 2, 2, 2), zero, (1, 1, 0, 0), zero],
        ),
    }
    for session in traced.sessions:
        alone = trace_session(half_dropped.engine, UUID(bytes=session.session.session_id))
        assert alone.adds_up
        assert alone.session.dropped_counters == session.dropped_counters
        assert [part.numbers for part in alone.parts] == [session.numbers]


def test_verify_and_trace_print_the_last_proof_from_all_reports(half_dropped: Books) -> None:
    url = half_dropped.url(WRITER)
    (proof,) = half_dropped.query("SELECT digest, verified_at FROM accounting.proofs")
    dropped = (
        "period 2026-11-01 of realm 'example.org': reports before 2026-11-03 (UTC) were dropped; "
        f"last proved from all of them on {proof['verified_at']:%Y-%m-%d}, digest {proof['digest']}"
    )
    for command in (
        ("verify",),
        ("trace", "example.org", "2026-11-01", "--user", "alice"),
    ):
        result = turn_accounting(*command, database_url=url)
        assert result.code == 0
        assert dropped in result.err
    # A proof from part of the reports does not replace it.
    assert half_dropped.query("SELECT digest, verified_at FROM accounting.proofs") == [proof]


def test_late_usage_of_a_dropped_day_becomes_an_adjustment(half_dropped: Books) -> None:
    late = FakeAllocation(half_dropped, user="bob", allocation=9, source="behind")
    late.new(50)
    late.interim(60, 1, 5, 1, 5)
    late.close(70, (2, 10, 1, 5), (0, 0, 0, 0))
    half_dropped.advance_clock(CLOSING_SECONDS, source="behind")
    half_dropped.run_jobs()
    assert adjust(half_dropped.engine) == 1
    assert list(verify(half_dropped.engine)) == []
    assert_closed_periods_add_up(half_dropped)
    assert retain(half_dropped.engine, DAYS_TO_DROP_ONE) == 1
    assert list(verify(half_dropped.engine)) == []


def test_an_open_period_blocks_the_days_it_depends_on(books: Books) -> None:
    """Also the day on which a session began that lasted into the open period."""
    FakeAllocation(books).new(DECEMBER_SECONDS - 100, 3600)
    FakeAllocation(books).close(DECEMBER_SECONDS + 100, (1, 10, 1, 10), (0, 0, 0, 0))
    run_jobs_and_close(books, DECEMBER_SECONDS + 2 * DAY)
    december = "period 2026-12-01 of realm 'example.org' is not closed"
    assert blockers_by_day(books, 1) == [(december,), (december, "a day before is kept")]
    run_jobs_and_close(books, DECEMBER_SECONDS + 40 * DAY)
    assert retain(books.engine, 30) == 2
    assert list(verify(books.engine)) == []


def test_a_period_without_a_clean_proof_blocks_its_days(closed_books: Books) -> None:
    corrupt(
        closed_books,
        "UPDATE accounting.user_usage_monthly SET sent_bytes = 1 WHERE sent_bytes = 10",
    )
    first, *_ = blockers_by_day(closed_books)
    assert first[0].startswith("period 2026-11-01 of realm 'example.org' has 1 difference,")
    assert kept_days(closed_books) == [2, 3, 4]
    list(rebuild(closed_books.engine, "a test"))
    assert len(blockers_by_day(closed_books)) == 3  # until it is verified again
    assert list(verify(closed_books.engine)) == []
    assert retain(closed_books.engine, DAYS_TO_DROP_ALL) == 3


def test_an_active_session_blocks_its_first_day(books: Books) -> None:
    """Of two servers that share its key, only one has reported the end."""
    FakeAllocation(books).new(0, 60 * DAY)
    FakeAllocation(books, server_address=OTHER_SERVER_ADDRESS).new(10, 60 * DAY)
    FakeAllocation(books).deleted(20)
    run_jobs_and_close(books)
    first, *_ = blockers_by_day(books)
    assert first[0] == "1 open session of source 'default'"


def test_a_source_that_is_not_settled_beyond_a_day_blocks_it(books: Books) -> None:
    receive_two_days(books)
    books.advance_clock(100, source="slow")
    run_jobs_and_close(books)
    assert blockers_by_day(books)[0][0] == "source 'slow' is settled until 2026-11-02 12:01:40Z"
    FakeAllocation(books, allocation=8).new(CLOSING_SECONDS)
    books.load()
    books.advance_clock(CLOSING_SECONDS + DAY, source="slow")
    books.run_jobs()
    close_periods(books.engine)
    assert retain(books.engine, DAYS_TO_DROP_ALL) == 3


def test_the_database_refuses_to_drop_reports_that_are_not_carried_over_or_not_proved(
    closed_books: Books,
) -> None:
    drop = "SELECT accounting.drop_report_partition('2026-11-02')"
    with psycopg.connect(closed_books.url(WRITER)) as connection, pytest.raises(IntegrityError):
        connection.execute(drop)
    with psycopg.connect(closed_books.url(WRITER)) as connection:
        connection.execute(
            "INSERT INTO accounting.dropped_positions SELECT source_id, 99, 0, now(),"
            " gen_random_uuid() FROM accounting.sources"
        )
        connection.execute(
            "INSERT INTO accounting.dropped_reports SELECT '2026-11-02', realm_id, 1, 1"
            " FROM accounting.realms"
        )
        with pytest.raises(IntegrityError, match="not closed and proved"):
            connection.execute(drop)


def test_an_open_period_of_the_realm_blocks_a_day_without_usage_that_is_billed(
    books: Books,
) -> None:
    """The sender of the first day never authenticates: nothing of that day is in the hours."""
    FakeAllocation(books, user="stranger").interim(0, 9, 9, 9, 9)
    bob = FakeAllocation(books, user="bob", allocation=5)
    bob.new(DAY)
    bob.close(DAY + 20, (1, 10, 1, 10), (0, 0, 0, 0))
    run_jobs_and_close(books, 20 * DAY)
    november = "period 2026-11-01 of realm 'example.org' is not closed"
    assert blockers_by_day(books, 10) == [(november,), (november, "a day before is kept")]
    run_jobs_and_close(books)
    assert retain(books.engine, DAYS_TO_DROP_ALL) == 2
    assert list(verify(books.engine)) == []


def test_a_day_is_kept_when_the_database_refuses_to_drop_it(closed_books: Books) -> None:
    """A difference is found after the day was evaluated."""
    with psycopg.connect(closed_books.url()) as connection:
        connection.execute(
            "CREATE FUNCTION public.find_difference() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN UPDATE accounting.proofs SET differences = 1; RETURN NULL; END'"
        )
        connection.execute(
            "CREATE TRIGGER finds_difference AFTER INSERT ON accounting.dropped_reports"
            " EXECUTE FUNCTION public.find_difference()"
        )
    first, *_ = expired_days(closed_books.engine, DAYS_TO_DROP_ALL)
    assert first.blockers == (
        "dropping the reports of 2026-11-02 refused: a period is not closed and proved",
    )
    assert kept_days(closed_books) == [2, 3, 4]
    with psycopg.connect(closed_books.url()) as connection:
        connection.execute("DROP TRIGGER finds_difference ON accounting.dropped_reports")
    assert retain(closed_books.engine, DAYS_TO_DROP_ALL) == 3


def test_a_reader_of_reports_blocks_the_drop(closed_books: Books) -> None:
    assert list(verify(closed_books.engine)) == []
    with psycopg.connect(closed_books.url()) as reader:
        reader.execute("SELECT count(*) FROM accounting.reports")
        (first, *_) = list(expired_days(closed_books.engine, DAYS_TO_DROP_ALL))
        assert first.blockers == ("its reports are being read now",)
    assert retain(closed_books.engine, DAYS_TO_DROP_ALL) == 3


def test_the_dry_run_command_prints_a_line_for_each_day(closed_books: Books) -> None:
    url = closed_books.url(WRITER)
    result = turn_accounting("job", "run", "retain", "--dry-run", database_url=url)
    assert (result.code, result.out) == (
        0,
        "ACCOUNTING_REPORT_RETENTION_DAYS is not set: all reports are kept\n",
    )
    setting = {"report_retention_days": "30"}
    result = turn_accounting("job", "run", "retain", "--dry-run", database_url=url, **setting)
    assert result.out.splitlines() == [
        "2026-11-02  10 reports  would be dropped",
        "2026-11-03  10 reports  would be dropped",
        "2026-11-04  3 reports  would be dropped",
    ]
    result = turn_accounting("job", "run", "retain", database_url=url, **setting)
    assert (result.code, result.err.splitlines()[-1]) == (
        0,
        "turn-accounting: retain: 4 records",
    )
    assert turn_accounting("job", "run", "settle", "--dry-run", database_url=url).code == 2


def test_a_sighting_at_the_last_dropped_report_is_applied_after_it(books: Books) -> None:
    """Without it, the session would expire late on the dropped day: its refresh was lost."""
    alice = FakeAllocation(books)
    alice.new(MIDNIGHT_SECONDS - 5000)
    key = channel("status")
    for seen, idle in ((MIDNIGHT_SECONDS - 4440, 10), (MIDNIGHT_SECONDS - 1500, 100)):
        books.spool().add_sightings(
            [
                RawKeySighting(
                    scan_started_at=books.micros_at(seen - 5),
                    seen_at=books.micros_at(seen),
                    database=0,
                    key=key,
                    idle_seconds=idle,
                )
            ]
        )
        books.load()
    alice.close(MIDNIGHT_SECONDS + 900, (1, 10, 1, 10), (0, 0, 0, 0))
    run_jobs_and_close(books)
    before = without_reports(books)
    assert len(before["sessions"]) == 1
    assert retain(books.engine, DAYS_TO_DROP_ONE) == 1
    assert list(verify(books.engine)) == []
    assert list(rebuild(books.engine, "to be sure")) == []
    assert retain(books.engine, DAYS_TO_DROP_ALL) == 1
    assert list(verify(books.engine)) == []
    assert without_reports(books) == before


def test_a_day_in_which_a_session_has_a_sighting_only_is_dropped_with_it(books: Books) -> None:
    """Found by a random history: the sighting was dropped, and what it says was not carried on."""
    FakeAllocation(books).new(MIDNIGHT_SECONDS - 1000)
    books.spool().add_sightings(
        [
            RawKeySighting(
                scan_started_at=books.micros_at(MIDNIGHT_SECONDS + 500),
                seen_at=books.micros_at(MIDNIGHT_SECONDS + 505),
                database=0,
                key=channel("status"),
                idle_seconds=100,
            )
        ]
    )
    bob = FakeAllocation(books, user="bob", allocation=2)
    bob.new(MIDNIGHT_SECONDS + 600)
    bob.close(MIDNIGHT_SECONDS + 900, (1, 10, 1, 10), (0, 0, 0, 0))
    run_jobs_and_close(books)
    before = without_reports(books)
    assert retain(books.engine, DAYS_TO_DROP_ALL) == 2
    assert list(verify(books.engine)) == []
    assert list(rebuild(books.engine, "to be sure")) == []
    assert without_reports(books) == before


def test_a_day_whose_reports_are_set_aside_is_kept_until_a_rebuild(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply_interim = KeyFold.apply_interim

    def faulty(fold: KeyFold, *report: Any) -> None:
        if report[-1][1] == 700:
            raise ZeroDivisionError
        apply_interim(fold, *report)

    receive_two_days(books)
    with monkeypatch.context() as patch:
        patch.setattr(KeyFold, "apply_interim", faulty)
        run_jobs_and_close(books)
        assert retain(books.engine, DAYS_TO_DROP_ALL) == 0
    assert retain(books.engine, DAYS_TO_DROP_ALL) == 0
    assert kept_days(books) == [2, 3, 4]
    assert list(rebuild(books.engine, "a fixed version"))
    assert list(verify(books.engine)) == []
    assert retain(books.engine, DAYS_TO_DROP_ALL) == 3
