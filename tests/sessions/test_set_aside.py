"""A bug in the fold sets aside the reports that it raises for, and stops nothing else.

The bugs are put into the fold itself, and go when the test ends them, as a fixed version would.
"""

from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any, Final

import pytest
from structlog.testing import capture_logs

from accounting.audit.pruning import PruneLimits, prune
from accounting.audit.rebuild import rebuild
from accounting.audit.verify import verify
from accounting.capture.spool.records import RawKeySighting
from accounting.domain import session_fold
from accounting.domain.session_fold import KeyFold
from accounting.domain.session_hours import UsageChanges
from accounting.identities.erase import erase
from accounting.ingest.loader import Loader
from accounting.ops.doctor import Level
from accounting.ops.doctor.flow import check_flow
from accounting.ops.monitoring.health import evaluate
from accounting.sessions.settle import settle
from tests.support.books import Books
from tests.support.coturn_messages import FakeAllocation, session_row, session_rows
from tests.support.monitoring import metrics_of, read_snapshot, settings_for
from tests.support.scenario_player import all_rows
from tests.support.truncate import empty_database

BAD: Final = 13
"""The packets of an interim that the bugs raise for."""
Fault = Callable[[pytest.MonkeyPatch], None]


def raise_after_half_of_a_report(patch: pytest.MonkeyPatch) -> None:
    """A report is applied, and then the fold raises."""
    apply_interim = KeyFold.apply_interim

    def faulty(fold: KeyFold, *report: Any) -> None:
        apply_interim(fold, *report)
        if report[-1][0] == BAD:
            raise ZeroDivisionError

    patch.setattr(KeyFold, "apply_interim", faulty)


def raise_before_a_report(patch: pytest.MonkeyPatch) -> None:
    apply_interim = KeyFold.apply_interim

    def faulty(fold: KeyFold, *report: Any) -> None:
        if report[-1][0] == BAD:
            raise ZeroDivisionError
        apply_interim(fold, *report)

    patch.setattr(KeyFold, "apply_interim", faulty)


def raise_while_packing(patch: pytest.MonkeyPatch) -> None:
    """What a step changed can't be packed if it has that report."""
    add_session = UsageChanges.add_session

    def faulty(changes: UsageChanges, session: Any, calendar: Any) -> int | None:
        if any(counters[0] % 100 == BAD for counters in session.hourly_usage.values()):
            raise ZeroDivisionError
        return add_session(changes, session, calendar)

    patch.setattr(UsageChanges, "add_session", faulty)


FAULTS: Final = [raise_before_a_report, raise_after_half_of_a_report, raise_while_packing]


def receive(books: Books) -> None:
    """Sessions of three users; one interim of alice's is bad, and so is the first of dora's."""
    alice, bob = FakeAllocation(books), FakeAllocation(books, user="bob", allocation=2)
    dora = FakeAllocation(books, user="dora", allocation=3)
    alice.new(0)
    bob.new(1)
    dora.interim(2, BAD, 100, 0, 0)
    alice.interim(10, 100, 1000, 100, 1000)
    alice.interim(20, BAD, 500, 0, 0)
    bob.interim(30, 100, 1000, 100, 1000)
    alice.interim(40, 100, 1000, 100, 1000)
    dora.new(50)


def receive_ends(books: Books) -> None:
    FakeAllocation(books).deleted(100)
    FakeAllocation(books, user="bob", allocation=2).close(110, (100, 1000, 100, 1000), (0, 0, 0, 0))
    books.advance_clock(200)


def set_aside(books: Books) -> list[dict[str, Any]]:
    return books.query(
        "SELECT epoch, position, reason FROM accounting.set_aside_reports ORDER BY 2"
    )


def load(books: Books, memory_limit: int, limit: int, *, ahead: bool) -> None:
    loader = Loader(books.engine, books.spool(), books.rule, memory_limit=memory_limit)
    books.follow_capture()
    while (loader.load_ahead if ahead else loader.load)(limit):
        pass


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[MutableMapping[str, Any]]]:
    with capture_logs() as entries:
        yield entries


