"""Reports are dropped only when nothing that was billed can be lost with them."""

from datetime import date
from typing import Final

import psycopg
import pytest
from psycopg.errors import IntegrityError

from accounting.audit.rebuild import rebuild
from accounting.audit.retention import expired_days, retain
from accounting.audit.trace import trace
from accounting.audit.verify import VerifyResult, verify
from accounting.billing.adjust import adjust
from accounting.billing.close_period import close_periods
from accounting.capture.spool.records import RawKeySighting
from accounting.errors import AccountingError
from tests.support.books import WRITER, Books, channel
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
    kept_days,
    receive_two_days,
    run_jobs_and_close,
    without_reports,
)

NOVEMBER: Final = date(2026, 11, 1)


def reasons(books: Books, days: int = DAYS_TO_DROP_ALL) -> list[tuple[str, ...]]:
    """Why days are kept; none may be dropped."""
    found = [one.blockers for one in expired_days(books.engine, days, dry_run=True)]
    assert retain(books.engine, days) == 0
    return found


def test_a_day_is_dropped_when_all_that_it_fed_is_closed_and_proved(books: Books) -> None:
    receive_two_days(books)
    run_jobs_and_close(books)
    before = without_reports(books)
    found = list(expired_days(books.engine, DAYS_TO_DROP_ALL))
    assert [(one.day.day, one.reports, one.blockers) for one in found] == [
        (2, 10, ()),
        (3, 10, ()),
        (4, 3, ()),
    ]
    assert kept_days(books) == []
    assert without_reports(books) == before
    verdict = VerifyResult()
    assert list(verify(books.engine, result=verdict)) == []
    (gone,) = verdict.partly_dropped
    assert gone.proof is not None
    assert (gone.realm, gone.period, gone.kept_since, gone.proof.differences) == (
        "example.org", NOVEMBER, date(2026, 11, 5), 0,
    )  # fmt: skip
    assert_closed_periods_add_up(books)


def test_a_dry_run_drops_nothing_and_says_what_would_go(books: Books) -> None:
    receive_two_days(books)
    run_jobs_and_close(books)
    found = list(expired_days(books.engine, DAYS_TO_DROP_ALL, dry_run=True))
    assert [one.blockers for one in found] == [(), (), ()]
    assert kept_days(books) == [2, 3, 4]
    assert list(expired_days(books.engine, DAYS_TO_DROP_ALL)) == found
    assert list(expired_days(books.engine, DAYS_TO_DROP_ALL)) == []


def test_reports_are_kept_for_ever_unless_told_otherwise(books: Books) -> None:
    receive_two_days(books)
    run_jobs_and_close(books)
    assert retain(books.engine, None) == 0
    assert retain(books.engine, 365) == 0
    assert kept_days(books) == [2, 3, 4]


@pytest.fixture
def halved(books: Books) -> Books:
    """Books of which the first day's reports are dropped, with lives that go on after it."""
    receive_two_days(books)
    run_jobs_and_close(books)
    assert retain(books.engine, DAYS_TO_DROP_ONE) == 1
    assert kept_days(books) == [3, 4]
    return books


def test_sessions_over_the_border_are_proved_by_what_was_carried_over(halved: Books) -> None:
    assert list(verify(halved.engine)) == []
    assert list(rebuild(halved.engine, "to be sure")) == []
    corrupt(halved, "UPDATE accounting.reports SET sent_bytes = 1201 WHERE sent_bytes = 1200")
    assert {difference_key(one) for one in verify(halved.engine)} >= {
        ("session_usage", "differs", "sent_bytes"),
        ("statements", "differs", "sent_bytes"),
    }


def test_a_rebuild_loses_no_session_whose_reports_are_gone(halved: Books) -> None:
    before = without_reports(halved)
    corrupt(halved, "UPDATE accounting.sessions SET sent_bytes = 0 WHERE allocation_id = 2")
    corrupt(halved, "DELETE FROM accounting.user_usage_daily")
    assert list(rebuild(halved.engine, "a test"))
    assert without_reports(halved) == before
    assert list(verify(halved.engine)) == []


