"""What an engine counts is the statement and the adjustments, whatever is killed in between."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from accounting.billing.adjust import adjust
from accounting.billing.close_period import close_period, close_periods
from accounting.domain.periods import LATE_USAGE_AUTHOR
from accounting.errors import ConnectionLost, UsageError
from accounting.feed.number_feed import number_feed
from accounting.webhooks.delivery import deliver
from accounting.webhooks.endpoints import (
    add_endpoint,
    list_endpoints,
    read_counted_span,
    replay_events,
)
from accounting.webhooks.formats.options import MAX_BATCH, FormatName, FormatOptions
from accounting.webhooks.refusals import list_refusals
from tests.support.billing_scenarios import (
    DAY,
    NOVEMBER,
    NOVEMBER_END_SECONDS,
    close_november_without_late_source,
    credit_test_call,
    receive_late_source,
    receive_november,
)
from tests.support.books import Books
from tests.support.coturn_messages import FakeAllocation
from tests.support.crash_injection import (
    BACKEND_IS_ALIVE,
    CrashInjector,
    SimulatedCrash,
    crashing_engine,
)
from tests.support.metering_engines import (
    API_KEY,
    LagoServer,
    MeteringServer,
    OpenMeterServer,
    StripeServer,
)
from tests.support.servers import wait_until

DECEMBER_END_SECONDS = NOVEMBER_END_SECONDS + 31 * DAY
HOUR = 3600.0
NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
SERVERS: dict[FormatName, type[MeteringServer]] = {
    FormatName.OPENMETER: OpenMeterServer,
    FormatName.LAGO: LagoServer,
    FormatName.STRIPE: StripeServer,
}


def add_engine(
    books: Books,
    server: MeteringServer,
    name: FormatName,
    batch_size: int = MAX_BATCH,
    *,
    since: datetime | None = None,
    from_start: bool = True,
) -> int:
    """An engine that bills users by their names."""
    number, _ = add_endpoint(
        books.engine,
        url=server.url,
        format=name,
        options=FormatOptions(customer="{user}").to_json(),
        api_key=API_KEY,
        allows_private=True,
        batch_size=min(batch_size, name.max_batch),
        since=since,
        from_start=from_start and since is None,
    )
    return number


def number_events(books: Books) -> None:
    """Number the feed, recorded at the time of the books."""
    books.query(
        "UPDATE accounting.feed_outbox SET created_at = accounting.database_now() RETURNING 1"
    )
    number_feed(books.engine)


def deliver_through_crashes(books: Books, server: MeteringServer) -> int:
    """Deliver all, killed at a later statement each time, and with answers lost; how often."""
    number_events(books)
    (row,) = books.query("SELECT accounting.database_now() AS now")
    server.now = row["now"]
    server.lost_answers, server.outages = 2, 1
    injector = CrashInjector()
    crashes = moment = 0
    with crashing_engine(books, injector) as engine:
        while any(row["events_behind"] for row in list_endpoints(books.engine)):
            books.query(  # as if the pause was over, and the lease of the process that died
                "UPDATE accounting.webhooks SET leased_until = NULL, next_attempt_at = NULL"
                " RETURNING 1"
            )
            moment += 1
            injector.arm(moment)
            try:
                deliver(engine)
            except (SimulatedCrash, ConnectionLost):
                crashes += 1
                wait_until(lambda: not books.query(BACKEND_IS_ALIVE, [injector.backend_pids]))
    assert (server.lost_answers, server.outages) == (0, 0)
    return crashes


def billed_by_customer(books: Books) -> dict[tuple[str, str], Decimal]:
    """Statements by their period, adjustments by when they were posted, as the engine's months."""
    posted_at = {
        event["payload"]["adjustment_id"]: event["created_at"]
        for event in books.rows("feed")
        if event["type"] == "adjustment.posted"
    }
    lines = [
        *((row["user_id"], f"{row['period']:%Y-%m}", row) for row in books.rows("statements")),
        *(
            (row["user_id"], f"{posted_at[str(row['adjustment_id'])].astimezone(UTC):%Y-%m}", row)
            for row in books.rows("adjustments")
        ),
    ]
    sums: dict[tuple[str, str], Decimal] = {}
    for user, month, row in lines:
        value = row["received_bytes"] + row["sent_bytes"]
        sums[user, month] = sums.get((user, month), Decimal(0)) + value
    return {key: value for key, value in sums.items() if value}


