"""OpenMeter, Lago and Stripe: what each counts, deduplicates, rejects and can't express."""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import chain
from typing import Any
from uuid import UUID

import pytest

from accounting.feed.reader import FeedEvent
from accounting.webhooks.formats.format import Format
from accounting.webhooks.formats.lago import LagoFormat
from accounting.webhooks.formats.metering import EventCustomer
from accounting.webhooks.formats.openmeter import OpenMeterFormat
from accounting.webhooks.formats.options import FormatOptions, MeterValue, Unit
from accounting.webhooks.formats.stripe import StripeFormat
from accounting.webhooks.message import Refusal, Request, Response
from tests.support.metering_engines import LagoServer, MeteringServer, OpenMeterServer, StripeServer
from tests.support.metering_events import (
    HOUR,
    SOURCE,
    adjustment,
    billed_to,
    feed_event,
    hour_counted,
    send,
)

NOW = datetime(2026, 11, 3, 10, 1, tzinfo=UTC)
EventCustomers = Mapping[UUID, EventCustomer]


def openmeter(url: str, customers: EventCustomers, **options: Any) -> Format:
    return OpenMeterFormat(
        url=url, source=SOURCE, options=FormatOptions(**options), customers=customers
    )


def lago(url: str, customers: EventCustomers, **options: Any) -> Format:
    return LagoFormat(url=url, options=FormatOptions(**options), customers=customers)


def stripe(url: str, customers: EventCustomers, **options: Any) -> Format:
    return StripeFormat(url=url, options=FormatOptions(**options), customers=customers)


MakeFormat = Callable[..., Format]
ENGINES: list[tuple[type[MeteringServer], MakeFormat]] = [
    (OpenMeterServer, openmeter),
    (LagoServer, lago),
    (StripeServer, stripe),
]
each_engine = pytest.mark.parametrize(
    ("server", "make"), ENGINES, ids=["openmeter", "lago", "stripe"]
)


def usage_of_a_day() -> list[FeedEvent]:
    """Two users, a correction, an adjustment, an hour without bytes, and other events."""
    return [
        hour_counted(1, "alice", 100, 200),
        feed_event(2, "session.ended", {}, NOW, "example.org"),
        hour_counted(3, "bob", 2**49, 1),
        hour_counted(4, "alice", 0, 0, seconds="3.5"),
        hour_counted(5, "alice", -40, -5, correction=True),
        adjustment(6, "bob", -600, posted_at=NOW),
        hour_counted(7, "mallory", 9),
    ]


SUMS_OF_THE_DAY = {
    ("cus_a", "2026-11"): Decimal(255),
    ("cus_b", "2026-11"): Decimal(2**49 + 1 - 600),
}


@each_engine
def test_corrections_and_adjustments_are_signed_values(
    server: type[MeteringServer], make: MakeFormat
) -> None:
    events = usage_of_a_day()
    with server(NOW) as engine:
        format_ = make(engine.url, billed_to(events, alice="cus_a", bob="cus_b"))
        refusals, failure = send(format_, events, NOW)
        assert failure is None
        assert [(refusal.event.seq, refusal.reason) for refusal in refusals] == [
            (7, "9 bytes: nobody is billed")
        ]
        assert engine.sums() == SUMS_OF_THE_DAY
        assert all(item.at in (HOUR, NOW) for item in engine.counted)


@each_engine
def test_what_is_sent_again_after_a_lost_answer_is_counted_once(
    server: type[MeteringServer], make: MakeFormat
) -> None:
    """As after a kill: the engine has counted it, and the position doesn't say so."""
    events = [event for event in usage_of_a_day() if event.seq != 3]
    with server(NOW) as engine:
        format_ = make(engine.url, billed_to(events, alice="cus_a", bob="cus_b"))
        for attempt in range(8):
            engine.lost_answers, engine.outages = attempt % 2, 1 - attempt % 2
            engine.now = NOW + attempt * timedelta(hours=1)
            assert send(format_, events, engine.now)[1] is not None
        _, failure = send(format_, events, engine.now)
        assert failure is None
        assert engine.sums() == {
            ("cus_a", "2026-11"): Decimal(255),
            ("cus_b", "2026-11"): Decimal(-600),
        }
        assert len(engine.counted) == 3