@pytest.mark.parametrize(
    "corruption",
    [
        "UPDATE accounting.sessions SET client_address = 'x' WHERE allocation_id = 1",
        "DELETE FROM accounting.sessions WHERE allocation_id = 1",
        "UPDATE accounting.session_usage SET active_to = active_to + interval '1 second'",
    ],
)
def test_what_was_sealed_and_changed_is_found_and_never_rebuilt_from(
    halved: Books, corruption: str
) -> None:
    corrupt(halved, corruption)
    (found,) = [one for one in verify(halved.engine) if one.column.startswith("digest of a day")]
    assert (found.realm, found.period, found.what) == ("example.org", NOVEMBER, "sessions")
    with pytest.raises(AccountingError, match="changed after their reports were dropped"):
        list(rebuild(halved.engine, "a test"))


def test_a_statement_whose_reports_are_gone_is_proved_by_its_digest(books: Books) -> None:
    """A source that was behind brings reports after the cutoff; those are dropped too."""
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
    assert {difference_key(one) for one in verify(books.engine)} == {
        ("statements", "differs", "digest")
    }


def test_a_trace_shows_what_dropped_reports_brought_in_one_sum(halved: Books) -> None:
    found = trace(halved.engine, "example.org", NOVEMBER, user="alice")
    assert found.adds_up
    assert found.partly_dropped is not None
    assert found.partly_dropped.kept_since == date(2026, 11, 3)
    shown = {
        one.allocation_id: (one.dropped_counters, [report.counters[:4] for report in one.reports])
        for one in found.sessions
    }
    nothing = (0, 0, 0, 0)
    assert shown == {
        1: ((3, 300, 2, 150, *nothing), []),
        2: (
            (5, 500, 5, 500, *nothing),
            [(7, 700, 7, 700), nothing, (1, 100, 0, 0), nothing],
        ),
        4: (
            (1, 1, 1, 1, *nothing),
            [(2, 2, 2, 2), nothing, (1, 1, 0, 0), nothing],
        ),
    }


def test_verify_and_trace_name_the_last_proof_of_what_is_gone(halved: Books) -> None:
    url = halved.url(WRITER)
    (proof,) = halved.query("SELECT digest, verified_at FROM accounting.proofs")
    dropped = (
        "period 2026-11-01 of realm 'example.org': reports before 2026-11-03 (UTC) were dropped; "
        f"last proved from all of them on {proof['verified_at']:%Y-%m-%d}, digest {proof['digest']}"
    )
    for command in (
        ("verify",),
        ("trace", "example.org", "2026-11-01", "--user", "alice"),
    ):
        ran = turn_accounting(*command, database_url=url)
        assert ran.code == 0
        assert dropped in ran.err
    # A lesser proof never takes the place of the whole one.
    assert halved.query("SELECT digest, verified_at FROM accounting.proofs") == [proof]


def test_usage_that_is_late_for_what_is_gone_becomes_an_adjustment(halved: Books) -> None:
    late = FakeAllocation(halved, user="bob", allocation=9, source="behind")
    late.new(50)
    late.interim(60, 1, 5, 1, 5)
    late.close(70, (2, 10, 1, 5), (0, 0, 0, 0))
    halved.advance_clock(CLOSING_SECONDS, source="behind")
    halved.run_jobs()
    assert adjust(halved.engine) == 1
    assert list(verify(halved.engine)) == []
    assert_closed_periods_add_up(halved)
    assert retain(halved.engine, DAYS_TO_DROP_ONE) == 1
    assert list(verify(halved.engine)) == []


def test_a_period_that_is_not_closed_keeps_the_days_that_fed_it(books: Books) -> None:
    """Also the day on which a session began that lived into the next period."""
    FakeAllocation(books).new(DECEMBER_SECONDS - 100, 3600)
    FakeAllocation(books).close(DECEMBER_SECONDS + 100, (1, 10, 1, 10), (0, 0, 0, 0))
    run_jobs_and_close(books, DECEMBER_SECONDS + 2 * DAY)
    december = "period 2026-12-01 of realm 'example.org' is not closed"
    assert reasons(books, 1) == [(december,), (december, "a day before is kept")]
    run_jobs_and_close(books, DECEMBER_SECONDS + 40 * DAY)
    assert retain(books.engine, 30) == 2
    assert list(verify(books.engine)) == []


