"""Webhooks and metering engines of a front get what all its cells counted: what the front bills."""

from datetime import UTC, date, datetime
from decimal import Decimal

from accounting.billing.adjust import adjust, post_manual_adjustment
from accounting.billing.close_period import close_period
from accounting.feed.number_feed import number_feed
from accounting.front.billing.copy_billing import copy_billing
from accounting.webhooks.delivery import deliver
from accounting.webhooks.endpoints import add_endpoint, list_endpoints
from accounting.webhooks.formats.options import FormatName, FormatOptions
from accounting.webhooks.refusals import list_refusals
from tests.support.books import channel, status_payload, traffic_payload
from tests.support.fronts import HOUR, Front, call
from tests.support.metering_engines import API_KEY, OpenMeterServer
from tests.support.webhook_receiver import WebhookReceiver

MONTH = HOUR * 24 * 31
NOVEMBER = date(2026, 11, 1)


def fill(front: Front) -> None:
    """Two cells: alice is in both in the same hours, bob in one."""
    for cell in front.cells:
        call(front, cell, "alice", HOUR, 1)
    call(front, "south", "bob", HOUR * 3, 3)
    front.advance_clocks(HOUR * 10)
    front.run_jobs()


def close_november(front: Front) -> None:
    """Close it in the cells while each has received more, which it has not loaded yet."""
    for cell in front.cells:
        for hours, suffix, payload in (
            (11, "status", status_payload("new")),
            (11.1, "traffic", traffic_payload(1, 200, 3, 40)),
            (11.2, "status", status_payload("deleted")),
        ):
            name = channel(suffix, user="alice", allocation=2)
            front.receive(cell, HOUR * hours, name, payload)
    for books in front.cells.values():
        books.set_database_clock(datetime(2026, 12, 10, tzinfo=UTC))
    front.books.set_database_clock(datetime(2026, 12, 10, tzinfo=UTC))
    for cell, books in front.cells.items():
        close_period(books.engine, "example.org", NOVEMBER, excluded_sources=[cell])
    assert front.bill() == 1


def adjust_november(front: Front) -> None:
    """Post what the cells load late, and a credit on the front."""
    for cell, books in front.cells.items():
        books.advance_clock(MONTH * 1.5, source=cell)
        books.run_jobs()
        assert adjust(books.engine) == 1
    assert front.bill() == 2
    credit = {"received_bytes": -7}
    post_manual_adjustment(
        front.books.engine, "example.org", NOVEMBER, "alice", credit, reason="credit", author="ann"
    )


def deliver_all(front: Front) -> None:
    number_feed(front.books.engine)
    while any(row["events_behind"] for row in list_endpoints(front.books.engine)):
        assert deliver(front.books.engine) > 0


def billed(front: Front) -> dict[str, Decimal]:
    """Bytes of each user in statements and adjustments of the front."""
    query = """
        SELECT user_id, sum(received_bytes + sent_bytes) AS bytes FROM (
            SELECT user_id, received_bytes, sent_bytes FROM reporting.statements
            UNION ALL SELECT user_id, received_bytes, sent_bytes FROM reporting.adjustments
        ) b GROUP BY user_id
    """
    return {row["user_id"]: row["bytes"] for row in front.books.query(query)}


def test_an_engine_counts_what_the_front_bills(front: Front) -> None:
    with OpenMeterServer(datetime(2026, 12, 10, tzinfo=UTC)) as engine:
        number, _ = add_endpoint(
            front.books.engine, url=engine.url, format=FormatName.OPENMETER,
            options=FormatOptions(customer="{user}").to_json(), api_key=API_KEY,
            allows_private=True, from_start=True, batch_size=2,
        )  # fmt: skip
        front.bill()
        deliver_all(front)
        close_november(front)
        deliver_all(front)
        adjust_november(front)
        deliver_all(front)
        sums: dict[str, Decimal] = {}
        for item in engine.counted:
            sums[item.customer] = sums.get(item.customer, Decimal(0)) + item.value
        assert sums == billed(front)
        november = {customer: value for (customer, _), value in engine.sums().items()}
        assert november.keys() == {"alice", "bob"}
    assert list_refusals(front.books.engine, number) == []


def test_what_is_counted_of_a_period_comes_before_its_close(front: Front) -> None:
    for cell in front.cells:
        front.cells[cell].set_database_clock(datetime(2026, 12, 10, tzinfo=UTC))
        close_period(front.cells[cell].engine, "example.org", NOVEMBER, excluded_sources=[cell])
    front.books.set_database_clock(datetime(2026, 12, 10, tzinfo=UTC))
    assert copy_billing(front.books.engine) == 0
    [waits] = front.rows("periods WHERE period = '2026-11-01'", "waits_for")
    assert waits["waits_for"].startswith("cell 'north': its feed up to the close; cell 'south'")
    assert front.bill() == 1
    number_feed(front.books.engine)
    types = [row["type"] for row in front.rows("feed", "type", "seq", order="seq")]
    assert types.count("usage.counted") == 6
    assert (types.count("period.closed"), types[-1]) == (1, "period.closed")


def test_an_endpoint_gets_the_events_of_all_cells_in_the_order_of_the_front(front: Front) -> None:
    with WebhookReceiver() as receiver:
        receiver.behave("/all", do="answer")  # its clock is not that of the books: no signatures
        add_endpoint(
            front.books.engine, url=receiver.url("/all"), allows_private=True, from_start=True,
            batch_size=3,
        )  # fmt: skip
        front.bill()
        close_november(front)
        adjust_november(front)
        deliver_all(front)
        taken = [event for each in receiver.requests("/all") for event in each.event_ids]
        ids = [str(row["event_id"]) for row in front.rows("feed", "event_id", order="seq")]
        assert [each.removeprefix("evt_") for each in taken] == ids
    types = {row["type"] for row in front.rows("feed", "type")}
    assert types == {"session.ended", "usage.counted", "period.closed", "adjustment.posted"}