@pytest.mark.parametrize(
    "name",
    [
        FormatName.OPENMETER,
        pytest.param(FormatName.LAGO, marks=pytest.mark.long),
        pytest.param(FormatName.STRIPE, marks=pytest.mark.long),
    ],
)
def test_an_engine_counts_the_statement_and_the_adjustments(books: Books, name: FormatName) -> None:
    """Two closed months, late usage of both kinds, a negative hour, and a manual credit."""
    with SERVERS[name](datetime(2026, 11, 2, tzinfo=UTC)) as server:
        number = add_engine(books, server, name, batch_size=2)
        receive_november(books)
        books.advance_clock(0, source="late")
        books.advance_clock(NOVEMBER_END_SECONDS + 61)
        books.run_jobs()
        close_period(books.engine, "example.org", NOVEMBER, excluded_sources=["late"])
        crashes = deliver_through_crashes(books, server)
        receive_late_source(books)
        disputed = FakeAllocation(books, user="dora", allocation=9)
        disputed.new(NOVEMBER_END_SECONDS + DAY)
        disputed.interim(NOVEMBER_END_SECONDS + DAY + 1, 9, 9000, 0, 0)
        disputed.refreshed(NOVEMBER_END_SECONDS + DAY + 599, 3 * 3600)
        disputed.close(NOVEMBER_END_SECONDS + DAY + 2 * HOUR, (6, 6000, 0, 0), (0, 0, 0, 0))
        books.advance_clock(NOVEMBER_END_SECONDS + 5 * DAY)
        books.run_jobs()
        assert adjust(books.engine) == 2
        credit_test_call(books)
        crashes += deliver_through_crashes(books, server)
        late = FakeAllocation(books, user="alice", allocation=10, source="late")
        late.new(NOVEMBER_END_SECONDS + 2 * DAY)
        late.interim(NOVEMBER_END_SECONDS + 2 * DAY + 9, 1, 50, 1, 70)
        for source in ("late", "default"):
            books.advance_clock(DECEMBER_END_SECONDS + 61, source=source)
        books.run_jobs()
        assert close_periods(books.engine) == 1
        crashes += deliver_through_crashes(books, server)
        assert crashes > 30
        assert server.sums() == billed_by_customer(books)
        assert server.sums() == {
            ("alice", "2026-11"): 300,
            ("bob", "2026-11"): 1100,
            ("alice", "2026-12"): 120,
            ("bob", "2026-12"): 1500 - 600,
            ("carol", "2026-12"): 10,
            ("dora", "2026-12"): 9000 - 3000,
        }
    assert list_refusals(books.engine, number) == []


def test_a_refused_event_is_sent_by_a_replay_and_is_no_refusal_any_more(books: Books) -> None:
    """The engine has the events around it: they are settled by the same two requests."""
    with LagoServer(datetime(2026, 11, 2, tzinfo=UTC)) as server:
        number = add_engine(books, server, FormatName.LAGO, batch_size=3)
        receive_november(books)
        carol = FakeAllocation(books, user="carol", allocation=3)
        carol.new(2 * DAY)
        carol.close(2 * DAY + 9, (1, 30, 0, 0), (0, 0, 0, 0))
        books.advance_clock(3 * DAY)
        books.run_jobs()
        number_events(books)
        ids = [
            str(event["event_id"])
            for event in books.rows("feed")
            if event["type"] == "usage.counted"
        ]
        assert len(ids) == 3
        server.broken = {ids[1]}
        assert deliver(books.engine) == 2
        assert [str(row["event_id"]) for row in list_refusals(books.engine, number)] == [ids[1]]
        server.broken.clear()
        replay_events(books.engine, number, after=0)
        assert deliver(books.engine) == 3
        assert list_refusals(books.engine, number) == []
        assert server.request_count == 4
        assert server.sums() == {
            ("alice", "2026-11"): 300,
            ("bob", "2026-11"): 1100,
            ("carol", "2026-11"): 30,
        }


def test_a_replay_does_not_let_an_engine_count_again_what_it_has_forgotten(books: Books) -> None:
    with StripeServer(NOON) as server:
        number = add_engine(books, server, FormatName.STRIPE)
        receive_november(books)
        books.advance_clock(2 * DAY)
        books.run_jobs()
        number_events(books)
        server.now = NOON + timedelta(days=2)
        assert deliver(books.engine) == 2
        (row,) = list_endpoints(books.engine)
        sums = server.sums()
        replay_events(books.engine, number, after=0)  # Stripe still drops them
        assert deliver(books.engine) == 2
        books.set_database_clock(NOON + timedelta(days=3, seconds=1))
        server.now = NOON + timedelta(days=3, seconds=1)
        with pytest.raises(UsageError, match=f"--after {row['seq']} or later, or --again"):
            replay_events(books.engine, number, after=0)
        replay_events(books.engine, number, after=row["seq"])
        assert deliver(books.engine) == 0
        assert server.sums() == sums
        replay_events(books.engine, number, after=0, again=True)
        assert deliver(books.engine) == 2
        assert server.sums() == {key: 2 * value for key, value in sums.items()}


