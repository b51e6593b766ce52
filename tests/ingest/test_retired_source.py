"""A retired source that comes back: nothing of it is lost or billed twice, and it says so."""

from datetime import timedelta

from structlog.testing import capture_logs

from accounting.audit.verify import verify
from accounting.billing.adjust import adjust
from accounting.billing.close_period import close_periods
from accounting.ops.doctor import Level
from accounting.ops.doctor.flow import check_flow
from accounting.sources.retire import retire_source
from tests.support.billing_scenarios import DAY, NOVEMBER, NOVEMBER_END_SECONDS, receive_november
from tests.support.books import WRITER, Books
from tests.support.command import turn_accounting
from tests.support.coturn_messages import FakeAllocation
from tests.support.monitoring import read_snapshot, set_clock_offset

DECEMBER = NOVEMBER_END_SECONDS + DAY


def close_november_without(books: Books, source: str) -> None:
    receive_november(books)
    books.advance_clock(DAY, source=source)
    books.advance_clock(NOVEMBER_END_SECONDS + 61)
    books.run_jobs()
    retire_source(books.engine, source)
    assert close_periods(books.engine) == 1


def receive_session(books: Books, seconds: float, *, user: str, source: str) -> None:
    """A session of 1000 received bytes."""
    session = FakeAllocation(books, user=user, source=source, allocation=9)
    session.new(seconds)
    session.interim(seconds + 5, 1, 1000, 0, 0)
    session.close(seconds + 10, (1, 1000, 0, 0), (0, 0, 0, 0))


def is_retired(books: Books, source: str) -> bool:
    [row] = [row for row in books.rows("sources") if row["source"] == source]
    return row["retired_at"] is not None


def test_messages_received_after_it_was_retired_return_a_source_to_service(books: Books) -> None:
    """The closed period stays closed; the open one waits for the source again."""
    close_november_without(books, "gone")
    receive_session(books, DECEMBER, user="carol", source="gone")
    with capture_logs() as logs:
        books.run_jobs()
    assert [(entry["log_level"], entry["source"]) for entry in logs] == [("warning", "gone")]
    assert not is_retired(books, "gone")
    books.advance_clock(NOVEMBER_END_SECONDS + 40 * DAY)
    books.run_jobs()
    assert close_periods(books.engine) == 0
    waits = [row["waits_for"] for row in books.rows("periods", order="starts_at")]
    assert waits[0] is None
    assert "source 'gone' captured until" in waits[1]
    assert books.rows("adjustments") == []
    assert list(verify(books.engine)) == []


def test_usage_from_before_it_was_retired_is_an_adjustment_and_it_stays_retired(
    books: Books,
) -> None:
    """Its spool was loaded late. Nobody may wait for it: its collector may be gone."""
    close_november_without(books, "gone")
    receive_session(books, 2 * DAY, user="carol", source="gone")
    books.run_jobs()
    adjust(books.engine)
    assert is_retired(books, "gone")
    assert books.rows("adjustments", "period", "user_id", "received_bytes") == [
        {"period": NOVEMBER, "user_id": "carol", "received_bytes": 1000}
    ]
    books.run_jobs()
    adjust(books.engine)
    assert len(books.rows("adjustments")) == 1
    assert list(verify(books.engine)) == []


def test_ticks_without_a_message_leave_a_source_retired(books: Books) -> None:
    """Its collector may run on for a while after an operator has retired it."""
    close_november_without(books, "gone")
    books.advance_clock(DECEMBER, source="gone")
    books.run_jobs()
    assert is_retired(books, "gone")


def test_a_source_that_is_captured_now_is_retired_only_on_request(books: Books) -> None:
    """Not one whose collector has the lease and does not reach Redis: that Redis may be gone."""
    receive_session(books, 0, user="carol", source="busy")
    books.advance_clock(20, source="busy")
    books.run_jobs()
    set_clock_offset(books, 0, source="busy")
    writer = books.url(WRITER)
    refused = turn_accounting("source", "retire", "busy", database_url=writer)
    assert refused.code == 2
    assert refused.error_line == (
        "source 'busy' is captured by here now, and its next message would return it to service: "
        "stop its collector first, or retire it with --yes"
    )
    assert not is_retired(books, "busy")
    for arguments, said in (
        (["--yes"], "is retired, until its next message: here captures it"),
        ([], "is retired"),
    ):
        result = turn_accounting("source", "retire", "busy", *arguments, database_url=writer)
        assert (result.code, result.err) == (0, f"turn-accounting: source 'busy' {said}\n")
    assert is_retired(books, "busy")
    turn_accounting("source", "reopen", "busy", database_url=writer)
    books.set_database_clock(ahead=timedelta(days=1))
    assert turn_accounting("source", "retire", "busy", database_url=writer).code == 0


def test_a_returned_source_shows_in_the_list_and_in_doctor(books: Books) -> None:
    close_november_without(books, "gone")
    receive_session(books, DECEMBER, user="carol", source="gone")
    books.run_jobs()
    listed = turn_accounting("source", "list", "--json", database_url=books.url(WRITER))
    assert [row["retired_at"] for row in listed.rows] == [None, None]
    notice = "source 'gone' returned to service at 2026-12-02 00:00:10Z, after it was retired"
    assert notice in listed.err
    findings = [found for found in check_flow(read_snapshot(books)) if found.observed == notice]
    assert [found.level for found in findings] == [Level.OK]


def test_reopen_returns_a_source_before_its_first_message(books: Books) -> None:
    close_november_without(books, "gone")
    writer = books.url(WRITER)
    for text in ("back in service", "already in service"):
        result = turn_accounting("source", "reopen", "gone", database_url=writer)
        assert (result.code, text in result.err) == (0, True)
    assert not is_retired(books, "gone")
    unknown = turn_accounting("source", "reopen", "gonne", database_url=writer)
    assert unknown.code == 2
    assert unknown.error_line == "no source 'gonne' is known: did you mean 'gone'?"