def test_a_period_that_is_not_proved_keeps_its_days(books: Books) -> None:
    receive_two_days(books)
    run_jobs_and_close(books)
    corrupt(books, "UPDATE accounting.user_usage_monthly SET sent_bytes = 1 WHERE sent_bytes = 10")
    first, *_ = reasons(books)
    assert first[0].startswith("period 2026-11-01 of realm 'example.org' has 1 differences")
    assert kept_days(books) == [2, 3, 4]
    list(rebuild(books.engine, "a test"))
    assert len(reasons(books)) == 3  # until it is verified again
    assert list(verify(books.engine)) == []
    assert retain(books.engine, DAYS_TO_DROP_ALL) == 3


def test_a_session_under_way_or_disputed_keeps_its_first_day(books: Books) -> None:
    """Two servers on one key: it ends when both have said so."""
    FakeAllocation(books).new(0, 60 * DAY)
    FakeAllocation(books, server_address=OTHER_SERVER_ADDRESS).new(10, 60 * DAY)
    FakeAllocation(books).deleted(20)
    run_jobs_and_close(books)
    first, *_ = reasons(books)
    assert first[0] == "1 sessions of source 'default' have not ended"


def test_a_source_that_is_not_settled_beyond_a_day_keeps_it(books: Books) -> None:
    receive_two_days(books)
    books.advance_clock(100, source="slow")
    run_jobs_and_close(books)
    assert reasons(books)[0][0] == "source 'slow' is settled until 2026-11-02 12:01:40Z"
    FakeAllocation(books, allocation=8).new(CLOSING_SECONDS)
    books.load()
    books.advance_clock(CLOSING_SECONDS + DAY, source="slow")
    books.run_jobs()
    close_periods(books.engine)
    assert retain(books.engine, DAYS_TO_DROP_ALL) == 3


def test_the_database_refuses_to_drop_what_is_not_carried_over_or_not_proved(books: Books) -> None:
    receive_two_days(books)
    run_jobs_and_close(books)
    drop = "SELECT accounting.drop_report_partition('2026-11-02')"
    with psycopg.connect(books.url(WRITER)) as connection, pytest.raises(IntegrityError):
        connection.execute(drop)
    with psycopg.connect(books.url(WRITER)) as connection:
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


def test_who_reads_reports_is_not_disturbed(books: Books) -> None:
    receive_two_days(books)
    run_jobs_and_close(books)
    assert list(verify(books.engine)) == []
    with psycopg.connect(books.url()) as reader:
        reader.execute("SELECT count(*) FROM accounting.reports")
        (first, *_) = list(expired_days(books.engine, DAYS_TO_DROP_ALL))
        assert first.blockers == ("its reports are being read now",)
    assert retain(books.engine, DAYS_TO_DROP_ALL) == 3


def test_the_command_says_of_each_day_what_becomes_of_it(books: Books) -> None:
    receive_two_days(books)
    run_jobs_and_close(books)
    url = books.url(WRITER)
    ran = turn_accounting("job", "run", "retain", "--dry-run", database_url=url)
    assert (ran.code, ran.out) == (
        0,
        "ACCOUNTING_REPORT_RETENTION_DAYS is not set: all reports are kept\n",
    )
    setting = {"report_retention_days": "30"}
    ran = turn_accounting("job", "run", "retain", "--dry-run", database_url=url, **setting)
    assert ran.out.splitlines() == [
        "2026-11-02  10 reports  would be dropped",
        "2026-11-03  10 reports  would be dropped",
        "2026-11-04  3 reports  would be dropped",
    ]
    ran = turn_accounting("job", "run", "retain", database_url=url, **setting)
    assert (ran.code, ran.err.splitlines()[-1]) == (0, "turn-accounting: retain: 3 days")
    assert turn_accounting("job", "run", "settle", "--dry-run", database_url=url).code == 2


def test_a_sighting_at_the_last_dropped_report_is_told_after_it(books: Books) -> None:
    """It kept a session alive whose refresh was lost, late on the day that is dropped."""
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