def test_a_refusal_says_that_the_engine_may_have_taken_the_event(books: Books) -> None:
    """Its answer was lost, and when it could be sent again the invoice was final."""
    with StripeServer(NOON) as server:
        number = add_engine(books, server, FormatName.STRIPE)
        for user, allocation in (("alice", 1), ("bob", 2)):
            last = FakeAllocation(books, user=user, allocation=allocation)
            last.new(NOVEMBER_END_SECONDS - 1000)
            last.close(NOVEMBER_END_SECONDS - 900, (1, 100, 2, 200), (0, 0, 0, 0))
        ends_at = books.start + timedelta(seconds=NOVEMBER_END_SECONDS)
        books.advance_clock(NOVEMBER_END_SECONDS + 61)
        books.run_jobs()
        number_events(books)
        server.now = ends_at + timedelta(seconds=61)
        server.lost_answers = 1
        assert deliver(books.engine) == 0
        [(_, counted)] = server.sums().items()
        assert counted == 300
        close_periods(books.engine)
        books.set_database_clock(ends_at + timedelta(hours=2))
        deliver(books.engine)
        second, first = (row["reason"] for row in list_refusals(books.engine, number))
        assert "but a request of 2026-12-01 00:01 UTC had no answer: it may have been" in first
        assert "no answer" not in second


def test_an_engine_counts_from_its_own_beginning_on(books: Books) -> None:
    """Neither the back-fill of another, nor a correction of an hour before, nor a replay adds."""
    with LagoServer(NOON) as first, LagoServer(NOON) as second, LagoServer(NOON) as third:
        add_engine(books, first, FormatName.LAGO)
        alice = FakeAllocation(books, user="alice")
        for hour in range(4):
            alice.new(hour * HOUR + 10, 600)
            alice.interim(hour * HOUR + 20, 10**hour, 10**hour, 0, 0)
        books.advance_clock(3 * HOUR + 65)
        books.run_jobs()
        number_events(books)
        plain = add_engine(books, second, FormatName.LAGO, from_start=False)
        since = books.start + timedelta(hours=2)
        add_engine(books, third, FormatName.LAGO, since=since)
        alice.new(4 * HOUR + 10, 600)
        alice.interim(4 * HOUR + 20, 10**4, 10**4, 0, 0)
        late = FakeAllocation(books, user="alice", allocation=2, source="late")
        for hour in (1, 2):
            late.new(hour * HOUR + 30, 600)
            late.interim(hour * HOUR + 40, 5, 20_000 * hour, 0, 0)
        for source in ("late", "default"):
            books.advance_clock(6 * HOUR, source=source)
        books.run_jobs()
        number_events(books)
        deliver(books.engine)
        whole, part, later = 11111 + 60_000, 11100 + 40_000, 10_000
        assert first.sums() == {("alice", "2026-11"): whole}
        assert third.sums() == {("alice", "2026-11"): part}
        assert second.sums() == {("alice", "2026-11"): later}
        replay_events(books.engine, plain, after=0)
        deliver(books.engine)
        assert second.sums() == {("alice", "2026-11"): later}
        counted_from = read_counted_span(books.engine, plain).since
        added_at = books.start + timedelta(hours=3, seconds=65)
        assert counted_from == pytest.approx(added_at, abs=timedelta(seconds=5))


def test_adjustments_of_before_an_engine_are_not_for_it(books: Books) -> None:
    """They were billed by what billed then; the engine bills those that are posted later."""
    close_november_without_late_source(books)
    credit_test_call(books)
    number_events(books)
    with LagoServer(NOON) as server:
        number = add_engine(books, server, FormatName.LAGO, from_start=False)
        receive_late_source(books)
        books.run_jobs()
        assert adjust(books.engine) == 2
        number_events(books)
        replay_events(books.engine, number, after=0)
        deliver(books.engine)
        kinds = {each.properties["kind"] for each in server.counted}
        late = [row for row in books.rows("adjustments") if row["author"] == LATE_USAGE_AUTHOR]
        assert kinds == {"adjustment"}
        assert sorted(each.value for each in server.counted) == sorted(
            Decimal(row["received_bytes"] + row["sent_bytes"]) for row in late
        )