@each_engine
@pytest.mark.parametrize(
    ("measure", "value"),
    [
        (MeterValue.BYTES, "7000000003"),
        (MeterValue.RECEIVED_BYTES, "3"),
        (MeterValue.SENT_BYTES, "7000000000"),
        (MeterValue.SESSION_SECONDS, "1234.5"),
        (MeterValue.SESSIONS, "2"),
    ],
)
def test_the_value_is_the_measure_that_was_chosen(
    server: type[MeteringServer], make: MakeFormat, measure: MeterValue, value: str
) -> None:
    event = hour_counted(1, "alice", 3, 7_000_000_000, seconds="1234.500000", sessions=2)
    format_ = make("http://127.0.0.1:1/x", billed_to([event], alice="cus_a"), value=measure)
    (request,) = format_.requests([event], NOW)
    assert isinstance(request, Request)
    if server is StripeServer:
        whole = "1234500000" if measure is MeterValue.SESSION_SECONDS else value
        assert f"payload%5Bvalue%5D={whole}&" in request.body.decode()
    elif server is LagoServer:
        assert f'"{measure}":"{value}"' in request.body.decode()
    else:
        assert f'"value":"{value}"' in request.body.decode()


@pytest.mark.parametrize("make", [openmeter, lago])
def test_units_of_bytes_lose_no_digit(make: MakeFormat) -> None:
    event = hour_counted(1, "alice", 1, 12_000_000_000)
    for unit, text in ((Unit.MB, "12000.000001"), (Unit.GB, "12.000000001")):
        format_ = make("http://127.0.0.1:1/x", billed_to([event], alice="cus_a"), unit=unit)
        (request,) = format_.requests([event], NOW)
        assert isinstance(request, Request)
        assert f'"{text}"' in request.body.decode()


@each_engine
def test_an_adjustment_has_no_sessions_to_count(
    server: type[MeteringServer], make: MakeFormat
) -> None:
    del server
    event = adjustment(1, "alice", 5, posted_at=NOW)
    customers = billed_to([event], alice="cus_a")
    format_ = make("http://127.0.0.1:1/x", customers, value=MeterValue.SESSIONS)
    assert list(format_.requests([event], NOW)) == []


@pytest.mark.parametrize("make", [openmeter, lago])
def test_refusals_and_batches_are_in_the_order_of_the_feed(make: MakeFormat) -> None:
    """So whoever moves the position after each of them loses none."""
    users = ["alice", "alice", "mallory", "alice", "mallory", *["alice"] * 205]
    events = [hour_counted(seq, user, seq) for seq, user in enumerate(users, 1)]
    plan = make("http://127.0.0.1:1/x", billed_to(events, alice="cus_a")).requests(events, NOW)
    seqs = [
        [item.event.seq] if isinstance(item, Refusal) else [event.seq for event in item.events]
        for item in plan
    ]
    assert [len(group) for group in seqs] == [2, 1, 1, 1, 100, 100, 5]
    assert list(chain.from_iterable(seqs)) == [event.seq for event in events]


def test_openmeter_gets_every_counter_for_other_meters() -> None:
    event = hour_counted(1, "alice", 3, 4)
    with OpenMeterServer(NOW) as engine:
        send(openmeter(engine.url, billed_to([event], alice="cus_a")), [event], NOW)
        (counted,) = engine.counted
    assert counted.properties["received_bytes"] == 3
    assert counted.properties["kind"] == "usage"
    assert counted.properties["realm"] == "example.org"
    assert "user" not in counted.properties


def test_openmeter_drops_a_repeated_event_without_saying_so() -> None:
    events = [hour_counted(1, "alice", 3), hour_counted(2, "alice", 4)]
    with OpenMeterServer(NOW) as engine:
        format_ = openmeter(engine.url, billed_to(events, alice="cus_a"))
        for _ in range(3):
            assert send(format_, events, NOW) == ([], None)
        assert (engine.dropped, len(engine.counted)) == (4, 2)