@pytest.mark.parametrize(
    ("put", "memory_limit", "limit", "ahead"),
    [
        (raise_before_a_report, 3, 1, False),
        (raise_after_half_of_a_report, 0, 3, True),
        pytest.param(raise_after_half_of_a_report, 10**6, 1, True, marks=pytest.mark.long),
        pytest.param(raise_while_packing, 0, 3, False, marks=pytest.mark.long),
        (raise_while_packing, 10**6, 2, True),
    ],
)
def test_only_the_report_that_raises_is_missing_until_a_rebuild(
    books: Books,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    put: Fault,
    memory_limit: int,
    limit: int,
    ahead: bool,
) -> None:
    receive(books)
    receive_ends(books)
    books.run_jobs()
    right = all_rows(books)
    empty_database(books.server, books.name)
    books = Books(books.server, books.name, tmp_path / "again", shared_engine=books.engine)
    with monkeypatch.context() as patch:
        put(patch)
        receive(books)
        load(books, memory_limit, limit, ahead=ahead)
        receive_ends(books)
        load(books, memory_limit, limit, ahead=ahead)
        assert settle(books.engine) == 0
        books.rollup()
        assert [(row["epoch"], row["reason"].split()[0]) for row in set_aside(books)] == [
            (1, "ZeroDivisionError"),
            (1, "ZeroDivisionError"),
        ]
        assert len(books.rows("traffic_reports")) == len(right["traffic_reports"])
        twice = (200, 2000, 200, 2000, 0, 0, 0, 0)
        once = (100, 1000, 100, 1000, 0, 0, 0, 0)
        assert session_rows(books) == [
            session_row(books, 0, 100, 100, "deleted", twice, disputed=True),
            session_row(
                books, 1, 110, 110, "deleted", once, total_reported=True,
                username="bob", user_id="bob", allocation_id=f"{2:018d}",
            ),
            session_row(
                books, 50, 50, None, None,
                username="dora", user_id="dora", allocation_id=f"{3:018d}",
            ),
        ]  # fmt: skip
        books.assert_conserved()
        if put is not raise_while_packing:  # which is a bug of settling alone
            expected = [("reports", "missing")] * 2
            assert [(d.what, d.kind) for d in verify(books.engine)] == expected
            assert list(rebuild(books.engine, "still with the bug")) == []
            assert len(set_aside(books)) == 2
    assert {d.what for d in verify(books.engine)} > {"reports", "sessions"}
    assert list(rebuild(books.engine, "a fixed version"))
    assert set_aside(books) == []
    assert list(verify(books.engine)) == []
    books.rollup()
    assert all_rows(books) == right
    books.close()


def forget_what_was_settled(books: Books) -> None:
    """The books as if the reports had been loaded, and not one of them settled."""
    for table in (
        "sessions",
        "session_usage",
        "usage_deltas",
        "server_deltas",
        "peak_deltas",
        "settle_watermarks",
    ):
        books.query(f"WITH gone AS (DELETE FROM accounting.{table} RETURNING 1) SELECT 1")  # noqa: S608


@pytest.mark.parametrize("put", FAULTS)
def test_the_job_settle_sets_aside_as_the_loader_does(
    books: Books, monkeypatch: pytest.MonkeyPatch, put: Fault
) -> None:
    receive(books)
    receive_ends(books)
    with monkeypatch.context() as patch:
        put(patch)
        books.run_jobs()
        loaded = all_rows(books), set_aside(books)
        forget_what_was_settled(books)
        books.query("WITH gone AS (DELETE FROM accounting.set_aside_reports RETURNING 1) SELECT 1")
        assert settle(books.engine, limit=3) == 12
    assert len(set_aside(books)) == 2
    assert session_rows(books) == [without_keys(row) for row in loaded[0]["sessions"]]
    assert set_aside(books) == loaded[1]


def without_keys(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in {"session_id", "user_key"}}


