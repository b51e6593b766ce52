"""The feed reaches each endpoint: in order, each event, and again until it is taken."""

from datetime import UTC, datetime, timedelta

from accounting.webhooks.delivery import deliver
from accounting.webhooks.endpoints import enable_endpoint, replay_events
from tests.support.books import Books
from tests.support.feed_events import numbered_events, post_and_number
from tests.support.webhook_endpoints import (
    add_webhook,
    attempt_rows,
    taken_events,
    webhook_row,
)
from tests.support.webhook_receiver import WebhookReceiver

NOON = datetime(2026, 11, 10, 12, tzinfo=UTC)


def test_events_are_delivered_in_order_each_once_and_signed(
    books: Books, receiver: WebhookReceiver
) -> None:
    post_and_number(books, "before")
    add_webhook(books, receiver, "/a")
    assert deliver(books.engine) == 0  # what was there before is not asked for
    post_and_number(books, "1", "2", "3")
    assert deliver(books.engine) == 3
    assert deliver(books.engine) == 0
    requests = receiver.requests("/a")
    assert [each.event_ids for each in requests] == [
        [str(row["event_id"])] for row in books.rows("feed", "seq, event_id")[1:]
    ]
    assert [each.headers["webhook-id"] for each in requests] == [
        each.event_ids[0] for each in requests
    ]
    assert all(each.is_verified and each.is_taken for each in requests)


def test_a_failed_request_is_sent_again_after_a_pause_and_blocks_what_follows(
    books: Books, receiver: WebhookReceiver
) -> None:
    number, _ = add_webhook(books, receiver, "/fails")
    receiver.behave("/fails", do="answer", status=500, secrets=None)
    books.set_database_clock(NOON)
    post_and_number(books, "1", "2")
    assert deliver(books.engine) == 0
    assert len(receiver.requests("/fails")) == 1
    row = webhook_row(books, number)
    assert (row["seq"], row["failures"], row["failing_since"]) == (0, 1, NOON)
    assert timedelta(seconds=4) <= row["next_attempt_at"] - NOON <= timedelta(seconds=6)
    receiver.behave("/fails", do="answer", secrets=None)
    assert deliver(books.engine) == 0
    books.set_database_clock(NOON + timedelta(seconds=6))
    assert deliver(books.engine) == 2
    row = webhook_row(books, number)
    assert (row["seq"], row["failures"], row["failing_since"]) == (2, 0, None)
    assert taken_events(receiver, "/fails") == ["1", "2"]
    attempts = [(each["first_seq"], each["status"]) for each in attempt_rows(books, number)]
    assert attempts == [(1, 500), (1, 200), (2, 200)]


def test_after_five_days_the_endpoint_is_disabled_and_says_so(
    books: Books, receiver: WebhookReceiver
) -> None:
    number, secret = add_webhook(books, receiver, "/dead")
    receiver.behave("/dead", do="answer", status=503, secrets=None)
    books.set_database_clock(NOON)
    post_and_number(books, "1")
    pauses = []
    now = NOON
    while (row := webhook_row(books, number))["disabled_at"] is None:
        pauses.append((row["next_attempt_at"] or now) - now)
        now = row["next_attempt_at"] or now
        books.set_database_clock(now)
        deliver(books.engine)
    assert row["disabled_at"] - row["failing_since"] >= timedelta(days=5)
    assert row["disabled_at"] - row["failing_since"] < timedelta(days=5, hours=6)
    assert 30 < len(pauses) < 50
    assert max(pauses) == timedelta(hours=5)
    post_and_number(books)
    [said] = [row for row in books.rows("feed") if row["type"] == "webhook.disabled"]
    assert (said["realm"], said["payload"]["webhook"], said["payload"]["seq"]) == ("", number, 0)
    assert secret not in str(said)
    assert receiver.url("") not in str(said)
    assert deliver(books.engine) == 0
    receiver.behave("/dead", do="answer", secrets=None)
    assert enable_endpoint(books.engine, number)
    assert deliver(books.engine) == 2
    assert [each.event_ids for each in receiver.requests("/dead") if each.is_taken][1] == [
        str(said["event_id"])
    ]


def test_410_disables_at_once(books: Books, receiver: WebhookReceiver) -> None:
    number, _ = add_webhook(books, receiver, "/gone")
    receiver.behave("/gone", do="answer", status=410)
    post_and_number(books, "1")
    deliver(books.engine)
    assert webhook_row(books, number)["disabled_at"] is not None
    assert len(receiver.requests("/gone")) == 1


def test_a_replay_delivers_again_from_a_position(books: Books, receiver: WebhookReceiver) -> None:
    number, _ = add_webhook(books, receiver, "/again")
    post_and_number(books, "1", "2", "3")
    assert deliver(books.engine) == 3
    assert replay_events(books.engine, number, after=1) == (1, 3)
    assert deliver(books.engine) == 2
    assert taken_events(receiver, "/again") == ["1", "2", "3", "2", "3"]
    assert len(numbered_events(books)) == 3