def test_lago_rejects_a_batch_for_one_event_and_gets_the_others_again() -> None:
    """422 names events: those that it has were taken, those that are wrong are refused."""
    events = [hour_counted(seq, "alice", seq) for seq in range(1, 7)]
    broken = str(events[3].event_id)
    with LagoServer(NOW, broken=[broken]) as engine:
        format_ = lago(engine.url, billed_to(events, alice="sub_a"))
        assert send(format_, events[1:3], NOW) == ([], None)
        requests = engine.request_count
        refusals, failure = send(format_, events, NOW)
        assert failure is None
        assert [(refusal.event.seq, refusal.reason) for refusal in refusals] == [
            (4, 'Lago: "the expression can\'t be evaluated"')
        ]
        assert engine.request_count - requests == 3  # whole, without 4, without 2 and 3
        assert engine.sums() == {("sub_a", "2026-11"): Decimal(1 + 2 + 3 + 5 + 6)}


DUPLICATE = {"transaction_id": ["value_already_exist"]}


@pytest.mark.parametrize(
    ("errors", "taken", "refused", "again"),
    [
        ({"1": DUPLICATE}, 0, [], [0, 2]),
        ({"0": DUPLICATE}, 1, [], [1, 2]),
        ({"0": DUPLICATE, "1": {"code": ["value_is_mandatory"]}}, 2, [1], [2]),
        ({"0": DUPLICATE, "1": {"code": ["x"]}, "2": DUPLICATE}, 3, [1], None),
    ],
)
def test_a_422_of_lago_settles_the_events_that_it_names(
    errors: Mapping[str, Any], taken: int, refused: list[int], again: list[int] | None
) -> None:
    events = [hour_counted(seq, "alice", seq + 1) for seq in range(3)]
    format_ = lago("http://127.0.0.1:1/x", billed_to(events, alice="sub_a"))
    (request,) = format_.requests(events, NOW)
    assert isinstance(request, Request)
    body = json.dumps({"error_details": errors}).encode()
    outcome = format_.outcome(request, Response(status=422, body=body))
    assert outcome.failure is None
    assert outcome.taken == taken
    assert [refusal.event.seq for refusal in outcome.refusals] == refused
    assert (outcome.rest and [event.seq for event in outcome.rest.events]) == again


@pytest.mark.parametrize(
    "body",
    [
        b'{"error_details": {"events": ["too_many_events"]}}',
        b'{"error_details": {"1": {}}}',
        b'{"error_details": {}}',
        b'{"error_details": []}',
        b"[]",
        b"<html>",
    ],
)
def test_a_422_of_lago_that_names_no_event_is_a_failure(body: bytes) -> None:
    event = hour_counted(1, "alice", 1)
    format_ = lago("http://127.0.0.1:1/x", billed_to([event], alice="sub_a"))
    (request,) = format_.requests([event], NOW)
    assert isinstance(request, Request)
    outcome = format_.outcome(request, Response(status=422, body=body))
    assert (outcome.taken, outcome.refusals, outcome.rest) == (0, (), None)
    assert outcome.failure == f"HTTP 422: {body.decode()}"


@pytest.mark.parametrize(
    ("make", "status", "body"),
    [
        (lago, 422, b"[" * 60_000),
        (stripe, 400, b"[" * 60_000),
        (stripe, 404, b"[" * 60_000),
        (stripe, 400, b'{"error":{"code":[],"message":{}}}'),
    ],
)
def test_an_answer_that_no_parser_takes_is_a_failure(
    make: MakeFormat, status: int, body: bytes
) -> None:
    event = hour_counted(1, "alice", 5)
    format_ = make("http://127.0.0.1:1", billed_to([event], alice="cus_a"))
    [request] = format_.requests([event], NOW)
    assert isinstance(request, Request)
    outcome = format_.outcome(request, Response(status=status, body=body))
    assert (outcome.taken, outcome.failure is None) == (0, False)


