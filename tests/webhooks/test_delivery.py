"""The feed reaches each endpoint: in order, each event, and again until it is taken."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from accounting.domain.realm_rules import RealmRule
from accounting.errors import UsageError
from accounting.feed.number_feed import number_feed
from accounting.feed.outbox import enqueue_event
from accounting.identities.realm_queries import add_realm
from accounting.identities.realm_rules import remove_realm
from accounting.webhooks.attempts import prune_attempts
from accounting.webhooks.delivery import deliver
from accounting.webhooks.endpoints import (
    enable_endpoint,
    remove_endpoint,
    replay_events,
    rotate_secret,
)
from accounting.webhooks.leases import take_due
from accounting.webhooks.refusals import list_refusals
from tests.support.books import Books
from tests.support.feed_events import numbered_events, post_and_number
from tests.support.metering_events import hour_counted
from tests.support.servers import wait_until
from tests.support.webhook_endpoints import (
    add_webhook,
    attempt_rows,
    events_of,
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
    assert enable_endpoint(books.engine, number) == "disabled"
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


def test_an_endpoint_gets_its_types_and_its_realm_only(
    books: Books, receiver: WebhookReceiver
) -> None:
    post_and_number(books, "1")
    with books.engine.begin() as connection:
        other = add_realm(connection, b"example.net", RealmRule())
        enqueue_event(connection, "adjustment.posted", other, {"period": "2"}, "2")
        enqueue_event(connection, "source.trouble", None, {"period": "3"}, "3")
        enqueue_event(connection, "period.closed", other, {"period": "4"}, "4")
    add_webhook(books, receiver, "/types", types=["period.closed"], from_start=True)
    add_webhook(books, receiver, "/realm", realm="example.net", from_start=True)
    add_webhook(books, receiver, "/all", from_start=True)
    nothing, _ = add_webhook(books, receiver, "/none", types=["limit.reached"], from_start=True)
    post_and_number(books)
    assert deliver(books.engine) == 8
    assert taken_events(receiver, "/types") == ["1", "4"]
    assert taken_events(receiver, "/realm") == ["2", "4"]
    assert taken_events(receiver, "/all") == ["1", "2", "3", "4"]
    assert webhook_row(books, nothing)["seq"] == 4  # and nothing of it is read again
    assert attempt_rows(books, nothing) == []


def test_batches_have_up_to_so_many_events_in_order(
    books: Books, receiver: WebhookReceiver
) -> None:
    number, _ = add_webhook(books, receiver, "/batch", batch_size=3)
    post_and_number(books, *map(str, range(7)))
    assert deliver(books.engine) == 7
    assert [events_of(each) for each in receiver.requests("/batch")] == [
        ["0", "1", "2"], ["3", "4", "5"], ["6"],
    ]  # fmt: skip
    assert all(each.is_verified for each in receiver.requests("/batch"))
    assert [row["events"] for row in attempt_rows(books, number)] == [3, 3, 1]


def test_parallel_requests_are_under_way_together_and_none_is_repeated_after_2xx(
    books: Books, receiver: WebhookReceiver
) -> None:
    number, _ = add_webhook(books, receiver, "/fast", parallel=4)
    post_and_number(books, *map(str, range(9)))
    receiver.behave("/fast", do="hold")
    with running_delivery(books) as delivered:
        wait_until(lambda: len(receiver.requests("/fast")) == 4)
        receiver.behave("/fast", do="answer")
    assert delivered.result() == 9
    assert sorted(taken_events(receiver, "/fast")) == list(map(str, range(9)))
    assert webhook_row(books, number)["seq"] == 9


def test_of_parallel_requests_only_those_that_failed_are_sent_again(
    books: Books, receiver: WebhookReceiver
) -> None:
    number, _ = add_webhook(books, receiver, "/some", parallel=4)
    books.set_database_clock(NOON)
    post_and_number(books, *map(str, range(20)))
    receiver.behave("/some", do="random", faults=0.5, secrets=None)
    now = NOON
    while (row := webhook_row(books, number))["seq"] < 20:
        now = row["next_attempt_at"] or now
        books.set_database_clock(now)
        deliver(books.engine)
        assert len(row["seqs_ahead"]) < 20
    taken = taken_events(receiver, "/some")
    assert sorted(taken, key=int) == list(map(str, range(20)))
    assert now > NOON


def test_a_slow_endpoint_delays_no_other(books: Books, receiver: WebhookReceiver) -> None:
    add_webhook(books, receiver, "/slow")
    add_webhook(books, receiver, "/quick")
    receiver.behave("/slow", do="hold")
    post_and_number(books, "1")
    with running_delivery(books) as delivered:
        wait_until(lambda: taken_events(receiver, "/quick") == ["1"])
        post_and_number(books, "2")  # while the other one is still waited for
        wait_until(lambda: taken_events(receiver, "/quick") == ["1", "2"])
        assert taken_events(receiver, "/slow") == []
        receiver.behave("/slow", do="answer")
    assert delivered.result() == 4
    assert taken_events(receiver, "/slow") == ["1", "2"]


def test_two_schedulers_never_deliver_to_one_endpoint_at_a_time(
    books: Books, receiver: WebhookReceiver
) -> None:
    number, _ = add_webhook(books, receiver, "/two")
    receiver.behave("/two", do="hold")
    post_and_number(books, "1", "2")
    with running_delivery(books) as first:
        wait_until(lambda: len(receiver.requests("/two")) == 1)
        assert deliver(books.engine) == 0
        # As if the first one had stood still until its lease was over.
        expire_leases(books)
        with running_delivery(books) as second:
            wait_until(lambda: len(receiver.requests("/two")) == 2)
            receiver.behave("/two", do="answer")
    assert (first.result(), second.result()) == (0, 2)  # the first one wrote nothing
    assert webhook_row(books, number)["seq"] == 2
    assert [row["first_seq"] for row in attempt_rows(books, number)] == [1, 2]


def test_a_delivery_ends_soon_after_it_is_stopped(books: Books, receiver: WebhookReceiver) -> None:
    number, _ = add_webhook(books, receiver, "/stop")
    receiver.behave("/stop", do="hold")
    post_and_number(books, "1", "2", "3")
    stop = threading.Event()
    with running_delivery(books, stop) as delivered:
        wait_until(lambda: len(receiver.requests("/stop")) == 1)
        stop.set()
        receiver.behave("/stop", do="answer")
    assert delivered.result() == 1
    row = webhook_row(books, number)
    assert (row["seq"], row["lease"]) == (1, None)
    assert deliver(books.engine) == 2


def test_a_replay_or_a_removal_ends_a_delivery_that_is_under_way(
    books: Books, receiver: WebhookReceiver
) -> None:
    replayed, _ = add_webhook(books, receiver, "/replayed")
    removed, _ = add_webhook(books, receiver, "/removed")
    post_and_number(books, "1", "2")
    for path in ("/replayed", "/removed"):
        receiver.behave(path, do="hold")
    with running_delivery(books) as delivered:
        wait_until(lambda: has_waiting(receiver, "/replayed") and has_waiting(receiver, "/removed"))
        replay_events(books.engine, replayed, after=0)
        assert deliver(books.engine) == 0  # not beside the request that is under way
        assert len(receiver.requests("/replayed")) == 1
        remove_endpoint(books.engine, removed)
        for path in ("/replayed", "/removed"):
            receiver.behave(path, do="answer")
    assert delivered.result() == 2
    assert taken_events(receiver, "/replayed") == ["1", "1", "2"]
    assert taken_events(receiver, "/removed") == ["1"]
    assert books.query("SELECT FROM accounting.webhook_attempts WHERE number = %s", [removed]) == []


def test_a_secret_that_rotates_signs_together_with_the_one_before(
    books: Books, receiver: WebhookReceiver
) -> None:
    number, old = add_webhook(books, receiver, "/rotates")
    new, until = rotate_secret(books.engine, number, 3600)
    assert until is not None
    post_and_number(books, "1")
    deliver(books.engine)
    receiver.behave("/rotates", do="answer", secrets=[new])
    post_and_number(books, "2")
    deliver(books.engine)
    newest, until = rotate_secret(books.engine, number, 0)
    assert until is None
    receiver.behave("/rotates", do="answer", secrets=[newest])
    post_and_number(books, "3")
    deliver(books.engine)
    requests = receiver.requests("/rotates")
    assert [each.is_verified for each in requests] == [True, True, True]
    assert [len(each.headers["webhook-signature"].split()) for each in requests] == [2, 2, 1]
    assert len({old, new, newest}) == 3


def test_a_second_rotation_waits_for_the_overlap_of_the_first_or_ends_it(
    books: Books, receiver: WebhookReceiver
) -> None:
    number, old = add_webhook(books, receiver, "/rotates")
    rotate_secret(books.engine, number, 3600)
    with pytest.raises(UsageError, match="the secret before the last one signs until"):
        rotate_secret(books.engine, number, 3600)
    assert webhook_row(books, number)["previous_secret"] == old
    newest, until = rotate_secret(books.engine, number, 0)
    assert (until, webhook_row(books, number)["secret"]) == (None, newest)


def test_days_in_which_nothing_was_tried_disable_nothing(
    books: Books, receiver: WebhookReceiver
) -> None:
    number, _ = add_webhook(books, receiver, "/was-away")
    receiver.behave("/was-away", do="answer", status=503, secrets=None)
    post_and_number(books, "1")
    books.set_database_clock(NOON)
    deliver(books.engine)
    books.set_database_clock(NOON + timedelta(days=6))
    deliver(books.engine)
    row = webhook_row(books, number)
    assert (row["failures"], row["disabled_at"]) == (2, None)


def test_an_error_of_this_program_is_a_failure_of_that_endpoint_only(
    books: Books, receiver: WebhookReceiver
) -> None:
    number, _ = add_webhook(books, receiver, "/breaks")
    other, _ = add_webhook(books, receiver, "/works")
    post_and_number(books, "1")
    with books.engine.begin() as connection:
        # No version of this service writes it: the format finds no member "ended_at".
        enqueue_event(connection, "session.ended", None, {}, "incomplete")
    post_and_number(books)
    assert deliver(books.engine) == 2
    for broken in (number, other):
        row = webhook_row(books, broken)
        assert (row["seq"], row["failures"]) == (1, 1)
        assert row["last_failure"] == "an error of this program: KeyError"
        assert row["next_attempt_at"] > row["failing_since"]


def test_no_refusal_is_lost_when_it_can_not_be_written(
    books: Books, receiver: WebhookReceiver
) -> None:
    """The position stays before it, as it would be usage that nobody bills and nothing lists."""
    number, _ = add_webhook(
        books, receiver, "/refused", format="lago", api_key="key",
        options={"customer": "{user}"}, from_start=True,
    )  # fmt: skip
    receiver.behave("/refused", do="answer", secrets=None)
    with books.engine.begin() as connection:
        realm = add_realm(connection, b"example.org", RealmRule())
        enqueue_event(connection, "usage.counted", realm, hour_counted(1, "alice", 5).payload, "1")
    number_feed(books.engine)
    with psycopg.connect(books.url(), autocommit=True) as owner:
        owner.execute(
            "ALTER TABLE accounting.webhook_refusals ADD CONSTRAINT no_room CHECK (false)"
        )
    assert deliver(books.engine) == 0
    row = webhook_row(books, number)
    assert (row["seq"], row["failures"]) == (0, 1)
    assert row["last_failure"] == "an error of this program: IntegrityError"
    with psycopg.connect(books.url(), autocommit=True) as owner:
        owner.execute("ALTER TABLE accounting.webhook_refusals DROP CONSTRAINT no_room")
    books.set_database_clock(row["next_attempt_at"])
    deliver(books.engine)
    assert webhook_row(books, number)["seq"] == 1
    [refusal] = list_refusals(books.engine, number)
    assert refusal["seq"] == 1


def test_a_database_clock_that_was_set_back_keeps_no_endpoint_waiting(
    books: Books, receiver: WebhookReceiver
) -> None:
    number, _ = add_webhook(books, receiver, "/clock")
    receiver.behave("/clock", do="answer", status=503, secrets=None)
    books.set_database_clock(NOON + timedelta(days=10))
    post_and_number(books, "1")
    deliver(books.engine)
    assert webhook_row(books, number)["failures"] == 1
    receiver.behave("/clock", do="answer", secrets=None)
    books.set_database_clock(NOON)
    assert deliver(books.engine) == 1
    # A smaller step takes no lease away from a process that may be sending.
    post_and_number(books, "2")
    [_] = take_due(books.engine, 1)
    books.set_database_clock(NOON - timedelta(seconds=30))
    assert deliver(books.engine) == 0


def test_a_realm_with_webhooks_of_its_own_is_not_removed(
    books: Books, receiver: WebhookReceiver
) -> None:
    with books.engine.begin() as connection:
        add_realm(connection, b"example.net", RealmRule())
    number, _ = add_webhook(books, receiver, "/realm", realm="example.net")
    with pytest.raises(UsageError, match=f"webhook remove {number}"):
        remove_realm(books.engine, "example.net")
    remove_endpoint(books.engine, number)
    remove_realm(books.engine, "example.net")


def test_a_feed_that_was_restored_is_delivered_from_where_it_is_still_the_same(
    books: Books, receiver: WebhookReceiver
) -> None:
    number, _ = add_webhook(books, receiver, "/restored")
    post_and_number(books, "1", "2")
    deliver(books.engine)
    post_and_number(books, "3", "4")
    deliver(books.engine)
    lose_events(books, after=2)
    post_and_number(books, "5")
    assert deliver(books.engine) == 1
    assert taken_events(receiver, "/restored") == ["1", "2", "3", "4", "5"]
    assert webhook_row(books, number)["seq"] == 3


def test_a_metering_endpoint_stops_when_the_feed_was_restored(
    books: Books, receiver: WebhookReceiver
) -> None:
    number, _ = add_webhook(books, receiver, "/meter")
    post_and_number(books, "1", "2")
    deliver(books.engine)
    books.query(
        "UPDATE accounting.webhooks SET format = 'lago' WHERE number = %s RETURNING 1", [number]
    )
    lose_events(books, after=0)
    post_and_number(books, "3")
    assert deliver(books.engine) == 0
    row = webhook_row(books, number)
    assert "restored from a backup" in row["disabled_reason"]
    assert f"webhook replay {number} --after SEQ" in row["disabled_reason"]


def test_records_of_deliveries_are_pruned_after_a_week(
    books: Books, receiver: WebhookReceiver
) -> None:
    number, _ = add_webhook(books, receiver, "/pruned")
    post_and_number(books, "1")
    deliver(books.engine)
    assert prune_attempts(books.engine) == 0
    books.set_database_clock(ahead=timedelta(days=7, minutes=1))
    assert prune_attempts(books.engine) == 1
    assert attempt_rows(books, number) == []


@contextmanager
def running_delivery(books: Books, stop: threading.Event | None = None) -> Iterator[Future[int]]:
    """The job in a thread; its result is there when the block is over."""
    with ThreadPoolExecutor(1) as threads:
        yield threads.submit(deliver, books.engine, stop)


def has_waiting(receiver: WebhookReceiver, path: str) -> bool:
    return any(each.ended_at is None for each in receiver.requests(path))


def expire_leases(books: Books) -> None:
    books.query("UPDATE accounting.webhooks SET leased_until = '-infinity' RETURNING 1")


def lose_events(books: Books, after: int) -> None:
    """The feed as a backup had it, without the rest of the books."""
    with psycopg.connect(books.url()) as connection:
        connection.execute("ALTER TABLE accounting.feed DISABLE TRIGGER ALL")
        connection.execute("DELETE FROM accounting.feed WHERE seq > %s", [after])
        connection.execute("DELETE FROM accounting.feed_batches WHERE last_seq > %s", [after])