def test_an_expiry_that_raises_leaves_the_session_open_until_a_rebuild(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    expire = session_fold.expire

    def faulty(session: Any, now: int, grace: int) -> bool:
        if session.usage[0] == BAD and now > session.expires_at + grace:
            session.ended_at = now
            raise ZeroDivisionError
        return expire(session, now, grace)

    for user, packets in (("alice", BAD), ("bob", 1)):
        FakeAllocation(books, user=user).new(0)
        FakeAllocation(books, user=user).interim(10, packets, 100, 0, 0)
    with monkeypatch.context() as patch:
        patch.setattr(session_fold, "expire", faulty)
        for until in (20, 1000, 2000, 8000):
            books.advance_clock(until)
            books.run_jobs()
            books.assert_conserved()
        assert settle(books.engine) == 0
        ends = books.rows("sessions", "username", "end_cause", "disputed", order="1")
        assert ends == [
            {"username": "alice", "end_cause": None, "disputed": True},
            {"username": "bob", "end_cause": "expired", "disputed": False},
        ]
        assert len(set_aside(books)) == 1
        assert [d.what for d in verify(books.engine)] == ["reports"]
    assert list(rebuild(books.engine, "a fixed version"))
    assert list(verify(books.engine)) == []
    assert (
        books.rows("sessions", "end_cause", "disputed")
        == [{"end_cause": "expired", "disputed": False}] * 2
    )


def test_a_sighting_that_raises_is_set_aside(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(*_: Any, **__: Any) -> bool:
        raise ZeroDivisionError

    FakeAllocation(books).new(0, lifetime=3600)
    books.run_jobs()
    with monkeypatch.context() as patch:
        patch.setattr(KeyFold, "apply_sighting", faulty)
        key = b"turn/realm/example.org/user/alice/allocation/%018d/status" % 1
        books.spool().add_sightings(
            [
                RawKeySighting(
                    epoch=1,
                    position=books.spool().state().captured_position,
                    scan_started_at=books.micros_at(20),
                    seen_at=books.micros_at(30),
                    database=0,
                    key=key,
                    idle_seconds=25,
                    number=0,
                )
            ]
        )
        FakeAllocation(books).interim(40, 1, 100, 1, 100)
        books.run_jobs()
        assert [row["reason"].split()[0] for row in set_aside(books)] == ["ZeroDivisionError"]
        assert [d.what for d in verify(books.engine)] == ["reports"]
        assert books.rows("sessions", "received_bytes", "disputed") == [
            {"received_bytes": 100, "disputed": True}
        ]
    assert list(rebuild(books.engine, "a fixed version"))
    assert list(verify(books.engine)) == []


def test_an_operator_sees_that_reports_are_set_aside(
    books: Books, monkeypatch: pytest.MonkeyPatch, logs: list[MutableMapping[str, Any]]
) -> None:
    settings_for(books)
    receive(books)
    with monkeypatch.context() as patch:
        raise_before_a_report(patch)
        books.run_jobs()
    (entry,) = logs
    assert (entry["log_level"], entry["keys"]) == ("error", 2)
    assert isinstance(entry["exc_info"], ZeroDivisionError)
    snapshot = read_snapshot(books)
    (finding,) = [finding for finding in check_flow(snapshot) if finding.check == "set-aside"]
    assert finding.level is Level.ERROR
    assert finding.observed.startswith(
        "source 'default': 2 reports set aside, since folding raised ZeroDivisionError in "
        "test_set_aside.py:"
    )
    assert "`turn-accounting rebuild`" in finding.advice
    assert any(
        "2 reports set aside" in problem for problem in evaluate(snapshot, captures=False).problems
    )
    assert metrics_of(snapshot)["turn_accounting_set_aside_reports", "default"] == 2
    assert list(rebuild(books.engine, "a fixed version"))
    snapshot = read_snapshot(books)
    assert metrics_of(snapshot)["turn_accounting_set_aside_reports", "default"] == 0
    assert "set-aside" not in {finding.check for finding in check_flow(snapshot)}


def test_a_disputed_stranger_is_not_pruned(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database refuses to delete reports that are not the usage of the session."""
    for user, packets in (("eve", BAD), ("mallory", 1)):
        stranger = FakeAllocation(books, user=user)
        for seconds, count in ((0, 1), (10, packets), (20, 1)):
            stranger.interim(seconds, count, 100, 0, 0)
    with monkeypatch.context() as patch:
        raise_before_a_report(patch)
        books.advance_clock(100_000)
        books.run_jobs()
    prune(books.engine, PruneLimits(unattributed_sessions=0))
    assert {row["username"] for row in books.rows("traffic_reports", "username")} == {"eve"}
    assert list(rebuild(books.engine, "a fixed version"))
    prune(books.engine, PruneLimits(unattributed_sessions=0))
    assert books.rows("traffic_reports") == []
    assert list(verify(books.engine)) == []


def test_an_erasure_reaches_the_address_in_a_report_that_is_set_aside(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No session has its username, by which the reports with addresses are found."""

    def faulty(*_: Any) -> None:
        raise ZeroDivisionError

    FakeAllocation(books).new(0)
    FakeAllocation(books, user="bob").interim(1, 1, 100, 0, 0)
    with monkeypatch.context() as patch:
        patch.setattr(KeyFold, "apply_status", faulty)
        books.advance_clock(100_000)
        books.run_jobs()
    assert books.rows("sessions") == []
    assert [row["client_address"] for row in books.rows("allocation_events")] != [None]
    erase(books.engine, "example.org", "alice")
    assert [row["client_address"] for row in books.rows("allocation_events")] == [None]