def test_stripe_gets_no_event_that_it_would_not_bill() -> None:
    """Refusals that an operator sees, in place of usage that is on no invoice."""
    ended = datetime(2026, 11, 1, tzinfo=UTC)
    old = hour_counted(1, "alice", 10, hour=NOW - timedelta(days=35))
    last = hour_counted(2, "alice", 20, hour=ended - timedelta(hours=1))
    open_ = hour_counted(3, "alice", 30)
    posted = adjustment(4, "alice", 40, posted_at=ended + timedelta(hours=2))
    large = hour_counted(5, "alice", 10**15)
    events = [old, last, open_, posted, large]
    customers = {
        event.event_id: EventCustomer(
            customer="cus_a", period_ends_at=ended if event in (last, posted) else None
        )
        for event in events
    }

    def refused(now: datetime, **options: Any) -> dict[int, str]:
        with StripeServer(now) as engine:
            refusals, failure = send(stripe(engine.url, customers, **options), events, now)
            assert failure is None
            assert len(engine.counted) + len(refusals) == len(events)
        return {refusal.event.seq: refusal.reason for refusal in refusals}

    reasons = refused(NOW)
    assert reasons[1].startswith("10: its hour, 2026-09-29 10:01 UTC, is more than 35 days")
    assert reasons[2].startswith("20: its period ended 2026-11-01 00:00 UTC")
    assert reasons[5].startswith("1000000000000000: Stripe takes at most 15 digits")
    assert set(reasons) == {1, 2, 5}
    assert set(refused(NOW, invoice_grace_seconds=3 * 86_400)) == {1, 5}
    within_the_hour = ended + timedelta(minutes=59)
    with StripeServer(within_the_hour) as engine:
        assert send(stripe(engine.url, customers), [last], within_the_hour) == ([], None)
        assert engine.sums() == {("cus_a", "2026-10"): Decimal(20)}


def test_stripe_says_which_error_is_the_events_own() -> None:
    events = [hour_counted(1, "bob", 7), hour_counted(2, "alice", 5)]
    with StripeServer(NOW, customers=["cus_a"]) as engine:
        format_ = stripe(engine.url, billed_to(events, alice="cus_a", bob="cus_b"))
        refusals, failure = send(format_, events, NOW)
        assert failure is None
        assert [(item.event.seq, item.reason) for item in refusals] == [
            (1, "Stripe: No such customer: 'cus_b'")
        ]
        engine.meters.clear()
        event = hour_counted(3, "alice", 1)
        format_ = stripe(engine.url, billed_to([event], alice="cus_a"))
        refusals, failure = send(format_, [event], NOW)
        assert (refusals, failure is not None and "No active meter" in failure) == ([], True)
        assert engine.sums() == {("cus_a", "2026-11"): Decimal(5)}


def test_an_error_that_stripe_saves_for_a_key_lasts_until_the_next_hour() -> None:
    event = hour_counted(1, "alice", 5)
    with StripeServer(NOW) as engine:
        format_ = stripe(engine.url, billed_to([event], alice="cus_a"))
        engine.broken_requests = 1
        for minutes in (0, 1, 50):
            engine.now = NOW + timedelta(minutes=minutes)
            assert "HTTP 500" in str(send(format_, [event], engine.now)[1])
        engine.now = NOW + timedelta(hours=1)
        for _ in range(2):
            assert send(format_, [event], engine.now) == ([], None)
        assert engine.sums() == {("cus_a", "2026-11"): Decimal(5)}


def test_stripe_forgets_an_identifier_after_a_day_and_the_format_says_so() -> None:
    """Which is why the delivery must not repeat, after that, what it doesn't know to be taken."""
    event = hour_counted(1, "alice", 5)
    with StripeServer(NOW) as engine:
        format_ = stripe(engine.url, billed_to([event], alice="cus_a"))
        assert format_.repeat_seconds == 86_400
        for _ in range(2):
            send(format_, [event], engine.now)
        assert engine.sums() == {("cus_a", "2026-11"): Decimal(5)}
        engine.now = NOW + timedelta(days=1, hours=1)
        send(format_, [event], engine.now)
        assert engine.sums() == {("cus_a", "2026-11"): Decimal(10)}


@each_engine
def test_a_wrong_key_or_address_is_a_failure_and_refuses_nothing(
    server: type[MeteringServer], make: MakeFormat
) -> None:
    event = hour_counted(1, "alice", 5)
    with server(NOW) as engine:
        customers = billed_to([event], alice="cus_a")
        format_ = make(engine.url + "/elsewhere", customers)
        assert send(format_, [event], NOW) == ([], "HTTP 404")
        (request,) = make(engine.url, customers).requests([event], NOW)
        assert isinstance(request, Request)
        for status in (301, 401, 403, 409, 429, 500, 503):
            outcome = format_.outcome(request, Response(status=status, body=b""))
            assert (outcome.taken, outcome.refusals, outcome.rest) == (0, (), None)
            assert outcome.failure == f"HTTP {status}"
